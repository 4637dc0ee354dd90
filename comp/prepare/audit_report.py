"""What an audit found, for people: a table, the list of ids, and a sheet of pictures."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np

from comp.config import Competition
from comp.data.arrays import Index, Split
from comp.files import write_csv, write_text
from comp.prepare.layouts import Finding
from comp.report import sheets
from comp.report.tables import aligned, shorten

ACROSS = 6  # pictures in a row of the sheet
NAMED = 3  # ids that the table names of every kind


def write_audit(
    folder: Path, competition: Competition, train: Split, index: Index, test: Split | None, found: Sequence[Finding]
) -> str:
    """Leave audit.txt (the table), audit.csv (a row a finding) and audit.png in a folder; return the table.

    audit.png shows training pictures, then some of every kind of finding, under the colours of their masks.
    """
    text = audit_table(competition, train, index, test, found)
    write_csv(folder / "audit.csv", [("id", "finding", "detail", "group"), *map(astuple, found)])
    write_text(folder / "audit.txt", text + "\n")
    rows = _rows(train, test, found)
    sheets.draw_sheet(rows, competition.classes, folder / "audit.png", {competition.arrays.ignored} - {None})
    return text


def audit_table(
    competition: Competition, train: Split, index: Index, test: Split | None, found: Sequence[Finding]
) -> str:
    """Classes, sizes and findings as text of a screen's width."""
    height, width, channels = train.images.shape[1:]
    heading = f"{competition.name}: {len(train.ids):,} training pictures of {height}×{width}×{channels}"
    heading += f", {len(test.ids):,} test pictures" if test is not None else ""

    labelled = index.counts.sum(axis=1)
    everything = len(train.ids) * height * width
    names = [*competition.classes, "(ignored)"]
    pixels = [*index.counts.sum(axis=0).tolist(), everything - int(labelled.sum())]
    times = [*(index.counts > 0).sum(axis=0).tolist(), int((labelled < height * width).sum())]
    rows = [["class", "pixels", "share", "pictures", "share"]]
    for name, count, where in zip(names, pixels, times, strict=True):
        if count or name != "(ignored)":
            share = f"{where / len(train.ids):.1%}" if count else "in no picture"
            rows.append([shorten(name, 23), f"{count:,}", f"{count / everything:.2%}", f"{where:,}", share])

    odd = []
    for split, name in ((train, "training sizes"), (test, "test sizes")):
        if split is not None and split.sizes is not None:
            order = np.argsort(split.sizes.astype(np.int64).prod(axis=1), kind="stable")
            some = ", ".join("×".join(map(str, split.sizes[order[k]])) for k in (0, len(order) // 2, -1))
            many = len(np.unique(split.sizes, axis=0))
            odd.append(f"{name:<20}{many:>7,}   height×width of the smallest, median, largest: {some}")
    for kind, ids in _kinds(found).items():
        some = ", ".join(shorten(finding.id, 24) for finding in ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
        odd.append(f"{kind:<20}{len(ids):>7,}   {some}")
    return "\n".join([heading, "", aligned(rows), "", *odd, *([] if found else ["nothing odd"])])


def _kinds(found: Sequence[Finding]) -> dict[str, list[Finding]]:
    kinds: dict[str, list[Finding]] = {}
    for finding in found:
        kinds.setdefault(finding.finding, []).append(finding)
    return kinds


def _rows(train: Split, test: Split | None, found: Sequence[Finding]) -> Iterator[sheets.Row]:
    """Some training pictures, then for each kind of finding some of its; one that is like another follows that one."""
    places = {name: (train, k) for k, name in enumerate(train.ids.tolist())}
    if test is not None:
        places |= {f"test/{name}": (test, k) for k, name in enumerate(test.ids)}

    def shown(names: Iterable[str]) -> dict[str, sheets.Cell]:
        some = {name: places[name] for name in names}
        return {name: (s.images[k], None if s.masks is None else s.masks[k]) for name, (s, k) in some.items()}

    some = np.linspace(0, len(train.ids) - 1, min(ACROSS, len(train.ids)), dtype=int)
    yield "some training pictures", shown(train.ids[some].tolist())
    for kind, of_kind in _kinds(found).items():
        names: dict[str, None] = {}
        for finding in of_kind:
            both = dict.fromkeys(name for name in (finding.group, finding.id) if name in places)
            if len(names | both) > ACROSS:
                break
            names |= both
        if names:
            yield f"{kind}: {len(of_kind):,}", shown(names)
