"""What a competition and a recipe are: TOML files, which together make one frozen `Config`.

Those that ship lie in `comp/competitions` and `comp/recipes`. A key has the same name in TOML, in `--set key=value`,
in code and in reports. An unknown key or a wrong type is refused with the key's full name and what would fit."""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from comp.errors import Refused, did_you_mean

SHIPPED = Path(__file__).parent

# What may change under a run that is half done: it does not touch what training computes.
OF_COMPETITION = "title", "kaggle", "code_competition", "datasets", "submission.", "recipe", "source.", "arrays.test_"
FREE_TO_CHANGE = (*(f"competition.{key}" for key in OF_COMPETITION), "predict.batch_size")

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Arrays(Section):
    """Where the arrays are: npz keys; of images and masks also `key[:, k]`, one slice of a stacked array.

    Keys with a default that names ids, groups or sizes are used when the file has them; one that
    the TOML names must be there."""

    file: str = ""  # npz below the input folder; empty: "<competition>.npz"
    train_images: str = "train_images"
    train_masks: str = "train_masks"
    train_ids: str = "train_ids"
    train_groups: str = "train_groups"  # samples of one group never straddle a fold
    train_folds: str = "train_folds"  # where a split is given: the fold in which each sample validates
    train_extra: str = "train_extra"  # not 0: trains in every fold, and validates in none
    train_sizes: str = "train_sizes"
    test_images: str = "test_images"
    test_masks: str = "test_masks"  # known only for practice competitions
    test_ids: str = "test_ids"
    test_groups: str = "test_groups"
    test_sizes: str = "test_sizes"  # (N, 2) original height and width of images that were resized
    scale: Annotated[float, Field(gt=0)] = 1.0  # images are multiplied by this before they become uint8
    labels: tuple[Annotated[int, Field(ge=0, le=255)], ...] = ()  # mask values of the classes; empty: 0, 1, 2, …
    ignore: Annotated[int, Field(ge=0, le=255)] | None = None  # the masks' value that is neither trained on nor scored
    neighbours: tuple[int, ...] = ()  # [-1, 0, 1]: a network sees the image before, itself, the one after in its group
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
    # the last class, "border", is where two objects lie in the square of this many pixels; 0: none
    border: Annotated[int, Field(ge=0, le=31)] = 0
    # mask value ("3") or colour ("#3c1098") to class name or "ignore"; empty: found from the files
    labels: dict[str, str] = {}
    # the image values that become 0 and 255, for all channels or for each; or "percentiles" of the training images
    range: Literal["percentiles"] | tuple[float, float] | tuple[tuple[float, float], ...] = ()
    size: tuple[Positive, Positive] = (256, 256)  # height, width of the arrays


class Metric(Section):
    """The score that the competition counts; all others are printed beside it."""

    name: Literal["mean_iou", "dice", "f_beta", "pixel_accuracy"] = "mean_iou"
    average: Literal["global", "per_image"] = "global"
    beta: Annotated[float, Field(gt=0)] = 1.0  # f_beta: how many times as much as precision recall counts
    # per_image: what a class counts in an image where neither truth nor prediction has it; by default 1 for dice and
    # f_beta, and left out for mean_iou
    empty: Literal[0, 1, "left_out"] | None = None
    thresholds: tuple[Fraction, ...] = ()  # what counts is the share of these that a class's value in an image exceeds
    weights: tuple[Annotated[float, Field(ge=0)], ...] = ()  # of the classes in the mean, in their order; empty: equal
    # "drop_class": class 0 is left out of the mean. "drop_truth": pixels that are truly 0 are left
    # out of the count, then the mean is taken over the other classes.
    background: Literal["keep", "drop_class", "drop_truth"] = "keep"


class Submission(Section):
    """The layout of the CSV file."""

    format: Literal["pixels", "rle"] = "pixels"
    order: Literal["column", "row"] = "column"  # in which run-lengths count pixels, from 1
    empty: str = ""  # what an empty mask is written as
    rows: Literal["image", "image_class"] = "image"  # a row for each image (of class 1), or for each image and class
    id_column: str = "id"
    class_column: str = ""  # empty: rows "image_class" join id and class as "<id>_<class>"
    class_label: Literal["number", "name"] = "number"
    value_column: str = "rle_mask"
    # decides ids and the columns' order when it lies in the input folder; empty: "<competition>-sample_submission.csv"
    sample: str = ""


