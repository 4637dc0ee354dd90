"""The HTML report of a run: its tables and the pictures that it left, in one page, nothing from outside."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from comp.files import write_text

PICTURES = {
    "curves.png": "Curves",
    "confusion.png": "Confusion",
    "examples.png": "Worst, median and best cases",
    "filmstrip.png": "How predictions changed as training went on",
    "samples.png": "Augmented samples",
    "audit.png": "",
}
PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1200px; padding: 20px 16px 60px; color: #1d232b; background: #fff; overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  -webkit-text-size-adjust: 100%;
}
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.2rem; margin: 36px 0 12px; padding-top: 14px; border-top: 1px solid #dfe3e8; }
h3 { font-size: 1rem; margin: 18px 0 8px; }
summary { cursor: pointer; color: #0072b2; margin: 12px 0; }
.soft, .facts span, th { color: #5b6672; font-weight: 400; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(155px, 1fr)); gap: 10px; margin-bottom: 16px;
  font-size: 0.85rem;
}
.facts div, pre { background: #f6f7f9; border-radius: 10px; padding: 10px 14px; }
.facts b { display: block; font-size: 1.25rem; }
.box, pre { overflow-x: auto; }
.box { /* a shadow at the side where more is */
  background: linear-gradient(to right, #fff 50%, #fff0) 0 / 40px 100% local,
    linear-gradient(to left, #fff 50%, #fff0) 100% / 40px 100% local,
    linear-gradient(to right, #0002, #0000) 0 / 12px 100%, linear-gradient(to left, #0002, #0000) 100% / 12px 100%;
  background-repeat: no-repeat;
}
pre { font-size: 0.8rem; }
pre.wrap { white-space: pre-wrap; }
table { overflow-wrap: break-word; border-spacing: 0; font-size: 0.86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid #dfe3e8; white-space: nowrap; }
tr > :first-child {
  text-align: left; position: sticky; left: 0; background: #fff; padding-left: 0;
  white-space: normal; min-width: 7em; max-width: 12em;
}
.pictures { display: flex; flex-wrap: wrap; column-gap: 24px; }
.pictures section { max-width: 100%; }
img { display: block; width: var(--w); max-width: 100%; min-width: calc(var(--w) * 0.6); height: auto; }
</style>
<h1>$title</h1>
<p class="soft">$subtitle</p>
$body
</html>
""")


def write_page(path: Path, title: str, subtitle: str, sections: dict[str, str]) -> Path:
    """Write a page, whole or not at all: a title, and HTML under headings; what is empty is left out."""
    body = "".join(f"<h2>{escape(heading)}</h2>{part}" for heading, part in sections.items() if part)
    write_text(path, PAGE.substitute(title=escape(title), subtitle=escape(subtitle), body=body))
    return path


def table(rows: Sequence[Iterable[str]]) -> str:
    """Cells as an HTML table in a box that scrolls by itself; the first row is the head."""
    head, *body = ([escape(cell) for cell in row] for row in rows)
    lines = "".join(f"<tr><td>{'<td>'.join(row)}" for row in body)
    return f'<div class="box"><table><tr><th>{"<th>".join(head)}{lines}</table></div>'


def pictures(folder: Path) -> str:
    """The pictures in a folder, as they are, each under its heading."""
    found = [(folder / name, heading) for name, heading in PICTURES.items() if (folder / name).exists()]
    return f'<div class="pictures">{"".join(_picture(*each) for each in found)}</div>' if found else ""


def verbatim(text: str, wrap: bool = True) -> str:
    """Text as it is."""
    return f"<pre{' class=wrap' if wrap else ''}>{escape(text)}</pre>"


def folded(summary: str, part: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{part}</details>" if part else ""


def _picture(path: Path, heading: str) -> str:
    data = path.read_bytes()
    with Image.open(path) as image:
        width, height, dpi = *image.size, image.info.get("dpi", (100, 100))[0]
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    size = f'width="{width}" height="{height}" style="--w:{width * 100 / dpi:.0f}px"'
    return f'<section><h3>{heading}</h3><div class="box"><img src="{source}" {size} alt="{path.stem}"></div></section>'
