"""Large images: cut into windows of a size, and their predictions stitched together again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import save

from comp import files
from comp.config import load_config
from comp.data import arrays
from comp.data.folds import find_groups
from comp.ensemble.decisions import Decisions
from comp.ensemble.make_submission import stitch_windows, write_submission
from comp.errors import Refused
from comp.prepare import build
from comp.prepare.samples import Sample, cut_windows
from comp.submission.runlength import encode_runs

SHAPES = {"a": (70, 90), "b": (40, 130), "c": (20, 64)}


def toml(cut, size, **source):
    own = load_config("hubmap-organs", overrides=["competition.kaggle=slug"]).competition
    return own.model_copy(update={"source": own.source.model_copy(update={"cut": cut, "size": size} | source)})


def lay_out(folder):
    """Slides with a bright disc each, by id its mask; and one of them as a test slide, too."""
    masks = {}
    for id, (height, width) in SHAPES.items():
        y, x = np.ogrid[:height, :width]
        masks[id] = (y - height // 2) ** 2 + (x - width // 3) ** 2 < (min(height, width) / 2.5) ** 2
        pixels = np.where(masks[id], 220, 0)[..., None] + np.zeros(3, int)
        for place in ("train_images", "test_images"):
            save(folder / place / f"{id}.tif", pixels.astype(np.uint8))
            (folder / place / f"{id}.tif").rename(folder / place / f"{id}.tiff")
    rows = [f"{id},{encode_runs(mask[None])[0]}" for id, mask in masks.items()]
    (folder / "train.csv").write_text("\n".join(["id,rle", *rows]) + "\n")
    return masks


def test_windows_cover_an_image_and_lie_inside_it():
    for size in [(5, 5), (70, 90), (1, 300), (64, 65)]:
        for overlap in (0.0, 0.25):
            covered = np.zeros(size, int)
            for one in cut_windows([Sample("x", (), size=size)], (32, 40), overlap):
                (y, x), (h, w) = one.place, one.size
                assert (h, w) == (min(32, size[0]), min(40, size[1])) and y + h <= size[0] and x + w <= size[1]
                covered[y : y + h, x : x + w] += 1
            assert covered.all()
            if overlap and min(size) > 40:  # what is in the middle of an image's side lies in two windows, often
                assert (covered > 1).mean() > 0.4


@pytest.mark.parametrize(("cut", "size"), [((32, 40), (32, 40)), ((32, 40), (16, 20)), ((32, 40), (48, 60))])
def test_slides_are_cut_predicted_and_stitched_together(tmp_path, monkeypatch, cut, size):
    own, folder = toml(cut, size), tmp_path / "input/slug"
    masks = lay_out(folder)
    monkeypatch.setattr(files, "KAGGLE_INPUT", tmp_path / "input")
    build.prepare(own, folder, tmp_path / own.file, own.source.size)
    train, test = arrays.load_train(own, tmp_path), arrays.load_test(own, tmp_path)
    assert train.images.shape[1:3] == size and {*train.groups.tolist()} == {*SHAPES}
    assert (train.images[..., 0] > 110).astype(np.uint8).tolist() == train.masks.tolist() or cut != size
    anew = arrays.load_test(own, build.prepare_hidden_test(own, tmp_path))
    assert (anew.images == test.images).all() and (anew.places == test.places).all()
    ids, shapes = test.asked
    assert {id: tuple(shape) for id, shape in zip(ids.tolist(), shapes.tolist(), strict=True)} == SHAPES

    def blended():
        for rows in np.array_split(np.arange(len(test.ids)), 5):
            bright = torch.from_numpy(test.images[rows][..., 0]).float() / 220
            yield rows, torch.stack([1 - bright, bright], 1)

    seen = {id: (whole, shape) for id, whole, shape in stitch_windows(blended(), test)}
    assert {id: shape for id, (_, shape) in seen.items()} == SHAPES
    if cut == size:
        for id, (whole, _) in [(id, seen[id]) for id in "ab"]:  # c is lower than a window
            assert torch.allclose(whole[1], torch.from_numpy(masks[id]).float(), atol=1e-5)
    path = tmp_path / "s.csv"
    count, scores = write_submission(path, blended(), Decisions.neutral(1, 2), test, own, None)
    assert (count, scores) == (3, None)
    written = dict(line.split(",") for line in path.read_text().splitlines()[1:])
    for id, mask in masks.items():
        if cut == size and id != "c":
            assert written[id] == encode_runs(mask[None])[0]
        else:  # at half the scale a rim of a pixel or two is lost
            wrong = np.mean(decode(written[id], mask.shape) != mask)
            assert wrong < (0.04 if size < cut else 0.01)


def decode(text, shape):
    from comp.submission.runlength import decode_runs

    return decode_runs(text, shape)


def test_blank_windows_of_several_slides_are_no_copies(tmp_path):
    own, folder = toml((16, 16), (16, 16)), tmp_path / "input/slug"
    lay_out(folder)
    build.prepare(own, folder, tmp_path / own.file, own.source.size)
    train = arrays.load_train(own, tmp_path)
    index = arrays.build_index(train, own)
    assert len({*find_groups(index, train.groups, np.arange(len(train.ids))).tolist()}) == len(SHAPES)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["competition.arrays.neighbours=[-1, 0, 1]"], "images not cut"),
        (["competition.submission.join=;"], r"submission\.join: rows = \"instance\""),
    ],
)
def test_what_windows_and_joined_rows_do_not_go_with(overrides, problem):
    with pytest.raises(Refused, match=problem):
        load_config("hubmap-kidney", overrides=overrides)


def test_decisions_of_windows_hold_in_whole_images(tmp_path, monkeypatch):
    """A part as large as 60 of a window's pixels, and a gate on as many pixels, whatever the image's size."""
    own, folder = toml((32, 40), (32, 40)), tmp_path / "input/slug"
    lay_out(folder)
    build.prepare(own, folder, tmp_path / own.file, own.source.size)
    test = arrays.load_test(own, tmp_path)

    def blended():
        for rows in np.arange(len(test.ids))[:, None]:
            bright = torch.from_numpy(test.images[rows][..., 0]).float() / 220
            yield rows, torch.stack([1 - bright, bright], 1)

    def write(**decided):
        plain = Decisions.neutral(1, 2)
        decisions = replace(plain, **{kind: (getattr(plain, kind)[0], value) for kind, value in decided.items()})
        write_submission(tmp_path / "s.csv", blended(), decisions, test, own, None)
        return {line.split(",")[0]: line.split(",")[1] for line in (tmp_path / "s.csv").read_text().splitlines()[1:]}

    whole = write()
    largest = {id: sum(map(int, text.split()[1::2])) for id, text in whole.items()}
    for share in (0.5 * largest["b"] / (32 * 40), 1.5 * largest["b"] / (32 * 40)):
        assert (
            bool(write(area=share)["b"]) == bool(write(gate=(share, 0.99))["b"]) == (share < largest["b"] / (32 * 40))
        )
