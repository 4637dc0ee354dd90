"""Evidence from a GPU in ten minutes: a table with a line for each thing that no CPU can show.

    python tests/gpu.py                           # on a CPU: what a CPU can do of it, small, in three minutes
    python tests/gpu.py --only 4,6 --budget 4m    # some parts, in less time
    python tests/gpu.py --on kaggle               # on Kaggle's two T4s; or rehearsed: --on sandbox

A line says "ok" or "NOT"; "read" where nothing decides whether the figure is good, as with every speed; or "skipped".
The same lines lie in runs/demo/<run>/gpu.json, after each of them. The exit status is 1 where a line says NOT. All
data are drawn."""

import argparse
import contextlib
import functools
import gc
import io
import math
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from comp import cli, config, files
from comp.data import arrays, batches, npz
from comp.data.folds import TrainingData, load_training_data
from comp.device import Device, Machine, choose_device, to_device
from comp.ensemble.search import search_decisions
from comp.model import losses, metrics, predict, segmenter
from comp.train import fit, runs
from comp.train.step import Step, make_optimizer
from comp.train.train_fold import train_fold

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "float32"}


class Bench:
    """Where it is measured, and the table: a line is printed and written at once, since a GPU may be gone any time."""

    def __init__(self, here: Device, place: Path, path: Path | None = None):
        self.here, self.place, self.path, self.out = here, place, path, sys.stdout  # parts print too, elsewhere
        self.small = here.device.type == "cpu"
        self.workers = batches.default_workers(here.device)
        self.about = {"device": str(here), "torch": torch.__version__, "cores": os.cpu_count()}
        self.wait = (lambda: None) if self.small else functools.partial(torch.cuda.synchronize, here.device)
        self.part, self.lines = 0, list[dict[str, Any]]()

    def say(self, name: str, figure: str, expected: str = "", good: Any = None, verdict: str = "") -> None:
        verdict = verdict or ("read" if good is None else "ok" if good else "NOT")
        fields = {"part": self.part, "name": name, "figure": figure, "expected": expected, "verdict": verdict}
        self.lines.append(fields)
        wanted = f"   [{expected}]" if expected else ""
        print(f"{self.part:>2}  {verdict:8}{name:50}{figure}{wanted}", file=self.out, flush=True)
        if self.path:
            files.write_json(self.path, self.about | {"lines": self.lines})

    def skip(self, name: str, why: str) -> None:
        self.say(name, why, verdict="skipped")

    def precisions(self) -> Iterator[Device]:
        """bf16 and forced fp16; what the device lacks is skipped by name."""
        bf16 = self.small or torch.cuda.get_device_capability(self.here.device) >= (8, 0)
        for dtype, there in ((torch.bfloat16, bf16), (torch.float16, not self.small)):
            if there:
                yield Device(self.here.device, dtype, "forced")
            else:
                self.skip(f"in {NAMES[dtype]}", "not on this device")

    def speed(self, call: Callable[[], Any], images: int, times: int) -> float:
        """Images/s of a call, after a few that start it up."""
        for number in range(-1 if self.small else -5, times):
            if not number:
                self.wait()
                started = time.perf_counter()
            call()
        self.wait()
        return images * times / (time.perf_counter() - started)


class Trial:
    """The default recipe, changed by `overrides`, over `count` of the demo's images in colour, to a GPU as 256×256."""

    def __init__(self, bench: Bench, *overrides: str, count: int = 32, device: Device | None = None):
        small = ["model.options={encoder_depth=3, decoder_channels=[8,8,8]}", "batch_size=8"] if bench.small else []
        self.settings, self.device = config.load_config("demo", "default", [*small, *overrides]), device or bench.here
        about, (down, right) = self.settings.competition, (1, 1) if small else (4, 2)
        demo, numbers = arrays.load_train(about, bench.place), np.arange(count)
        self.images = np.tile(demo.images[numbers % len(demo.ids)], (1, down, right, 3))
        self.masks = np.tile(demo.masks[numbers % len(demo.ids)], (1, down, right))
        split = arrays.TrainSplit(self.images, self.masks, numbers.astype(str), None, None)
        folds = (numbers >= 8).astype(np.int16)  # in fold 0 eight validate
        self.data = TrainingData(self.settings, split, arrays.build_index(split, about), folds)
        self.loss_of = losses.build_loss(self.settings.loss, about.classes, self.data.index.counts.sum(0), None)
        torch.manual_seed(0)
        normal = segmenter.measure_normalisation(self.images, numbers)
        model, _ = segmenter.build_segmenter(self.settings.model, 3, len(about.classes), *normal)
        self.model = model.place(self.device)

    def step(self, loss_of: losses.Loss | None = None) -> Step:
        return Step(self.model.train(), loss_of or self.loss_of, self.settings)

    def batch(self, size: int) -> tuple[int, Tensor, Tensor]:
        """A batch as `Step` takes it; the images come as often as it takes."""
        rows = np.resize(np.arange(len(self.images)), size)
        return size, torch.from_numpy(self.images[rows]), torch.from_numpy(self.masks[rows])

    def resident(self, size: int) -> tuple[Tensor, Tensor]:
        _, images, masks = self.batch(size)
        return to_device(images, self.device.device), masks.to(self.device.device)


