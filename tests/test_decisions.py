"""What is decided after the blend: found on out-of-fold predictions, judged on others, and applied as it was found."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import count_margins, draw, load
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from comp import config, device
from comp.data import arrays, npz
from comp.data.arrays import TrainSplit
from comp.ensemble import decisions as deciding
from comp.ensemble import search
from comp.ensemble.decisions import AREA, FACTOR, GATE, HOLE, TOTAL, Decisions, label_images
from comp.ensemble.make_submission import predict_blend
from comp.errors import Refused
from comp.model import metrics, predict, segmenter
from comp.train import runs

CPU = device.Device(torch.device("cpu"), torch.float32, "a test")
COMPETITION = config.Competition(name="tiny", classes=("ground", "stripe", "spot"))
ONE = config.Competition(
    name="one",
    classes=("rest", "spot"),
    metric=config.Metric(average="per_image", background="drop_class", thresholds=(0.5, 0.6, 0.7, 0.8, 0.9), empty=1),
)


def split(count=30):
    images, masks = draw(count, 0, (16, 16))
    return TrainSplit(images[..., None], masks, np.array([f"p{i}" for i in range(count)]), None, None)


def found(chosen, data, competition=COMPETITION, **options):
    index = arrays.build_index(data, competition)
    return search.search_decisions(chosen, data, index, competition, CPU.device, **options)


def write_fold(folder, number, ids, probabilities, masks):
    folder.mkdir(parents=True)
    classes = probabilities.shape[1]
    planes = predict.to_planes(torch.from_numpy(probabilities)).numpy()
    margins = count_margins(masks, probabilities.argmax(1).astype(np.uint8), classes)
    members = [
        ("ids", ids.shape, ids.dtype, [ids]),
        ("planes", planes.shape, np.uint8, [planes]),
        ("margins", (len(ids), 4, classes), np.int64, [margins]),
        ("counts", (len(ids), 2), np.float64, [np.full((len(ids), 2), np.nan)]),
    ]
    npz.write_npz(folder / runs.OOF, members)
    (folder / runs.METRICS).write_text(json.dumps({"fold": number, "train_images": 1, "valid_images": len(ids)}))
    return runs.read_fold(folder)


def run(place, name, data, noise, bias=(1, 1, 1), folds=3, only=None):
    """A run whose predictions are the truth with noise, and with some classes always under-rated."""
    rng = np.random.default_rng(len(name))
    made = []
    for number in range(folds):
        rows = np.arange(number, len(data.ids), folds)
        size = data.masks.shape[1:]
        p = np.eye(len(bias))[data.masks[rows]].transpose(0, 3, 1, 2) + noise * rng.random(
            (len(rows), len(bias), *size)
        )
        p *= np.array(bias)[:, None, None]
        folder, p = place / name / f"fold-{number}", p / p.sum(1, keepdims=True)
        if only is None or number in only:
            made.append(write_fold(folder, number, data.ids[rows], p, data.masks[rows]))
    return made


def by_kind(ladder):
    return {rung.kind: rung for rung in ladder}


def test_factors_are_found_where_they_help(tmp_path):
    data = split()
    decisions, ladder = found([run(tmp_path, "biased", data, 1.6, (1, 1, 0.5))], data)
    assert decisions.factor[2] > decisions.factor[1] and by_kind(ladder)[FACTOR].used
    rung = by_kind(ladder)[FACTOR]
    assert rung.score > ladder[0].score + 0.02
    each = (
        rung.words.partition(" (on all images, around it ")[2].removesuffix(")").split("; ")
    )  # of each class that has a factor
    assert len(each) == sum(one != 1 for one in decisions.factor)
    for curve in each:
        values = [float(one.strip("[]")) for one in curve.split()]
        assert len(values) == 5 and curve.split()[2].startswith("[") and values[2] > max(values) - 0.01


def test_what_does_not_help_is_not_used(tmp_path):
    data = split()
    decisions, ladder = found([run(tmp_path, "perfect", data, 0.1)], data)
    assert decisions == Decisions.neutral(1, 3) and ladder[0].score == 1
    assert not any(rung.used for rung in ladder[1:])


OBJECTS = config.Competition(
    name="discs",
    classes=("rest", "disc"),
    metric=config.Metric(name="object_precision", average="per_image", thresholds=(0.5, 0.75, 0.9)),
    submission=config.Submission(format="rle", rows="instance"),
)


def draw_discs(touching, count=20):
    """Images with two discs each, which touch or do not, numbered."""
    numbers, rng = np.zeros((count, 48, 48), np.uint16), np.random.default_rng(3)
    for one in numbers:
        y, x = rng.integers(14, 24, 2).tolist()
        for number, place in enumerate([(y, x), (y + (11 if touching else 16), x + 4)], 1):
            one[((np.indices(one.shape) - np.reshape(place, (2, 1, 1))) ** 2).sum(0) < 42] = number
    ids, masks = np.array([f"p{k}" for k in range(count)]), (numbers > 0).astype(np.uint8)
    images = (rng.random((count, 48, 48, 1)) * 255).astype(np.uint8)
    return TrainSplit(images, masks, ids, None, None, instances=numbers)


@pytest.mark.parametrize("touching", [True, False])
def test_objects_are_parted_where_they_touch(tmp_path, touching):
    data = draw_discs(touching)
    decisions, ladder = found([run(tmp_path, "discs", data, 0.4, (1, 1))], data, OBJECTS)
    assert (decisions.neck[1] > 0) == touching == by_kind(ladder)["neck"].used
    assert ladder[0].score < 0.2 if touching else ladder[0].score == 1
    assert max(rung.score for rung in ladder) > 0.95


def test_small_objects_that_are_none_are_removed(tmp_path):
    data = draw_discs(False)
    specks = data.masks.copy()
    specks[:, 2:4, ::9] = 1  # which the model sees, and the truth has not
    seen = run(tmp_path, "specks", replace(data, masks=specks), 0.4, (1, 1))
    for fold in seen:  # what is stored is of the predictions
        z = dict(np.load(fold.folder / runs.OOF))
        rows = [data.ids.tolist().index(name) for name in z["ids"].tolist()]
        z["margins"][:, 1] = count_margins(data.masks[rows], data.masks[rows], 2)[:, 1]
        np.savez(fold.folder / runs.OOF, **z)
    decisions, ladder = found([seen], data, OBJECTS)
    assert decisions.area[1] > 0 and by_kind(ladder)[AREA].used and by_kind(ladder)[AREA].score > 0.95


def test_nothing_is_searched_where_that_is_asked_for(tmp_path):
    data = split()
    decisions, ladder = found([run(tmp_path, "biased", data, 1.6, (1, 1, 0.5))], data, search=False)
    assert decisions == Decisions.neutral(1, 3) and [rung.kind for rung in ladder] == ["largest"]


def test_a_better_run_weighs_more(tmp_path):
    data = split()
    decisions, ladder = found([run(tmp_path, "good", data, 1.3), run(tmp_path, "bad", data, 9.0)], data)
    assert sum(decisions.run) == pytest.approx(1)
    assert decisions.run[0] > 0.6 and by_kind(ladder)["run"].score > ladder[0].score


def test_decisions_are_judged_on_folds_they_did_not_see(tmp_path):
    # Fold 2 wants the opposite of folds 0 and 1: a factor found with a look at it would seem to help.
    data = split()
    folds = run(tmp_path, "a", data, 1.6, (1, 1, 0.5), only=[0]) + run(tmp_path, "b", data, 1.6, (1, 1, 2.0), only=[1])
    decisions, ladder = found([folds], data)
    assert by_kind(ladder)[FACTOR].score < ladder[0].score and decisions.factor == (1, 1, 1)


def test_one_fold_is_dealt_into_parts_with_groups_whole(tmp_path):
    data = replace(split(90), groups=np.array([f"g{i // 9}" for i in range(90)]))
    chosen = [run(tmp_path, "biased", data, 1.6, (1, 1, 0.4))[:1]]
    decisions, ladder = found(chosen, data)
    assert by_kind(ladder)[FACTOR].used and decisions.factor[2] > 1
    parts = search._parts(chosen, data, arrays.build_index(data, COMPETITION), COMPETITION, CPU.device)
    groups = [{*data.groups[part.rows].tolist()} for part in parts]
    assert len(parts) > 1 and sum(map(len, groups)) == len(set().union(*groups))


def noisy_spots(count=60, seed=0):
    """Squares of 10 pixels and their predictions, which have holes and specks; every third image holds no square."""
    rng = np.random.default_rng(seed)
    masks, seen = np.zeros((count, 32, 32), np.uint8), np.zeros((count, 32, 32))
    for k in range(count):
        if k % 3:
            y, x = rng.integers(2, 20, 2)
            masks[k, y : y + 10, x : x + 10] = 1
            seen[k] = masks[k] * 0.8
            seen[k, y + 4, x + 4 : x + 6] = 0.1
        for y, x in rng.integers(0, 30, (3, 2)):
            seen[k, y : y + 2, x : x + 2] = 0.9
    seen = np.clip(seen + 0.05 * rng.random(seen.shape), 0, 1)
    images = rng.integers(0, 255, (count, 32, 32, 1), dtype=np.uint8)
    data = TrainSplit(images, masks, np.array([f"q{k}" for k in range(count)]), None, None)
    return data, np.stack([1 - seen, seen], 1)


def test_components_holes_and_empty_images_are_decided(tmp_path):
    data, probabilities = noisy_spots()
    folds = []
    for number in range(3):
        rows = np.arange(number * 20, number * 20 + 20)
        folds.append(
            write_fold(tmp_path / f"fold-{number}", number, data.ids[rows], probabilities[rows], data.masks[rows])
        )
    decisions, ladder = found([folds], data, ONE)
    rungs = by_kind(ladder)
    assert ladder[-1].score == 1 and ladder[0].score < 0.9
    assert rungs[AREA].used and rungs[AREA].score > ladder[0].score + 0.1
    labels = label_images(torch.from_numpy(probabilities), decisions).numpy()
    assert (labels != data.masks).mean() < 0.002  # specks that touch a square stay
    assert all(words for _, words in deciding.describe(decisions, ONE))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([FACTOR, GATE, HOLE, AREA, TOTAL]), st.integers(2, 4),
    st.booleans(), st.booleans(), st.sampled_from(["global", "per_image"]),
)  # fmt: skip
def test_one_pass_counts_what_each_value_gives(seed, kind, classes, ignored, overlap, average):
    """The pass over all values at once against labelling the images under each of them."""
    rng = np.random.default_rng(seed)
    p = ndimage.gaussian_filter(rng.random((3, classes, 14, 11)), (0, 0, 1.2, 1.2)) ** 6
    planes = predict.to_planes(torch.from_numpy(p / p.sum(1, keepdims=True))).numpy()
    masks = rng.integers(0, 1 << classes - 1 if overlap else classes, (3, 14, 11)).astype(np.uint8)
    if ignored:
        masks[:, :3] = 255
    own = config.Competition(
        name="x", classes=tuple("abcd"[:classes]), metric=config.Metric(average=average), overlap=overlap,
        arrays=config.Arrays(ignore=255 if ignored else None),
    )  # fmt: skip
    data = TrainSplit(masks[..., None], masks, np.arange(3), None, None)
    part = search._Part([planes], np.arange(3), data, np.arange(3), CPU.device, own)
    plain = Decisions.neutral(1, classes)
    chain = replace(plain, factor=(1.0, *2.0 ** rng.uniform(-1, 1, classes - 1))) if kind != FACTOR else plain
    if kind in (AREA, TOTAL):
        chain = replace(chain, hole=(0.0, *[0.05] * (classes - 1)))
    target = int(rng.integers(1, classes))
    values = search.CANDIDATES[kind]
    (counted,) = search._count(part, chain, kind, [target], values)
    assert len(counted) == len(values)
    probabilities = predict.from_planes(torch.from_numpy(planes), overlap)
    for value, margins in list(zip(values, counted, strict=True))[:: 1 + seed % 7]:
        labels = label_images(probabilities, search._decide(chain, kind, target, value), overlap)
        expected = metrics.contribute(metrics.count_margins(torch.from_numpy(masks), labels, own).numpy(), own.metric)
        np.testing.assert_array_equal(margins, expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_components_and_holes_are_scipys(seed):
    here = ndimage.gaussian_filter(np.random.default_rng(seed).random((13, 17)), 1.0) > 0.5
    parts, _ = ndimage.label(here, np.ones((3, 3)))
    sizes = deciding.measure_sizes(torch.from_numpy(here[None]), AREA)[0].numpy()
    expected = np.bincount(parts.ravel())[parts] / here.size
    np.testing.assert_allclose(sizes[here], expected[here], rtol=1e-6)
    holes = deciding.measure_sizes(torch.from_numpy(here[None]), HOLE)[0].numpy()
    np.testing.assert_array_equal(np.isfinite(holes), ndimage.binary_fill_holes(here) & ~here)


def test_pixels_that_a_class_loses_go_to_the_next_likely_one():
    p = torch.tensor([0.2, 0.5, 0.3]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    plain = Decisions.neutral(1, 3)
    assert (label_images(p, plain) == 1).all()
    assert (label_images(p, replace(plain, gate=((0.0, 0.0), (0.0, 0.6), (0.0, 0.0)))) == 2).all()
    assert (label_images(p, replace(plain, factor=(1, 0.5, 1))) == 2).all()
    one = p.clone()
    one[0, :, 0, 0] = torch.tensor([0.1, 0.3, 0.6])
    left = label_images(one, replace(plain, area=(0, 0, 0.1)))
    assert left[0, 0, 0] == 1 and (left == 1).all()


def test_stored_planes_give_the_score_of_the_probabilities(tmp_path):
    rng = np.random.default_rng(0)
    p = torch.from_numpy(rng.dirichlet(np.ones(5), (4, 9, 9))).permute(0, 3, 1, 2).float()
    back = predict.from_planes(predict.to_planes(p))
    assert (back - p).abs().max() < 0.5 / 255 * 4 + 1e-6 and (back.sum(1) - 1).abs().max() < 0.01
    assert (predict.to_labels(back) == predict.to_labels(p)).float().mean() > 0.98


def test_missing_and_mismatched_folds_are_refused(tmp_path):
    data = split()
    three, two = run(tmp_path, "three", data, 1.0), run(tmp_path, "two", data, 1.0, folds=2)
    with pytest.raises(Refused, match="fold 2 is not finished"):
        load("ensemble.py").same_folds([three, two], [0, 1, 2])
    assert [[f.number for f in r] for r in load("ensemble.py").same_folds([three, two], [1, 0])] == [[1, 0], [1, 0]]
    with pytest.raises(Refused, match="validated on other images"):
        found([three[:2], two], data)
    data.masks[data.ids == "p1"] = 2
    with pytest.raises(Refused, match="fold-1: the training masks have changed since"):
        found([three], data)
    with pytest.raises(Refused, match="no finished fold"):
        runs.find_folds(tmp_path / "tiny" / "nothing")


@pytest.mark.parametrize(("batch_size", "tta"), [(1, None), (3, "hflip"), (100, "none")])
def test_a_blend_is_the_mean_of_probabilities_whatever_the_batch_size(tmp_path, batch_size, tta):
    own = ["model.options={encoder_depth=3, decoder_channels=[8,8,8]}", "predict.tta=flips"]
    loaded = config.load_config("demo", overrides=own)
    data, chosen = split(7), []
    for number in range(3):
        torch.manual_seed(number)
        model, _ = segmenter.build_segmenter(loaded.model, 1, 5, torch.tensor([100.0]), torch.tensor([50.0]))
        segmenter.save_model(model, tmp_path / f"fold-{number}" / runs.MODEL, loaded)
        chosen.append(runs.Fold(tmp_path / f"fold-{number}", number, {}))
    own_settings = config.Predict(tta=tta or "flips", batch_size=2)
    blended = predict_blend([chosen[:2], chosen[2:]], [0.25, 0.75], data, tta, batch_size, CPU)
    rows, got = zip(*blended, strict=True)
    assert np.concatenate(rows).tolist() == list(range(7))
    expected = 0
    for fold, weight in zip(chosen, (0.125, 0.125, 0.75), strict=True):
        model = segmenter.load_model(fold.folder / runs.MODEL, CPU)[0]
        batches = predict.predict_rows(model, data.images, np.arange(7), own_settings)
        expected = expected + weight * torch.cat([p for _, p in batches])
    torch.testing.assert_close(torch.cat(got), expected)


def test_the_search_counts_as_the_metric_does(tmp_path):
    data = split()
    chosen = run(tmp_path, "noisy", data, 1.6)
    _, ladder = found([chosen], data, search=False)
    margins = []
    for fold in chosen:
        ids, planes, *_ = fold.oof()
        rows = [data.ids.tolist().index(name) for name in ids]
        labels = predict.to_labels(predict.from_planes(torch.tensor(np.array(planes)))).numpy()
        margins.append(count_margins(data.masks[rows], labels, 3))
    expected = metrics.score(np.concatenate(margins), COMPETITION.metric)
    assert ladder[0].score == pytest.approx(expected, abs=1e-6)


def test_one_group_leaves_nothing_to_judge_with(tmp_path):
    data = replace(split(12), groups=np.array(["scan"] * 12))
    decisions, ladder = found([run(tmp_path, "biased", data, 1.6, (1, 1, 0.5))[:1]], data)
    assert decisions == Decisions.neutral(1, 3) and len(ladder) == 1
