"""What an audit found, for people: a table, the list of ids, and a sheet of images."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from comp.config import Competition
from comp.data.arrays import Index, Split, TrainSplit
from comp.files import atomic_write, write_text
from comp.prepare.finding import Finding
from comp.report import sheets
from comp.report.tables import shorten

ACROSS = 6  # images in a row of the sheet
NAMED = 3  # ids that the table names of every kind


def write_audit(
    folder: Path,
    competition: Competition,
    train: TrainSplit,
    index: Index,
    test: Split | None,
    found: Sequence[Finding],
) -> str:
    """Leave audit.txt (the table), audit.csv (a row a finding) and audit.png in a folder; return the table.

    audit.png shows training images, then some of every kind of finding, under the colours of their masks.
    """
    findings = pd.DataFrame([vars(finding) for finding in found], columns=[*Finding.__dataclass_fields__])
    with atomic_write(folder / "audit.csv") as beside:
        findings.to_csv(beside, index=False)
    text = audit_table(competition, train, index, test, findings)
    write_text(folder / "audit.txt", text + "\n")
    rows = _rows(train, test, findings)
    ignored = competition.arrays.ignored
    sheets.draw_sheet(rows, competition.classes, folder / "audit.png", set() if ignored is None else {ignored})
    return text


def audit_table(
    competition: Competition, train: TrainSplit, index: Index, test: Split | None, findings: pd.DataFrame
) -> str:
    """Classes, sizes and findings as text of a screen's width."""
    height, width, channels = train.images.shape[1:]
    heading = f"{competition.name}: {len(train.ids):,} training images of {height}×{width}×{channels}"
    heading += f", {len(test.ids):,} test images" if test is not None else ""

    ignored = height * width - index.counts.sum(axis=1, keepdims=True)
    counts = np.hstack([index.counts, ignored])[:, : None if ignored.any() else -1]
    pixels, times = pd.Series(counts.sum(axis=0)), pd.Series((counts > 0).sum(axis=0))
    table = pd.DataFrame({
        "pixels": pixels.map("{:,}".format),
        "share": (pixels / pixels.sum()).map("{:.2%}".format),
        "images": times.map("{:,}".format),
        "of all": (times / len(train.ids)).map("{:.1%}".format).where(times > 0, "in no image"),
    })  # fmt: skip
    table.index = pd.Index([shorten(name, 23) for name in [*competition.classes, "(ignored)"][: len(table)]])

    odd = []
    for split, name in ((train, "training sizes"), (test, "test sizes")):
        if split is not None and split.sizes is not None:
            order = np.argsort(split.sizes.astype(np.int64).prod(axis=1), kind="stable")
            some = ", ".join("×".join(map(str, split.sizes[order[k]])) for k in (0, len(order) // 2, -1))
            many = len(np.unique(split.sizes, axis=0))
            odd.append(f"{name:<20}{many:>7,}   height×width of the smallest, median, largest: {some}")
    for kind, ids in findings.groupby("finding", sort=False)["id"]:
        some = ", ".join(shorten(id, 24) for id in ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
        odd.append(f"{kind:<20}{len(ids):>7,}   {some}")
    nothing = ["nothing odd"] if findings.empty else []
    return "\n".join([heading, "", table.rename_axis(columns="class").to_string(), "", *odd, *nothing])


def _rows(train: TrainSplit, test: Split | None, findings: pd.DataFrame) -> Iterator[sheets.Row]:
    """Some training images, then for each kind of finding some of its; one that is like another follows that one."""
    places: dict[str, tuple[Split, int]] = {name: (train, k) for k, name in enumerate(train.ids.tolist())}
    if test is not None:
        places |= {f"test/{name}": (test, k) for k, name in enumerate(test.ids)}

    def shown(names: Iterable[str]) -> dict[str, sheets.Cell]:
        some = {name: places[name] for name in names}
        return {name: (s.images[k], None if s.masks is None else s.masks[k]) for name, (s, k) in some.items()}

    some = np.linspace(0, len(train.ids) - 1, min(ACROSS, len(train.ids)), dtype=int)
    yield "some training images", shown(train.ids[some].tolist())
    for kind, of_kind in findings.groupby("finding", sort=False):
        named = dict.fromkeys(of_kind[["group", "id"]].to_numpy().ravel().tolist())
        if names := [name for name in named if name in places]:
            yield f"{kind}: {len(of_kind):,}", shown(names[:ACROSS])
