"""Who validates on what.

Samples that belong together (the user's groups, exact duplicates of a picture or of a mask) share a
fold. Groups are dealt stratum by stratum, a stratum being the rarest class present, so that every
fold validates on each class. The order in which they are dealt comes from a hash of the seed and of
the samples' content: the same on every machine, and whatever the order of the samples in the file.
"""

import csv
import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np

from comp.config import Arrays, Config
from comp.data.arrays import Index, Split
from comp.errors import Refused
from comp.files import write_csv

EXCLUDED = -1


def deal_folds(split: Split, index: Index, config: Config) -> np.ndarray:
    """The fold in which each sample validates, int16 (N,); -1: excluded from training and validation.

    A split that came with the arrays is taken as it is. Raises Refused for an unknown id in `arrays.exclude`,
    for fewer independent groups than folds, and where the given split has not as many folds.
    """
    excluded, folds = _excluded(split, index, config.competition.arrays), config.folds
    if split.folds is not None:
        count = int(split.folds.max()) + 1
        if split.folds.min() < EXCLUDED or count != folds.count:
            raise Refused(
                f"the arrays bring a split into {count} folds: set folds.count={count}, "
                'or competition.arrays.train_folds="" for folds of our own'
            )
        return np.where(excluded, np.int16(EXCLUDED), split.folds)

    kept = np.flatnonzero(~excluded)
    group_of = _groups(index, split.groups, kept)
    count = int(group_of.max(initial=-1)) + 1
    if count < folds.count:
        fits = f"; set folds.count={count}" if count > 1 else ""
        raise Refused(f"folds.count: {folds.count} folds of {count} independent samples (duplicates count once){fits}")
    strata = _strata(index.counts[kept])
    stratum = np.full(count, strata.max() + 1)
    np.minimum.at(stratum, group_of, strata)
    size = np.bincount(group_of)
    key = np.full(count, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(key, group_of, _shuffled(index, kept, folds.seed))

    fold_of_group = np.empty(count, np.int16)
    total = [0] * folds.count
    same = defaultdict(lambda: [0] * folds.count)  # by stratum, what each fold has of it
    for group in np.lexsort((key, -size, stratum)).tolist():
        here = same[stratum[group]]
        fold = min(range(folds.count), key=lambda k: (here[k], total[k]))
        fold_of_group[group] = fold
        here[fold] += size[group]
        total[fold] += size[group]
    assigned = np.full(len(split.ids), EXCLUDED, np.int16)
    assigned[kept] = fold_of_group[group_of]
    return assigned


def load_or_deal_folds(path: Path, split: Split, index: Index, config: Config) -> np.ndarray:
    """The folds saved at `path`, or new ones that are saved there; int16 (N,) as `deal_folds` gives them.

    The file is CSV: id, fold, content, where content is a hash of the sample. It is refused where it
    does not fit the arrays or the exclusions any more.
    """
    contents = _contents(split, index)
    if not path.exists():
        assigned = deal_folds(split, index, config)
        rows = zip(split.ids.tolist(), assigned.tolist(), contents, strict=True)
        write_csv(path, [("id", "fold", "content"), *rows])
        return assigned
    saved = _read(path, config.folds.count)
    excluded = _excluded(split, index, config.competition.arrays)
    advice = f"delete {path.name} to make new folds; runs made with it no longer fit"
    now = zip(split.ids.tolist(), contents, excluded.tolist(), strict=True)
    for (id, fold, content), (id_now, content_now, out) in zip(saved, now, strict=False):
        if id != id_now:
            raise Refused(f"{path}: sample {id!r} is now {id_now!r}; {advice}")
        if content != content_now:
            raise Refused(f"{path}: sample {id!r} has another picture, mask or group now; {advice}")
        if out != (fold == EXCLUDED):
            raise Refused(f"{path}: sample {id!r} is {'excluded' if out else 'not excluded'} now; {advice}")
    if len(saved) != len(contents):
        raise Refused(f"{path}: {len(saved)} samples, now {len(contents)}; {advice}")
    return np.array([fold for _, fold, _ in saved], np.int16)


def check_training(index: Index, assigned: np.ndarray, fold: int, classes: tuple[str, ...]) -> None:
    """Refuse a fold that does not exist, or one whose training part lacks a class."""
    folds = int(assigned.max()) + 1
    if not 0 <= fold < folds:
        raise Refused(f"fold {fold}: there are folds 0 to {folds - 1}")
    pixels = index.counts[(assigned != fold) & (assigned != EXCLUDED)].sum(axis=0)
    for name, count in zip(classes, pixels.tolist(), strict=True):
        if count == 0:
            raise Refused(f"fold {fold}: no training sample has class {name!r}; use fewer folds or drop the class")


def connected(pairs: np.ndarray, count: int) -> np.ndarray:
    """The lowest of all that are connected with each of `count` things by pairs, int64 (P, 2): int64 (count,)."""
    lowest = np.arange(count)
    while (lowest[pairs[:, 0]] != lowest[pairs[:, 1]]).any():
        for side in (0, 1):
            np.minimum.at(lowest, lowest[pairs[:, side]], lowest[pairs].min(axis=1))
        lowest = lowest[lowest]  # a chain halves with each round
    return lowest


def _excluded(split: Split, index: Index, arrays: Arrays) -> np.ndarray:
    """Which samples the competition, or the split that came with the arrays, leaves out: bool (N,)."""
    unknown = set(arrays.exclude).difference(split.ids.tolist())
    if unknown:
        raise Refused(f"competition.arrays.exclude: no sample {min(unknown)!r}")
    excluded = np.isin(split.ids, np.array(arrays.exclude, dtype=str))
    if split.folds is not None:
        excluded |= split.folds == EXCLUDED
    if arrays.exclude_shared_masks:
        telling = np.flatnonzero(~index.constant)
        _, mask = np.unique(index.mask_hash[telling], return_inverse=True)
        # A picture that occurs twice shares its mask by right: only different pictures count.
        pairs = np.unique(np.stack([mask, index.image_hash[telling]], axis=1).astype(np.uint64), axis=0)
        pictures = np.bincount(pairs[:, 0].astype(np.int64), minlength=1)
        excluded[telling] |= pictures[mask] - 1 >= arrays.exclude_shared_masks
    return excluded


def _strata(counts: np.ndarray) -> np.ndarray:
    """Each sample's rarest class as its rank, int64 (n,): 0 is the class that fewest samples contain.

    Of equally rare classes the lower number is first. A sample without any class comes last.
    """
    present = counts > 0
    rarest_first = np.argsort(present.sum(axis=0), kind="stable")
    ranked = present[:, rarest_first]
    return np.where(ranked.any(axis=1), ranked.argmax(axis=1), counts.shape[1])


def _groups(index: Index, groups: np.ndarray | None, kept: np.ndarray) -> np.ndarray:
    """Number from 0 the groups that belong together, int64 (n,), by what samples share.

    A constant mask, such as an empty one, is no sign of kinship.
    """
    shared = [(index.image_hash[kept], slice(None)), (index.mask_hash[kept], ~index.constant[kept])]
    if groups is not None:
        shared.append((groups[kept], groups[kept] != ""))
    pairs = []
    for values, counted in shared:
        members = np.arange(len(kept))[counted]
        _, first, which = np.unique(values[members], return_index=True, return_inverse=True)
        pairs.append(np.stack([members[first[which]], members], axis=1))
    return np.unique(connected(np.concatenate(pairs), len(kept)), return_inverse=True)[1]


def _shuffled(index: Index, kept: np.ndarray, seed: int) -> np.ndarray:
    """A number per sample from seed and content, uint64 (n,), by splitmix64 (Steele et al., 2014)."""
    key = np.full(len(kept), seed % 2**64, np.uint64)
    for part in (index.image_hash[kept], index.mask_hash[kept]):
        key = (key ^ part) + np.uint64(0x9E3779B97F4A7C15)
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        key ^= key >> np.uint64(31)
    return key


def _contents(split: Split, index: Index) -> list[str]:
    groups = [""] * len(split.ids) if split.groups is None else split.groups.tolist()
    parts = zip(index.image_hash.tolist(), index.mask_hash.tolist(), groups, strict=True)
    return [
        hashlib.blake2b(f"{image:016x}{mask:016x}{group}".encode(), digest_size=8).hexdigest()
        for image, mask, group in parts
    ]


def _read(path: Path, folds: int) -> list[tuple[str, int, str]]:
    rows = []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            if next(reader, None) != ["id", "fold", "content"]:
                raise Refused(f"{path}: row 1 is not id,fold,content; delete the file to make new folds")
            for number, row in enumerate(reader, start=2):
                if len(row) != 3 or row[1] not in {str(fold) for fold in range(EXCLUDED, folds)}:
                    raise Refused(f"{path}: row {number}: id, fold from -1 to {folds - 1}, content would fit")
                rows.append((row[0], int(row[1]), row[2]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{path}: cannot be read: {error}") from None
    return rows
