import itertools
import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, draw

from comp import config, device, files
from comp.data import arrays
from comp.data.arrays import TrainSplit
from comp.data.folds import FULL, TrainingData
from comp.device import Machine
from comp.errors import Refused
from comp.model import losses, segmenter
from comp.train import fit, runs, schedule
from comp.train.step import Step, make_optimizer

CPU = device.Device(torch.device("cpu"), torch.float32, "a test")
SMALL = ["model.options={encoder_depth=3, decoder_channels=[8,8,8]}", "batch_size=8", "augment.transforms=[]"]


def settings(*overrides: str) -> config.Config:
    return config.load_config("demo", "default", [*SMALL, 'competition.classes=["ground","stripe","spot"]', *overrides])


def prepare(loaded: config.Config, count: int = 16, size: tuple[int, int] = (32, 32)) -> TrainingData:
    """Drawn images, of which fold 0 validates on the last four."""
    images, masks = draw(count, 0, size)
    split = TrainSplit(images[..., None], masks, np.arange(count).astype(str), None, None)
    index = arrays.build_index(split, loaded.competition)
    return TrainingData(loaded, split, index, (np.arange(count) < count - 4).astype(np.int16))


def train(folder, *overrides: str, deadline: float = math.inf, watch=None):
    return fit.fit(prepare(settings(*overrides)), 0, folder, Machine(CPU, deadline=deadline), watch)


@pytest.mark.parametrize("name", ["one_cycle", "cosine", "plateau", "constant"])
def test_the_learning_rate_rises_and_ends_as_it_should(name):
    moving = config.Schedule(name=name, warmup=0.25, final=0.1)
    rates = [schedule.learning_rate(moving, p) for p in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(1) and rates[25] == pytest.approx(1, abs=1e-6)
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(rates[:26]))
    assert rates[-1] == pytest.approx(0.1 if name in ("one_cycle", "cosine") else 1)
    assert rates[0] < 0.05


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("extra", ["optimizer.accumulate=2", "optimizer.clip=0.5", "ema=0.9"])
def test_it_learns(tmp_path, name, extra):
    lr = 0.3 if name == "sgd" else 3e-3
    _, state = train(tmp_path, f"optimizer.name={name}", f"optimizer.lr={lr}", extra, "epochs=12", "ema=0.0")
    assert state.history[-1]["train_loss"] < 0.75 * state.history[0]["train_loss"]
    assert state.ended == "all epochs" and len(state.history) == 12


def test_accumulating_two_half_batches_is_one_step(tmp_path):
    _, state = train(tmp_path, "optimizer.accumulate=2", "batch_size=3", "epochs=2")
    assert state.updates == 2 * 2  # four batches of three


def test_early_stop_waits_and_keeps_the_best(tmp_path):
    _, state = train(tmp_path, "patience=2", "epochs=60", "optimizer.lr=0.000001", "ema=0.0")
    assert state.ended == "early stop"
    assert len(state.history) == state.best_epoch + 1 + 2
    assert max(row["score"] for row in state.history) == state.best_score


def test_a_deadline_brings_the_schedule_to_its_end_and_leaves_a_model(tmp_path):
    _, state = train(tmp_path, "epochs=1000000", deadline=time.monotonic() + 10)
    assert state.ended == "time budget" and state.progress == pytest.approx(1)
    rates = [row["lr"] for row in state.history]
    assert rates[-1] < max(rates) / 20
    assert segmenter.load_model(tmp_path / "model.safetensors", CPU)[1].epochs == 1000000


def test_crops_are_trained_on_and_whole_images_validated(tmp_path):
    loaded = settings("epochs=1", "augment.transforms=[{name='RandomCrop', height=32, width=32}]", "predict.tile=48")
    data, valid = prepare(loaded, size=(81, 64)), np.arange(12, 16)
    model, _ = fit.fit(data, 0, tmp_path, Machine(CPU))
    seen = []
    model.net.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[2:])))
    loss_of = losses.build_loss(loaded.loss, loaded.competition.classes, data.index.counts.sum(0), None)
    loss, margins, _ = fit.evaluate(model, data.split, valid, loss_of, loaded.predict, loaded.competition)
    assert set(seen) == {(64, 64)}  # tiles of 48, padded to what the network takes
    assert np.isfinite(loss) and (margins[:, 1].sum(1) == 81 * 64).all()
    assert np.array_equal(margins[:, 1], data.index.counts[valid])


