"""Run-lengths in a CSV as the layers of masks, and the proof of the order in which they count pixels."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from comp.config import Competition
from comp.errors import Refused, did_you_mean
from comp.prepare.samples import Layer, Sample, as_seen, compile_pattern, name_labels, read_table
from comp.submission.runlength import Order, decode_runs

EMPTY = {"", "-1", "-", "1 0", "nan"}  # what competitions write for no pixel
LOOKED_AT = 64  # masks that prove the order
CLEAR = 1.2  # how many times the runs across, or the contrast along the edges, of one reading exceed the other's
ORDERS: tuple[Order, Order] = ("column", "row")


def read_layers(competition: Competition, folder: Path) -> dict[str, list[Layer]]:
    """Layers by id of the rows of `source.table`; an id whose rows are empty has none. Raises Refused.
    `split` takes apart an id and a class in one column: "{id}_{class}"."""
    own, classes, labels = competition.source.table, competition.classes, name_labels(competition.classes)
    for key in ("file", "runs"):
        if not own.get(key):  # type: ignore[call-overload]
            raise Refused(f'source.table.{key}: missing; as in {{ file = "train.csv", id = "id", runs = "rle_mask" }}')
    path, column, named = folder / own["file"], own.get("id", "id"), {"class", "split"} & own.keys()
    columns = [column, own.get("class", column), own["runs"]]
    if "split" in own and ("class" in own or not all(field in own["split"] for field in ("{id}", "{class}"))):
        raise Refused('source.table.split: "{id}_{class}" would fit, and then there is no column of the class')
    if len(competition.written) > 1 and not named:
        raise Refused(f"source.table.class: missing, the column that says which class of {', '.join(classes[1:])}")
    split = compile_pattern("source.table.split", own.get("split", ""), {"class": labels})
    empty = EMPTY | {competition.submission.empty}
    found: dict[str, list[Layer]] = {}
    for row, fields in enumerate(read_table(path, columns), 2):
        where, (id, name, runs) = f"{own['file']}: row {row}", (fields[key] for key in columns)
        if "split" in own:
            if not (parts := split.fullmatch(id)):
                raise Refused(f"{where}: {id!r} is not {own['split']!r} with one of the classes {', '.join(classes)}")
            id, name = parts["id"], parts["class"]
        layers = found.setdefault(as_seen(id), [])
        if runs.strip() not in empty:
            if not (label := labels.get(name) if named else 1):  # 0 is the rest, which has no runs
                raise Refused(f"{where}: no class {name!r}{did_you_mean(name, [*classes[1:]])}")
            layers.append(Layer(runs, label, where))
    return found


def decode_layer(layer: Layer, sample: Sample, order: Order, competition: Competition) -> np.ndarray:
    """A layer of run-lengths as bool (H, W). Raises Refused, naming the row."""
    relative = competition.source.table.get("starts") == "relative"
    try:
        return decode_runs(str(layer.content), sample.size, order, relative)
    except Refused as refused:
        hint = "" if relative or "before the end" not in str(refused) else '; or table.starts = "relative"?'
        raise Refused(f"{layer.row}: {sample.id}, {sample.size[0]}×{sample.size[1]}: {refused}{hint}") from None


def find_order(competition: Competition, samples: Sequence[Sample], read: Callable) -> tuple[Order, str]:
    """The order in which a table's runs count pixels, and the proof in words. Raises Refused where the TOML is wrong.

    In the wrong order masks fall apart: more runs lie across them. In a square image it is the transposed mask, whose
    edges are not where the image, uint8 (H, W, C) by `read` of the sample, has its own."""
    table = competition.source.table
    some = [one for one in samples if one.mask and isinstance(one.mask[0].content, str)]
    oblong = [one for one in some if one.size[0] != one.size[1]]
    some = (oblong or some)[:: -(-len(oblong or some) // LOOKED_AT) or 1]
    scores, what = np.zeros((len(some), 2)), "runs across" if oblong else "contrast of the image along edges"
    for k, sample in enumerate(some):
        layers = [[decode_layer(layer, sample, order, competition) for layer in sample.mask or ()] for order in ORDERS]
        column, row = np.any(layers, axis=1)
        if oblong:
            scores[k] = [np.count_nonzero(mask & np.diff(mask, prepend=False)) for mask in (column, row.T)]
        else:
            image = read(sample).mean(axis=-1, dtype=np.float32)
            scores[k] = _edge_contrast(image, column), _edge_contrast(image, row)
    said: Order | None = next((order for order in ORDERS if order == table.get("order")), None)
    total = scores.sum(axis=0)
    chance = np.sqrt(total.sum() if oblong else (np.diff(scores) ** 2).sum())
    figures = "in {} masks {}: {:,.0f} by column and {:,.0f} by row".format(len(some), what, *total)
    if total.max() > CLEAR * total.min() and np.ptp(total) > 2 * chance:
        proved = ORDERS[total.argmin() if oblong else total.argmax()]
        proof = f"run-lengths count by {proved}: {figures}"
        file = competition.submission.order if competition.submission.format == "rle" else proved
        for key, told in (("source.table.order", said or proved), ("submission.order", file)):
            if told != proved:
                raise Refused(f"{key} is {told!r}; set it to {proved!r}: {table['file']}: {proof}")
        return proved, proof
    if said:
        return said, f"run-lengths count by {said}, as source.table.order says"
    raise Refused(f"{table['file']}: {figures}, which proves no order; source.table.order would say it")


def _edge_contrast(image: np.ndarray, mask: np.ndarray) -> float:
    """By how many grey levels the image changes across the edges of a mask, on average."""
    values = np.concatenate([np.abs(np.diff(image, axis=axis))[np.diff(mask, axis=axis)] for axis in (0, 1)])
    return float(values.mean()) if len(values) else 0.0