class Competition(Section):
    """One competition: its arrays, classes, score and submission."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100)]
    title: str = ""
    kaggle: str = ""  # the competition's slug on kaggle.com
    code_competition: bool = False  # submitted as a kernel's output, not as a file
    datasets: tuple[str, ...] = ()  # Kaggle datasets, owner/slug, that its kernels read: arrays, weights
    recipe: str = "default"  # used when none is named; a .toml file is meant from where the competition's lies
    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=255)]
    overlap: bool = False  # a pixel may be of several classes: bit k-1 of a mask's value is class k, up to 8
    source: Source = Source()
    arrays: Arrays = Arrays()
    metric: Metric = Metric()
    submission: Submission = Submission()

    @property
    def file(self) -> str:
        """The npz's name below the input folder."""
        return self.arrays.file or f"{self.name}.npz"

    @property
    def written(self) -> list[int]:
        """Labels that a file of run-lengths has rows of: all but the first, the rest, and a border between objects."""
        return [k for k, name in enumerate(self.classes) if k and not (self.source.border and name == "border")]


class Model(Section):
    """The network, in segmentation-models-pytorch's terms."""

    architecture: str = "Unet"
    encoder: str = "resnet18"
    encoder_weights: str = "none"  # "none", a hub name such as "imagenet", or a .safetensors file
    freeze_encoder: bool = False
    options: dict[str, Any] = {}  # handed to the architecture: decoder_channels, encoder_depth, …


class Optimizer(Section):
    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    momentum: Fraction = 0.9
    clip: Annotated[float, Field(ge=0)] = 0.0  # largest gradient norm; 0: no clipping
    accumulate: Positive = 1  # batches a step


class Schedule(Section):
    """How the learning rate moves over the run, as a fraction of `optimizer.lr`."""

    name: Literal["one_cycle", "cosine", "plateau", "constant"] = "one_cycle"
    warmup: Fraction = 0.25  # share of the run in which the rate rises
    final: Fraction = 0.0  # where cosine and one_cycle end; plateau's floor
    factor: Fraction = 0.5  # plateau: by what the rate is multiplied
    patience: Positive = 3  # plateau: epochs without a better score before it is


LossName = Literal["cross_entropy", "boundary", "focal", "dice", "bce_dice", "lovasz"]


class Loss(Section):
    terms: Annotated[dict[LossName, float], Field(min_length=1)] = {"cross_entropy": 1.0}
    # inverse class frequency on the fold's training part, to a power from 0 to 1 ("sqrt": 0.5, "inverse": 1); or
    # weights by class name
    class_weights: Literal["none", "inverse", "sqrt"] | Fraction | dict[str, float] = "none"
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
    if isinstance(source := about.get("source"), dict) and isinstance(source.get("reader"), str):
        beside = Path(competition).parent if competition.endswith(".toml") else SHIPPED / "competitions"
        source["reader"] = str(beside / source["reader"])
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
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) and not key.startswith(FREE_TO_CHANGE):
            return f"{key}: {before.get(key)}, now {after.get(key)}"
    return None


def _check_together(config: Config) -> None:
    """Refuse values that are sound alone but not beside one another."""
    competition = config.competition
    classes, labels, ignore = competition.classes, competition.arrays.labels, competition.arrays.ignore
    neighbours = competition.arrays.neighbours
    for key, values in (("classes", classes), ("arrays.labels", labels), ("arrays.neighbours", neighbours)):
        for value, times in Counter(values).items():
            if times > 1:
                raise Refused(f"competition.{key}: {value!r} is there {times} times")
    if neighbours and 0 not in neighbours:
        raise Refused("competition.arrays.neighbours: 0, the image itself, must be one of them")
    metric, first = competition.metric, 0 if competition.metric.background == "keep" else 1
    if metric.weights and not any(metric.weights[first:]):
        raise Refused("competition.metric.weights: no class that is scored has any")
    if metric.average == "global" and (metric.empty is not None or metric.thresholds):
        raise Refused('competition.metric: empty and thresholds are about images; average = "per_image" would fit')
    for key, count in (("arrays.labels", len(labels)), ("metric.weights", len(competition.metric.weights))):
        if count not in (0, len(classes)):
            raise Refused(f"competition.{key}: {count} values; {len(classes)}, one for each class, would fit")
    if ignore in labels:
        raise Refused(f"competition.arrays.ignore: {ignore} is the class {classes[labels.index(ignore)]!r} in labels")
    if not labels and ignore is not None and ignore < len(classes):
        raise Refused(
            f"competition.arrays.ignore: {ignore} is the class {classes[ignore]!r}; 255 would fit. Where the masks' "
            f"{ignore} is to be ignored, leave it out of classes and name the others' values in arrays.labels"
        )
    if (
        competition.submission.format == "rle"
        and competition.submission.rows == "image"
        and len(competition.written) > 1
    ):
        raise Refused(
            f'competition.submission.rows: "image" is one mask for an image, and there are {len(classes) - 1} classes '
            'beside the background; "image_class" writes a row for each'
        )
    _check_source(competition)
    weights = config.loss.class_weights
    by_class = {"oversample": config.oversample, "loss.class_weights": weights if isinstance(weights, dict) else {}}
    for key, numbers in by_class.items():
        for name, number in numbers.items():
            if name not in classes:
                raise Refused(f"{key}.{name}: no such class{did_you_mean(name, list(classes))}")
            if number < 0:
                raise Refused(f"{key}.{name}: {number}; 0 or more would fit")
    for k, transform in enumerate(config.augment.transforms):
        ignored = competition.arrays.ignored
        if (fill := transform.get("fill_mask", 0)) not in (*range(len(classes)), ignored):
            fits = f"0 to {len(classes) - 1}" + ("" if ignored is None else f", and {ignored}, which is ignored,")
            raise Refused(f"augment.transforms.{k}.fill_mask: {fill} is not a label; {fits} would fit")


