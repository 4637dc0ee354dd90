import time

import numpy as np
import pytest
import torch
from torch import nn

from comp import device
from comp.errors import Refused, print_once
from comp.model import predict

CPU = device.Device(torch.device("cpu"), torch.float32, "a test")


@pytest.mark.parametrize("tta", ["none", "hflip", "flips", "d4"])
@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_undo_takes_do_back(tta, size):
    images = torch.rand(2, 3, *size)
    looks = predict.VIEWS[tta]
    assert len(looks) == {"none": 1, "hflip": 2, "flips": 4, "d4": 8}[tta]
    seen = [look.do(images) for look in looks]
    for look, view in zip(looks, seen, strict=True):
        assert torch.equal(look.undo(view, size), images)
    flat = {view.contiguous().numpy().tobytes() + bytes(view.shape) for view in seen}
    assert len(flat) == len(looks)  # no view twice


def test_scales_come_back_to_the_size():
    images = torch.rand(1, 2, 20, 28)
    looks = predict.VIEWS["scales"]
    assert [look.do(images).shape[2:] for look in looks] == [(20, 28), (15, 21), (25, 35)]
    assert all(look.undo(look.do(images), (20, 28)).shape == images.shape for look in looks)


class Brightness(nn.Module):
    """Logits from the pixel alone, so that every view must agree."""

    device, overlap = CPU, False

    def forward(self, images):
        x = images.float() / 255
        return torch.cat([x, 1 - x, x * 0.3], 1)


@pytest.mark.parametrize("tta", ["none", "hflip", "flips", "d4"])
def test_a_network_that_flips_do_not_matter_to_predicts_the_same(tta):
    images = torch.randint(0, 256, (3, 1, 8, 12), dtype=torch.uint8)
    got = predict.probabilities(Brightness(), images, predict.Predict(tta=tta))
    torch.testing.assert_close(got, Brightness()(images).softmax(1))


class Position(nn.Module):
    """Logits from where a pixel lies: flips disagree, and their probabilities must be averaged."""

    device, overlap = CPU, False

    def forward(self, images):
        ramp = torch.linspace(-3, 3, images.shape[3]).expand(len(images), 1, *images.shape[2:])
        return torch.cat([ramp, -ramp], 1)


def test_probabilities_are_averaged_and_not_logits():
    images = torch.zeros(1, 1, 4, 6, dtype=torch.uint8)
    plain = Position()(images).softmax(1)
    torch.testing.assert_close(
        predict.probabilities(Position(), images, predict.Predict(tta="hflip")), (plain + plain.flip(3)) / 2
    )


@pytest.mark.parametrize("size", [(100, 77), (33, 64), (32, 150), (65, 64), (31, 20)])
@pytest.mark.parametrize("tta", ["none", "d4"])
def test_tiles_cover_every_pixel_once_blended(size, tta):
    images = torch.randint(0, 256, (3, 1, *size), dtype=torch.uint8)
    settings = predict.Predict(tta=tta, tile=32, batch_size=4)
    got = predict.probabilities(Brightness(), images, settings)
    torch.testing.assert_close(got, Brightness()(images).softmax(1))


class Surroundings(nn.Module):
    """Logits from a pixel's neighbours, zeros beyond the rim: the same wherever an image is cut, but at the cuts."""

    device = CPU

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        return self.net(images.float() / 64)


def test_tiles_agree_with_the_whole_image_and_are_never_larger():
    network, images = Surroundings(), torch.randint(0, 256, (2, 1, 101, 83), dtype=torch.uint8)
    whole = predict.logits(network, images)
    network.seen.clear()
    settings = predict.Predict(tta="none", tile=32, batch_size=6)
    got = predict.predict_tiles(lambda x: predict.logits(network, x), images, settings)
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