def losses_and_metrics(bench: Bench) -> None:
    """Every loss, its gradient, and a validation beside the CPU's. (On a CPU: in another layout and batch size.)"""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 5, 96, 96, generator=generator)
    labels = torch.randint(0, 5, (4, 12, 12), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[0], labels[1:, :20] = 255, 255
    counts, apart = torch.bincount(labels.flatten())[:5].numpy(), {}
    cpu = Device(torch.device("cpu"), torch.float32, "to compare with")
    for name in get_args(config.LossName):
        loss_of = losses.build_loss(config.Loss(terms={name: 1.0}, class_weights="sqrt"), tuple("abcde"), counts, 255)
        found = []
        for device, layout in ((cpu, torch.contiguous_format), (bench.here, torch.channels_last)):
            z = logits.to(device.device).clone(memory_format=layout).requires_grad_()
            loss = loss_of(z, labels.to(device.device))
            found.append((loss.detach().cpu(), torch.autograd.grad(loss, z)[0].cpu()))
        apart[name] = [((b - a).abs().max() / a.abs().max()).item() for a, b in zip(*found, strict=True)]
    for number, what in enumerate(("loss", "gradient")):
        worst = max(apart, key=lambda name: apart[name][number])
        good = all(pair[number] < 1e-4 for pair in apart.values())  # not so of a NaN
        figure = f"{apart[worst][number]:.1e} apart ({worst})"
        bench.say(f"{what} of {len(apart)} losses against the CPU's", figure, "< 1e-4", good)

    seen = []
    plain = "loss.terms={cross_entropy=1.0}", "loss.class_weights=none"  # a mean over pixels, whatever the batches
    for device, size in ((cpu, 16), (Device(bench.here.device, torch.float32, "to compare"), 5)):
        trial = Trial(bench, *plain, f"predict.batch_size={size}", count=16, device=device)
        rows, about, now = np.arange(16), trial.settings.competition, trial.settings.predict
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            mean, counted, _ = fit.evaluate(trial.model, trial.data.split, rows, trial.loss_of, now, about)
        scores = metrics.scores(counted, about.classes, about.metric)
        seen.append(np.array([mean, *(scores[name] for name in metrics.READINGS)]))
    off, *others = abs(seen[1] / seen[0] - 1).tolist()
    bench.say("a validation's loss against the CPU's", f"{off:.1e} apart", "< 1e-4", off < 1e-4)
    bench.say("its 7 scores against the CPU's", f"{max(others):.1e} apart", "< 1e-3", max(others) < 1e-3)


def training_in_each_precision(bench: Bench) -> None:
    """Fold 0 of the demo learns; what the scaler's scale was at the end of each epoch."""
    for device in bench.precisions():
        half, history = device.dtype == torch.float16, train_demo(bench, device)[1].history
        first, *_, last = (row["train_loss"] for row in history)
        scales = [row.get("scale") for row in history]
        shown = f"scale {' '.join('?' if scale is None else f'{scale:g}' for scale in scales)}"
        good = last < first and all(scale is None or (scale >= 1 if half else scale == 1) for scale in scales)
        figure = f"loss {first:.3f} to {last:.3f}, score {max(row['score'] for row in history):.3f}, {shown}"
        name = f"{len(history)} epochs of the demo in {NAMES[device.dtype]}"
        bench.say(name, figure, "loss falls, scale " + (">= 1" if half else "1"), good)


def killed_and_gone_on(bench: Bench) -> None:
    """kill -9 while four workers augment; the same command at once."""
    seconds, said, folder = math.nan, [""], bench.place / "killed"
    tiny = 'model={architecture="PlainUnet", options={widths=[8, 16]}}'  # its checkpoints are quick
    with start_training(str(bench.here.device), folder, 0, tiny) as first:
        while first.poll() is None and not list(folder.rglob("checkpoint.safetensors")):
            time.sleep(0.05)
        first.kill()
    started = time.monotonic()
    with start_training(str(bench.here.device), folder, 0, tiny) as second:
        for line in second.stdout or ():
            said.append(line.strip())
            if "goes on from" in line:
                seconds = time.monotonic() - started
    good = first.returncode == -9 and second.returncode == 0 and not math.isnan(seconds)
    figure = f"after {seconds:.1f} s, imports in them" if good else f"{first.returncode}; {said[-1][:200]}"
    bench.say("kill -9 with 4 workers, the same again", figure, "goes on and finishes", good)


def more_than_memory_holds(bench: Bench) -> None:
    """Training and prediction in 3 GB with ever larger batches, until they do not fit."""
    trial, size, said, device = Trial(bench, "model.encoder=resnet34"), 8, io.StringIO(), bench.here.device
    step, memory = trial.step(), torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved(device) + 3e9) / memory), device)
    with contextlib.redirect_stdout(said):
        while "batches are now computed in" not in said.getvalue() and size < 2048:
            size *= 2
            step([trial.batch(size)], 1e-3, [0, size])
        after = [step([trial.batch(size)], 1e-3, [1, number]).item() for number in range(6)]
    lines = said.getvalue().strip().splitlines()
    bench.say("a batch that does not fit", lines[-1] if lines else f"{size} images fitted", "in parts", lines)
    bench.say("training goes on", f"loss {after[0]:.3f} to {after[-1]:.3f}", "it falls", after[-1] < after[0])

    trial.model.eval()
    asked, got = 32, [32]
    while max(got) == asked and asked < 4096:
        asked *= 2
        now, rows = trial.settings.predict.model_copy(update={"batch_size": asked}), np.resize(np.arange(32), asked)
        got = [len(batch) for batch, _ in predict.predict_rows(trial.model, trial.images, rows, now)]
    good = max(got) < asked and sum(got) == asked
    bench.say("a prediction that does not fit", f"{asked} images came {max(got)} at a time", "fewer, all of them", good)


