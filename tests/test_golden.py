"""The losses of two short trainings, step by step, as they were when tests/golden.json was written.

A change that means to change training writes the file anew: python tests/test_golden.py"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw

from comp import config, device
from comp.data import arrays
from comp.data.arrays import TrainSplit
from comp.data.folds import TrainingData
from comp.train import fit
from comp.train.step import Step

GOLDEN = Path(__file__).with_name("golden.json")
TOLERANCE = 1e-2  # relative: other CPUs, and other numbers of threads, add in another order
FLOAT32 = device.Device(torch.device("cpu"), torch.float32, "a test")
SMALL = ['competition.classes=["ground","stripe","spot"]', "epochs=3", "batch_size=5"]
RECIPES = {
    "default, mixed": ["model.options={encoder_depth=3, decoder_channels=[8,8,8]}", "augment.cutmix=0.5", "ema=0.9"],
    "plain U-Net, SGD": [
        "model.architecture=PlainUnet",
        "model.options={widths=[8, 16], block='residual'}",
        "optimizer={name='sgd', lr=0.05, clip=1.0, accumulate=2}",
        "schedule.name=plateau",
        "loss={terms={focal=1.0, dice=0.5, boundary=0.3}, class_weights='sqrt'}",
        "oversample={spot=2.0}",
        "augment.mixup=0.5",
    ],
}


def losses_of(recipe: str, folder: Path) -> list[float]:
    """The loss of every step, then loss and score of every validation."""
    loaded = config.load_config("demo", "default", [*SMALL, *RECIPES[recipe]])
    images, masks = draw(32, 0, (32, 32))
    split = TrainSplit(images[..., None], masks, np.arange(32).astype(str), None, None)
    data = TrainingData(
        loaded, split, arrays.build_index(split, loaded.competition), (np.arange(32) % 4).astype(np.int16)
    )
    steps, step = [], Step.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "__call__", lambda *given: steps.append(step(*given).item()) or torch.tensor(steps[-1]))
        _, state = fit.fit(data, 0, folder, device.Machine(FLOAT32))
    return [*steps, *(row[key] for row in state.history for key in ("valid_loss", "score"))]


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_is_as_it_was(recipe, tmp_path):
    assert losses_of(recipe, tmp_path) == pytest.approx(json.loads(GOLDEN.read_text())[recipe], rel=TOLERANCE)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = {
            recipe: [round(loss, 6) for loss in losses_of(recipe, Path(place, str(k)))]
            for k, recipe in enumerate(RECIPES)
        }
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
