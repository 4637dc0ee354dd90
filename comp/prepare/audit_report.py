"""What an audit found, for people: a table, the list of ids, and a sheet of images."""

from collections.abc import Iterator
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
    folder: Path, competition: Competition, train: TrainSplit, index: Index, test: Split | None, found: list[Finding]
) -> str:
    """Leave audit.txt (the table), audit.csv (a row a finding) and audit.png in a folder; return the table.

    audit.png shows training images, then some of every kind of finding, under the colours of their masks.
    """
    height, width, channels = train.images.shape[1:]
    heading = f"{competition.name}: {len(train.ids):,} training images of {height}×{width}×{channels}"
    heading += f", {len(test.ids):,} test images" if test is not None else ""
    lines = [heading, "", _class_table(competition, index, height * width), ""]
    for name, split in {"training sizes": train, "test sizes": test}.items():
        if split is not None and split.sizes is not None:
            some = np.percentile(split.sizes, (0, 50, 100), axis=0, method="nearest").tolist()
            shown = ", ".join(f"{height}×{width}" for height, width in some)
            lines.append(f"{name}: minimum, median and maximum of height×width: {shown}")
    findings = pd.DataFrame(found, columns=[*Finding._fields])
    for kind, ids in findings.groupby("finding", sort=False)["id"]:
        some = ", ".join(shorten(id, 24) for id in ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
        lines.append(f"{kind:<20}{len(ids):>7,}   {some}")
    text = "\n".join(lines if found else [*lines, "nothing odd"])

    write_text(folder / "audit.txt", text + "\n")
    with atomic_write(folder / "audit.csv") as beside:
        findings.to_csv(beside, index=False)
    unscored = [label for label in [competition.arrays.ignored] if label is not None]
    sheets.draw_sheet(_rows(train, test, findings), competition.classes, folder / "audit.png", unscored)
    return text


def _class_table(competition: Competition, index: Index, area: int) -> str:
    counts = pd.DataFrame(index.counts, columns=[shorten(name, 23) for name in competition.classes])
    if (ignored := area - index.counts.sum(axis=1)).any():
        counts["(ignored)"] = ignored
    pixels, images = counts.sum(), (counts > 0).sum()
    table = pd.DataFrame({"pixels": pixels.map("{:,}".format)})
    table["share"] = (pixels / pixels.sum()).map("{:.2%}".format)
    table["images"] = images.map("{:,}".format)
    table["of all"] = (images / len(counts)).map("{:.1%}".format).where(images > 0, "in no image")
    return table.rename_axis(columns="class").to_string()


def _rows(train: TrainSplit, test: Split | None, findings: pd.DataFrame) -> Iterator[sheets.Row]:
    """Some training images, then for each kind of finding some of its; one that is like another follows that one."""
    places: dict[str, tuple[Split, int]] = {name: (train, k) for k, name in enumerate(train.ids.tolist())}
    if test is not None:
        places |= {f"test/{name}": (test, k) for k, name in enumerate(test.ids)}

    def cell(name: str) -> sheets.Cell:
        split, k = places[name]
        return split.images[k], None if split.masks is None else split.masks[k]

    yield "some training images", {name: cell(name) for name in train.ids[:: -(-len(train.ids) // ACROSS)].tolist()}
    for kind, of_kind in findings.groupby("finding", sort=False):
        named = dict.fromkeys(of_kind[["group", "id"]].to_numpy().ravel().tolist())
        if names := [name for name in named if name in places]:
            yield f"{kind}: {len(of_kind):,}", {name: cell(name) for name in names[:ACROSS]}
