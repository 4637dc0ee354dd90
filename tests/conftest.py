"""A competition of a dozen lines and a network of a few thousand weights, for tests of seconds."""

import contextlib
import importlib.util
import io
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
# Tests run several processes at a time; more threads than cores wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"
# The client reads this once, when it is imported: whichever test comes first, none reaches Kaggle itself.
os.environ["KAGGLE_API_ENVIRONMENT"] = "LOCALHOST"

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

COMPETITION = """\
name = "tiny"
classes = ["ground", "stripe", "spot"]

[metric]
name = "mean_iou"
background = "drop_class"

[submission]
format = "rle"
rows = "image_class"
class_column = "class"
value_column = "rle"
"""

RECIPE = """\
epochs = 2
batch_size = 6
ema = 0.5
folds = { count = 3 }
model = { encoder = "resnet18", options = { encoder_depth = 3, decoder_channels = [8, 8, 8] } }
optimizer = { lr = 2e-3 }

[augment]
transforms = [{ name = "HorizontalFlip" }, { name = "RandomBrightnessContrast" }]
cutmix = 0.5
mixup = 0.3

[predict]
tta = "hflip"
batch_size = 8
"""


def count_margins(truth: np.ndarray, prediction: np.ndarray, classes: int, ignore: int | None = None) -> np.ndarray:
    """Margins int64 (N, 4, C), as scores take them, of labels (N, H, W)."""
    import torch

    from comp.model import metrics

    confusions = metrics.count_confusion(torch.tensor(truth), torch.tensor(prediction), classes, ignore)
    return metrics.to_margins(confusions).numpy()


def draw(count: int, seed: int, size: tuple[int, int] = (32, 48)) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (count, H, W) with a stripe and a spot, and their masks."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, *size), np.uint8)
    for mask in masks:
        top, (y, x) = rng.integers(0, size[0] - 8), (rng.integers(0, side - 8) for side in size)
        mask[top : top + 6] = 1
        mask[y : y + 8, x : x + 8] = 2
    images = 60 + 70 * masks + rng.integers(0, 40, masks.shape)
    return images.astype(np.uint8), masks


def kernel(script: str, *arguments: str, cwd: Path, status: int | None = 0) -> str:
    """Run an entry script as a user does; return what it printed, both streams."""
    command = [sys.executable, str(ROOT / "kernels" / script), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    output = done.stdout + done.stderr
    if status is not None:
        assert done.returncode == status, output
    return output


def load(script: str) -> Any:
    """An entry script as a module."""
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), ROOT / "kernels" / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inside(monkeypatch, capsys, script: str, *arguments: str, cwd: Path, status: int = 0) -> str:
    """The same in this process, where the libraries are imported already."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "kernels" / script), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "kernels" / script), run_name="__main__")
    output = "".join(capsys.readouterr())
    assert (ended.value.code or 0) == status, output
    return output


TINY = ("--competition", "tiny.toml", "--recipe", "recipe.toml", "--device", "cpu")


def lay_out(place: Path, recipe: str = RECIPE, competition: str = COMPETITION, **more: np.ndarray) -> None:
    """The tiny competition's files in a folder; `more` arrays replace its own."""
    images, masks = draw(24, 0)
    test_images, test_masks = draw(7, 1)
    (place / "input").mkdir(parents=True)
    arrays = {"train_images": images, "train_masks": masks, "test_images": test_images, "test_masks": test_masks}
    np.savez(place / "input/tiny.npz", **(arrays | more))
    (place / "tiny.toml").write_text(competition)
    (place / "recipe.toml").write_text(recipe)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Every fold of the tiny competition, trained once for all tests that look at it; and what that printed."""
    place = tmp_path_factory.mktemp("trained")
    lay_out(place)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.chdir(place)
        patch.setattr(sys, "argv", [str(ROOT / "kernels/train_fold.py"), *TINY, "--fold", "all"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(sys.argv[0], run_name="__main__")
    assert ended.value.code == 0, said.getvalue()
    # Tests that train more here leave another command.
    (place / "first-command.txt").write_text((place / "runs/tiny/recipe/command.txt").read_text())
    return place, said.getvalue()
