import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from comp import config
from comp.data import augment, batches
from comp.data.arrays import Split
from comp.errors import Refused, print_once


def settings(**augmentation) -> config.Augment:
    return config.Augment(**augmentation)


def test_each_row_once_in_even_batches():
    rows = np.arange(100, 165)
    planned = batches.plan_epoch(rows, np.ones(65), 16, seed=3, epoch=2)
    epoch, place, drawn = np.concatenate(planned).T.tolist()
    assert sorted(drawn) == rows.tolist() and drawn != rows.tolist()
    assert set(epoch) == {2} and place == list(range(65))
    assert [len(batch) for batch in planned] == [13] * 5
    assert np.array_equal(planned, batches.plan_epoch(rows, np.ones(65), 16, seed=3, epoch=2))
    assert not np.array_equal(planned, batches.plan_epoch(rows, np.ones(65), 16, seed=3, epoch=3))


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"), [(5, 2, [2, 3]), (7, 3, [2, 3, 2]), (1, 4, [1]), (3, 1, [1] * 3)]
)
def test_no_batch_is_a_single_sample_that_need_not_be(count, batch_size, sizes):
    planned = batches.plan_epoch(np.arange(count), np.ones(count), batch_size, 0, 0)
    assert [len(batch) for batch in planned] == sizes


def test_oversampling_repeats_images_that_hold_the_class():
    counts = np.array([[9, 0], [5, 4], [9, 0]])
    times = batches.draws_per_image(counts, {"rare": 2.5}, ("common", "rare"))
    assert times.tolist() == [1, 2.5, 1]
    drawn = [
        row for epoch in range(200) for b in batches.plan_epoch(np.arange(3), times, 8, 0, epoch) for _, _, row in b
    ]
    assert drawn.count(0) == drawn.count(2) == 200
    assert 450 < drawn.count(1) < 550


def test_any_number_of_workers_and_any_start_give_the_same_batches():
    rng = np.random.default_rng(0)
    images, masks = rng.integers(0, 256, (20, 16, 24, 1), np.uint8), rng.integers(0, 3, (20, 16, 24), np.uint8)
    split = Split(images, masks, np.arange(20).astype(str), None, None)
    loaded = config.load_config("demo", overrides=["batch_size=6", "seed=4"])
    seen = []
    for workers in (0, 1, 2):

        def begin(workers=workers):
            return batches.TrainBatches(split, np.arange(20), np.ones(20), loaded, workers, pin=False)

        with begin() as loader, begin() as later:
            seen.append([batch for epoch in (0, 1, 2) for batch in loader.epoch(epoch)])
            late = [*later.epoch(1, skip=2), *later.epoch(2)]
        assert same(late, seen[-1][-6:])
    assert all(same(seen[0], other) for other in seen[1:])
    size, first, _ = seen[0][0]
    assert size == 5 and first.dtype == torch.uint8 and first.shape == (5, 16, 24, 1)


def same(some: list, others: list) -> bool:
    return all(
        size == as_many and torch.equal(images, again) and torch.equal(labels, masks)
        for (size, images, labels), (as_many, again, masks) in zip(some, others, strict=True)
    )


def test_image_and_mask_move_together_and_only_the_seed_decides():
    transform = augment.build_transforms(
        [{"name": "HorizontalFlip", "p": 0.5}, {"name": "Affine", "rotate": [-30, 30], "p": 1.0}]
    )
    mask = np.zeros((32, 48), np.uint8)
    mask[8:20, 10:30] = 2
    image = (mask * 100)[..., None]
    moved = {seed: transform(image, mask, seed) for seed in (1, 2, 1)}
    again = transform(image, mask, 1)
    assert np.array_equal(moved[1][0], again[0]) and not np.array_equal(moved[1][1], moved[2][1])
    for image, label in moved.values():
        assert set(np.unique(label)) <= {0, 2}  # nearest neighbour: no label between
        assert ((image[..., 0] > 100) == (label == 2)).mean() > 0.97


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        ({"name": "HorizontalFlop"}, "augment.transforms.0.name: albumentations has no transform 'HorizontalFlop'"),
        ({"p": 0.5}, "has no transform ''"),
        ({"name": "HorizontalFlip", "q": 1}, "augment.transforms.0 (HorizontalFlip): "),
        ({"name": "HorizontalFlip", "p": "often"}, "augment.transforms.0 (HorizontalFlip): "),
        ({"name": "BasicTransform"}, "augment.transforms.0"),
        ({"name": "np"}, "has no transform 'np'"),
    ],
)
def test_an_unknown_transform_or_argument_is_refused(transform, says):
    with pytest.raises(Refused) as refused:
        augment.build_transforms([transform])
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_a_transform_that_warns_works_and_says_so_once(capsys):
    rotate = {"name": "ShiftScaleRotate", "shift_limit": 0.1, "p": 1.0}
    print_once.cache_clear()
    for _ in range(2):
        transform = augment.build_transforms([{"name": "RandomRotate90"}, rotate])
        assert transform(np.zeros((16, 16, 1), np.uint8), np.zeros((16, 16), np.uint8), 0)[1].shape == (16, 16)
    assert capsys.readouterr().out.count("augment.transforms.1 (ShiftScaleRotate): ShiftScaleRotate is a special") == 1
    with pytest.raises(Refused, match=r"augment\.transforms\.0 \(ShiftScaleRotate\): .*'shift'"):
        augment.build_transforms([{"name": "ShiftScaleRotate", "shift": 0.1}])


