import numpy as np
import pytest
import torch
from torch import nn

from comp import device
from comp.errors import Refused
from comp.model import predict

CPU = device.Device(torch.device("cpu"), torch.float32, "a test")


@pytest.mark.parametrize("tta", ["none", "hflip", "flips", "d4"])
@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_undo_takes_do_back(tta, size):
    images = torch.rand(2, 3, *size)
    looks = predict.test_time_views(tta, size)
    assert len(looks) == {"none": 1, "hflip": 2, "flips": 4, "d4": 8}[tta]
    seen = [look.do(images) for look in looks]
    for look, view in zip(looks, seen, strict=True):
        assert torch.equal(look.undo(view), images)
    flat = {view.contiguous().numpy().tobytes() + bytes(view.shape) for view in seen}
    assert len(flat) == len(looks)  # no view twice


def test_scales_come_back_to_the_size():
    images = torch.rand(1, 2, 20, 28)
    looks = predict.test_time_views("scales", (20, 28))
    assert [look.do(images).shape[2:] for look in looks] == [(20, 28), (15, 21), (25, 35)]
    assert all(look.undo(look.do(images)).shape == images.shape for look in looks)


class Brightness(nn.Module):
    """Logits from the pixel alone, so that every view must agree."""

    def forward(self, images):
        x = images.float() / 255
        return torch.cat([x, 1 - x, x * 0.3], 1)


@pytest.mark.parametrize("tta", ["none", "hflip", "flips", "d4"])
def test_a_network_that_flips_do_not_matter_to_predicts_the_same(tta):
    images = torch.randint(0, 256, (3, 1, 8, 12), dtype=torch.uint8)
    got = predict.probabilities(Brightness(), images, predict.Predict(tta=tta), CPU)
    torch.testing.assert_close(got, Brightness()(images).softmax(1))


class Position(nn.Module):
    """Logits from where a pixel lies: flips disagree, and their probabilities must be averaged."""

    def forward(self, images):
        ramp = torch.linspace(-3, 3, images.shape[3]).expand(len(images), 1, *images.shape[2:])
        return torch.cat([ramp, -ramp], 1)


def test_probabilities_are_averaged_and_not_logits():
    images = torch.zeros(1, 1, 4, 6, dtype=torch.uint8)
    plain = Position()(images).softmax(1)
    torch.testing.assert_close(
        predict.probabilities(Position(), images, predict.Predict(tta="hflip"), CPU), (plain + plain.flip(3)) / 2
    )


