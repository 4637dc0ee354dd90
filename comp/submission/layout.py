"""The rows of a submission: their columns, and the keys that name them.

"pixels": one row an image, header `id,0,1,…,H*W-1`, labels in C order. "rle": run-lengths; with `rows = "image"`
of label 1, with "image_class" each label but 0, the background, has a row of its own.
"""

from collections.abc import Iterable
from typing import Any

from comp.config import Competition

Key = tuple[str, ...]  # what names a row: (id,), or (id, class)


def key_columns(competition: Competition) -> list[str]:
    """Names of the columns that hold a row's key."""
    layout = competition.submission
    by_class = layout.format == "rle" and layout.rows == "image_class" and layout.class_column
    return [layout.id_column, layout.class_column] if by_class else [layout.id_column]


def make_header(competition: Competition, pixels: int) -> list[str]:
    """Names of all columns; `pixels` is the area of an image, and counts in the format "pixels" alone."""
    layout = competition.submission
    values: Iterable[Any] = range(pixels) if layout.format == "pixels" else [layout.value_column]
    return [*key_columns(competition), *map(str, values)]


def row_keys(competition: Competition, image_id: Any) -> list[Key]:
    """The keys of one image's rows, in their order."""
    layout = competition.submission
    if layout.format == "pixels" or layout.rows == "image":
        return [(str(image_id),)]
    numbers = range(1, len(competition.classes))
    labels = [competition.classes[n] if layout.class_label == "name" else str(n) for n in numbers]
    return [(str(image_id), label) if layout.class_column else (f"{image_id}_{label}",) for label in labels]
