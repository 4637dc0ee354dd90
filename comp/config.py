"""What a competition and a recipe are: TOML files, which together make one frozen `Config`.

Those that ship lie in `comp/competitions` and `comp/recipes`. A key has the same name in TOML, in `--set key=value`,
in code and in reports. An unknown key or a wrong type is refused with the key's full name and what would fit."""

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from comp.errors import Refused, did_you_mean

SHIPPED = Path(__file__).parent

# What may change under a run that is half done: it does not touch what training computes; source.soft alone does.
FREE = "title kaggle code_competition datasets models submission. recipe source. metric.function arrays.test_"
FREE_TO_CHANGE = (*(f"competition.{key}" for key in FREE.split()), "predict.batch_size")

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Value = Annotated[int, Field(ge=0, le=65535)]
Colour = Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$")]
Order = Literal["column", "row"]
MetricName = Literal["mean_iou", "dice", "f_beta", "pixel_accuracy", "object_precision", "object_f_beta", "object_dice"]
LossName = Literal["cross_entropy", "boundary", "focal", "dice", "bce_dice", "lovasz"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Arrays(Section):
    """Where the arrays are: npz keys; of images and masks also `key[:, k]`, one slice of a stacked array.

    Default keys of ids, groups and sizes are used when the file has them; one that the TOML names must be there."""

    file: str = ""  # npz below the input folder; empty: "<competition>.npz"
    train_images: str = "train_images"
    train_masks: str = "train_masks"
    train_ids: str = "train_ids"
    train_groups: str = "train_groups"  # samples of one group never straddle a fold
    train_folds: str = "train_folds"  # where a split is given: the fold in which each sample validates
    train_extra: str = "train_extra"  # not 0: trains in every fold, and validates in none
    train_instances: str = "train_instances"  # objects numbered from 1 in each image, 0 is none
    train_soft: str = "train_soft"  # with source.soft: 255 times the share of annotators who saw the second class
    train_sizes: str = "train_sizes"
    test_images: str = "test_images"
    test_masks: str = "test_masks"  # known only for practice competitions
    test_ids: str = "test_ids"
    test_groups: str = "test_groups"
    test_sizes: str = "test_sizes"  # (N, 2) original height and width of images that were resized
    test_places: str = "test_places"  # (N, 4) of windows, whose ids end in @…: top, left, the image's height and width
    scale: Annotated[float, Field(gt=0)] = 1.0  # images are multiplied by this before they become uint8
    labels: tuple[Annotated[int, Field(ge=0, le=255)], ...] = ()  # mask values of the classes; empty: 0, 1, 2, …
    ignore: Annotated[int, Field(ge=0, le=255)] | None = None  # the masks' value that is neither trained on nor scored
    neighbours: tuple[int, ...] = ()  # [-1, 0, 1]: a network sees the image before, itself, the one after in its group
    extra: str = ""  # another npz there, whose train_images and train_masks train in every fold and never validate
    exclude: tuple[str, ...] = ()  # ids that are left out of training and validation
    exclude_shared_masks: Count = 0  # leave out images whose mask this many others share

    @property
    def ignored(self) -> int | None:
        """The label of ignored pixels in masks as they are read: `ignore`, or with `labels` 255, never a class."""
        return 255 if self.labels and self.ignore is not None else self.ignore


class Source(Section):
    """Where a competition's download has its images and masks, and how kernels/prepare.py makes arrays of them.

    Paths begin at the download's folder. In them {field} is a part of a name, the same wherever it occurs, `*` anything
    but a slash, `**/` any folders; an image and a mask are a pair where the fields that both paths have are equal."""

    images: str = ""  # as in "train/{id}_sat.jpg"; empty: the common layouts are looked for
    masks: str = ""  # as in "train/{id}_mask.png"; where a mask has several files, {class} may be a file's class
    test: str = ""
    test_masks: str = ""  # known only for practice competitions
    extra: str = ""  # images that train in every fold and validate in none
    extra_masks: str = ""
    bands: tuple[str, ...] = ()  # what {band} is in the paths of an image's files, in the order of the channels
    skip: tuple[str, ...] = ()  # ids of samples that are not read, such as damaged ones
    id: str = "{id}"  # of fields, and of {name}, the name of the image's file
    group: str = ""  # of fields; samples of one group never straddle a fold
    fold: str = ""  # of fields, where a split is given: the fold in which a sample validates, or "val" and "train"
    list: dict[Literal["file", "id"], str] = {}  # a CSV of the training samples; its other columns are fields, too
    # Run-lengths as masks: a CSV's columns of id, runs and class, or how the id holds a class: split = "{id}_{class}".
    # starts = "relative" counts from the end of the run before; order matters only where the masks do not prove it.
    table: dict[Literal["file", "id", "class", "split", "runs", "starts", "order"], str] = {}
    reader: str = ""  # a .py file beside the TOML, where all this does not do: comp/prepare/reader.py
    instances: bool = False  # each file or row of a mask, or each of a file's values, is an object of its own
    soft: bool = False  # of two classes: each file of a mask is an annotator's, or the mean of several
    # the last class, "border", is where two objects lie in the square of this many pixels; 0: none
    border: Annotated[int, Field(ge=0, le=31)] = 0
    # mask value ("3") or colour ("#3c1098") to class name or "ignore"; empty: found from the files
    labels: dict[str, str] = {}
    # the image values that become 0 and 255, for all channels or for each; or "percentiles" of the training images
    range: Literal["percentiles"] | tuple[float, float] | tuple[tuple[float, float], ...] = ()
    # height, width of windows that large images are cut into, each a row of `size`; their predictions are stitched
    cut: tuple[Positive, Positive] | tuple[()] = ()
    size: tuple[Positive, Positive] = (256, 256)  # height, width of the arrays


class Metric(Section):
    """The score that the competition counts; all others are printed beside it."""

    # Of objects, matched by their IoU: precision is hits / (hits + false + missed), and thresholds are of the IoU; dice
    # is the sum of the pairs' Dice over the larger number of objects.
    name: MetricName = "mean_iou"
    # instead, a .py file beside the TOML: score_image(truth, prediction) of labels (H, W), or score_group(truth,
    # prediction, ids) of (N, H, W), gives a number or None, or numbers that are added up for combine_counts(counts);
    # with source.instances the truth holds numbered objects
    function: str = ""
    average: Literal["global", "per_image"] = "global"
    beta: Annotated[float, Field(gt=0)] = 1.0  # f_beta: how many times as much as precision recall counts
    # per_image: what a class counts where neither truth nor prediction has it; by default 1, for mean_iou "left_out"
    empty: Literal[0, 1, "left_out"] | None = None
    thresholds: tuple[Fraction, ...] = ()  # what counts is the share of these that a class's value in an image exceeds
    weights: tuple[Annotated[float, Field(ge=0)], ...] = ()  # of the classes in the mean, in their order; empty: equal
    # "drop_class": class 0 is left out of the mean; "drop_truth": pixels that are truly 0 are not counted, either
    background: Literal["keep", "drop_class", "drop_truth"] = "keep"


class Submission(Section):
    """The layout of the CSV file, or of an archive of mask files."""

    format: Literal["pixels", "rle", "files"] = "pixels"
    function: str = ""  # instead, a .py file beside the TOML with write_submission(path, predictions)
    order: Order = "column"  # in which run-lengths count pixels; whose number comes first where each pixel has a row
    # start and length of each run, alone or as a list in JSON; relative: starts count from the end of the run before;
    # alternating: lengths of what is not set and what is, in turn
    runs: Literal["absolute", "relative", "alternating", "json"] = "absolute"
    base: Literal[0, 1] = 1  # the number of the first pixel
    empty: str = ""  # what an empty mask is written as
    # rle: a row for each image (of class 1), for each image and class, or for each object; pixels: or for each pixel
    rows: Literal["image", "image_class", "instance", "pixel"] = "image"
    join: str = ""  # instance: what stands between an image's objects where they share one row
    file: str = "{id}.png"  # files: the name of each in the archive; it ends in .png, .tif, .tiff, .bmp, .npy or .h5
    values: tuple[Value, ...] | tuple[Colour, ...] = ()  # files: what each class is in them; empty: 0, 1, 2, …
    suffix: Annotated[str, Field(pattern=r"^(\.[a-z0-9]+)?$")] = ""  # of the submission; empty: .csv, of files .zip
    id_column: str = "id"
    class_column: str = ""  # empty: rows "image_class" join id and class as "<id>_<class>"
    class_label: Literal["number", "name"] = "number"
    value_column: str = "rle_mask"
    # decides ids and the columns' order when it lies in the input folder; empty: "<competition>-sample_submission.csv"
    sample: str = ""

    @property
    def ending(self) -> str:
        return self.suffix or (".zip" if self.format == "files" else ".csv")


class Competition(Section):
    """One competition: its arrays, classes, score and submission."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100)]
    title: str = ""
    kaggle: str = ""  # the competition's slug on kaggle.com
    code_competition: bool = False  # submitted as a kernel's output, not as a file
    datasets: tuple[str, ...] = ()  # Kaggle datasets, owner/slug, that its kernels read: arrays, weights
    models: tuple[str, ...] = ()  # Kaggle models, owner/model/framework/variation/version, that they read: weights
    recipe: str = "default"  # used when none is named; a .toml file is meant from where the competition's lies
    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=255)]
    overlap: bool = False  # a pixel may be of several classes: bit k-1 of a mask's value is class k, up to 8
    source: Source = Source()
    arrays: Arrays = Arrays()
    metric: Metric = Metric()
    submission: Submission = Submission()

    @property
    def file(self) -> str:
        return self.arrays.file or f"{self.name}.npz"

    @property
    def labels(self) -> int:
        """How many labels masks may hold: one for each class, or where classes overlap all sums of their bits."""
        return 1 << len(self.classes) - 1 if self.overlap else len(self.classes)

    @property
    def written(self) -> list[int]:
        """Labels that a file of run-lengths has rows of: all but the first, the rest, and a border between objects."""
        return [k for k, name in enumerate(self.classes) if k and not (self.source.border and name == "border")]


class Model(Section):
    """The network, in segmentation-models-pytorch's terms."""

    architecture: str = "Unet"
    encoder: str = "resnet18"
    encoder_weights: str = "none"  # "none", a hub name such as "imagenet", or a .safetensors file
    freeze_encoder: bool | Positive = False  # true: always; a number: for so many epochs
    start: str = ""  # a run's folder, runs/<competition>/<run>: a fold begins with the weights of that run's fold
    options: dict[str, Any] = {}  # handed to the architecture: decoder_channels, encoder_depth, …


class Optimizer(Section):
    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    momentum: Fraction = 0.9
    encoder_lr: Annotated[float, Field(gt=0)] = 1.0  # a factor on the rate of the encoder's weights
    clip: Annotated[float, Field(ge=0)] = 0.0  # largest gradient norm; 0: no clipping
    accumulate: Positive = 1  # batches a step


class Schedule(Section):
    """How the learning rate moves over the run, as a fraction of `optimizer.lr`."""

    name: Literal["one_cycle", "cosine", "plateau", "constant"] = "one_cycle"
    warmup: Fraction = 0.25  # share of the run in which the rate rises
    final: Fraction = 0.0  # where cosine and one_cycle end; plateau's floor
    factor: Fraction = 0.5  # plateau: by what the rate is multiplied
    patience: Positive = 3  # plateau: epochs without a better score before it is


class Loss(Section):
    terms: Annotated[dict[LossName, float], Field(min_length=1)] = {"cross_entropy": 1.0}
    # a power, 0 to 1, of the inverse class frequency in the fold's training part (sqrt: 0.5, inverse: 1); or by name
    class_weights: Literal["none", "inverse", "sqrt"] | Fraction | dict[str, Annotated[float, Field(ge=0)]] = "none"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gamma: Annotated[float, Field(ge=0)] = 2.0  # focal


class Augment(Section):
    # each is {name = "HorizontalFlip", …}: a class of albumentations and its arguments
    transforms: tuple[dict[str, Any], ...] = ()
    cutmix: Fraction = 0.0  # share of batches
    cutmix_sources: Annotated[int, Field(ge=1, le=100)] = 1  # boxes pasted, each from another sample of the batch
    mixup: Fraction = 0.0  # share of batches
    mixup_alpha: Annotated[float, Field(ge=1e-3, le=1e3)] = 0.4


class Predict(Section):
    tta: Literal["none", "hflip", "flips", "d4", "scales"] = "hflip"
    batch_size: Positive = 64  # images at a time, or tiles
    tile: Annotated[int, Field(ge=0)] = 0  # side of overlapping tiles for larger images; 0: images are taken whole


class Folds(Section):
    count: Annotated[int, Field(ge=2, le=100)] = 5
    seed: int = 0


class Config(Section):
    """Everything that decides what a run computes."""

    competition: Competition
    recipe: str = "default"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    epochs: Positive = 30
    batch_size: Positive = 32
    patience: Count = 0  # epochs without a better score before training stops; 0: never
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay of the averaged weights; 0: none
    oversample: dict[str, Annotated[float, Field(ge=1, le=1000)]] = {}  # class name: times its images are drawn
    folds: Folds = Folds()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    loss: Loss = Loss()
    augment: Augment = Augment()
    predict: Predict = Predict()


def shipped_names(kind: str) -> list[str]:
    """Names of the TOML files that ship; `kind` is "competitions" or "recipes"."""
    return sorted(path.stem for path in (SHIPPED / kind).glob("*.toml"))


def load_config(competition: str = "demo", recipe: str | None = None, overrides: Iterable[str] = ()) -> Config:
    """Make a configuration from a competition, a recipe and `key=value` overrides.

    `competition` and `recipe` are names that ship or paths of TOML files; without a recipe the competition's own is
    taken. An override's value is read as TOML, or else as plain text. Raises Refused."""
    about = _read("competitions", competition)
    beside = Path(competition).parent if competition.endswith(".toml") else SHIPPED / "competitions"
    for section, key in (("source", "reader"), ("metric", "function"), ("submission", "function")):  # .py files
        if isinstance(values := about.get(section), dict) and isinstance(values.get(key), str):
            values[key] = str(beside / values[key])
    recipe = recipe or _beside(competition, str(about.get("recipe", "default")))
    values = {"recipe": Path(recipe).stem} | _read_recipe(recipe) | {"competition": about}
    # model.architecture first, since it resets model.options
    for override in sorted(overrides, key=lambda override: not override.startswith("model.architecture=")):
        _override(values, override)
    return validate_config(values)


def validate_config(values: dict[str, Any]) -> Config:
    """Validate a nested dict, such as one read back from a model file. Raises Refused."""
    try:
        # Through JSON, since strict validation takes a list for a tuple only there.
        config = Config.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise Refused(_one_line(error)) from None
    _check_together(config)
    return config


def first_difference(old: Config, new: Config) -> str | None:
    """The first key in which two configurations would train differently, as "key: old, now new"; None if none."""
    before, after = (_flat(one.model_dump(mode="json")) for one in (old, new))
    for key in sorted(before.keys() | after.keys()):
        free = key.startswith(FREE_TO_CHANGE) and key != "competition.source.soft"  # which decides what is learned
        if before.get(key) != after.get(key) and not free:
            return f"{key}: {before.get(key)}, now {after.get(key)}"
    return None


def _check_together(config: Config) -> None:
    """Refuse values that are sound alone but not beside one another."""
    own, by_name = config.competition, config.loss.class_weights

    def refuse(broken: Any, what: str) -> None:
        if broken:
            raise Refused(f"competition.{what}")

    classes, source, metric, layout, count = own.classes, own.source, own.metric, own.submission, len(own.classes)
    labels, near, ignore = own.arrays.labels, own.arrays.neighbours, own.arrays.ignore
    weights, objects = metric.weights, metric.name.startswith("object_")
    for key, values in {"classes": classes, "arrays.labels": labels, "arrays.neighbours": near}.items():
        for value in values:
            refuse((times := values.count(value)) > 1, f"{key}: {value!r} is there {times} times")
    for key, values in {"arrays.labels": labels, "metric.weights": weights, "submission.values": layout.values}.items():
        refuse(len(values) not in (0, count), f"{key}: {len(values)} values; {count}, one for each class, would fit")
    for value, name in zip(labels or range(count), classes, strict=True):
        fits = "a value of none would fit, or leave it out of classes and name the others' values in arrays.labels"
        refuse(value == ignore, f"arrays.ignore: {ignore} is the class {name!r}; {fits}")
    fits = "0, the image itself, must be one of them, and images not cut"
    refuse(near and (0 not in near or source.cut), f"arrays.neighbours: {fits}")
    joined = layout.join and (layout.rows != "instance" or layout.class_column)
    refuse(joined, 'submission.join: rows = "instance" without a column of classes would fit')
    refuse(weights and not any(weights[metric.background != "keep" :]), "metric.weights: 0 for every scored class")
    mixed = metric.average == "global" and (metric.empty is not None or metric.thresholds) and not objects
    refuse(mixed, 'metric: average = "per_image" would fit beside empty and thresholds')
    alone = metric == Metric(function=metric.function, average=metric.average)
    refuse(metric.function and not alone, "metric.function: stands for the whole metric; no other key would fit")
    rows = {"pixels": ["image", "pixel"], "rle": ["image", "image_class", "instance"], "files": ["image"]}
    fits = f"with format {layout.format!r} {' or '.join(rows[layout.format])} would fit"
    refuse(layout.rows not in rows[layout.format], f"submission.rows: {layout.rows!r}; {fits}")
    single = (layout.format, layout.rows, layout.function) == ("rle", "image", "") and len(own.written) > 1
    refuse(single, 'submission.rows: "image" is one mask for an image; "image_class" writes a row for each class')
    whole = layout.ending in (".zip", ".tar") and re.search(r"\{id\}.*\.(png|tiff?|bmp|npy|h5)$", layout.file)
    fits = '"{id}.png" in .zip would fit'
    refuse(layout.format == "files" and not whole, f"submission: {layout.file!r} in {layout.ending}; {fits}")
    if own.overlap:
        most = 8 if ignore is None else 7
        refuse(count - 1 > most, f"overlap: {count - 1} classes beside the first; {most} would fit")
        refuse(objects or layout.rows == "instance", "overlap: objects are parts of one class, and do not overlap")
        refuse(metric.background == "drop_truth", 'metric.background: where classes overlap, "drop_class" would fit')
        refuse(ignore not in (None, 255), f"arrays.ignore: {ignore}; where classes overlap, 255 would fit")
    needs = dict.fromkeys(("masks", "table", "test", "extra", "list", "bands", "group", "fold"), "images")
    for key, other in (needs | {"extra_masks": "extra", "test_masks": "test"}).items():
        lacks = getattr(source, key) and not (getattr(source, other) or (key == "table" and source.reader))
        refuse(lacks, f'source.{key}: needs source.{other}, as in "train/{{id}}.png", beside it')
    hidden = own.code_competition and source.images and not source.test
    refuse(hidden, "source.test: missing; a kernel reads the hidden test images by it")
    for one, other in (("masks", "table"), ("reader", "images")):
        both = getattr(source, one) and getattr(source, other)
        refuse(both, f"source: has {one} and {other}, which say the same thing; one of them would fit")
    for key, fit in {"starts": ("absolute", "relative"), "order": ("column", "row")}.items():
        value = source.table.get(key, fit[0])  # type: ignore[call-overload]
        refuse(value not in fit, f"source.table.{key}: {value!r}; {' or '.join(fit)} would fit")
    apart = source.instances and classes[-1] == "border" and not own.overlap
    refuse(source.border and not apart, 'source.border: needs instances = true, and "border" as the last class apart')
    hard = count > 2 or own.overlap or source.instances or source.table or source.labels or ignore is not None
    refuse(source.soft and hard, "source.soft: two classes, of files or a reader, without labels or ignore would fit")
    by_class = {"oversample": config.oversample, "loss.class_weights": by_name if isinstance(by_name, dict) else {}}
    for key, names in by_class.items():
        if unknown := [name for name in names if name not in classes]:
            raise Refused(f"{key}.{unknown[0]}: no such class{did_you_mean(unknown[0], [*classes])}")
    for k, transform in enumerate(config.augment.transforms):
        if (fill := transform.get("fill_mask", 0)) not in (*range(count), own.arrays.ignored):
            fits = f"0 to {count - 1} would fit, as would what is ignored"
            raise Refused(f"augment.transforms.{k}.fill_mask: {fill} is not a label; {fits}")


def _read(kind: str, name: str) -> dict[str, Any]:
    own, known = name.endswith(".toml"), shipped_names(kind)
    if not own and name not in known:
        raise Refused(f"no {kind[:-1]} named {name!r}, and no path of a .toml file{did_you_mean(name, known)}")
    path = Path(name) if own else SHIPPED / kind / f"{name}.toml"
    return read_toml(path, did_you_mean(path.stem, known))


def read_toml(path: Path, missing: str = "") -> dict[str, Any]:
    """The values of a TOML file. Raises Refused, which ends in `missing` where there is no such file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except (ValueError, RecursionError) as error:  # text that is not UTF-8, and a number of 5,000 digits, too
        raise Refused(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}{missing * isinstance(error, FileNotFoundError)}") from None


def _read_recipe(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's values on top of those of its `base`, which is a recipe too."""
    values = _read("recipes", name)
    base = _beside(name, str(values.pop("base", "")))
    if not base:
        return values
    if base in (*above, name):
        raise Refused(f"recipe {name}: its base {base!r} is based on it")
    below = _read_recipe(base, (*above, name))
    for key, value in values.items():
        # Sections are merged; oversample, a value of its own, is replaced.
        if isinstance(value, dict) and isinstance(below.get(key), dict) and key != "oversample":
            values[key] = _kept(below[key], value.get("architecture")) | value
    return below | values


def _kept(section: dict[str, Any], architecture: str | None) -> dict[str, Any]:
    """What stays of a section below one that names an architecture: of another one's options, nothing."""
    below = str(section.get("architecture", Model().architecture))
    same = architecture is None or str(architecture).lower() == below.lower()
    return {key: value for key, value in section.items() if same or key != "options"}


def _beside(file: str, name: str) -> str:
    """A .toml file that a TOML file names lies beside that file, or where its path leads from there."""
    return str(Path(file).parent / name) if name.endswith(".toml") else name


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise Refused(f"--set {override}: write key=value, as in model.encoder=resnet34")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    *sections, last = key.strip().split(".")
    if key.strip() == "model.architecture" and isinstance(model := values.get("model", {}), dict):
        values["model"] = _kept(model, value)
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise Refused(f"--set {key}: {section} is a value, not a section")
    values[last] = value


def _one_line(error: ValidationError) -> str:
    first, *others = sorted(error.errors(), key=lambda one: -len(one["loc"]))  # of what is wrong the innermost
    # Behind a union's or a dict's location stands which alternative failed; the user has no such key.
    kind = re.compile(r"[\[(]|^(bool|int|str)$")
    key = ".".join(str(part) for part in first["loc"] if not kind.search(str(part))) or "configuration"
    if first["type"] == "extra_forbidden":
        section: Any = Config
        for part in first["loc"][:-1]:
            section = section.model_fields[part].annotation
        if key.partition(".")[0] in Competition.model_fields:
            return f"{key}: no such key; competition.{key} would fit"
        return f"{key}: no such key{did_you_mean(str(first['loc'][-1]), [*section.model_fields])}"
    if first["type"] == "missing":
        return f"{key}: missing"
    message = first["msg"][0].lower() + first["msg"][1:]
    if kind.search(str((first["loc"] or ("",))[-1])):  # of a union; its alternatives at the same place fit as well
        same = (other["msg"] for other in others if other["loc"][:-1] == first["loc"][:-1])
        message = ", or ".join([message, *(other.removeprefix("Input should be ") for other in same)])
    message = message.replace("an object", "a table").replace("valid array", "list")
    return f"{key}: {message}, not {first['input']!r:.100}"


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict) or not values:
        return {prefix.removesuffix("."): values}
    return {k: v for key, value in values.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