def planted_infinities(bench: Bench) -> None:
    """200 steps in a row whose loss, or only gradient, is infinite; then good ones."""
    for device in bench.precisions():
        trial, planted = Trial(bench, count=4, device=device), [""]

        def loss_of(logits: Tensor, labels: Tensor, right: losses.Loss = trial.loss_of, how: list = planted) -> Tensor:
            if how == ["gradient"]:
                logits.register_hook(lambda gradient: gradient * math.inf)
            return right(logits, labels) * (math.inf if how == ["loss"] else 1.0)

        step, before = trial.step(loss_of), [weight.detach().clone() for weight in trial.model.parameters()]
        for number in range(200):
            planted[:] = [("loss", "gradient")[number % 2]]
            step([trial.batch(4)], 1e-3, [0, number])
        same = all(torch.equal(*pair) for pair in zip(before, trial.model.parameters(), strict=True))
        planted[:], scale = [], step.scaler.get_scale()
        after = [step([trial.batch(4)], 1e-3, [1, number]).item() for number in range(40)]
        finite = all(value.isfinite().all() for value in trial.model.state_dict().values())
        bench.say(f"200 infinite steps in {NAMES[device.dtype]}: weights", f"equal: {same}", "equal: True", same)
        good = finite and after[-1] < after[0]
        figure = f"loss {after[0]:.3f} to {after[-1]:.3f}, weights finite: {finite}"
        bench.say("40 good steps after them", figure, "it falls, True", good)
        half, figure = device.dtype == torch.float16, f"{scale:g}, at last {step.scaler.get_scale():g}"
        bench.say("scale after them", figure, ">= 1" if half else "1", scale >= 1 if half else scale == 1)


