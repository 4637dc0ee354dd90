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
    "audit.png": "",
}


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order."""

    heading: str
    facts: Mapping[str, str] = field(default_factory=dict)  # names and values, shown large
    table: pd.DataFrame | None = None
    text: str = ""  # preformatted
    wrap: bool = True  # whether long lines of the text are wrapped; a table's are not
    figures: list[dict[str, Any]] = field(default_factory=list)  # as `read_figures` gives them
    folded: bool = False  # whether the figures open on a click
    details: Mapping[str, str] = field(default_factory=dict)  # summaries and texts that open on a click


def write_page(path: Path, title: str, subtitle: str, sections: Iterable[Section]) -> Path:
    """Write a page of its sections, atomically."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("page.html")
    write_text(path, template.render(title=title, subtitle=subtitle, sections=sections, to_html=to_html))
    return path


def read_figures(folder: Path) -> list[dict[str, Any]]:
    """The figures in a folder, in the page's order, as the template embeds them."""
    figures = []
    for path, heading in ((folder / name, heading) for name, heading in FIGURES.items()):
        if path.exists():
            with Image.open(path) as image:
                size = {"width": image.width, "height": image.height}
                dpi = image.info.get("dpi", (100, 100))[0]
            data = base64.b64encode(path.read_bytes()).decode()
            shown = round(size["width"] * 100 / dpi)  # CSS pixels
            figures.append({"heading": heading, "name": path.stem, "data": data, "shown": shown, **size})
    return figures
