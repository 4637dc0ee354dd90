"""Every recipe that ships trains, on arrays of its data's shape."""

import numpy as np
import pytest
import torch

from comp import config, device
from comp.data import arrays
from comp.data.folds import TrainingData
from comp.train import fit

pytestmark = pytest.mark.slow

CPU = device.Device(torch.device("cpu"), torch.float32, "a test")
SHAPES = {"mars": (64, 128, 1), "pets": (256, 256, 3), "voc": (256, 256, 3), "hurricane": (128, 128, 3)}
SHAPES |= {"nuclei": (256, 256, 3), "salt": (101, 101, 3)}
COMPETITIONS = {"mars": "mars", "pets": "pets", "voc": "voc2007", "nuclei": "dsb2018", "salt": "tgs-salt"}


@pytest.mark.parametrize("recipe", config.shipped_names("recipes"))
def test_a_recipe_trains(recipe, tmp_path):
    family = recipe.partition("-")[0]
    shape = SHAPES.get(family, (64, 128, 1))
    overrides = ["epochs=1", "batch_size=3", "model.encoder_weights=none"]
    loaded = config.load_config(COMPETITIONS.get(family, "demo"), recipe, overrides)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, *shape), np.uint8)
    masks = rng.integers(0, 2, (8, *shape[:2]), np.uint8)
    masks[0] = rng.integers(0, len(loaded.competition.classes), shape[:2])  # the only one to be drawn more often
    split = arrays.TrainSplit(images, masks, np.arange(8).astype(str), None, None)
    index = arrays.build_index(split, loaded.competition)
    data = TrainingData(loaded, split, index, (np.arange(8) < 6).astype(np.int16))
    model, state = fit.fit(data, 0, tmp_path, device.Machine(CPU))
    assert len(state.history) == 1 and np.isfinite(state.history[0]["train_loss"])
    assert model(torch.from_numpy(images[:1]).permute(0, 3, 1, 2)).shape[1] == len(loaded.competition.classes)
