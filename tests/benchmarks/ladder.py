"""What each choice of the default recipe buys: validation scores on mars, fold 0, in the same time.

    uv run --group peers tests/benchmarks/ladder.py --time-budget 60s

The first rung is the plain recipe of most public notebooks; each next one adds one choice. Needs input/'s mars."""

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from throughput import Notebook
from torch.utils.data import DataLoader

from comp import cli, config, device
from comp.data.folds import TrainingData, load_training_data
from comp.model import metrics
from comp.train.train_fold import train_fold

BEFORE = [  # the default recipe with every choice taken back
    'optimizer.name="adam"',
    "optimizer.weight_decay=0.0",
    'schedule.name="constant"',
    "schedule.warmup=0.0",
    "ema=0.0",
    'loss.class_weights="none"',
    "loss.label_smoothing=0.0",
    "loss.terms={cross_entropy=1.0}",
    "augment.cutmix=0.0",
    "model.options={}",
    'predict.tta="none"',
]
RUNGS = {
    "bf16, channels last, samples as they lie": [],
    "AdamW on one cycle": [
        'optimizer.name="adamw"',
        "optimizer.weight_decay=0.01",
        'schedule.name="one_cycle"',
        "schedule.warmup=0.25",
    ],
    "averaged weights": ["ema=0.99"],
    "mild class weights, smoothed labels": ["loss.class_weights=0.25", "loss.label_smoothing=0.05"],
    "a Lovász term": ["loss.terms={cross_entropy=1.0, lovasz=1.0}"],
    "boxes of one picture in another": ["augment.cutmix=0.5"],
    "a thinner decoder": ["model.options={decoder_channels=[128, 64, 48, 32, 16]}"],
    "prediction with the mirrored picture": ['predict.tta="hflip"'],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-budget", type=cli.duration, default=60.0, help="for each rung (default: 60s)")
    parser.add_argument("--input", type=Path, default=Path("input"))
    args = parser.parse_args()
    overrides = list(BEFORE)
    print(f"{device.choose_device()}, {args.time_budget:.0f} s each")
    heading()
    with tempfile.TemporaryDirectory() as folder:
        data = load_training_data(config.load_config("mars", "mars"), args.input, Path(folder))
        show("the plain recipe", *plain(data, args.time_budget))
        for number, (name, added) in enumerate(RUNGS.items()):
            overrides += added
            show(f"+ {name}", *ours(data, args.time_budget, Path(folder) / str(number), overrides))


def ours(data: TrainingData, budget: float, folder: Path, overrides: Sequence[str] = ()) -> tuple[float, float, float]:
    """The shipped recipe, in so many seconds, its validations and out-of-fold predictions among them."""
    rung, deadline = replace(data, config=config.load_config("mars", "mars", overrides)), time.monotonic() + budget
    with contextlib.redirect_stdout(io.StringIO()):
        found = train_fold(rung, 0, folder, device.Machine(device.choose_device(), 0, deadline)).metrics
    return found["mean_iou_without_0"], found["mean_iou_truth_without_0"], found["images_per_second"]


def heading() -> None:
    print(f"{'':44}{'IoU of 1 to 4':>15}{'course':>9}{'images/s':>10}")


def show(name: str, without: float, truth: float, speed: float) -> None:
    print(f"{name:44}{without:15.3f}{truth:9.3f}{speed:10.1f}", flush=True)


def plain(data: TrainingData, budget: float, epochs: int = 2**31) -> tuple[float, float, float]:
    """float32, Adam, a DataLoader: for so many seconds or epochs, the validation left out."""
    torch.manual_seed(0)
    train, valid = np.flatnonzero(data.folds > 0), np.flatnonzero(data.folds == 0)
    model = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=5)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loader = DataLoader(Notebook(data.split, train), 16, shuffle=True, num_workers=2, drop_last=True)
    started, seen, spent = time.monotonic(), 0, 0.0
    while spent < budget and seen < epochs * len(loader) * 16:
        for images, masks in loader:
            loss = torch.nn.functional.cross_entropy(model(images), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen, spent = seen + len(images), time.monotonic() - started
            if spent >= budget:
                break
    margins = []
    with torch.inference_mode():
        for start in range(0, len(valid), 64):
            batch = valid[start : start + 64]
            images = device.to_device(torch.from_numpy(data.split.images[batch]), torch.device("cpu"))
            labels = model.eval()(images.float() / 255).argmax(1)
            confusions = metrics.count_confusion(torch.from_numpy(data.split.masks[batch]), labels, 5)
            margins.append(metrics.to_margins(confusions).numpy())
    counted = np.concatenate(margins)
    readings = [metrics.score(counted, config.Metric(background=way)) for way in ("drop_class", "drop_truth")]
    return *readings, seen / spent


if __name__ == "__main__":
    main()
