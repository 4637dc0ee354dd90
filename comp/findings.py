"""What an audit found, for people: a table, the list of ids, and a sheet of pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from comp.arrays import Index, Split
from comp.audit import Finding
from comp.audit import save as save_list
from comp.config import Competition
from comp.drawing import DPI, FAINT, INK, colours, plain, save, short
from comp.files import write_text

ACROSS = 8  # pictures in a row of the sheet
NAMED = 3  # ids that the table names of every kind


def table(competition: Competition, train: Split, index: Index, test: Split | None, found: Sequence[Finding]) -> str:
    """Classes, sizes and findings as text of a screen's width."""
    height, width, channels = train.images.shape[1:]
    heading = f"{competition.name}: {len(train.ids):,} training pictures of {height}×{width}×{channels}"
    heading += f", {len(test.ids):,} test pictures" if test is not None else ""
    lines = [heading, "", f"{'class':<24}{'pixels':>16}{'share':>9}{'pictures':>10}{'share':>9}"]

    labelled = index.counts.sum(axis=1)
    everything = len(train.ids) * height * width
    names = [*competition.classes, "(ignored)"]
    pixels = [*index.counts.sum(axis=0).tolist(), everything - int(labelled.sum())]
    pictures = [*(index.counts > 0).sum(axis=0).tolist(), int((labelled < height * width).sum())]
    for name, count, times in zip(names, pixels, pictures, strict=True):
        if count or name != "(ignored)":
            shares = f"{count / everything:>9.2%}{times:>10,}{times / len(train.ids):>9.1%}"
            lines.append(f"{short(name, 23):<24}{count:>16,}{shares}" + ("" if count else "  in no picture"))

    lines.append("")
    lines += [
        _sizes(split, name)
        for split, name in ((train, "training"), (test, "test"))
        if split and split.sizes is not None
    ]
    lines += [""] if lines[-1] else []
    kinds: dict[str, list[str]] = {}
    for finding in found:
        kinds.setdefault(finding.finding, []).append(finding.id)
    for kind, ids in kinds.items():
        rest = ", …" if len(ids) > NAMED else ""
        lines.append(f"{kind:<20}{len(ids):>7,}   {', '.join(short(name, 24) for name in ids[:NAMED])}{rest}")
    return "\n".join(lines if found else [*lines, "nothing odd"])


def write(
    folder: Path,
    competition: Competition,
    train: Split,
    index: Index,
    test: Split | None,
    found: Sequence[Finding],
) -> None:
    """Leave audit.txt (the table), audit.csv (a row a finding) and audit.png (some of every kind) in a folder."""
    save_list(found, folder / "audit.csv")
    write_text(folder / "audit.txt", table(competition, train, index, test, found) + "\n")
    sheet(folder / "audit.png", competition, train, index, test, found)


def sheet(
    path: Path,
    competition: Competition,
    train: Split,
    index: Index,
    test: Split | None,
    found: Sequence[Finding],
) -> None:
    """Draw the classes as bars and, a row a kind, some of the pictures under their masks' colours.

    A picture that is like another one follows that one.
    """
    kinds = _shown(found, train, test)
    many = len(competition.classes)
    bars, row = 0.9 + 0.19 * many, 14 / ACROSS * train.images.shape[1] / train.images.shape[2] + 0.62
    figure = Figure(figsize=(14, bars + row * len(kinds)), dpi=DPI, layout="constrained")
    top, *rows = figure.subfigures(1 + len(kinds), 1, height_ratios=[bars] + [row] * len(kinds), squeeze=False)[:, 0]
    _classes(top, competition, index)
    for part, (kind, (total, cells)) in zip(rows, kinds.items(), strict=True):
        shown = "" if total <= len(cells) else ", some of them"
        part.suptitle(f"{plain(kind)}: {total:,}{shown}", x=0.006, ha="left", fontsize=11, color=INK)
        axes = part.subplots(1, ACROSS)
        for axis in axes:
            axis.axis("off")
        for axis, (split, at, title) in zip(axes, cells, strict=False):
            _cell(axis, split, at, competition)
            axis.set_title(plain(title), fontsize=8, color=INK)
    save(figure, path)


def _sizes(split: Split, name: str) -> str:
    order = np.argsort(split.sizes.astype(np.int64).prod(axis=1), kind="stable")
    some = ", ".join("×".join(map(str, split.sizes[order[k]])) for k in (0, len(order) // 2, -1))
    many = len(np.unique(split.sizes, axis=0))
    return f"{name + ' sizes':<20}{many:>7,}   height×width of the smallest, median, largest: {some}"


def _shown(
    found: Sequence[Finding], train: Split, test: Split | None
) -> dict[str, tuple[int, list[tuple[Split, int, str]]]]:
    """For each kind its number and the pictures to draw: split, index, title."""
    places = {str(name): (train, k) for k, name in enumerate(train.ids)}
    if test is not None:
        places |= {f"test/{name}": (test, k) for k, name in enumerate(test.ids)}
    kinds: dict[str, tuple[int, list[tuple[Split, int, str]]]] = {}
    for kind in dict.fromkeys(finding.finding for finding in found):
        of_kind = [finding for finding in found if finding.finding == kind]
        cells: dict[str, tuple[Split, int, str]] = {}
        for finding in of_kind:
            fresh = [name for name in (finding.group, finding.id) if name in places and name not in cells]
            if len(cells) + len(fresh) > ACROSS:
                break
            for name in fresh:
                title = short(name, 22) + ("" if finding.group else f"\n{short(finding.detail, 24)}")
                cells[name] = (*places[name], title)
        if cells:
            kinds[kind] = (len(of_kind), list(cells.values()))
    return kinds


def _classes(figure, competition: Competition, index: Index) -> None:
    share = index.counts.sum(axis=0) / max(1, index.counts.sum())
    pictures = (index.counts > 0).mean(axis=0)
    at = np.arange(len(share))
    for axis, values, title in zip(
        figure.subplots(1, 2, sharey=True),
        (share, pictures),
        ("share of the pixels", "share of the pictures"),
        strict=True,
    ):
        axis.barh(at, values, color=colours(len(at)) / 255, edgecolor=FAINT, linewidth=0.5)
        for k, value in enumerate(values):
            axis.text(
                value + 0.01,
                k,
                f"{value:.1%}" if value >= 0.001 or not value else "< 0.1%",
                va="center",
                fontsize=8,
            )
        axis.set(title=title, xlim=(0, 1.12), ylim=(len(at) - 0.4, -0.6), xticks=[])
        axis.set_yticks(at, [plain(short(name, 20)) for name in competition.classes])
        axis.title.set(fontsize=10, color=INK)
        axis.tick_params(length=0, labelsize=9)
        for side in axis.spines.values():
            side.set_visible(False)


def _cell(axis: Axes, split: Split, at: int, competition: Competition) -> None:
    image = split.images[at]
    image = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    if split.masks is not None:
        table = np.full((256, 3), 255, np.uint8)
        table[: len(competition.classes)] = colours(len(competition.classes))
        # The first class, mostly background, is left as it is: what lies there stays to be seen.
        opacity = 0.45 * (split.masks[at] != 0)[..., None]
        image = ((1 - opacity) * image + opacity * table[split.masks[at]]).astype(np.uint8)
    axis.imshow(image, interpolation="nearest", aspect="equal")