def another_precision_than_trained(bench: Bench) -> None:
    """A model predicted in other precisions than it was trained in, then with activations beyond float16."""
    folder, _ = train_demo(bench, device := next(bench.precisions()))
    images, rows = (data := demo_data(bench)).split.images, data.rows(0)[1]

    def predict_in(dtype: torch.dtype, factor: float = 1.0) -> tuple[Tensor, bool]:
        model, settings = segmenter.load_model(folder / runs.MODEL, Device(device.device, dtype, "forced"))
        # Large numbers between these two layers, and the same function.
        convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        norm: Any = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        convolution.weight.data *= factor
        norm.running_mean *= factor
        norm.running_var *= factor**2
        seen = torch.cat([p.cpu() for _, p in predict.predict_rows(model, images, rows, settings.predict)])
        return seen.argmax(1), bool(seen.isfinite().all())

    exact, half, trained = (predict_in(dtype)[0] for dtype in (torch.float32, torch.float16, device.dtype))
    shares = f"{(half == exact).float().mean():.2%} as in float32, {(half == trained).float().mean():.2%}"
    name, good = NAMES[device.dtype], (half == exact).float().mean() > 0.98
    bench.say(f"trained in {name}: labels in fp16", f"{shares} as in {name}", "> 98 %", good)
    (exact, _), (half, finite) = predict_in(torch.float32, 2e5), predict_in(torch.float16, 2e5)
    share = (half == exact).float().mean()
    figure = f"finite: {finite}, {share:.2%} of labels as in float32"
    bench.say("activations beyond 65,504, in fp16", figure, "finite: True, > 98 %", finite and share > 0.98)