@pytest.mark.parametrize("tile", [0, 40])  # of which an image has 2 × 2
def test_batches_count_tiles(tile):
    images, settings = np.zeros((10, 64, 64, 1), np.uint8), predict.Predict(batch_size=8, tile=tile)
    batches = predict.for_each_batch(lambda pixels, rows, now: len(pixels), images, np.arange(10), settings, CPU)
    assert [count for _, count in batches] == ([2] * 5 if tile else [8, 2])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(),
        RuntimeError("FIND was unable to find an engine to execute this computation"),  # cuDNN's, while it benchmarks
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_batch_that_does_not_fit_the_memory_is_halved_and_stays_small(error):
    images, rows, tried = np.arange(10, dtype=np.uint8)[:, None, None, None], np.array([7, 1, 5, 2, 9]), []

    def look(most):
        def look(pixels, batch, settings):
            tried.append(len(pixels))
            if len(pixels) > most:
                raise error
            return pixels.flatten().tolist()

        return look

    settings = predict.Predict(batch_size=5)
    seen = [(batch.tolist(), got) for batch, got in predict.for_each_batch(look(2), images, rows, settings, CPU)]
    assert seen == [([7, 1], [7, 1]), ([5, 2], [5, 2]), ([9], [9])] and tried == [5, 2, 2, 1]
    with pytest.raises(Refused, match=r"a single image.*predict\.tile"):
        list(predict.for_each_batch(look(0), images, rows, settings, CPU))


def test_tiles_that_do_not_fit_the_memory_are_fewer_at_a_time():
    class Starved(Brightness):
        def forward(self, images):
            if len(images) > 2:
                raise torch.OutOfMemoryError
            return super().forward(images)

    images = np.random.default_rng(0).integers(0, 256, (3, 70, 70, 1), np.uint8)
    settings = predict.Predict(tta="d4", tile=32, batch_size=16)
    (_, got), *_ = list(predict.predict_rows(Starved(), images, np.arange(3), settings))
    torch.testing.assert_close(got, Brightness()(torch.from_numpy(images[:1]).permute(0, 3, 1, 2)).softmax(1))


def test_batches_cover_the_rows_in_order():
    images = np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    rows = np.array([7, 1, 5, 2, 9])
    settings = predict.Predict(tta="none", batch_size=2)
    batches = list(predict.predict_rows(Brightness(), images, rows, settings))
    assert [batch.tolist() for batch, _ in batches] == [[7, 1], [5, 2], [9]]
    for batch, probabilities in batches:
        expected = Brightness()(torch.from_numpy(images[batch]).permute(0, 3, 1, 2)).softmax(1)
        torch.testing.assert_close(probabilities, expected)


class Loud(nn.Module):
    """A convolution whose outputs go beyond what float16 holds, and come back."""

    device, overlap = device.Device(torch.device("cpu"), torch.float16, "a T4 that is not here"), False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 1)
        nn.init.normal_(self.up.weight, std=1e4)
        nn.init.normal_(self.down.weight, std=1e-4)

    def forward(self, images):
        return self.down(self.up(images.float()))


def test_what_float16_cannot_hold_is_predicted_in_float32(capsys):
    images = torch.randint(0, 256, (2, 1, 8, 12), dtype=torch.uint8)
    model = Loud()
    with torch.inference_mode(), model.device.autocast():
        assert not model(images).isfinite().all()
    print_once.cache_clear()
    got = predict.probabilities(model, images, predict.Predict(tta="hflip"))
    assert capsys.readouterr().out.count("beyond float16") == 1
    exact = Loud()
    exact.device = CPU
    torch.testing.assert_close(got, predict.probabilities(exact, images, predict.Predict(tta="hflip")))


def test_the_next_batch_is_read_while_this_one_is_looked_at():
    order = []

    class Slow:
        def __getitem__(self, rows):
            order.append(("read", rows.tolist()))
            return np.zeros((len(rows), 4, 4, 1), np.uint8)

        shape = (6, 4, 4, 1)

    def look(images, batch, settings):
        for _ in range(100):  # until the thread has read on
            if len(order) > batch[-1] // 2 + 1 or batch[-1] == 5:
                break
            time.sleep(0.05)
        return list(order)

    seen = list(predict.for_each_batch(look, Slow(), np.arange(6), predict.Predict(batch_size=2), CPU))
    assert [batch.tolist() for batch, _ in seen] == [[0, 1], [2, 3], [4, 5]]
    assert ("read", [2, 3]) in seen[0][1] and ("read", [4, 5]) in seen[1][1]
