"""The samples of a download: by a reader, by patterns, or in one of the common layouts."""

from collections import Counter
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from comp.config import Competition
from comp.errors import Refused
from comp.prepare import layouts, patterns, reader, table
from comp.prepare.samples import Finding, Found, Sample

BOTH = "train", "test"


def find_samples(competition: Competition, folder: Path, spool: Path, parts: tuple[str, ...] = BOTH) -> Found:
    """Find the samples below `folder`, ordered by id. What a reader yields is kept in the folder `spool`.

    `parts`: "test" alone is enough where only hidden images are read. Raises Refused where the first of the parts
    has no sample, or a sample of the training part has no mask.
    """
    own = competition.source
    if own.reader:
        found = reader.run_reader(competition, folder, spool, parts)
    elif own.images or own.test:
        found = patterns.find_by_patterns(competition, folder, parts)
    else:
        found = layouts.find_in_folders(competition, folder, parts)
    for part in (found.train, found.test):
        part[:] = sorted((one for one in part if one.id not in own.skip), key=attrgetter("order"))
        if twice := [id for id, times in Counter(one.id for one in part).items() if times > 1]:
            raise Refused(f"{folder}: several samples have the id {twice[0]!r}; more fields in source.id would help")
    train, odd = found.train, list(found.odd)
    if own.table and "train" in parts:
        train, lost = _join(competition, table.read_layers(competition, folder), train)
        odd += lost
    for kind in ("no mask", "no image", "not in the list"):
        if some := [one.id for one in odd if one.finding == kind]:
            print(f"{folder}: {kind}: {len(some):,} left out, the first {some[0]}")
    what = "image has a mask" if "train" in parts else "test images; source.test would say where they are"
    if not (train if "train" in parts else found.test):
        raise Refused(f"{folder}: no {what}")
    if own.fold and "train" in parts and len({sample.fold for sample in train if not sample.extra}) == 1:
        raise Refused(f"source.fold = {own.fold!r}: says {train[0].fold} of all samples, which is no split")
    if unknown := [sample for sample in train if sample.mask is None]:
        raise Refused(f"{unknown[0].images[0]}: has no mask; source.masks or source.table would say where it is")
    return Found(train, found.test, odd)


def _join(own: Competition, layers: dict, samples: list[Sample]) -> tuple[list[Sample], list[Finding]]:
    """The samples with the layers that a table has of them, and the table's ids that have no image."""
    file = own.source.table["file"]
    known = {sample.id for sample in samples if sample.mask is None}
    if not known & layers.keys():
        theirs, ours = next(iter(layers), "no rows"), next(iter(known), "no images")
        hint = 'source.id makes these, as in "{name}", the file\'s name'
        raise Refused(f"source.table: {file} has ids such as {theirs!r}, the images such as {ours!r}; {hint}")
    odd = [Finding(id, "no image", file) for id in layers if id not in known and id not in own.source.skip]
    if absent := known - layers.keys():
        line = f"{file}: has no row of {len(absent):,} of {len(known):,} images, the first {min(absent)}"
        if odd or not all(layers.values()):  # then it says of an image that its mask is empty, or ids differ
            raise Refused(f"{line}, and {len(odd):,} rows' ids have no image; cut short? source.skip leaves images out")
        print(f"{line}: empty masks")
    return [replace(one, mask=tuple(layers.get(one.id, ()))) if one.mask is None else one for one in samples], odd
