"""The test set predicted by all models, written as a submission, and checked."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from comp import files
from comp.config import Competition, Predict
from comp.data import npz
from comp.data.arrays import Index, Size, Split
from comp.device import Device
from comp.ensemble.decisions import AREA, GATE, HOLE, TOTAL, Decisions, describe, label_images
from comp.errors import Refused
from comp.model import metrics, predict, segmenter
from comp.model.predict import Predictions
from comp.submission.check import check_submission, read_header
from comp.submission.write import open_writer
from comp.train.runs import MODEL, Runs


def identify(competition: Competition, runs: Runs, decisions: Decisions, tta: str, test: Split, index: Index) -> dict:
    """What a submission is made of, and its file's name, so that other models or settings never overwrite it."""
    names, shapes = [folds[0].folder.parent.name for folds in runs], np.asarray(test.asked[1])
    made_of = {
        "competition": competition.name,
        "runs": names,
        "folds": [fold.number for fold in runs[0]],
        "tta": tta,
        "decisions": asdict(decisions) | {"words": [words for _, words in describe(decisions, competition)]},
        "models": {"/".join(one.folder.parts[-2:]): files.sha256(one.folder / MODEL) for one in chain(*runs)},
        "images": hashlib.sha256(index.image_hash.tobytes() + test.ids.tobytes() + shapes.tobytes()).hexdigest(),
    }
    groups = None if test.groups is None else test.groups.tolist()  # of which slices are one another's channels
    layout = competition.submission
    code = files.sha256(layout.function) if layout.function else ""  # its path differs on Kaggle
    settings = layout.model_copy(update={"function": code}).model_dump_json()
    about = json.dumps([made_of, competition.classes, competition.written, competition.overlap, settings, groups])
    digest = hashlib.sha256(about.encode()).hexdigest()[:8]
    return {"name": f"{competition.name}-{'+'.join(names)}-{digest}{layout.ending}"} | made_of


def predict_blend(
    runs: Runs, weights: Sequence[float], test: Split, tta: str | None, batch_size: int, device: Device
) -> Predictions:
    """Blend a test split: each model predicts as it was validated, but with test-time augmentation `tta` where given.

    A run's folds weigh the same. All models stay on the device."""
    models: list[tuple[segmenter.Segmenter, Predict, float]] = []
    for folds, weight in zip(runs, weights, strict=True):
        for fold in folds:
            model, config = segmenter.load_model(fold.folder / MODEL, device)
            if (trained := config.competition.arrays.neighbours) != test.neighbours:
                wanted = f"with arrays.neighbours = {list(trained)}, not {list(test.neighbours)}"
                raise Refused(f"{fold.folder}: was trained {wanted}, as the competition's TOML says now")
            models.append((model, config.predict, weight / len(folds)))

    @torch.inference_mode()
    def look(images: Tensor, _: np.ndarray, now: Predict) -> Tensor:
        new = {"batch_size": now.batch_size} | ({"tta": tta} if tta else {})
        seen = (predict.probabilities(one, images, own.model_copy(update=new)).mul_(part) for one, own, part in models)
        return reduce(Tensor.add_, seen)

    rows, asked = np.arange(len(test.ids)), models[0][1].model_copy(update={"batch_size": batch_size})
    with tqdm(total=len(rows), desc="predict", unit="image", disable=None) as bar:
        for batch, probabilities in predict.for_each_batch(look, test.inputs, rows, asked, device):
            yield batch, probabilities
            bar.update(len(batch))


