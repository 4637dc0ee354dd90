"""Who validates on what, and all that training needs of a competition.

Samples that belong together (the user's groups, exact duplicates of an image or of a mask) share a fold.
Folds are stratified by the rarest class present in a sample, so that every fold validates on each class."""

import hashlib
import warnings
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from comp.config import Arrays, Config, Metric, Source
from comp.data import arrays, npz
from comp.data.arrays import Index, Split, TrainSplit
from comp.errors import Refused
from comp.files import write_text

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
    if competition.overlap and competition.submission.format != "rle" and not competition.submission.function:
        raise Refused("competition.submission.format: a pixel has one label there, and classes overlap; rle would fit")
    split = arrays.load_train(competition, input_folder)
    index = arrays.build_index(split, competition)
    dealt = f"{config.folds.count}-seed{config.folds.seed}" if split.folds is None else "given"
    path = runs_folder / competition.name / f"folds-{dealt}.csv"
    data = TrainingData(config, split, index, load_or_deal_folds(path, split, index, config))
    return _append_extra(data, input_folder) if competition.arrays.extra else data


def _append_extra(data: TrainingData, input_folder: Path) -> TrainingData:
    """Samples, and behind them those of `arrays.extra`; the arrays of both lie in the cache. Raises Refused."""
    split, index, own = data.split, data.index, data.config.competition
    only = {"arrays": Arrays(file=own.arrays.extra, ignore=own.arrays.ignored), "metric": Metric(), "source": Source()}
    more = arrays.load_train(own.model_copy(update=only), input_folder)
    found = arrays.build_index(more, own.model_copy(update=only))
    if len(twins := np.flatnonzero(np.isin(found.image_hash, index.image_hash[data.folds >= 0]))):
        copies = f"{len(twins):,} images also validate, such as {str(more.ids[twins[0]])!r}"
        raise Refused(f"{own.arrays.extra}: {copies}; leave them out")
    if more.images.shape[1:] != split.images.shape[1:]:
        raise Refused(f"{own.arrays.extra}: images of {more.images.shape[1:]}; the others are {split.images.shape[1:]}")
    assert split.cache and more.cache  # as they were loaded
    file = split.cache.with_name(f"{split.cache.name}+{more.cache.name}.npz")
    pairs = {"images": (split.images, more.images), "masks": (split.masks, more.masks)}
    ids = np.append(split.ids, [f"{own.arrays.extra}/{id}" for id in more.ids])
    if not file.exists():
        made = [(key, (len(ids), *one.shape[1:]), np.uint8, chain(one, other)) for key, (one, other) in pairs.items()]
        npz.write_npz(file, made)
    images, masks = (npz.map_member(npz.read_member(file, key)) for key in pairs)
    groups = None if split.groups is None else np.append(split.groups, [""] * len(more.ids))
    joined = replace(split, images=images, masks=masks, ids=ids, groups=groups, cache=None)
    counted = (np.concatenate([getattr(index, key), getattr(found, key)]) for key in Index.__dataclass_fields__)
    marks = np.append(data.folds, np.full(len(more.ids), EXTRA, np.int16))
    return replace(data, split=joined, index=Index(*counted), folds=marks)


def deal_folds(split: Split, index: Index, config: Config) -> np.ndarray:
    """The fold in which each sample validates, int16 (N,); -1: excluded from training and validation; -2: only trains.

    A split that came with the arrays is taken as it is. Refused: an extra sample that belongs to one that validates."""
    from sklearn.model_selection import StratifiedGroupKFold

    marks = _mark(split, index, config.competition.arrays)
    kept = np.flatnonzero(marks != EXCLUDED)
    extra, groups = marks[kept] == EXTRA, find_groups(index, split.groups, kept)
    if len(kin := kept[extra & np.isin(groups, groups[~extra])]):
        like = f"like samples that validate, or of their groups, such as {str(split.ids[kin[0]])!r}"
        raise Refused(f"{len(kin):,} extra samples are {like}; competition.arrays.exclude would leave them out")
    count, validates = config.folds.count, marks == 0
    if split.folds is not None:
        given = ", ".join(map(str, np.unique(split.folds[validates])))
        if given != ", ".join(map(str, range(count))):
            fits = f'0 to {count - 1} would fit, or another folds.count; competition.arrays.train_folds="" deals anew'
            raise Refused(f"competition.arrays.train_folds: the samples that are kept are in folds {given}; {fits}")
        return np.where(validates, split.folds, marks)

    # scikit-learn deals groups of one size in their order. Its own shuffle would lose the stratification (1.6.1).
    kept = np.random.default_rng(config.folds.seed % 2**64).permutation(np.flatnonzero(validates))
    present = index.counts[kept] > 0
    rarest_first = present[:, np.argsort(present.sum(axis=0), kind="stable")]
    # A sample's stratum is its rarest class, by rank; those without any class come last.
    strata = np.column_stack([rarest_first, np.ones(len(kept), bool)]).argmax(axis=1)
    order = np.argsort(strata, kind="stable")
    kept, strata = kept[order], strata[order]
    groups = find_groups(index, split.groups, kept)
    if (independent := len(np.unique(groups))) < count:
        raise Refused(f"folds.count: {count} folds of {independent} independent samples, as duplicates count once")
    if np.bincount(strata).max() < count:  # which scikit-learn refuses
        strata[:] = 0
    with warnings.catch_warnings(action="ignore"):  # of strata with fewer samples than folds
        for fold, (_, rows) in enumerate(StratifiedGroupKFold(count).split(kept, strata, groups)):
            marks[kept[rows]] = fold
    return marks


