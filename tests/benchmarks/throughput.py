"""Training and prediction, side by side with their ceilings and with the plain recipe.

    uv run --group peers tests/benchmarks/throughput.py                        # drawn pictures of 64×128
    uv run --group peers tests/benchmarks/throughput.py --rounds 5 --pictures 1280 --set model.encoder=resnet34

"Ceiling" is the same model, precision and batch shape on one batch that is on the device already:
forward, loss, backward and step, or forward alone. "Plain" is what most public notebooks do:
segmentation-models-pytorch, a DataLoader of albumentations, float32; for prediction ttach, and pandas for
the CSV. Rounds are interleaved, a warm-up goes before them, and the median counts."""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import albumentations
import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
import ttach
from torch.utils.data import DataLoader, Dataset

from comp import config, device
from comp.data import arrays, batches, demo
from comp.data.folds import TrainingData
from comp.ensemble.decisions import Decisions, label_images
from comp.ensemble.make_submission import predict_blend
from comp.model import losses, segmenter
from comp.submission.write import open_writer
from comp.train import fit, runs
from comp.train.step import make_optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=480, help="pictures an epoch")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    settings = config.load_config("demo", "default", [*args.overrides, "epochs=1"])
    chosen = device.choose_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        demo.ensure_demo(place)
        split = arrays.load_train(settings.competition, place)
        index = arrays.build_index(split, settings.competition)
        rows = np.resize(np.arange(len(split.ids)), args.pictures)
        print(f"{chosen}; {settings.model.architecture} on {settings.model.encoder}, batch {settings.batch_size}")
        contestants = {
            "train: ceiling": lambda: ceiling(settings, split, index, chosen),
            "train: ours": lambda: ours(settings, split, index, rows, chosen, place),
            "train: plain": lambda: plain(settings, split, rows, chosen),
            "predict d4: ceiling": lambda: forwards(settings, split, rows, chosen),
            "predict d4: ours": lambda: disk_to_csv(settings, split, rows, chosen, place),
            "predict d4: plain": lambda: plain_to_csv(settings, split, rows, chosen, place),
        }
        speeds = {name: [] for name in contestants}
        for turn in range(args.rounds + 1):
            for name, measure in contestants.items():
                with contextlib.redirect_stdout(io.StringIO()):
                    speed = measure()
                if turn:  # the first is a warm-up
                    speeds[name].append(speed)
    report(speeds)


def report(speeds: dict[str, list[float]]) -> None:
    print(f"\n{'':22}{'images/s':>10}{'spread':>16}")
    for name, values in speeds.items():
        print(f"{name:22}{statistics.median(values):10.1f}{min(values):9.1f}–{max(values):.1f}")
    pairs = [
        ("training, ours / ceiling", "train: ours", "train: ceiling", 0.95),
        ("training, ours / plain", "train: ours", "train: plain", 2.0 if not torch.cuda.is_available() else 3.0),
        ("training, ceiling / plain", "train: ceiling", "train: plain", None),
        ("d4 disk to CSV, ours / ceiling", "predict d4: ours", "predict d4: ceiling", 0.95),
        ("d4 disk to CSV, ours / plain", "predict d4: ours", "predict d4: plain", None),
    ]
    print(f"\n{'':34}{'ratio':>7}{'spread':>14}{'goal':>7}")
    for name, one, other, goal in pairs:
        ratios = sorted(a / b for a, b in zip(speeds[one], speeds[other], strict=True))
        spread = f"{ratios[0]:.2f}–{ratios[-1]:.2f}"
        print(f"{name:34}{statistics.median(ratios):7.2f}{spread:>14}{'' if goal is None else goal:>7}")


def network(settings: config.Config, split: arrays.Split, chosen: device.Device) -> segmenter.Segmenter:
    mean, std = torch.tensor([120.0]), torch.tensor([50.0])
    classes = len(settings.competition.classes)
    return segmenter.build_segmenter(settings.model, split.images.shape[3], classes, mean, std)[0].place(chosen)


