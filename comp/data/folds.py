"""Who validates on what, and all that training needs of a competition.

Samples that belong together (the user's groups, exact duplicates of an image or of a mask) share a fold.
Folds are stratified by the rarest class present in a sample, so that every fold validates on each class."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comp.config import Arrays, Config
from comp.data import arrays
from comp.data.arrays import Index, Split, TrainSplit
from comp.errors import Refused
from comp.files import atomic_write

EXCLUDED, EXTRA = -1, -2
FULL = -1  # instead of a fold's number: train on all images, validate on none


@dataclass(frozen=True)
class TrainingData:
    """A configuration, its training samples with what is known of them, and the fold in which each validates."""

    config: Config
    split: TrainSplit
    index: Index
    folds: np.ndarray  # int16 (N,); -1: excluded; -2: it trains in every fold

    def rows(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the split that a fold trains on and those that it validates on, int64 each."""
        excluded = self.folds == EXCLUDED
        return np.flatnonzero(~excluded & (self.folds != fold)), np.flatnonzero(~excluded & (self.folds == fold))


def load_training_data(config: Config, input_folder: Path, runs_folder: Path) -> TrainingData:
    """Load and check a competition's training samples; deal its folds, or read them back. Raises Refused."""
    competition = config.competition
    if competition.overlap and competition.submission.format == "pixels":
        raise Refused("competition.submission.format: a pixel has one label there, and classes overlap; rle would fit")
    split = arrays.load_train(competition, input_folder)
    index = arrays.build_index(split, competition)
    dealt = f"{config.folds.count}-seed{config.folds.seed}" if split.folds is None else "given"
    path = runs_folder / competition.name / f"folds-{dealt}.csv"
    return TrainingData(config, split, index, load_or_deal_folds(path, split, index, config))


def deal_folds(split: Split, index: Index, config: Config) -> np.ndarray:
    """The fold in which each sample validates, int16 (N,); -1: excluded from training and validation; -2: only trains.

    A split that came with the arrays is taken as it is. Raises Refused for an unknown id in `arrays.exclude`,
    for fewer independent groups than folds, where the given split has not as many folds, and for an extra sample that
    is a duplicate of one that validates, or of its group."""
    marks = _mark(split, index, config.competition.arrays)
    assigned = np.where(marks < 0, marks, _deal(split, index, config, marks < 0))
    kept = np.flatnonzero(marks != EXCLUDED)
    extra, groups = marks[kept] == EXTRA, find_groups(index, split.groups, kept)
    if len(kin := kept[extra & np.isin(groups, groups[~extra])]):
        some = ", ".join(map(repr, split.ids[kin[:3]].tolist()))
        like = "like samples that validate, or of their groups; competition.arrays.exclude would leave them out"
        raise Refused(f"{len(kin):,} extra samples are {like}: {some}{', …' if len(kin) > 3 else ''}")
    return assigned


def _deal(split: Split, index: Index, config: Config, excluded: np.ndarray) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold

    count = config.folds.count
    if split.folds is not None:
        given, ours = int(split.folds.max()) + 1, 'competition.arrays.train_folds="" for folds of our own'
        assigned = np.where(excluded, np.int16(EXCLUDED), split.folds)
        empty = sorted({*range(given)} - {*assigned.tolist()})
        if empty[:1] == [0]:
            raise Refused(f"competition.arrays.train_folds: no sample is in fold 0; are they counted from 1? Or {ours}")
        if split.folds.min() < EXCLUDED or given != count:
            raise Refused(f"the arrays bring a split into {given} folds: set folds.count={given}, or {ours}")
        if empty:
            raise Refused(f"competition.arrays.train_folds: no sample that is kept is in fold {empty[0]}; try {ours}")
        return assigned

    # scikit-learn deals groups of one size in their order. Its own shuffle would lose the stratification (1.6.1).
    kept = np.random.default_rng(config.folds.seed % 2**64).permutation(np.flatnonzero(~excluded))
    present = index.counts[kept] > 0
    rarest_first = present[:, np.argsort(present.sum(axis=0), kind="stable")]
    # A sample's stratum is its rarest class, by rank; those without any class come last.
    strata = np.column_stack([rarest_first, np.ones(len(kept), bool)]).argmax(axis=1)
    order = np.argsort(strata, kind="stable")
    kept, strata = kept[order], strata[order]
    groups = find_groups(index, split.groups, kept)
    independent = len(np.unique(groups))
    if independent < count:
        fits = f"duplicates count once; {independent if independent > 1 else 'no number'} would fit"
        raise Refused(f"folds.count: {count} folds of {independent} independent samples, as {fits}")
    if np.bincount(strata).max() < count:  # which scikit-learn refuses
        strata[:] = 0
    assigned = np.full(len(split.ids), EXCLUDED, np.int16)
    with warnings.catch_warnings(action="ignore"):  # of strata with fewer samples than folds
        for fold, (_, rows) in enumerate(StratifiedGroupKFold(count).split(kept, strata, groups)):
            assigned[kept[rows]] = fold
    return assigned


