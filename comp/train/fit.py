"""The training loop, whole: one fold from arrays to weights."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from comp import distributed, files
from comp.config import Competition, Config, Predict
from comp.data import batches
from comp.data.arrays import TrainSplit
from comp.data.folds import TrainingData
from comp.device import Machine
from comp.errors import Refused
from comp.model import losses, metrics, predict, segmenter
from comp.model.losses import Loss
from comp.model.segmenter import Segmenter
from comp.train import runs, schedule
from comp.train.step import Batch, Step

CHECKPOINT_EVERY = 60.0  # seconds; what a killed run loses
CHECKPOINT_SHARE = 0.02  # of the time is spent on them at most, so large models lose more
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Called when an epoch has ended, with its model, and with margins and counts of its validation, if there was one.
Watch = Callable[..., None] | None
EMA_EVERY = 4  # steps; averaging costs memory traffic, and its horizon is hundreds of steps


@dataclass
class State:
    """Where a run is: everything a checkpoint holds beside tensors."""

    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    updates: int = 0
    progress: float = 0.0  # share of the schedule that is done
    seconds: float = 0.0  # spent training, over all starts
    lr: float = 0.0  # of the last step
    loss: float = 0.0  # sum over this epoch's samples
    samples: int = 0  # of this epoch that `loss` sums over: those of steps whose loss was finite
    bad: int = 0  # steps of this epoch that were left out, since the loss was not finite
    trained: int = 0  # samples since the run began
    training: float = 0.0  # seconds spent on them, validation left out
    skipped: int = 0  # steps that were left out in all epochs before this one
    rate: float = 1.0  # plateau's factor on the learning rate
    best_score: float = -math.inf
    best_epoch: int = -1
    best_sound: bool = False  # whether the validation loss of the best epoch was finite
    history: list[dict[str, float]] = field(default_factory=list)
    ended: str = ""  # why training ended, once it has
    weights: str = ""  # where the encoder's are from


def fit(data: TrainingData, fold: int, folder: Path, machine: Machine, watch: Watch = None) -> tuple[Segmenter, State]:
    """Train a fold and choose its best epoch, without validation the last; return its model, and how training went.

    `folder` receives model.safetensors at each better epoch, history.csv, and checkpoints from which the same call goes
    on. The schedule is fitted into what is left until the machine's deadline, with time to spare for what comes after
    training. Raises KeyboardInterrupt after Ctrl-C or SIGTERM, its state on disk, and Refused where it diverges."""
    from timm.utils import ModelEmaV3  # five seconds, which refusals need not wait for

    started, config, split, index = time.monotonic(), data.config, data.split, data.index
    device, classes, metric = machine.device.device, config.competition.classes, config.competition.metric
    train, valid = data.rows(fold)
    torch.manual_seed(config.seed)
    mean_and_deviation = segmenter.measure_normalisation(split.inputs, train)
    model, note = segmenter.build_segmenter(config.model, split.inputs.shape[3], len(classes), *mean_and_deviation)
    if config.model.start:
        note = runs.load_start(model, Path(config.model.start), folder.name, split.ids[valid])
    print(f"{config.model.architecture}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters; {note}")
    model.place(machine.device)
    averaging = ModelEmaV3(model) if config.ema else None
    averaged = averaging.module if averaging else model
    pixels, ignored = index.counts[train].sum(0), config.competition.arrays.ignored
    model.overlap = config.competition.overlap
    loss_of = losses.build_loss(config.loss, classes, pixels, ignored, model.overlap)
    step = Step(model, loss_of, config)
    times = batches.draws_per_image(index.counts[train], config.oversample, classes)
    loader = batches.TrainBatches(split, train, times, config, machine.workers, pin=device.type == "cuda")

    state, modules = State(weights=note), {"model": model} | ({"averaged": averaged} if config.ema else {})
    if restored := runs.load_checkpoint(folder / runs.CHECKPOINT, modules, step.optimizer):
        scaling = restored.pop("scaler", {})
        if scaling and machine.device.dtype == torch.float16:  # it is empty from a CPU, and always 1 in bf16
            step.scaler.load_state_dict(scaling)
        if {k: type(v) for k, v in restored.items()} != {k: type(v) for k, v in vars(state).items()}:
            raise Refused(f"{folder / runs.CHECKPOINT}: of another version of this library; delete it to start anew")
        state = State(**restored)
        print(f"goes on from {runs.CHECKPOINT}: epoch {state.epoch + 1}, {state.progress:.0%} of the schedule done")
    timer = schedule.Timer(machine.deadline, state.progress, len(valid) * (1 + len(predict.VIEWS[config.predict.tta])))
    began, due = started - state.seconds, time.monotonic() + CHECKPOINT_EVERY

    # Counted since they were last settled: the loss over samples, the samples, and the steps that were left out.
    sums, clock = torch.zeros(3, device=device), 0.0

    def settle() -> None:
        """Bring what the device and the clock have counted into the state."""
        nonlocal clock
        loss, samples, bad = sums.tolist()
        state.loss, state.samples, state.bad = state.loss + loss, state.samples + int(samples), state.bad + int(bad)
        state.training, clock = state.training + time.monotonic() - clock, time.monotonic()
        sums.zero_()

    def save() -> None:
        nonlocal due
        asked = time.monotonic()
        state.seconds = asked - began
        if not distributed.rank():
            facts = asdict(state) | {"scaler": step.scaler.state_dict()}
            runs.save_checkpoint(folder / runs.CHECKPOINT, modules, step.optimizer, facts)
        due = time.monotonic() + max(CHECKPOINT_EVERY, (time.monotonic() - asked) / CHECKPOINT_SHARE)

    def wait_for_batches() -> list[Batch]:
        """The batches of the next step. Nothing is half done meanwhile, so what ends the waiting costs nothing."""
        try:
            return list(islice(loaded, config.optimizer.accumulate))
        except BaseException:
            settle()
            if state.trained:
                save()
            raise

    with loader, _stop_requests() as stop:
        while not state.ended:
            model.freeze(config.model.freeze_encoder is True or state.epoch < config.model.freeze_encoder)
            model.train()
            steps = loader.steps(state.epoch)
            average_every = min(EMA_EVERY, math.ceil(steps / config.optimizer.accumulate))  # once an epoch at least
            clock = time.monotonic()
            desc, hidden = f"epoch {state.epoch + 1}/{config.epochs}", True if distributed.rank() else None
            bar = tqdm(total=steps, initial=state.batch, desc=desc, leave=False, disable=hidden, unit="batch")
            loaded = loader.epoch(state.epoch, skip=state.batch)
            while group := wait_for_batches():
                state.lr = config.optimizer.lr * state.rate * schedule.learning_rate(config.schedule, state.progress)
                loss = step(group, state.lr, [config.seed, state.epoch, state.batch])
                state.updates += 1
                if averaging and state.updates % average_every == 0:
                    # A young average forgets faster, or a short run would keep its random start.
                    decay = min(config.ema**average_every, (1 + state.updates) / (10 + state.updates))
                    averaging.apply_update_(model, decay)

                samples, finite = sum(size for size, *_ in group), loss.isfinite()
                sums += torch.stack([torch.where(finite, loss * samples, 0.0), finite * samples, ~finite])
                state.trained += samples
                state.batch += len(group)
                bar.update(len(group))
                progress = timer.progress((state.epoch + state.batch / steps) / config.epochs, samples)
                state.progress, stopping = distributed.agree(progress, stop.is_set())
                if state.progress >= 1.0 and state.batch < steps:
                    state.ended = "time budget"
                    if not state.epoch:
                        print(f"the time budget sufficed for {state.batch} of the {steps} batches of one epoch")
                    break
                if stopping or time.monotonic() > due:
                    settle()
                    save()
                    if stopping:
                        raise KeyboardInterrupt
            bar.close()
            settle()
            if averaging and state.updates < average_every:
                averaging.apply_update_(model, 0.0)
            valid_loss, score, counted = math.nan, math.nan, list[np.ndarray]()
            if len(valid):
                looked = time.monotonic()
                valid_loss, *counted = evaluate(averaged, split, valid, loss_of, config.predict, config.competition)
                # The first also pays for starting up; unless it is long, that would be most of what it shows.
                if state.epoch or time.monotonic() - looked > 5.0:
                    timer.forward = (time.monotonic() - looked) / len(valid)
                score = metrics.score(counted[0], metric, counted[1])
            state.seconds = time.monotonic() - began
            _end_epoch(state, averaged, valid_loss, score, step.scaler.get_scale(), config, folder)
            if watch:
                watch(state, averaged, *counted)
        save()
        if distributed.agree(0.0, stop.is_set())[1]:
            raise KeyboardInterrupt
    return segmenter.load_model(folder / runs.MODEL, machine.device)[0], state


def _end_epoch(
    state: State, model: Segmenter, valid_loss: float, score: float, scale: float, config: Config, folder: Path
) -> None:
    """Enter an epoch into the history, keep its model if it is the best, settle how training goes on.

    Without validation `score` is NaN, and the last epoch the best. An epoch whose validation loss is not finite is
    never better than one whose loss is. Raises Refused where the loss of most of its steps was not finite."""
    seconds, train_loss = round(state.seconds, 2), state.loss / state.samples if state.samples else math.nan
    row = {"epoch": state.epoch + 1, "seconds": seconds, "lr": state.lr, "train_loss": train_loss}
    state.history.append(row | {"valid_loss": valid_loss, "score": score, "scale": scale})
    diverged = state.bad > math.ceil(state.batch / config.optimizer.accumulate) / 2
    sound = math.isnan(score) or math.isfinite(valid_loss)
    better = not diverged and (math.isnan(score) or (sound, score) > (state.best_sound, state.best_score))
    if better:
        state.best_sound, state.best_score, state.best_epoch = sound, score, state.epoch
        if not distributed.rank():
            segmenter.save_model(model, folder / runs.MODEL, config)
    validated = "" if math.isnan(score) else f"  valid {valid_loss:.4f}  score {score:.4f}{' *' * better}"
    rates = f"{seconds:7.1f} s  lr {state.lr:.1e}  loss {train_loss:.4f}"
    print(f"epoch {state.epoch + 1:>3}/{config.epochs}  {rates}{validated}", flush=True)
    if not distributed.rank():
        files.write_text(folder / runs.HISTORY, pd.DataFrame(state.history).to_csv(index=False, lineterminator="\n"))
    if diverged:
        fits = "try a lower optimizer.lr or optimizer.clip = 1.0"
        raise Refused(f"training diverged in epoch {state.epoch + 1}: most losses are NaN or infinite; {fits}")
    waited = state.epoch - state.best_epoch
    if config.schedule.name == "plateau" and waited and waited % config.schedule.patience == 0:
        state.rate = max(state.rate * config.schedule.factor, config.schedule.final)
    state.skipped += state.bad
    state.epoch, state.batch, state.loss, state.samples, state.bad = state.epoch + 1, 0, 0.0, 0, 0
    early = config.patience and waited >= config.patience
    ends = {"all epochs": state.epoch >= config.epochs, "early stop": early, "time budget": state.progress >= 1.0}
    state.ended = state.ended or next((why for why, now in ends.items() if now), "")


@torch.inference_mode()
def evaluate(
    model: Segmenter, split: TrainSplit, rows: np.ndarray, loss_of: Loss, settings: Predict, competition: Competition
) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean loss, margins int64 (n, 4, C) and counts (n, K) as `metrics` has them, without test-time augmentation."""
    model.eval()
    tally = metrics.Tally(split, rows, competition)

    def look(images: Tensor, batch: np.ndarray, settings: Predict) -> Tensor:
        logits = predict.predict_tiles(lambda x: predict.logits(model, x), images, settings)
        masks = torch.from_numpy(np.ascontiguousarray(split.masks[batch])).to(logits.device)
        tally.add(batch, masks, predict.to_labels(logits, competition.overlap))
        return loss_of(logits, masks).double() * len(batch)

    # Each rank looks at its share, and the sum over ranks holds all.
    mine = tally.units % distributed.world_size() == distributed.rank()
    looked = predict.for_each_batch(look, split.inputs, rows[mine], settings, model.device)
    total = sum((loss for _, loss in looked), torch.zeros((), dtype=torch.float64))
    # There may be fewer images than ranks, and a rank without one does not know how many counts there are.
    width, seen = tally.counts.shape[1], int(mine.any())
    told = distributed.all_reduce(torch.tensor([width * seen, seen]))
    counts = torch.zeros(len(rows), int(told[0] / told[1]), dtype=torch.float64)
    counts[mine] = torch.from_numpy(tally.counts[mine][:, : counts.shape[1]])
    sums = (total.cpu() / len(rows), torch.from_numpy(tally.margins), counts)
    mean, margins, counts = map(distributed.all_reduce, sums)
    return mean.item(), margins.numpy(), counts.numpy()


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C, SIGTERM or lost terminal sets; a second one does what it always does."""
    stop = threading.Event()

    def ask(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, old[number])

    heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]  # as nohup ignores one
    old: dict[int, Any] = {number: signal.signal(number, ask) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