def training_speed(bench: Bench) -> None:
    """fit's loop beside its ceiling, one batch that is on the device already, and beside most notebooks' recipe."""
    overrides = "model.encoder=resnet34", "batch_size=8" if bench.small else "batch_size=32"
    trial = Trial(bench, *overrides)
    size, optimizer = trial.settings.batch_size, make_optimizer(trial.settings.optimizer, trial.model.train())
    images, labels = trial.resident(size)

    def train() -> None:
        with bench.here.autocast():
            logits = trial.model(images)
        trial.loss_of(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    ceiling = bench.speed(train, size, 4 if bench.small else 30)
    # Two runs, of which the difference is training at its pace: starts and first batches are in both.
    count, states = int(min(max(ceiling * 4, 4 * size), 4096)) // size * size, []
    for epochs in (1, 2 if bench.small else 5):
        trial, folder = Trial(bench, *overrides, f"epochs={epochs}", count=count + 8), bench.place / f"speed-{epochs}"
        states.append(fit.fit(trial.data, 0, folder, Machine(bench.here, bench.workers))[1])
    short, long = states
    ours = (long.trained - short.trained) / (long.training - short.training)
    plain = plain_recipe(bench, trial)
    shape, shares = " × ".join(map(str, images.shape)), f"{ours / ceiling:.2f} of the ceiling {ceiling:.1f}"
    bench.say(f"fit, {bench.workers} workers, resnet34, {shape}", f"{ours:.1f} images/s, {shares}", "0.95")
    bench.say("plain recipe, 2 workers", f"{plain:.1f} images/s; fit is {ours / plain:.1f} times as fast", "2 to 3")


def waits_for_the_gpu(bench: Bench) -> None:
    """How often the host waits for the GPU in a step, by torch's profiler."""
    recipes = {"default losses, with lovasz": (), "and CutMix and MixUp": ("augment.cutmix=1.0", "augment.mixup=1.0")}
    for name, overrides in (recipes | {"cross_entropy alone": ("loss.terms={cross_entropy=1.0}",)}).items():
        trial = Trial(bench, *overrides)
        step, (size, images, masks) = trial.step(), trial.batch(16)
        group = [(size, images.pin_memory(), masks.pin_memory())]
        for number in range(3):
            step(group, 1e-3, [0, number])
        bench.wait()
        with torch.profiler.profile() as seen:
            for number in range(10):
                step(group, 1e-3, [1, number])
        calls = {event.key: event.count / 10 for event in seen.key_averages()}
        if not any(key.startswith("cudaLaunch") for key in calls):
            raise RuntimeError("the profiler does not see the GPU")
        waits, copies = (
            sum(n for key, n in calls.items() if what in key) for what in ("cudaStreamSync", "Memcpy DtoH")
        )
        bench.say(f"a step, {name}", f"{waits:g} waits, {copies:g} copies to the host", "none", not waits + copies)


def memory_of_accumulation(bench: Bench) -> None:
    """Peak memory of a step over one and over eight micro-batches."""
    peaks = []
    for count in (1, 8):
        trial = Trial(bench, "model.encoder=resnet34", f"optimizer.accumulate={count}")
        step, group = trial.step(), [trial.batch(32)] * count
        step(group, 1e-3, [0, 0])  # convolutions are tried out here
        torch.cuda.reset_peak_memory_stats(bench.here.device)
        step(group, 1e-3, [0, 1])
        peaks.append(torch.cuda.max_memory_allocated(bench.here.device) / 1e9)
        del trial, step
        gc.collect()
    figure = f"{peaks[1]:.2f} against {peaks[0]:.2f} GB: {peaks[1] / peaks[0]:.2f}"
    bench.say("peak memory, accumulate = 8 against 1", figure, "about 1", peaks[1] < 1.25 * peaks[0])


def prediction_speed(bench: Bench) -> None:
    """predict_rows, its labels brought to the host, beside the same passes over images that are on the device."""
    trial = Trial(bench, "model.encoder=resnet34", count=64)
    model, now, rows = trial.model.eval(), trial.settings.predict, np.arange(64 if bench.small else 2000) % 64
    images, _ = trial.resident(64)
    ceiling = bench.speed(lambda: predict.probabilities(model, images, now), 64, len(rows) // 64)
    started = time.perf_counter()
    for _, probabilities in predict.predict_rows(model, trial.images, rows, now):
        probabilities.argmax(1).to(torch.uint8).cpu()
    ours = len(rows) / (time.perf_counter() - started)
    name, figure = (
        f"predict_rows, {len(rows)} images, tta {now.tta}",
        f"{ours / ceiling:.2f} of the ceiling {ceiling:.1f}",
    )
    bench.say(name, f"{ours:.1f} images/s, {figure}", "0.95")


def layouts_and_compiling(bench: Bench) -> None:
    """Forward and backward with contiguous images, with channels_last, and with that and torch.compile."""

    def speed(net: Any, images: Tensor) -> float:
        def call() -> None:
            with bench.here.autocast():
                logits = net(images)
            logits.float().square().mean().backward()
            net.zero_grad(set_to_none=True)

        return bench.speed(call, len(images), 3 if bench.small else 20)

    for encoder, size in (("tu-regnetx_160", 16), ("resnet34", 32)):
        if bench.small and encoder != "resnet34":
            bench.skip(f"{encoder}, and torch.compile", "take a CPU too long")
            continue
        trial, speeds = Trial(bench, f"model.encoder={encoder}"), []
        net, images = trial.model.train().net, trial.resident(4 if bench.small else size)[0].float() / 255
        for layout in (torch.contiguous_format, torch.channels_last):
            images = images.contiguous(memory_format=layout)
            speeds.append(speed(net.to(memory_format=layout), images))
        figure = f"{speeds[1]:.1f} against {speeds[0]:.1f} images/s: {speeds[1] / speeds[0]:.2f}"
        bench.say(f"channels_last with {encoder}", figure, "> 1")
    if not bench.small:
        started = time.perf_counter()
        figure = (
            f"{speed(torch.compile(net), images):.1f} images/s, {time.perf_counter() - started:.0f} s with compiling"
        )
        bench.say(f"torch.compile and channels_last with {encoder}", figure, "more than above")


def decisions_found(bench: Bench) -> None:
    """The search for decisions, of classes apart and overlapping ones, beside the CPU's."""
    generator, count = torch.Generator().manual_seed(0), 60 if bench.small else 1500
    noise = torch.randn(count, 2, 13, 13, generator=generator)
    fields = nn.functional.interpolate(noise, (101, 101), mode="bicubic")
    truth, ids = (fields > torch.randn(count, 2, 1, 1, generator=generator)).byte(), np.arange(count).astype(str)
    seen = (3 * (truth - 0.6) + torch.randn(fields.shape, generator=generator)).sigmoid()
    for overlap in (False, True):
        own = config.Competition(name="drawn", classes=("rest", "large", "small"), overlap=overlap)
        joint = seen if overlap else seen / (1 + seen.sum(1, keepdim=True))
        p = torch.cat([1 - joint.amax(1, keepdim=True) if overlap else 1 - joint.sum(1, keepdim=True), joint], 1)
        masks = truth[:, 0] + 2 * truth[:, 1] if overlap else torch.where(truth[:, 1] > 0, 2, truth[:, 0])
        margins = metrics.count_margins(masks, predict.to_labels(p, overlap), own).numpy()
        members = {"ids": ids, "planes": predict.to_planes(p).numpy(), "margins": margins}
        members["counts"] = np.full((count, 2), np.nan)
        place = bench.place / f"decided-{overlap}"
        npz.write_npz(place / runs.OOF, [(key, value.shape, value.dtype, [value]) for key, value in members.items()])
        split = arrays.TrainSplit(np.zeros((count, 101, 101, 1), np.uint8), masks.numpy(), ids, None, None)
        asked = [[runs.Fold(place, 0, {})]], split, arrays.build_index(split, own), own
        found, seconds = [], []
        for device in (torch.device("cpu"), bench.here.device):
            started = time.perf_counter()
            found.append(search_decisions(*asked, device))
            seconds.append(time.perf_counter() - started)
        (expected, ladder), (decided, other) = found
        apart = max(abs(a.score - b.score) for a, b in zip(ladder, other, strict=True))
        name, good = f"{count} images, classes {'overlap' if overlap else 'apart'}", apart < 1e-4
        figure = f"scores {apart:.1e} apart, the same decisions: {decided == expected}"
        bench.say(f"decisions of {name}", figure, "< 1e-4", good)
        reached = max(rung.score for rung in other if rung.used)
        figure = f"{seconds[1]:.1f} s; {seconds[0]:.1f} s on the CPU; {other[0].score:.3f} to {reached:.3f}"
        bench.say("how long they took", figure, "less than the CPU")


def two_gpus(bench: Bench) -> None:
    """Two folds at a time, each in a process and on a GPU of its own."""
    if torch.cuda.device_count() < 2:
        return bench.skip("two folds on two GPUs", f"there are {torch.cuda.device_count()} here")
    seconds = []
    for folds in ([0], [0, 1]):
        started, place = time.monotonic(), bench.place / f"on-{len(folds)}"
        going = [start_training(f"cuda:{k}", place, k) for k in folds]
        said = [process.communicate()[0].strip()[-200:] for process in going]
        if any(process.returncode for process in going):
            raise RuntimeError(" | ".join(said))
        seconds.append(time.monotonic() - started)
    figure = f"{seconds[1]:.1f} s; one alone {seconds[0]:.1f} s: {seconds[1] / seconds[0]:.2f}"
    bench.say("two folds on two GPUs", figure, "about 1")


# Seconds that each may take on a GPU and on a CPU (None: needs a GPU), with what is wanted most in front.
PARTS: list[tuple[int, Callable[[Bench], None], int, int | None]] = [
    (1, losses_and_metrics, 15, 10), (2, training_in_each_precision, 45, 25), (3, killed_and_gone_on, 60, 45),
    (4, more_than_memory_holds, 40, None), (5, planted_infinities, 25, 25), (7, another_precision_than_trained, 30, 20),
    (6, training_speed, 75, 30), (6, waits_for_the_gpu, 20, None), (8, memory_of_accumulation, 15, None),
    (9, prediction_speed, 25, 10), (11, decisions_found, 40, 25), (10, two_gpus, 90, 0),
    (6, layouts_and_compiling, 120, 10),
]  # fmt: skip


def demo_data(bench: Bench, *overrides: str) -> TrainingData:
    """The demo as it is, with its folds, for a few epochs; on a CPU a third of it."""
    settings = config.load_config("demo", "default", ["epochs=3" if bench.small else "epochs=8", *overrides])
    data = load_training_data(settings, bench.place, bench.place)
    if bench.small:
        data.folds[np.arange(len(data.folds)) % 3 > 0] = -1
    return data


@functools.cache
def train_demo(bench: Bench, device: Device) -> tuple[Path, fit.State]:
    """Fold 0 of the demo in the precision of a device: the folder of its model, and how it went."""
    folder = bench.place / f"demo-{NAMES[device.dtype]}"
    return folder, fit.fit(demo_data(bench), 0, folder, Machine(device, bench.workers))[1]


def start_training(device: str, folder: Path, fold: int, *settings: str) -> subprocess.Popen:
    """A process that trains a fold of the demo with four workers: this script with --train."""
    command = [sys.executable, "-u", __file__, "--device", device, "--train", str(folder), str(fold), *settings]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def plain_recipe(bench: Bench, trial: Trial) -> float:
    """Images/s of what most public notebooks do: smp's network, albumentations, float32, Adam, `loss.item()`."""
    import segmentation_models_pytorch as smp
    from albumentations import Compose, HorizontalFlip, RandomBrightnessContrast
    from torch.utils.data import DataLoader

    transform = Compose([HorizontalFlip(p=0.5), RandomBrightnessContrast(p=0.5)])

    def load(rows: list[int]) -> tuple[Tensor, Tensor]:
        moved = [transform(image=trial.images[row], mask=trial.masks[row]) for row in rows]
        images, masks = (torch.from_numpy(np.stack([one[key] for one in moved])) for key in ("image", "mask"))
        return images.permute(0, 3, 1, 2).float() / 255, masks.long()

    made, device, size = trial.settings.model, bench.here.device, trial.settings.batch_size
    net = smp.Unet(
        made.encoder, encoder_weights=None, classes=len(trial.settings.competition.classes), **made.options
    ).to(device)
    optimizer, started, number = torch.optim.Adam(net.parameters(), 1e-3), 0.0, 0
    with torch.backends.cudnn.flags(enabled=True, benchmark=False):
        rows: Any = range(len(trial.images) // 2)
        for images, masks in DataLoader(rows, size, shuffle=True, num_workers=2, drop_last=True, collate_fn=load):
            loss = nn.functional.cross_entropy(net(images.to(device)), masks.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            number, started = number + 1, started or time.perf_counter()  # the first also pays for starting
    return (number - 1) * size / (time.perf_counter() - started)


def main(args: argparse.Namespace) -> int:
    here = choose_device(args.device)
    if args.train:
        folder, fold, *settings = args.train
        data = demo_data(Bench(here, Path(folder)), *settings)
        fit.CHECKPOINT_EVERY = 0.5 if settings else 60.0  # seconds
        train_fold(data, int(fold), Path(folder, "demo", "run"), Machine(here, workers=4))
        return 0
    with tempfile.TemporaryDirectory(prefix="comp-gpu-", ignore_cleanup_errors=True) as place:
        bench = Bench(here, Path(place), args.runs / "demo" / args.run / "gpu.json")
        print(*bench.about.values(), sep=", ", flush=True)
        for number, part, on_gpu, on_cpu in PARTS:
            if args.only and number not in args.only:
                continue
            name, seconds, said = part.__name__.replace("_", " "), on_cpu if bench.small else on_gpu, io.StringIO()
            bench.part, left = number, args.budget - (time.monotonic() - cli.STARTED)
            if seconds is None or seconds > left:
                late = f"may take {seconds} s, and {max(left, 0):.0f} s of the budget are left"
                bench.skip(name, "needs a GPU" if seconds is None else late)
                continue
            try:
                with contextlib.redirect_stdout(said):
                    part(bench)
            except Exception as error:  # whatever it is, the next part goes on
                first, *_ = [*str(error).splitlines(), ""]
                bench.say(name, f"{type(error).__name__}: {first[:200]}", "no error", False)
                print(said.getvalue(), traceback.format_exc(), sep="\n", file=sys.stderr, flush=True)
            gc.collect()
            if not bench.small:
                torch.cuda.set_per_process_memory_fraction(1.0, here.device)
                torch.cuda.empty_cache()
    if not bench.lines:
        raise cli.Refused("--only: there are parts 1 to 11; write one, or several as 1,4")
    verdicts = [line["verdict"] for line in bench.lines]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("ok", "NOT", "read", "skipped"))
    print(f"{counts}; {time.monotonic() - cli.STARTED:.0f} s; {bench.path}")
    return int("NOT" in verdicts)


def arguments() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "--only", type=lambda text: {*map(int, text.split(","))}, help="parts such as 1,4 (default: all)"
    )
    parser.add_argument("--budget", type=cli.duration, default=600.0, help="for all parts (default: 10m)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: auto)")
    parser.add_argument("--run", default="gpu", help="name of the table's folder (default: gpu)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--train", nargs="+", help=argparse.SUPPRESS)
    return parser


def jobs(args: argparse.Namespace) -> list:
    """One kernel, which leaves the table."""
    from comp.kaggle.jobs import Job

    competition, leaf = config.load_config("demo").competition, args.runs / "demo" / args.run / "gpu.json"
    given = cli.arguments_but(*cli.HERE)
    return [Job(Path(__file__), given, f"gpu-{args.run}", competition, Path("input"), args.runs, leaves=[leaf])]


if __name__ == "__main__":
    cli.entry(arguments(), main, jobs)