def test_no_transform_takes_an_argument_that_it_does_not_know():
    import albumentations

    kinds = [kind for kind in vars(albumentations).values() if isinstance(kind, type)]
    names = [kind.__name__ for kind in kinds if issubclass(kind, albumentations.BasicTransform)]
    assert len(names) > 100
    for name in names:
        with pytest.raises(Refused, match=rf"^augment\.transforms\.0 \({name}\):"):
            augment.build_transforms([{"name": name, "nonsense": 1}])


def test_cutmix_pastes_boxes_with_their_labels():
    labels = torch.arange(1, 5, dtype=torch.uint8)[:, None, None].expand(4, 16, 24).contiguous()
    images = (labels * 10)[:, None].contiguous()
    rng = np.random.default_rng(1)
    mixed, moved, other, share = augment.mix_batch(images, labels, settings(cutmix=1.0, cutmix_sources=3), rng)
    assert other is None and share == 1.0
    assert torch.equal(mixed[:, 0], moved * 10)
    assert any(len(one.unique()) > 1 for one in moved)
    assert torch.equal(labels[:, 0, 0], torch.arange(1, 5, dtype=torch.uint8))  # the batch itself is left alone


def test_mixup_blends_images_and_keeps_both_labels():
    labels = torch.arange(4, dtype=torch.uint8)[:, None, None].expand(4, 8, 8)
    images = (labels * 50)[:, None]
    mixed, first, second, share = augment.mix_batch(images, labels, settings(mixup=1.0), np.random.default_rng(5))
    assert torch.equal(first, labels) and 0 <= share <= 1
    expected = share * images.float() + (1 - share) * second[:, None].float() * 50
    torch.testing.assert_close(mixed, expected)


def test_samples_of_different_sizes_are_refused():
    split = Split(np.zeros((4, 32, 32, 1), np.uint8), np.zeros((4, 32, 32), np.uint8), np.arange(4), None, None)
    crop = 'augment.transforms=[{name="RandomSizedCrop", min_max_height=[8, 32], size=[16, 16], p=0.5}]'
    loader = batches.TrainBatches(
        split, np.arange(4), np.ones(4), config.load_config("demo", overrides=[crop]), 0, pin=False
    )
    with pytest.raises(Refused, match="different sizes"):
        for epoch in range(20):
            list(loader.epoch(epoch))


def loader_of(workers):
    split = Split(np.zeros((8, 32, 32, 1), np.uint8), np.zeros((8, 32, 32), np.uint8), np.arange(8), None, None)
    few = config.load_config("demo", overrides=["batch_size=2", "augment.transforms=[]"])
    return batches.TrainBatches(split, np.arange(8), np.ones(8), few, workers, pin=False)


def in_workers(monkeypatch, do):
    """Let `do` happen to every sample that a worker reads."""
    trainer, real = os.getpid(), batches._Samples._sample

    def sample(self, *key):
        if os.getpid() != trainer:
            do()
        return real(self, *key)

    monkeypatch.setattr(batches._Samples, "_sample", sample)


def test_a_worker_that_dies_is_one_line_and_leaves_no_other_behind(monkeypatch):
    in_workers(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))
    before = multiprocessing.active_children()
    with pytest.raises(Refused, match=r"DataLoader worker .*goes on.*fewer --workers"), loader_of(2) as loader:
        list(loader.epoch(0))
    assert not [worker for worker in multiprocessing.active_children() if worker not in before]


def test_workers_that_hang_are_one_line(monkeypatch):
    in_workers(monkeypatch, lambda: time.sleep(600))
    monkeypatch.setattr(batches, "PATIENCE", 1)
    before = multiprocessing.active_children()
    with pytest.raises(Refused, match=r"timed out after 1 seconds.*--workers"), loader_of(2) as loader:
        list(loader.epoch(0))
    assert not [
        worker
        for worker in multiprocessing.active_children()
        if worker not in before and (worker.join(5) or worker.is_alive())
    ]


@pytest.mark.parametrize(("free", "workers"), [(1 << 40, 8), (1 << 18, 3), (1 << 12, 0)])
def test_no_more_workers_than_the_shared_memory_takes(monkeypatch, capsys, free, workers):
    monkeypatch.setattr(batches.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))
    assert loader_of(8)._count == workers  # 5 batches of 4 KB each
    assert (f"--workers {workers} instead of 8" in capsys.readouterr().out) == (workers < 8)


def test_mixing_waits_for_no_device_and_meets_another_sample():
    def met(count, seed):
        images, labels = torch.zeros(count, 1, 2, 2), torch.arange(count).view(-1, 1, 1)
        mixup = config.Augment(mixup=1.0)
        return augment.mix_batch(images, labels, mixup, np.random.default_rng(seed))[2].flatten().tolist()

    assert {met(4, seed)[0] for seed in range(50)} == {1, 2, 3}
    assert met(1, 0) == [0]


def test_a_worker_that_dies_between_epochs_is_one_line(monkeypatch):
    with pytest.raises(Refused, match="DataLoader worker "), loader_of(2) as loader:
        list(loader.epoch(0))
        for worker in loader._loaded._workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        for epoch in (1, 2, 3, 4):
            list(loader.epoch(epoch))


def test_workers_read_on_while_an_epoch_is_validated():
    with loader_of(1) as loader:
        before = list(loader.epoch(0))
        time.sleep(0.5)
        assert loader._loaded._tasks_outstanding > 0
        after = list(loader.epoch(1))
    assert len(before) == len(after) == 4
