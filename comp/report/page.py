"""The HTML report of a run: its tables and the figures that it left, in one page, nothing from outside."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from comp.files import write_text
from comp.report.tables import to_html

FIGURES = {
    "curves.png": "Curves",
    "confusion.png": "Confusion",
    "examples.png": "Worst, median and best cases",
    "filmstrip.png": "How predictions changed as training went on",
    "samples.png": "Augmented samples",
    "decisions.png": "The score over the values of each decision that is used, and the chosen one",
    "audit.png": "",
}


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order."""

    heading: str
    table: pd.DataFrame | None = None
    text: str = ""  # preformatted
    wrap: bool = True  # whether long lines of the text are wrapped; a table's are not
    figures: list[dict[str, Any]] = field(default_factory=list)  # as `read_figures` gives them
    folded: bool = False  # whether the figures open on a click
    details: Mapping[str, str] = field(default_factory=dict)  # summaries and texts that open on a click


def write_page(path: Path, title: str, subtitle: str, sections: Iterable[Section]) -> Path:
    """Write a page of its sections, atomically."""
    source = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    template = jinja2.Template(source, autoescape=True, trim_blocks=True)
    write_text(path, template.render(title=title, subtitle=subtitle, sections=sections, to_html=to_html))
    return path


def read_figures(folder: Path) -> list[dict[str, Any]]:
    """The figures in a folder, in the page's order, as the template embeds them."""
    figures = []
    for name, heading in FIGURES.items():
        if (path := folder / name).exists():
            with Image.open(path) as image:
                width = round(image.width * 100 / image.info.get("dpi", (100, 100))[0])  # CSS pixels
            data = base64.b64encode(path.read_bytes()).decode()
            figures.append({"heading": heading, "name": path.stem, "data": data, "width": width})
    return figures
