"""The scores that competitions' own files compute: against the hosts' examples, scipy, and double loops."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, inside, lay_out
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff

from comp import files
from comp.config import Metric, load_config
from comp.data.arrays import load_train
from comp.model.metrics import Tally
from comp.model.objects import score_objects


def functions(name):
    return files.load_functions(load_config(name).competition.metric.function)


def test_surface_dice_is_the_hosts():
    score = functions("sennet")["score_group"]
    truth, prediction = np.zeros((2, 100, 100, 100), np.uint8)
    truth[:50], prediction[:51] = 1, 1
    assert score(truth, prediction, None) == pytest.approx(0.7508771, abs=1e-7)  # the hosts' own example
    assert score(truth, truth, None) == pytest.approx(1)
    assert score(truth, np.zeros_like(truth), None) == 0
    assert score(np.zeros_like(truth), np.zeros_like(truth), None) is None


def test_the_table_of_surfaces_is_the_same_from_all_sides():
    area = functions("sennet")["score_group"].__wrapped__.__globals__["TABLE"]
    corners = np.array([*np.ndindex(2, 2, 2)])
    assert len(area) == 256 and area[0] == 0 and (area[1:255] > 0).all()
    for axes in [(0, 1, 2), (1, 2, 0), (0, 2, 1)]:
        for flip in corners:
            moved = (corners[:, axes] + flip) % 2 @ [1, 2, 4]
            bits = np.arange(256)[:, None] >> (corners @ [1, 2, 4]) & 1
            np.testing.assert_array_equal(area[(bits << moved).sum(1)], area)
    plane = sum(1 << k for k, corner in enumerate(corners) if corner[0])
    assert area[plane] == 1  # a wall of one voxel


def test_hausdorff_is_scipys_in_the_unit_cube():
    measure = functions("uw-madison")["measure_hausdorff"]
    random = np.random.default_rng(0)
    for _ in range(20):
        one, other = random.random((2, 4, 9, 7)) > random.uniform(0.5, 0.98)
        places = [np.argwhere(volume) / volume.shape for volume in (one, other)]
        expected = max(directed_hausdorff(*places)[0], directed_hausdorff(*places[::-1])[0]) / 3**0.5
        assert measure(one, other) == pytest.approx(expected)
    assert measure(one, one) == 0 and measure(one, np.zeros_like(one)) == 1


def test_uw_madison_joins_slices_and_volumes():
    own = functions("uw-madison")
    ids = np.array([f"case1_day{day}_slice_{n:04}" for day in (0, 20) for n in range(3)])
    truth = np.zeros((6, 8, 8), np.uint8)
    truth[:3, :4] |= 1  # the first organ on the first day
    truth[3, 2:4, 2:4] |= 4  # the third on the second, on one slice
    prediction = truth.copy()
    prediction[0] = 0
    counts = own["score_group"](truth, prediction, ids)
    assert counts[[0, 1, 3]].tolist() == [3, 4, 2]  # three of four slices are right, and there are two volumes
    assert counts[2] == pytest.approx(2 - 1 / 3 / 3**0.5)  # a slice of three lacks
    assert own["combine_counts"](counts) == pytest.approx(0.4 * 3 / 4 + 0.6 * counts[2] / 2)
    assert own["combine_counts"](own["score_group"](truth, truth, ids)) == 1


def test_xview2_is_the_hosts_formula():
    own, random = functions("xview2"), np.random.default_rng(1)
    truth, prediction = random.integers(0, 5, (2, 6, 20, 20))
    counts = np.sum([own["score_image"](*pair) for pair in zip(truth, prediction, strict=True)], axis=0)

    def f1(true, seen):
        hits = (true & seen).sum()
        return 2 * hits / (true.sum() + seen.sum()) if hits else 0

    there = truth > 0
    damage = [f1(truth[there] == k, prediction[there] == k) for k in range(1, 5)]
    expected = 0.3 * f1(there, prediction > 0) + 0.7 * 4 / sum(1 / (one + 1e-6) for one in damage)
    assert own["combine_counts"](counts) == pytest.approx(expected)


def test_a_function_that_cannot_be_run_is_refused_before_anything_trains(tmp_path, monkeypatch, capsys):
    lay_out(tmp_path)
    (tmp_path / "own.py").write_text("def score_image(truth, prediction)\n    return 1\n")
    command = ("train_fold.py", *TINY, "--fold", "0", "--set", 'competition.metric={function="own.py"}')
    assert "own.py: line 1: SyntaxError" in inside(monkeypatch, capsys, *command, cwd=tmp_path, status=2)
    assert not list((tmp_path / "runs/tiny").glob("*/fold-0"))


def draw_vessels(random, count):
    """Numbered squares that do not touch, (60, 60), and their places and sides."""
    numbers, squares = np.zeros((60, 60), np.uint16), random.permutation(25)[:count]
    for k, (place, side) in enumerate(zip(squares, random.integers(3, 11, count), strict=True), 1):
        y, x = place // 5 * 12, place % 5 * 12
        numbers[y : y + side, x : x + side] = k
    return numbers


def test_average_precision_of_vessels_is_that_of_a_double_loop():
    own, random = functions("hubmap-vessels"), np.random.default_rng(3)
    for _ in range(10):
        counts, ranked, total = 0.0, [], 0
        for count in random.integers(0, 6, 4):
            truth = draw_vessels(random, count)
            seen = np.where(random.random((60, 60)) < 0.02, 0, truth)  # holes, which change nothing but the IoU
            seen[random.random(60) < 0.2] = 0
            prediction = (seen > 0).astype(np.uint8)
            counts = counts + own["score_image"](truth, prediction)
            parts, n = ndimage.label(prediction, np.ones((3, 3)))
            total += count
            for k in range(1, n + 1):
                ious = [
                    ((parts == k) & (truth == t)).sum() / ((parts == k) | (truth == t)).sum()
                    for t in range(1, count + 1)
                ]
                ranked.append((int(20 * np.log2((parts == k).sum())), max(ious, default=0) >= 0.6))
        expected, hits = 0.0, 0
        steps = []
        for grade in sorted({grade for grade, _ in ranked}, reverse=True):
            until = [hit for one, hit in ranked if one >= grade]
            steps.append((sum(until), sum(until) / len(until)))
        for k, (reached, _) in enumerate(steps):
            expected += (reached - hits) / total * max(precision for _, precision in steps[k:])
            hits = reached
        assert own["combine_counts"](counts) == pytest.approx(expected)
    empty = np.zeros((9, 9), np.uint8)
    assert own["combine_counts"](own["score_image"](empty, empty)) == 0


def test_a_function_gets_numbered_objects_where_the_source_has_them(tmp_path):
    (tmp_path / "own.py").write_text("def score_image(truth, prediction):\n    return truth.max() * prediction.max()\n")
    (tmp_path / "own.toml").write_text(
        'name = "own"\nclasses = ["rest", "cell"]\nmetric = { function = "own.py" }\nsource = { instances = true }\n'
    )
    numbers = np.kron(np.arange(9, dtype=np.uint16).reshape(1, 3, 3), np.ones((1, 4, 4), np.uint16))
    masks = (numbers > 0).astype(np.uint8)
    np.savez(tmp_path / "own.npz", train_images=masks, train_masks=masks, train_instances=numbers)
    own = load_config(str(tmp_path / "own.toml")).competition
    tally = Tally(load_train(own, tmp_path), np.arange(1), own)
    tally.add(np.arange(1), *(torch.from_numpy(masks),) * 2)
    assert tally.counts.tolist() == [[8, 1]]
    unknown = Tally(replace(load_train(own, tmp_path), instances=None), np.arange(1), own)  # as of test images
    unknown.add(np.arange(1), *(torch.from_numpy(masks * (np.indices((12, 12)).sum(0) % 6 > 1)),) * 2)
    assert unknown.counts.tolist() == [[5, 1]]  # four stripes, of which the lack of one corner parts the first


@pytest.mark.parametrize(
    ("true", "found", "score"),
    [
        ([], [], 1),
        ([], [(0, 3)], 0),
        ([(0, 3)], [], 0),
        ([(100, 2), (300, 100)], [(100, 2)], 0.5),  # the hosts' examples
        ([(100, 103)], [(100, 102)], 0.995122),
        ([(0, 4)], [(0, 4), (10, 4)], 0.5),
    ],
)
def test_dice_of_objects_is_the_hosts_of_forgeries(true, found, score):
    def number(objects):
        flat = np.zeros(1000, int)
        for k, (start, length) in enumerate(objects, 1):
            flat[start : start + length] = k
        return flat.reshape(20, 50)

    metric = Metric(name="object_dice", average="per_image")
    assert score_objects(number(true), number(found), metric) == pytest.approx(score, abs=1e-6)


def test_a_file_is_known_by_where_it_lies_and_when_it_changed(tmp_path, monkeypatch):
    for k, place in enumerate(("one", "other")):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        (tmp_path / place / "own.py").write_text(f"def score_image(truth, prediction):\n    return {k}\n")
        assert files.load_functions("own.py")["score_image"](None, None) == k
    assert files.load_functions("own.py") is files.load_functions("own.py")
    (tmp_path / "other/own.py").write_text("def score_image(truth, prediction):\n    return 2\n")  # in a notebook, say
    os.utime(tmp_path / "other/own.py", (0, 0))
    assert files.load_functions("own.py")["score_image"](None, None) == 2
