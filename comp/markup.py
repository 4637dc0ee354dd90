"""Parts of an HTML page that stands alone: tables, charts, sheets of pictures, text, all escaped.

A part is `Html`; any other string is text and is escaped where it is put in. The page carries a
content security policy under which a browser loads nothing from outside.
"""

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from comp import sheets
from comp.files import write_text
from comp.stylesheet import PAGE


class Html(str):
    """Text that is markup already."""


@dataclass(frozen=True)
class Line:
    """One line of a chart; a value that is not finite leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dashed: bool = False
    best: int | None = None  # position of the point that is marked with a disc
    stopped: bool = False  # the last point is marked with a bar: the line ended early


def write(path: str | Path, title: str, sections: Iterable[tuple[str, str]], subtitle: str = "") -> Path:
    """Write one page, whole or not at all: a title, then sections of (heading, part)."""
    sections = [(heading, part) for heading, part in sections if part]
    links = "".join(f'<a href="#s{i}">{esc(heading)}</a>' for i, (heading, _) in enumerate(sections))
    body = "".join(
        f'<section id="s{i}"><h2>{esc(heading)}</h2>{esc(part)}</section>' for i, (heading, part) in enumerate(sections)
    )
    head = f"<header><h1>{esc(title)}</h1><p>{esc(subtitle)}</p><nav>{links}</nav></header>"
    write_text(path, PAGE.replace("{title}", esc(title)).replace("{body}", f"{head}<main>{body}</main>"))
    return Path(path)


def esc(value: Any) -> Html:
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(*parts: Any) -> Html:
    return Html("".join(esc(part) for part in parts))


def paragraph(text: Any) -> Html:
    return Html(f"<p>{esc(text)}</p>")


def code(text: str) -> Html:
    return Html(f"<pre>{esc(text)}</pre>")


def folded(summary: str, *parts: Any) -> Html:
    return Html(f"<details><summary>{esc(summary)}</summary>{join(*parts)}</details>")


def facts(pairs: Iterable[tuple[str, Any]]) -> Html:
    """Large figures, each with what it is."""
    cards = "".join(f"<div><b>{esc(value)}</b><span>{esc(name)}</span></div>" for name, value in pairs)
    return Html(f'<div class="facts">{cards}</div>')


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], emphasis: Iterable[int] = ()) -> Html:
    """A table in a box that scrolls by itself; the first column is flush left, rows of `emphasis` are bold."""
    strong = set(emphasis)
    top = "".join(f"<th>{esc(cell)}</th>" for cell in head)
    lines = "".join(
        f"<tr{' class=strong' if i in strong else ''}>" + "".join(f"<td>{esc(cell)}</td>" for cell in row) + "</tr>"
        for i, row in enumerate(rows)
    )
    return Html(f'<div class="box"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>')


def bar(share: float | None, text: str) -> Html:
    """A figure over a bar of that share (0 to 1) of its cell's width."""
    width = 0 if share is None or not math.isfinite(share) else round(100 * min(max(share, 0), 1), 1)
    return Html(f'<span class="bar" style="--w:{width}%">{esc(text)}</span>')


def heat(names: Sequence[str], shares: np.ndarray) -> Html:
    """A confusion, float (C, C) of shares 0 to 1, as a table whose cells are shaded."""
    top = "".join(f"<th><span>{esc(name)}</span></th>" for name in names)
    rows = []
    for name, row in zip(names, shares, strict=True):
        values = [round(float(v), 3) if math.isfinite(v) else 0.0 for v in row]
        cells = (f'<td style="--v:{v}"{" class=full" if v > 0.5 else ""}>{round(100 * v) or ""}</td>' for v in values)
        rows.append(f"<tr><th>{esc(name)}</th>{''.join(cells)}</tr>")
    return Html(f'<div class="box"><table class="heat"><tr><th></th>{top}</tr>{"".join(rows)}</table></div>')


def legend(entries: Iterable[tuple[str, str]]) -> Html:
    """Names behind squares of their colours."""
    items = "".join(f'<li><i style="background:{esc(colour)}"></i>{esc(name)}</li>' for name, colour in entries)
    return Html(f'<ul class="legend">{items}</ul>')