@pytest.mark.parametrize(("fit", "size"), [("stretch", (30, 20)), ("letterbox", (30, 20)), ("letterbox", (9, 40))])
def test_predictions_come_back_to_the_pictures_own_size(fit, size):
    # The left half of the picture is class 1, wherever the picture lies in the square.
    side = 64
    scale = min(side / size[0], side / size[1])
    height, width = (round(size[0] * scale), round(size[1] * scale)) if fit == "letterbox" else (side, side)
    labels = torch.zeros(side, side, dtype=torch.long)
    labels[:height, : width // 2] = 1
    labels[height:], labels[:, width:] = 2, 2
    probabilities = nn.functional.one_hot(labels, 3).permute(2, 0, 1).float()
    back = predict.resize_to_original(probabilities, size, fit).argmax(0)
    expected = torch.zeros(size, dtype=torch.long)
    expected[:, : size[1] // 2] = 1
    assert back.shape == size
    assert (back == expected).float().mean() > 0.95


class Starved(Brightness):
    def forward(self, images):
        if len(images) > 2:
            raise torch.OutOfMemoryError
        return super().forward(images)


def test_a_batch_that_does_not_fit_is_halved():
    images = torch.randint(0, 256, (7, 1, 8, 12), dtype=torch.uint8)
    got = predict.probabilities(Starved(), images, predict.Predict(tta="d4"), CPU)
    torch.testing.assert_close(got, Brightness()(images).softmax(1))


@pytest.mark.parametrize("size", [(100, 77), (33, 64), (32, 150), (65, 64), (31, 20)])
@pytest.mark.parametrize("tta", ["none", "d4"])
def test_tiles_cover_every_pixel_once_blended(size, tta):
    images = torch.randint(0, 256, (3, 1, *size), dtype=torch.uint8)
    settings = predict.Predict(tta=tta, tile=32, batch_size=4)
    got = predict.probabilities(Brightness(), images, settings, CPU)
    torch.testing.assert_close(got, Brightness()(images).softmax(1))


class Surroundings(nn.Module):
    """Logits from a pixel's neighbours, zeros beyond the rim: the same wherever a picture is cut, but at the cuts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        return self.net(images.float() / 64)


def test_tiles_agree_with_the_whole_picture_and_are_never_larger():
    network, images = Surroundings(), torch.randint(0, 256, (2, 1, 101, 83), dtype=torch.uint8)
    whole = predict.logits(network, images, CPU)
    network.seen.clear()
    settings = predict.Predict(tta="none", tile=32, batch_size=6)
    got = predict.predict_tiles(lambda x: predict.logits(network, x, CPU), images, settings)
    assert {shape[2:] for shape in network.seen} == {(32, 32)}
    assert max(shape[0] for shape in network.seen) == 6
    assert sum(shape[0] for shape in network.seen) == 2 * 4 * 4
    # A cut shows two pixels deep, and there its tile counts least.
    difference, largest = (got - whole).abs().amax((0, 1)), whole.abs().max()
    assert difference.max() < 0.02 * largest
    for axis, starts in enumerate([(0, 23, 46, 69), (0, 17, 34, 51)]):
        cuts = torch.tensor([*starts[1:], *(start + 32 for start in starts[:-1])])
        pixels = torch.arange(difference.shape[axis]) + 0.5
        away = (pixels[:, None] - cuts).abs().amin(1) > 2
        difference = difference[away] if axis == 0 else difference[:, away]
    assert difference.numel() > 1500 and difference.max() < 1e-5


def test_batches_count_tiles():
    rows = np.arange(10)
    assert [len(batch) for batch in predict.plan_batches(rows, (64, 64), predict.Predict(batch_size=4))] == [4, 4, 2]
    tiles = predict.Predict(batch_size=8, tile=40)  # 2 × 2 a picture
    assert [len(batch) for batch in predict.plan_batches(rows, (64, 64), tiles)] == [2, 2, 2, 2, 2]


def test_a_batch_that_does_not_fit_the_memory_is_halved():
    images, rows = np.arange(10, dtype=np.uint8)[:, None, None, None], np.array([7, 1, 5, 2, 9])

    def look(most):
        def look(pixels, batch):
            if len(pixels) > most:
                raise torch.OutOfMemoryError
            return pixels.flatten().tolist()

        return look

    settings = predict.Predict(batch_size=5)
    seen = [(batch.tolist(), got) for batch, got in predict.for_each_batch(look(2), images, rows, settings, CPU)]
    assert seen == [([7, 1], [7, 1]), ([5], [5]), ([2, 9], [2, 9])]
    with pytest.raises(Refused, match=r"a single picture.*predict\.tile"):
        list(predict.for_each_batch(look(0), images, rows, settings, CPU))


def test_batches_cover_the_rows_in_order():
    images = np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    rows = np.array([7, 1, 5, 2, 9])
    settings = predict.Predict(tta="none", batch_size=2)
    batches = list(predict.predict_rows(Brightness(), images, rows, settings, CPU))
    assert [batch.tolist() for batch, _ in batches] == [[7, 1], [5, 2], [9]]
    for batch, probabilities in batches:
        expected = Brightness()(torch.from_numpy(images[batch]).permute(0, 3, 1, 2)).softmax(1)
        torch.testing.assert_close(probabilities, expected)