def test_without_images_to_validate_on_the_last_weights_are_kept(tmp_path):
    loaded = settings("epochs=5", "patience=1", "ema=0.0", "optimizer.lr=1e-3")
    data = prepare(loaded)
    model, state = fit.fit(data, FULL, tmp_path, Machine(CPU))
    assert (state.best_epoch, len(state.history), state.ended) == (4, 5, "all epochs")
    loss_of = losses.build_loss(loaded.loss, loaded.competition.classes, data.index.counts.sum(0), None)
    loss, *_ = fit.evaluate(model, data.split, np.arange(16), loss_of, loaded.predict, loaded.competition)
    assert loss < state.history[0]["train_loss"]


def test_plateau_lowers_the_rate(tmp_path):
    _, state = train(
        tmp_path,
        "schedule={name='plateau', patience=1, factor=0.5, warmup=0.0}",
        "epochs=8",
        "optimizer.lr=1e-7",
        "ema=0.0",
    )
    rates = [row["lr"] for row in state.history]
    assert rates[-1] < rates[0] and all(math.log2(rates[0] / rate).is_integer() for rate in rates)


def test_out_of_memory_splits_the_batch_and_keeps_its_gradient(tmp_path, monkeypatch, capsys):
    train(tmp_path / "calm", "epochs=1", "optimizer.name=sgd", "ema=0.0")
    whole = segmenter.Segmenter.forward

    def starved(self, images):
        if self.training and len(images) > 3:
            raise torch.OutOfMemoryError
        return whole(self, images)

    monkeypatch.setattr(segmenter.Segmenter, "forward", starved)
    _, state = train(tmp_path / "starved", "epochs=1", "optimizer.name=sgd", "ema=0.0")
    assert "computed in 2 parts" in capsys.readouterr().out
    assert state.history[0]["train_loss"] == pytest.approx(float(_first_loss(tmp_path / "calm")), rel=0.1)
    monkeypatch.setattr(
        segmenter.Segmenter, "forward", lambda self, images: (_ for _ in ()).throw(torch.OutOfMemoryError())
    )
    with pytest.raises(Refused, match="out of memory with a single image"):
        train(tmp_path / "none", "epochs=1")


def _first_loss(folder):
    return (folder / "history.csv").read_text().splitlines()[1].split(",")[3]


def test_a_bad_step_is_skipped_and_counted(tmp_path, monkeypatch):
    real, calls = Step._backward, itertools.count()

    def poisoned(step, *rest):
        loss = real(step, *rest)
        if next(calls) == 1:
            for parameter in step.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))
            return loss * float("nan")
        return loss

    monkeypatch.setattr(Step, "_backward", poisoned)
    model, state = train(tmp_path, "epochs=2", "ema=0.0")
    assert state.skipped == 1
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert all(math.isfinite(row["train_loss"]) for row in state.history)


def test_weights_are_averaged_in_every_epoch_however_few_its_steps(tmp_path):
    seen = []

    def watch(state, model, *counted):
        seen.append(next(model.parameters()).clone())

    train(tmp_path, "epochs=3", "batch_size=6", "ema=0.9", watch=watch)
    assert len(seen) == 3 and not any(torch.equal(a, b) for a, b in itertools.pairwise(seen))


def test_a_step_that_is_left_out_leaves_batch_statistics_as_they_were(tmp_path, monkeypatch):
    real, calls = Step._backward, itertools.count()

    def poisoned(step, group, seed):
        if next(calls) == 1:
            group = [(size, images.float() * float("inf"), labels) for size, images, labels in group]
        return real(step, group, seed)

    monkeypatch.setattr(Step, "_backward", poisoned)
    model, state = train(tmp_path, "epochs=2")
    assert state.skipped == 1
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert all(math.isfinite(row["valid_loss"]) for row in state.history)