def chart(title: str, lines: Sequence[Line], x_label: str = "epoch") -> Html:
    """Lines over a common x as an inline SVG."""
    points = [(x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    if not points:
        return Html(f'<figure class="chart"><figcaption>{esc(title)}: nothing finite to draw</figcaption></figure>')
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high, ticks = _scale(min(ys), max(ys))
    left, right = min(xs), max(xs)
    left, right = (left - 0.5, right + 0.5) if left == right else (left, right)

    def at(x: float, y: float) -> tuple[float, float]:
        return round(58 + 332 * (x - left) / (right - left), 1), round(190 - 175 * (y - low) / (high - low), 1)

    parts = []
    for tick in ticks:
        y = at(left, tick)[1]
        parts.append(f'<path class="grid" d="M58 {y}H390"/>')
        parts.append(f'<text x="52" y="{y + 4}" text-anchor="end">{tick:.4g}</text>')
    for tick in _scale(left, right, whole=True)[2]:
        if left <= tick <= right:
            parts.append(f'<text x="{at(tick, low)[0]}" y="208" text-anchor="middle">{tick:.4g}</text>')
    parts.append(f'<text x="224" y="226" text-anchor="middle">{esc(x_label)}</text>')
    parts += [_drawn(line, at) for line in lines]
    svg = f'<svg viewBox="0 0 400 232" role="img" aria-label="{esc(title)}">{"".join(parts)}</svg>'
    return Html(f'<figure class="chart"><figcaption>{esc(title)}</figcaption>{svg}</figure>')


def _drawn(line: Line, at: Any) -> str:
    pen, path, parts = "M", "", []
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(y):
            px, py = at(x, y)
            path, pen = f"{path}{pen}{px} {py}", "L"
            parts.append(f'<circle cx="{px}" cy="{py}" r="1.6" fill="{line.colour}"/>' if len(line.x) < 30 else "")
        else:
            pen = "M"
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    parts.append(f'<path class="line" d="{path}" stroke="{line.colour}"{dash}><title>{esc(line.name)}</title></path>')
    for place, kind in ((len(line.x) - 1 if line.stopped else None, "stop"), (line.best, "best")):
        if place is not None and math.isfinite(line.y[place]):
            px, py = at(line.x[place], line.y[place])
            mark = f'<circle cx="{px}" cy="{py}" r="5"' if kind == "best" else f'<path d="M{px - 2} {py - 9}h4v18h-4z"'
            parts.append(f'{mark} fill="{line.colour}" class="mark"/>')
    return "".join(parts) if path else ""


def _scale(low: float, high: float, whole: bool = False) -> tuple[float, float, list[float]]:
    """Round limits around low … high, and about five ticks of 1, 2 or 5 times a power of ten."""
    span = high - low or abs(high) or 1.0
    size = 10 ** math.floor(math.log10(span / 4))
    step = next(size * k for k in (1, 2, 5, 10) if size * k * 5 >= span)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return first * step, last * step, [k * step for k in range(first, last + 1)]


def picture(path: str | Path, text: str) -> Html:
    """A PNG file as it is, in a box of its own."""
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return Html(f'<div class="box"><img class="whole" src="data:image/png;base64,{data}" alt="{esc(text)}"></div>')


def sheet(path: str | Path, name: str, masks: Sequence[str] | None = None) -> Html:
    """A sheet that `comp.sheets` drew, its parts laid out anew; `masks`: the columns that lie over the picture.

    `masks` None: all columns but the first, in one strip that scrolls sideways. `name`, of letters
    and digits, must be the page's own for this sheet.
    """
    made = sheets.read(path)
    if made is None:
        return picture(path, name)
    rows, style = [], []
    for r, (caption, cells) in enumerate(made.rows):
        under = f"{name}-{r}"
        style.append(f".{under}{{background-image:url({_data(cells[0])})}}")
        shown = [f'<div class="cell {under}" style="aspect-ratio:{cells[0].shape[1]}/{cells[0].shape[0]}"></div>']
        for column, cell in zip(made.columns[1:], cells[1:], strict=True):
            over = f" {under} over" if masks is None or column in masks else ""
            alt = esc(f"{column}, {caption}")
            shown.append(f'<div class="cell{over}"><img src="{_data(cell)}" alt="{alt}"></div>')
        figures = "".join(
            f"<figure>{cell}<figcaption>{esc(column)}</figcaption></figure>"
            for cell, column in zip(shown, made.columns, strict=True)
        )
        kind = "strip" if masks is None else "cells"
        rows.append(f'<div class="case"><h3>{esc(caption)}</h3><div class="{kind}">{figures}</div></div>')
    return Html(f"<style>{''.join(style)}</style>{legend(made.legend)}{''.join(rows)}")


def _data(cell: np.ndarray) -> str:
    """A picture as a data URI: exact where it has few colours, as masks have, else JPEG."""
    values, places = np.unique(cell.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32), return_inverse=True)
    file = io.BytesIO()
    if len(values) > 256:
        Image.fromarray(np.ascontiguousarray(cell)).save(file, format="JPEG", quality=88)
    else:
        image = Image.fromarray(places.reshape(cell.shape[:2]).astype(np.uint8))
        image.putpalette(values.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes())
        image.save(file, format="PNG", optimize=True)
    kind = "jpeg" if len(values) > 256 else "png"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


OPACITY = Html(
    '<label class="opacity">masks over the picture <input type="range" min="0" max="1" step="0.05" value="0.6" '
    "oninput=\"document.documentElement.style.setProperty('--o',this.value)\"></label>"
)