def load_or_deal_folds(path: Path, split: Split, index: Index, config: Config) -> np.ndarray:
    """The folds saved at `path`, or new ones that are saved there; int16 (N,) as `deal_folds` gives them.

    The file is CSV: id, fold, content, where content is a hash of the sample. It is refused where it
    does not fit the arrays or the exclusions any more."""
    import pandas as pd

    groups = [""] * len(split.ids) if split.groups is None else split.groups.tolist()
    contents = [
        hashlib.blake2b(f"{image:016x}{mask:016x}{group}".encode(), digest_size=8).hexdigest()
        for image, mask, group in zip(index.image_hash.tolist(), index.mask_hash.tolist(), groups, strict=True)
    ]
    if not path.exists():
        assigned = deal_folds(split, index, config)
        with atomic_write(path) as beside:
            pd.DataFrame({"id": split.ids, "fold": assigned, "content": contents}).to_csv(beside, index=False)
        return assigned
    advice = f"delete {path.name} to make new folds; runs made with it no longer fit"
    types = {"id": str, "fold": np.int64, "content": str}
    try:
        saved = pd.read_csv(path, dtype=types, usecols=[*types], na_filter=False, index_col=False)
    except (OSError, ValueError, OverflowError) as error:  # pandas' own errors are ValueErrors
        raise Refused(f"{path}: cannot be read: {' '.join(str(error).split())}; {advice}") from None
    if len(saved) != len(contents):
        raise Refused(f"{path}: {len(saved)} samples, now {len(contents)}; {advice}")
    same = (saved["id"] == split.ids) & (saved["content"] == contents)
    marks = _mark(split, index, config.competition.arrays)
    same &= np.minimum(saved["fold"], 0) == marks
    if split.folds is not None:
        same &= (marks < 0) | (saved["fold"] == split.folds)
    for row in np.flatnonzero(~same)[:1]:
        changed = "has another id, image, mask, group, fold or exclusion now"
        raise Refused(f"{path}: sample {str(split.ids[row])!r} {changed}; {advice}")
    for row in np.flatnonzero(~saved["fold"].between(EXTRA, config.folds.count - 1))[:1]:
        raise Refused(f"{path}: row {row + 2}: folds from -2 to {config.folds.count - 1} would fit; {advice}")
    return saved["fold"].to_numpy(np.int16)


def check_training(index: Index, assigned: np.ndarray, fold: int, classes: tuple[str, ...]) -> None:
    """Refuse a fold that does not exist, or one whose training part lacks a class."""
    folds = int(assigned.max()) + 1
    if not 0 <= fold < folds:
        raise Refused(f"fold {fold}: there are folds 0 to {folds - 1}")
    have = np.stack([(index.counts[assigned == one] > 0).sum(axis=0) for one in range(folds)])  # images, (folds, C)
    others = have.sum(axis=0) - have + (index.counts[assigned == EXTRA] > 0).sum(axis=0)
    for k in np.flatnonzero(others[fold] == 0)[:1]:
        if not have[fold, k]:
            raise Refused(f"fold {fold}: no image that is used has class {classes[k]!r}; leave it out of classes")
        # Fewer folds would not part it: mostly it is one image, or images that belong together.
        works = ["--fold " + ",".join(map(str, able))] if len(able := np.flatnonzero((others > 0).all(axis=1))) else []
        works += ["train_fold.py --fold full", "to merge the class with another"]
        lack = f"no training sample has class {classes[k]!r}, since all with it ({have[fold, k]}) validate here"
        raise Refused(f"fold {fold}: {lack}; what works is {', or '.join(works)}")


def _mark(split: Split, index: Index, settings: Arrays) -> np.ndarray:
    """`EXCLUDED` for a sample that the competition or a given split leaves out, `EXTRA`, or 0: int16 (N,)."""
    if unknown := set(settings.exclude).difference(split.ids.tolist()):
        raise Refused(f"competition.arrays.exclude: no sample {min(unknown)!r}")
    excluded = np.isin(split.ids, np.array(settings.exclude, dtype=str))
    if split.folds is not None:
        excluded |= split.folds == EXCLUDED
    if settings.exclude_shared_masks:
        # An image that occurs twice shares its mask by right: only different images count.
        pairs = np.unique(np.stack([index.mask_hash, index.image_hash], axis=1), axis=0)
        masks, images = np.unique(pairs[:, 0], return_counts=True)
        others = images[np.searchsorted(masks, index.mask_hash)] - 1
        excluded |= ~index.constant & (others >= settings.exclude_shared_masks)
    marks = np.zeros(len(excluded), np.int16) if split.extra is None else np.where(split.extra, EXTRA, 0)
    return np.where(excluded, EXCLUDED, marks).astype(np.int16)


def find_groups(index: Index, groups: np.ndarray | None, kept: np.ndarray) -> np.ndarray:
    """A number for each of the `kept` samples, int32 (n,); those that share something have the same one.

    A constant mask, such as an empty one, says nothing about kinship."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    shared = [(index.image_hash[kept], slice(None)), (index.mask_hash[kept], ~index.constant[kept])]
    if groups is not None:
        shared.append((groups[kept], groups[kept] != ""))
    edges = coo_array((len(kept), len(kept)))
    for values, counted in shared:
        members = np.arange(len(kept))[counted]
        _, first, which = np.unique(values[members], return_index=True, return_inverse=True)
        edges += coo_array((np.ones(len(members)), (members[first[which]], members)), edges.shape)
    return connected_components(edges, directed=False)[1]
