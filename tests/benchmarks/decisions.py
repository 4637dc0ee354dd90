"""Time and memory of the search for decisions: 3,000 drawn images of 101×101 in five folds.

python tests/benchmarks/decisions.py"""

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from comp import config
from comp.data import arrays, npz
from comp.ensemble.search import search_decisions, show_ladder
from comp.model import metrics, predict
from comp.train import runs

IMAGES, SIDE, FOLDS = 3000, 101, 5


def main() -> None:
    rng = np.random.default_rng(0)
    own = config.load_config("tgs-salt").competition
    fields = gaussian_filter(rng.normal(size=(IMAGES, SIDE, SIDE)), (0, 12, 12))
    levels = fields.std() * rng.uniform(-1, 2.5, (IMAGES, 1, 1))  # above which there is salt, in some images nowhere
    masks = (fields > levels).astype(np.uint8)
    seen = gaussian_filter(masks + rng.normal(size=masks.shape), (0, 1.5, 1.5))
    ids = np.array([f"p{k}" for k in range(IMAGES)])
    split = arrays.TrainSplit(rng.integers(0, 255, (IMAGES, SIDE, SIDE, 1), dtype=np.uint8), masks, ids, None, None)
    index = arrays.build_index(split, own)
    with tempfile.TemporaryDirectory() as folder:
        chosen = []
        for number in range(FOLDS):
            rows = np.arange(number, IMAGES, FOLDS)
            p = torch.from_numpy(seen[rows]).mul(6).sub(3).sigmoid().float()
            planes, truth = predict.to_planes(torch.stack([1 - p, p], 1)), torch.from_numpy(masks[rows])
            margins = metrics.count_margins(truth, (p > 0.5).byte(), own).numpy()
            members = {"ids": ids[rows], "planes": planes.numpy(), "margins": margins}
            members["counts"] = np.full((len(rows), 2), np.nan)  # of metrics that look at images
            place = Path(folder) / f"fold-{number}"
            npz.write_npz(place / runs.OOF, [(key, a.shape, a.dtype, [a]) for key, a in members.items()])
            chosen.append(runs.Fold(place, number, {"valid_images": len(rows)}))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.monotonic()
        _, ladder = search_decisions([chosen], split, index, own, torch.device("cpu"))
        seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(show_ladder(ladder))
    what = f"{IMAGES:,} images of {SIDE}×{SIDE} in {FOLDS} folds"
    print(f"{what}: {seconds:.1f} s, {(after - before) / 1e3:.0f} MB at its peak")


if __name__ == "__main__":
    main()