def _check_source(competition: Competition) -> None:
    own, most = competition.source, 8 if competition.arrays.ignore is None else 7
    if competition.overlap and len(competition.classes) - 1 > most:
        raise Refused(f"competition.overlap: {len(competition.classes) - 1} classes beside the first; {most} would fit")
    if competition.overlap and competition.metric.background == "drop_truth":
        raise Refused('competition.metric.background: where classes overlap, "drop_class" leaves the first one out')
    if competition.overlap and competition.arrays.ignore not in (None, 255):
        raise Refused(f"competition.arrays.ignore: {competition.arrays.ignore}; where classes overlap, 255 would fit")
    needs = dict.fromkeys(("masks", "table", "test", "extra", "list", "bands", "group", "fold"), "images")
    for key, other in (needs | {"extra_masks": "extra", "test_masks": "test"}).items():
        if getattr(own, key) and not (getattr(own, other) or (key == "table" and own.reader)):
            raise Refused(f'competition.source.{key}: needs source.{other}, as in "train/{{id}}.png", beside it')
    if competition.code_competition and own.images and not own.test:
        raise Refused("competition.source.test: missing; a kernel reads the hidden test images by it")
    for key, values in {"starts": ("absolute", "relative"), "order": ("column", "row")}.items():
        if (value := own.table.get(key, values[0])) not in values:  # type: ignore[call-overload]
            raise Refused(f"competition.source.table.{key}: {value!r}; {' or '.join(values)} would fit")
    for one, other in (("masks", "table"), ("reader", "images")):
        if getattr(own, one) and getattr(own, other):
            raise Refused(f"competition.source: has {one} and {other}, which say the same thing; one of them would fit")
    if own.border and (not own.instances or competition.classes[-1] != "border" or competition.overlap):
        raise Refused('competition.source.border: needs instances = true, and "border" as the last of classes apart')


def _read(kind: str, name: str) -> dict[str, Any]:
    known = shipped_names(kind)
    if name.endswith(".toml"):
        return read_toml(Path(name), did_you_mean(Path(name).stem, known))
    if name not in known:
        raise Refused(f"no {kind[:-1]} named {name!r}, and no path of a .toml file{did_you_mean(name, known)}")
    return read_toml(SHIPPED / kind / f"{name}.toml")


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
    merged = below | values
    for key, value in values.items():
        # Sections are merged; oversample, a value of its own, is replaced.
        if isinstance(value, dict) and isinstance(below.get(key), dict) and key != "oversample":
            merged[key] = _kept(below[key], value.get("architecture")) | value
    return merged


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
    first, *others = error.errors()
    # Behind a union's or a dict's location stands which alternative failed; the user has no such key.
    key = ".".join(str(part) for part in first["loc"] if not re.search(r"[\[(]", str(part))) or "configuration"
    if first["type"] == "extra_forbidden":
        section: Any = Config
        for part in first["loc"][:-1]:
            section = section.model_fields[part].annotation
        return f"{key}: no such key{did_you_mean(str(first['loc'][-1]), [*section.model_fields])}"
    if first["type"] == "missing":
        return f"{key}: missing"
    message = first["msg"][0].lower() + first["msg"][1:]
    if "[" in str(first["loc"][-1:]):  # of a union's alternatives the first; those at the same place fit as well
        same = (other["msg"] for other in others if other["loc"][:-1] == first["loc"][:-1])
        message = ", or ".join([message, *(other.removeprefix("Input should be ") for other in same)])
    return f"{key}: {message.replace('an object', 'a table')}, not {first['input']!r:.100}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