def write_submission(
    path: Path, blended: Predictions, decisions: Decisions, test: Split, competition: Competition, sample: Path | None
) -> tuple[int, dict[str, Any] | None]:
    """Label blended probabilities, each image at its own size, write them to `path`, and check the file.

    Returns the number of rows and, for a practice competition whose test masks are known, the scores.
    `sample` is the competition's sample submission. Raises Refused for a file that Kaggle would refuse."""
    layout, overlap = competition.submission, competition.overlap
    tally = metrics.Tally(test, np.arange(len(test.ids)), competition, decisions.neck)

    def label() -> Iterator[tuple[np.ndarray, np.ndarray | list[np.ndarray]]]:
        """The ids of a batch, and its labels at the images' own sizes."""
        if test.places is not None:
            for name, whole, size in stitch_windows(blended, test):
                part = test.images[0, ..., 0].size / whole[0].numel()  # of which areas are shares
                areas = {kind: tuple(part * one for one in getattr(decisions, kind)) for kind in (HOLE, AREA, TOTAL)}
                areas[GATE] = tuple((part * share, least) for share, least in decisions.gate)
                labels = label_images(whole[None], replace(decisions, **areas), overlap)
                # Decided before they are resized, since a slide of gigapixels has no room as probabilities.
                yield np.array([name]), F.interpolate(labels[None], size=size, mode="nearest-exact")[0].numpy()
            return
        for rows, probabilities in blended:
            if test.masks is not None or test.sizes is None:
                labels = label_images(probabilities, decisions, overlap)
            if test.masks is not None:
                tally.add(rows, torch.from_numpy(np.ascontiguousarray(test.masks[rows])).to(labels.device), labels)
            if test.sizes is None:
                yield test.ids[rows], labels.cpu().numpy()
            else:
                own = zip(probabilities, test.sizes[rows].tolist(), strict=True)
                resized = (F.interpolate(one[None], size, mode="bilinear", align_corners=False) for one, size in own)
                yield test.ids[rows], [label_images(x, decisions, overlap)[0].cpu().numpy() for x in resized]

    if layout.function:
        write_own = files.load_function(layout.function, "write_submission(path, predictions)")
        with files.atomic_write(path) as beside:
            write_own(beside, ((str(id), image) for batch in label() for id, image in zip(*batch, strict=True)))
            if not (beside.is_file() and beside.stat().st_size):
                raise Refused(f"{layout.function}: write_submission left nothing at the path that it was given")
    else:
        with open_writer(path, competition, read_header(sample) if sample else (), decisions.neck) as write:
            for ids, images in label():
                write(ids, images)
    count = check_submission(path, competition, *test.asked, sample)
    if test.masks is None or test.places is not None:
        return count, None
    return count, metrics.scores(tally.margins, competition.classes, competition.metric, tally.counts)


def stitch_windows(blended: Predictions, test: Split) -> Iterator[tuple[str, Tensor, Size]]:
    """Ids of images, probabilities (C, h, w) of their windows, which fade into one another, and their own sizes.

    Memory holds an image until its last window has come."""
    assert test.places is not None and test.sizes is not None
    names = [id.rpartition("@")[0] for id in test.ids.tolist()]
    last = {name: row for row, name in enumerate(names)}  # after it an image is whole, since rows come in their order
    canvases, fade = dict[str, Tensor](), predict.make_fade(test.images.shape[1:3])
    for rows, probabilities in blended:
        for row, seen in zip(rows.tolist(), probabilities.cpu(), strict=True):
            name, scale = names[row], np.array(seen.shape[1:]) / test.sizes[row]
            top, start, height, width = np.floor(test.places[row] * np.tile(scale, 2) + 0.5).astype(int).tolist()
            if name not in canvases:
                canvases[name] = torch.zeros(len(seen) + 1, height, width)
            top, start = min(top, height - len(fade)), min(start, width - fade.shape[1])
            window = canvases[name][:, top : top + len(fade), start : start + fade.shape[1]]
            window += torch.cat([seen * fade, fade[None]])
            if row == last[name]:
                whole = canvases.pop(name)
                yield name, whole[:-1] / whole[-1], (int(test.places[row, 2]), int(test.places[row, 3]))


def write_pseudo_labels(
    path: Path, blended: Predictions, decisions: Decisions, test: Split, competition: Competition, least: float
) -> None:
    """Write the test images as an npz for `arrays.extra`, labelled as a blend sees them, pixel by pixel.

    A pixel whose largest probability is below `least` is ignored. Raises Refused where that is every one."""
    ignored = competition.arrays.ignored or 0  # kernels/ensemble.py has seen that there is one
    masks = np.empty(test.images.shape[:3], np.uint8)
    for rows, seen in blended:
        masks[rows] = label_images(seen, decisions).masked_fill(seen.amax(1) < least, ignored).cpu().numpy()
    if (masks == ignored).all():
        raise Refused(f"no pixel of the test images has a probability of {least:g}; a lower --pseudo would fit")
    members = {"train_images": test.images, "train_masks": masks, "train_ids": test.ids}
    npz.write_npz(path, [(key, array.shape, array.dtype, (array,)) for key, array in members.items()])
    print(f"{path}: {len(masks):,} images, {(masks == ignored).mean():.0%} of their pixels ignored")