def test_a_gradient_of_nan_under_a_finite_loss_leaves_the_weights_alone(tmp_path, monkeypatch):
    real, calls = Step._backward, itertools.count()

    def poisoned(step, group, seed):
        loss = real(step, group, seed)
        if next(calls) == 1:
            next(step.model.parameters()).grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(Step, "_backward", poisoned)
    model, state = train(tmp_path, "epochs=2")
    assert state.skipped == 1
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert all(math.isfinite(row["train_loss"]) for row in state.history)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgds_momentum_starts_at_zero(momentum):
    weight = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(config.Optimizer(name="sgd", lr=0.1, momentum=momentum, weight_decay=0), weight)
    assert all(not state["momentum_buffer"].any() for state in optimizer.state.values())
    before = weight.weight.detach().clone()
    weight(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(before - weight.weight, torch.full((2, 3), 0.1 * (1 + momentum)))


def test_a_diverging_run_stops_with_what_to_try(tmp_path, monkeypatch):
    def infinite(*_):
        return torch.tensor(float("nan"))

    monkeypatch.setattr(Step, "_backward", infinite)
    with pytest.raises(Refused, match=r"diverged in epoch 1.*optimizer.lr"):
        train(tmp_path, "epochs=3")


def test_an_epoch_that_the_clock_cuts_is_judged_by_the_steps_it_had(tmp_path, monkeypatch):
    monkeypatch.setattr(Step, "_backward", lambda *_: torch.tensor(float("nan")))
    monkeypatch.setattr(schedule.Timer, "progress", lambda *_: 1.0)
    with pytest.raises(Refused, match="diverged in epoch 1"):
        train(tmp_path, "epochs=3", "batch_size=2")


def test_a_timed_run_goes_on_where_the_clock_was_and_not_where_its_epochs_were(monkeypatch):
    now = itertools.count(100.0, 10.0)
    monkeypatch.setattr(schedule.time, "monotonic", lambda: next(now))
    timer = schedule.Timer(deadline=200.0, before=0.9, forwards=0)
    done = [timer.progress(epochs=0.5, samples=4) for _ in range(3)]
    assert done[0] == 0.9 and 0.9 < done[1] < done[2] < 1.0


def test_what_a_gpus_scaler_left_does_not_keep_a_cpu_from_going_on(tmp_path, monkeypatch):
    real = runs.save_checkpoint

    def of_a_gpu(path, parts, optimizer, facts):
        real(path, parts, optimizer, facts | {"scaler": {"scale": 65536.0, "growth_interval": 2000}})

    monkeypatch.setattr(runs, "save_checkpoint", of_a_gpu)
    monkeypatch.setattr(files, "write_text", lambda *_: 1 / 0)  # killed at the end of the first epoch
    monkeypatch.setattr(fit, "CHECKPOINT_EVERY", 0.0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, "epochs=2")
    monkeypatch.undo()
    assert train(tmp_path, "epochs=2")[1].ended == "all epochs"


def test_a_damaged_checkpoint_is_refused_with_what_to_do(tmp_path):
    loaded = settings()
    model, _ = segmenter.build_segmenter(loaded.model, 1, 3, torch.tensor([100.0]), torch.tensor([50.0]))
    optimizer = make_optimizer(loaded.optimizer, model)
    path = tmp_path / runs.CHECKPOINT
    assert runs.load_checkpoint(path, {"model": model}, optimizer) is None
    runs.save_checkpoint(path, {"model": model}, optimizer, {"epoch": 1})
    assert runs.load_checkpoint(path, {"model": model}, optimizer) == {"epoch": 1}
    whole = path.read_bytes()
    for damaged in (whole[:-1000], whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:]):
        path.write_bytes(damaged)
        with pytest.raises(Refused, match=r"checkpoint\.safetensors: "):
            runs.load_checkpoint(path, {"model": model}, optimizer)


def test_moments_lie_as_their_parameters_do(tmp_path):
    # Fused optimizers walk raw memory: a moment in another layout would belong to other weights.
    loaded = settings()
    model, _ = segmenter.build_segmenter(loaded.model, 1, 3, torch.tensor([100.0]), torch.tensor([50.0]))
    optimizer = make_optimizer(loaded.optimizer, model)
    model(torch.zeros(2, 1, 32, 32, dtype=torch.uint8)).sum().backward()
    optimizer.step()
    runs.save_checkpoint(tmp_path / "c.safetensors", {"model": model}, optimizer, {})
    runs.load_checkpoint(tmp_path / "c.safetensors", {"model": model}, optimizer)
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].stride() == parameter.stride()


def test_normalisation_is_exact():
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    rows = np.array([0, 3, 4])
    mean, std = segmenter.measure_normalisation(images, rows)
    np.testing.assert_allclose(mean, images[rows].mean((0, 1, 2)))
    np.testing.assert_allclose(std, images[rows].std((0, 1, 2)))