def ceiling(settings: config.Config, split: arrays.Split, index: arrays.Index, chosen: device.Device) -> float:
    torch.manual_seed(0)
    model = network(settings, split, chosen).train()
    optimizer = make_optimizer(settings.optimizer, model)
    loss_of = losses.build_loss(settings.loss, settings.competition.classes, index.counts.sum(0), None)
    size = settings.batch_size
    images = device.to_device(torch.from_numpy(split.images[:size].copy()), chosen.device)
    labels = torch.from_numpy(split.masks[:size].copy()).to(chosen.device)

    def step() -> None:
        with chosen.autocast():
            logits = model(images)
        loss_of(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return size / seconds_a_call(step, 20, chosen)


class Repeated(TrainingData):
    """An epoch of rows that occur more than once; `folds` are these rows."""

    def rows(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        return self.folds, self.folds[:8]


def ours(
    settings: config.Config,
    split: arrays.Split,
    index: arrays.Index,
    rows: np.ndarray,
    chosen: device.Device,
    place: Path,
) -> float:
    with tempfile.TemporaryDirectory(dir=place) as folder:
        machine = device.Machine(chosen, batches.default_workers(chosen.device))
        _, state = fit.fit(Repeated(settings, split, index, rows), 0, Path(folder), machine)
    return state.trained / state.training


class Notebook(Dataset):
    """The dataset of a thousand notebooks."""

    def __init__(self, split: arrays.Split, rows: np.ndarray, augmented: bool = True):
        self.split, self.rows = split, rows
        flips = [albumentations.HorizontalFlip(p=0.5), albumentations.RandomBrightnessContrast(p=0.5)]
        self.transform = albumentations.Compose(flips if augmented else [])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.rows[i]
        moved = self.transform(image=self.split.images[row], mask=self.split.masks[row])
        image = torch.from_numpy(moved["image"].copy()).permute(2, 0, 1).float() / 255
        return image, torch.from_numpy(moved["mask"].copy()).long()


def unmade(settings: config.Config, chosen: device.Device) -> torch.nn.Module:
    """The network as segmentation-models-pytorch makes it."""
    kind = getattr(smp, settings.model.architecture)
    classes = len(settings.competition.classes)
    model = kind(settings.model.encoder, encoder_weights=None, in_channels=1, classes=classes, **settings.model.options)
    return model.to(chosen.device)


def plain(settings: config.Config, split: arrays.Split, rows: np.ndarray, chosen: device.Device) -> float:
    model = unmade(settings, chosen).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loader = DataLoader(Notebook(split, rows), settings.batch_size, shuffle=True, num_workers=2)
    started = time.perf_counter()
    for images, masks in loader:
        loss = torch.nn.functional.cross_entropy(model(images.to(chosen.device)), masks.to(chosen.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    return len(rows) / (time.perf_counter() - started)


def forwards(settings: config.Config, split: arrays.Split, rows: np.ndarray, chosen: device.Device) -> float:
    model, size = network(settings, split, chosen).eval(), settings.predict.batch_size
    upright = device.to_device(torch.from_numpy(split.images[:size].copy()), chosen.device)
    lying = upright.transpose(2, 3)

    @torch.inference_mode()
    def step() -> None:
        with chosen.autocast():
            for images in (upright, lying):
                for _ in range(4):
                    model(images)

    return size / seconds_a_call(step, 5, chosen)


def disk_to_csv(
    settings: config.Config, split: arrays.Split, rows: np.ndarray, chosen: device.Device, place: Path
) -> float:
    path = place / "fold-0" / runs.MODEL
    segmenter.save_model(network(settings, split, chosen), path, settings)
    test = arrays.Split(split.images[rows], None, np.arange(len(rows)).astype(str), None, None)
    started = time.perf_counter()
    classes = len(settings.competition.classes)
    with open_writer(place / "s.csv", settings.competition) as write:
        made = [[runs.Fold(path.parent, 0, {})]]
        for batch, probabilities in predict_blend(made, [1.0], test, "d4", settings.predict.batch_size, chosen):
            write(test.ids[batch], label_images(probabilities, Decisions.neutral(1, classes)).cpu().numpy())
    return len(rows) / (time.perf_counter() - started)


def plain_to_csv(
    settings: config.Config, split: arrays.Split, rows: np.ndarray, chosen: device.Device, place: Path
) -> float:
    path = place / "plain.pt"
    torch.save(unmade(settings, chosen).state_dict(), path)
    started = time.perf_counter()
    model = unmade(settings, chosen)
    model.load_state_dict(torch.load(path))
    model = ttach.SegmentationTTAWrapper(model.eval(), ttach.aliases.d4_transform(), merge_mode="mean")
    labels = []
    with torch.inference_mode():
        for images, _ in DataLoader(Notebook(split, rows, augmented=False), 64, num_workers=2):
            labels.append(model(images.to(chosen.device)).argmax(1).to(torch.uint8).cpu().numpy())
    frame = pd.DataFrame(np.concatenate(labels).reshape(len(rows), -1))
    frame.insert(0, "id", np.arange(len(rows)))
    frame.to_csv(place / "plain.csv", index=False)
    return len(rows) / (time.perf_counter() - started)


def seconds_a_call(step, times: int, chosen: device.Device) -> float:
    for _ in range(2):
        step()
    wait(chosen)
    started = time.perf_counter()
    for _ in range(times):
        step()
    wait(chosen)
    return (time.perf_counter() - started) / times


def wait(chosen: device.Device) -> None:
    if chosen.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