def load_or_deal_folds(path: Path, split: Split, index: Index, config: Config) -> np.ndarray:
    """The folds saved at `path`, or new ones that are saved there; int16 (N,) as `deal_folds` gives them.

    The file is CSV: id, fold, content, a hash of the sample. Refused where it does not fit the arrays any more."""
    groups = [""] * len(split.ids) if split.groups is None else split.groups.tolist()
    contents = [
        hashlib.blake2b(f"{image:016x}{mask:016x}{group}".encode(), digest_size=8).hexdigest()
        for image, mask, group in zip(index.image_hash.tolist(), index.mask_hash.tolist(), groups, strict=True)
    ]
    if not path.exists():
        assigned = deal_folds(split, index, config)
        write_text(path, pd.DataFrame({"id": split.ids, "fold": assigned, "content": contents}).to_csv(index=False))
        return assigned
    advice = f"delete {path.name} to make new folds; runs made with it no longer fit"
    types = {"id": str, "fold": np.int64, "content": str}
    with npz.refuse_damage(path, "folds", f"; {advice}"):
        saved = pd.read_csv(path, dtype=types, usecols=[*types], na_filter=False, index_col=False)
    if len(saved) != len(contents):
        raise Refused(f"{path}: {len(saved)} samples, now {len(contents)}; {advice}")
    same = (saved["id"] == split.ids) & (saved["content"] == contents)
    marks = _mark(split, index, config.competition.arrays)
    same &= (np.minimum(saved["fold"], 0) == marks) & (saved["fold"] < config.folds.count)
    if split.folds is not None:
        same &= (marks < 0) | (saved["fold"] == split.folds)
    for row in np.flatnonzero(~same)[:1]:
        changed = f"has another id, image, mask, group, exclusion or fold (0 to {config.folds.count - 1}) now"
        raise Refused(f"{path}: sample {str(split.ids[row])!r} {changed}; {advice}")
    return saved["fold"].to_numpy(np.int16)


def check_training(index: Index, assigned: np.ndarray, fold: int, classes: tuple[str, ...]) -> None:
    """Refuse a fold that does not exist, or one whose training part lacks a class."""
    folds = int(assigned.max()) + 1
    if not 0 <= fold < folds:
        raise Refused(f"fold {fold}: there are folds 0 to {folds - 1}")
    train = (assigned != fold) & (assigned != EXCLUDED)
    for k in np.flatnonzero(~(index.counts[train] > 0).any(axis=0))[:1]:
        if not (valid := np.count_nonzero(index.counts[assigned == fold, k])):
            raise Refused(f"fold {fold}: no image that is used has class {classes[k]!r}; leave it out of classes")
        # Fewer folds would not part it: mostly it is one image, or images that belong together.
        lack = f"no training sample has class {classes[k]!r}, since all with it ({valid}) validate here"
        works = "another fold, train_fold.py --fold full, or merging the class with another may work"
        raise Refused(f"fold {fold}: {lack}; {works}")


def _mark(split: Split, index: Index, settings: Arrays) -> np.ndarray:
    """`EXCLUDED` for a sample that the competition or a given split leaves out, `EXTRA`, or 0: int16 (N,)."""
    if unknown := set(settings.exclude).difference(split.ids.tolist()):
        raise Refused(f"competition.arrays.exclude: no sample {min(unknown)!r}")
    excluded = np.isin(split.ids, np.array(settings.exclude, dtype=str))
    if split.folds is not None:
        excluded |= split.folds == EXCLUDED
    if settings.exclude_shared_masks:
        # An image that occurs twice shares its mask by right: only different images count.
        images = pd.Series(index.image_hash).groupby(index.mask_hash).transform("nunique").to_numpy()
        excluded |= ~index.constant & (images > settings.exclude_shared_masks)
    marks = np.zeros(len(excluded), np.int16) if split.extra is None else np.where(split.extra, EXTRA, 0)
    return np.where(excluded, EXCLUDED, marks).astype(np.int16)


def find_groups(index: Index, groups: np.ndarray | None, kept: np.ndarray) -> np.ndarray:
    """A number for each of the `kept` samples, int32 (n,), the same for all that share more than a constant mask."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    shared = [(index.image_hash[kept], slice(None)), (index.mask_hash[kept], ~index.constant[kept])]
    if groups is not None:
        shared.append((groups[kept], groups[kept] != ""))
    edges = coo_array((len(kept), len(kept)))
    for values, counted in shared:
        members = np.arange(len(kept))[counted]
        first = members[arrays.first_with(values[members])]
        edges += coo_array((np.ones(len(members)), (first, members)), edges.shape)
    return connected_components(edges, directed=False)[1]