HOLD = """
import os, pathlib, sys, time
from comp import files
with files.lock_folder(pathlib.Path(sys.argv[1])):
    worker = os.fork()
    if not worker:
        time.sleep(60)
    print(worker, flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_and_no_worker_that_outlives_it(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(Refused, match="another process"), files.lock_folder(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with files.lock_folder(tmp_path):
            os.kill(worker, 0)  # which is there still
    finally:
        os.kill(worker, 9)


@pytest.mark.parametrize(
    ("losses", "scores", "best"),
    [
        ([math.nan, math.nan, math.nan], [0.1, 0.5, 0.4], 1),
        ([math.nan, 1.0, math.nan], [0.9, 0.2, 0.95], 1),
        ([1.0, math.nan, 1.0], [0.3, 0.9, 0.4], 2),
    ],
)
def test_validation_that_is_not_finite_neither_wins_nor_freezes_the_best(tmp_path, monkeypatch, losses, scores, best):
    looks, scored = iter(losses), iter(scores)
    monkeypatch.setattr(fit, "evaluate", lambda *_: (next(looks), None, None))
    monkeypatch.setattr(fit.metrics, "score", lambda *_: next(scored))
    _, state = train(tmp_path, "epochs=3")
    assert state.best_epoch == best and state.best_score == scores[best]


def test_checkpoints_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    real, saves = runs.save_checkpoint, []

    def slow(*rest):
        saves.append(rest)
        time.sleep(0.2)  # so that the next is due in ten seconds
        real(*rest)

    monkeypatch.setattr(runs, "save_checkpoint", slow)
    monkeypatch.setattr(fit, "CHECKPOINT_EVERY", 0.0)
    _, state = train(tmp_path, "epochs=3", "batch_size=2")
    assert state.updates == 18 and len(saves) <= 2  # after the first step, and at the end


def test_out_of_memory_leaves_no_trace_in_batch_statistics():
    data = prepare(settings("augment.mixup=0.0", "augment.cutmix=0.0"))
    group = [(6, torch.from_numpy(data.split.images[:6]), torch.from_numpy(data.split.masks[:6]))]
    seen = []
    for starved in (False, True):
        torch.manual_seed(0)
        model, _ = segmenter.build_segmenter(data.config.model, 1, 3, torch.tensor([100.0]), torch.tensor([50.0]))
        model.place(CPU).train()
        whole = model.net.forward

        def forward(x, whole=whole, starved=starved):
            made = whole(x)
            if starved and len(x) > 3:
                raise torch.OutOfMemoryError
            return made

        model.net.forward = forward
        step = Step(
            model, losses.build_loss(data.config.loss, ("a", "b", "c"), data.index.counts.sum(0), None), data.config
        )
        step.parts = 1 if starved else 2
        step(group, 0.0, [0])
        seen.append(torch.cat([b.flatten() for b in model.buffers() if b.is_floating_point()]))
    assert torch.equal(*seen)


def test_the_scale_of_float16_never_falls_to_nothing():
    half = device.Device(torch.device("cpu"), torch.float16, "a T4 that is not here")
    data = prepare(settings())
    group = [(6, torch.from_numpy(data.split.images[:6]), torch.from_numpy(data.split.masks[:6]))]
    model, _ = segmenter.build_segmenter(data.config.model, 1, 3, torch.tensor([100.0]), torch.tensor([50.0]))
    model.place(half).train()
    step = Step(
        model, losses.build_loss(data.config.loss, ("a", "b", "c"), data.index.counts.sum(0), None), data.config
    )
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    real, infinite = step.loss_of, torch.tensor(float("inf"))
    step.loss_of = lambda z, y: real(z, y) * infinite
    before = [p.clone() for p in model.parameters()]
    for _ in range(20):
        step(group, 1e-3, [0])
    assert step.scaler.get_scale() == 1.0
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    step.loss_of = real
    assert step(group, 1e-3, [0]).isfinite() and all(p.isfinite().all() for p in model.parameters())
    assert not all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


# Stages: another run's weights, an encoder that waits, or that learns more slowly.


def encoder_of(model):
    return {key: value.clone() for key, value in model.net.encoder.state_dict().items()}


def unlike(one, other):
    return [key for key in one if not torch.equal(one[key], other[key]) and one[key].is_floating_point()]


def test_an_encoder_is_frozen_for_its_epochs(tmp_path):
    seen = []
    train(tmp_path, "model.freeze_encoder=2", "epochs=4", "ema=0.0", watch=lambda _, m, *__: seen.append(encoder_of(m)))
    assert not unlike(seen[0], seen[1]) and unlike(seen[1], seen[2]) and unlike(seen[2], seen[3])
    seen.clear()
    always = "model.freeze_encoder=true"
    train(tmp_path / "b", always, "epochs=3", "ema=0.0", watch=lambda _, m, *__: seen.append(encoder_of(m)))
    assert not unlike(seen[0], seen[2])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_encoder_learns_at_a_rate_of_its_own(name):
    loaded = settings("optimizer.encoder_lr=0.1", f"optimizer.name={name}")
    model, _ = segmenter.build_segmenter(loaded.model, 1, 3, torch.zeros(1), torch.ones(1))
    step = Step(model.place(CPU), losses.build_loss(loaded.loss, ("a", "b", "c"), np.ones(3), None), loaded)
    images = torch.randint(0, 256, (4, 32, 32, 1), dtype=torch.uint8)
    step([(4, images, torch.randint(0, 3, (4, 32, 32), dtype=torch.uint8))], 1e-2, [0, 0, 0])
    inside = {id(parameter) for parameter in model.net.encoder.parameters()}
    rates = {(id(p) in inside, group["lr"]) for group in step.optimizer.param_groups for p in group["params"]}
    assert sorted((at, round(rate, 9)) for at, rate in rates) == [(False, 0.01), (True, 0.001)]
    count = sum(len(group["params"]) for group in step.optimizer.param_groups)
    assert count == len([*model.parameters()])
    with pytest.raises(Refused, match=r"optimizer\.encoder_lr: this architecture has no encoder"):
        plain = config.load_config("demo", "default", ["model.architecture=PlainUnet", "optimizer.encoder_lr=0.1"])
        made, _ = segmenter.build_segmenter(plain.model, 1, 5, torch.zeros(1), torch.ones(1))
        make_optimizer(plain.optimizer, made)


def finished(run_folder, data, *overrides):
    """A finished fold 0 of a run, as far as another one reads it."""
    from comp.train.train_fold import train_fold

    return train_fold(data, 0, run_folder, Machine(CPU))


def test_a_fold_begins_with_the_weights_of_another_runs(tmp_path, capsys):
    first = prepare(settings("epochs=3"))
    finished(tmp_path / "demo/first", first)
    start = f"model.start={tmp_path}/demo/first"
    again = prepare(settings("epochs=1", "optimizer.lr=1e-9", "ema=0.0", start))
    fold = finished(tmp_path / "demo/second", again)
    one, other = (dict(segmenter.load_model(tmp_path / f"demo/{k}/fold-0/model.safetensors", CPU)[0].named_parameters())
                  for k in ("first", "second"))  # fmt: skip
    assert all(torch.allclose(one[key], other[key], atol=1e-6) for key in one)
    assert "fold-0: " in fold.metrics["weights"] and "from scratch" not in fold.metrics["weights"]
    other = prepare(settings("epochs=1", start, 'competition.classes=["ground","stripe","spot","more"]'))
    model, _ = segmenter.build_segmenter(other.config.model, 1, 4, torch.zeros(1), torch.ones(1))
    note = runs.load_start(model, tmp_path / "demo/first", "fold-0", other.split.ids[12:])
    assert "from scratch: net.segmentation_head" in note
    with pytest.raises(Refused, match="may have trained on '0', which validates here"):
        runs.load_start(model, tmp_path / "demo/first", "fold-0", other.split.ids[:4])
    with pytest.raises(Refused, match="no finished fold"):
        runs.load_start(model, tmp_path / "demo/none", "fold-0", other.split.ids[12:])


def test_the_page_changes_while_a_fold_trains(tmp_path, monkeypatch):
    from comp.train import train_fold as training

    pages, drawn = [], training.pages.write_run_page

    def keep(run_folder, live=None):
        path = drawn(run_folder, live)
        pages.append(path.read_text(encoding="utf-8"))
        return path

    monkeypatch.setattr(training.pages, "write_run_page", keep)
    monkeypatch.setattr(training, "SHARE", math.inf)  # of the time: each epoch draws
    finished(tmp_path / "demo/run", prepare(settings("epochs=3")))
    assert len(pages) == 2 and pages[0] != pages[1]  # after the last it is the finished fold's
    for number, page in enumerate(pages, 1):
        assert f"Fold 0, in training: epoch {number}, " in page and 'http-equiv="refresh"' in page
        assert "Worst, median and best cases" in page and "Curves" in page
    finished_page = drawn(tmp_path / "demo/run").read_text(encoding="utf-8")
    assert "in training" not in finished_page and "refresh" not in finished_page
