"""Losses agree with their papers, with segmentation-models-pytorch where the two mean the same, and with mixing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter
from scipy.special import log_softmax
from segmentation_models_pytorch import losses as smp

from comp import config
from comp.model import losses

NAMES = ("cross_entropy", "boundary", "focal", "dice", "bce_dice", "lovasz")
VOID = 255
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def batch(seed=0, classes=4, absent=None, void=False):
    """Logits (3, C, 8, 6) that need a gradient, and uint8 labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, classes, 8, 6, generator=generator)
    labels = torch.randint(0, classes, (3, 8, 6), generator=generator)
    if absent is not None:
        labels[labels == absent] = (absent + 1) % classes
    if void:
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = VOID
    return logits.requires_grad_(), labels.to(torch.uint8)


def build(terms, classes=4, ignore=None, counts=None, **fields):
    terms = {terms: 1.0} if isinstance(terms, str) else terms
    counts = np.full(classes, 100) if counts is None else np.asarray(counts)
    return losses.build_loss(config.Loss(terms=terms, **fields), tuple("abcdefgh"[:classes]), counts, ignore)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("void", [False, True])
def test_cross_entropy_is_pytorchs_weighted_mean(smoothing, void):
    logits, labels = batch(void=void)
    named = {"b": 3.0, "d": 0.5}
    ours = build("cross_entropy", ignore=VOID, class_weights=named, label_smoothing=smoothing)
    theirs = F.cross_entropy(
        logits, labels.long(), torch.tensor([1, 3, 1, 0.5]), ignore_index=VOID, label_smoothing=smoothing
    )
    torch.testing.assert_close(ours(logits, labels), theirs)


@pytest.mark.parametrize("void", [False, True])
def test_boundary_is_cross_entropy_near_the_edges_of_labels(void):
    labels = np.zeros((2, 40, 50), np.uint8)
    labels[0, 10:25, 12:40], labels[1, :, 45:] = 1, 2
    if void:
        labels[0, 9:11], labels[1, 30:] = VOID, VOID
    near = np.zeros(labels.shape, bool)
    for label in range(3):
        near |= (labels != label) & (labels != VOID) & maximum_filter(labels == label, (1, 7, 7))
    assert 0.1 < near.mean() < 0.5
    logits = torch.randn(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    image, row, column = near.nonzero()
    entropy = -log_softmax(logits.numpy(), 1)[image, labels[near], row, column]
    expected = np.average(entropy, weights=np.array([1, 3, 0.5])[labels[near]])
    loss = build("boundary", classes=3, ignore=VOID if void else None, class_weights={"b": 3.0, "c": 0.5})
    assert loss(logits, torch.from_numpy(labels)).item() == pytest.approx(expected, 1e-5)


def test_boundary_of_an_image_without_an_edge_is_0():
    logits, _ = batch()
    assert build("boundary")(logits, torch.ones(3, 8, 6, dtype=torch.uint8)) == 0


def test_focal_is_its_formula_and_without_gamma_cross_entropy():
    logits, labels = batch()
    entropy = F.cross_entropy(logits, labels.long(), reduction="none")
    expected = ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()
    torch.testing.assert_close(build("focal", gamma=2.0)(logits, labels), expected)
    weights = {"a": 4.0}
    torch.testing.assert_close(
        build("focal", gamma=0.0, class_weights=weights)(logits, labels),
        build("cross_entropy", class_weights=weights)(logits, labels),
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_has_a_finite_gradient_where_the_prediction_is_certain(gamma):
    _, labels = batch()
    logits = (1000 * F.one_hot(labels.long(), 4).movedim(-1, 1).float()).requires_grad_()
    build("focal", gamma=gamma)(logits, labels).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "theirs", "void"),
    [
        ("dice", smp.DiceLoss("multiclass", ignore_index=VOID), True),
        ("dice", smp.DiceLoss("multiclass"), False),
        ("lovasz", smp.LovaszLoss("multiclass", ignore_index=VOID), True),
        ("lovasz", smp.LovaszLoss("multiclass"), False),
    ],
)
def test_region_losses_are_those_of_segmentation_models_pytorch(name, theirs, void):
    logits, labels = batch(void=void)
    ours = build(name, ignore=VOID if void else None)
    torch.testing.assert_close(ours(logits, labels), theirs(logits, labels.long()))


def test_binary_bce_dice_asks_whether_a_pixel_is_foreground():
    logits, labels = batch(classes=2)
    foreground, truth = (logits[:, 1] - logits[:, 0]).unsqueeze(1), labels.unsqueeze(1).float()
    expected = F.binary_cross_entropy_with_logits(foreground, truth) + smp.DiceLoss("binary")(foreground, truth)
    torch.testing.assert_close(build("bce_dice", classes=2)(logits, labels), expected)


def test_bce_dice_of_many_classes_asks_each_against_the_rest():
    logits, labels = batch()
    truth = F.one_hot(labels.long(), 4).movedim(-1, 1).float()
    expected = F.binary_cross_entropy_with_logits(logits, truth) + smp.DiceLoss("multilabel")(logits, truth)
    torch.testing.assert_close(build("bce_dice")(logits, labels), expected)


@pytest.mark.parametrize("name", ["dice", "lovasz"])
def test_a_class_that_the_labels_lack_has_no_part_in_region_losses(name):
    logits, labels = batch(absent=2)
    truth = F.one_hot(labels.long(), 4).movedim(-1, 1).float()
    probabilities = logits.softmax(1)
    common, total = (probabilities * truth).sum((0, 2, 3)), (probabilities + truth).sum((0, 2, 3))
    alone = 1 - 2 * common / total
    if name == "lovasz":
        alone = torch.stack([lovasz_by_definition(probabilities[:, c], labels == c) for c in range(4)])
    torch.testing.assert_close(build(name)(logits, labels), alone[[0, 1, 3]].mean())


def lovasz_by_definition(probability, truth):
    """Algorithm 1 of Berman et al. 2018, differences of the Jaccard loss as it is written there."""
    probability, truth = probability.flatten().double(), truth.flatten().double()
    errors, order = (truth - probability).abs().sort(descending=True)
    truth = truth[order]
    jaccard = 1 - (truth.sum() - truth.cumsum(0)) / (truth.sum() + (1 - truth).cumsum(0))
    return (errors * jaccard.diff(prepend=torch.zeros(1))).sum().float()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.booleans())
def test_of_hard_predictions_lovasz_is_one_minus_the_mean_iou(seed, classes, void):
    generator = torch.Generator().manual_seed(seed)
    prediction, labels = torch.randint(0, classes, (2, 2, 5, 4), generator=generator)
    if void:
        labels[0] = VOID
    logits = 1e4 * F.one_hot(prediction, classes).movedim(-1, 1).float()
    kept, ious = labels != VOID, []
    for c in range(classes):
        truth, found = (labels == c)[kept], (prediction == c)[kept]
        if truth.any():
            ious.append((truth & found).sum() / (truth | found).sum())
    expected = 1 - torch.stack(ious).mean()
    torch.testing.assert_close(build("lovasz", classes=classes, ignore=VOID)(logits, labels), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 4])
def test_a_perfect_prediction_costs_nothing_and_a_worse_one_more(name, classes):
    _, labels = batch(classes=classes)
    truth = F.one_hot(labels.long(), classes).movedim(-1, 1).float()
    # Either sign for the sigmoids, which look at each logit alone.
    loss = build(name, classes=classes)
    assert loss(100 * (2 * truth - 1), labels) < 1e-4
    assert loss(truth, labels) < loss(0 * truth, labels) < loss(-truth, labels)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ignore", [0, VOID])
def test_ignored_pixels_have_no_say(name, ignore):
    logits, labels = batch()
    labels[0] = ignore
    changed = logits.detach().clone()
    changed[(labels == ignore).unsqueeze(1).expand_as(changed)] = 7.0
    changed.requires_grad_()
    loss = build(name, ignore=ignore, label_smoothing=0.1)
    for values in (logits, changed):
        loss(values, labels).backward()
    torch.testing.assert_close(loss(logits, labels), loss(changed, labels))
    kept = (labels != ignore).unsqueeze(1).expand_as(logits)
    torch.testing.assert_close(logits.grad[kept], changed.grad[kept])
    assert not logits.grad[~kept].any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 4])
def test_a_batch_that_is_all_ignored_gives_0_and_a_gradient_of_0(name, classes):
    logits, labels = batch(classes=classes)
    value = build(name, classes=classes, ignore=VOID, label_smoothing=0.1)(logits, torch.full_like(labels, VOID))
    value.backward()
    assert value == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_a_batch_of_a_class_that_weighs_0_gives_0(name):
    logits, labels = batch()
    value = build(name, class_weights={"a": 0.0})(logits, torch.zeros_like(labels))
    value.backward()
    assert value == 0 and logits.grad.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_logits_give_a_float32_loss_even_under_autocast(name, dtype, device):
    logits, labels = batch()
    # 98,304 pixels: their count alone overflows float16.
    half = (3e3 * logits.detach()).to(device, dtype).repeat(1, 1, 32, 64).requires_grad_()
    labels = labels.to(device).repeat(1, 32, 64)
    loss = build(name)
    with torch.autocast(device, torch.bfloat16):
        value = loss(half, labels)
    assert value.dtype == torch.float32 and value.isfinite()
    torch.testing.assert_close(value, loss(half.detach().float(), labels))
    value.backward()
    assert half.grad.dtype == dtype and half.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_labels_may_be_uint8_or_int64_and_logits_channels_last(name):
    logits, labels = batch()
    loss = build(name)
    torch.testing.assert_close(loss(logits, labels), loss(logits, labels.long()))
    torch.testing.assert_close(loss(logits, labels), loss(logits.contiguous(memory_format=torch.channels_last), labels))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 3])
def test_gradients_are_those_of_finite_differences(name, classes):
    logits, labels = batch(classes=classes)
    weights = torch.arange(1, classes + 1).double()
    term = {
        "cross_entropy": lambda z: losses.cross_entropy(z, labels.long(), weights, 0.1),
        "boundary": lambda z: losses.cross_entropy(z, losses.near_edges(labels.long()), weights),
        "focal": lambda z: losses.focal(z, labels.long(), weights, 1.5),
    }.get(name, lambda z: getattr(losses, name)(z, labels.long()))
    if name == "lovasz":  # sorts the bits of float32: its slope along one direction, by hand
        direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
        slope = (torch.autograd.grad(term(logits), logits)[0] * direction).sum()
        with torch.no_grad():
            rise = (term(logits + 1e-3 * direction) - term(logits - 1e-3 * direction)) / 2e-3
        torch.testing.assert_close(slope, rise, rtol=0.02, atol=1e-3)
    else:
        small = logits.detach()[:1, :, :2, :3].double().requires_grad_()
        labels = labels[:1, :2, :3]
        assert torch.autograd.gradcheck(term, (small,))


def test_a_sum_of_losses_is_weighted():
    logits, labels = batch()
    both = build({"cross_entropy": 0.7, "dice": 0.3})(logits, labels)
    alone = [build(name)(logits, labels) for name in ("cross_entropy", "dice")]
    torch.testing.assert_close(both, 0.7 * alone[0] + 0.3 * alone[1])


def test_two_label_sets_of_one_batch_can_be_mixed():
    logits, labels = batch()
    loss = build({name: 1.0 for name in NAMES})
    mixed = 0.3 * loss(logits, labels) + 0.7 * loss(logits, labels.flip(0))
    mixed.backward()
    assert logits.grad.isfinite().all() and logits.grad.any()


@pytest.mark.parametrize(("choice", "power"), [("inverse", -1), ("sqrt", -0.5), (0.25, -0.25)])
def test_computed_weights_follow_the_frequency_and_a_pixel_weighs_1_on_average(choice, power):
    counts = np.array([9000, 900, 0, 100])
    weights = losses.weigh_classes(choice, tuple("abcd"), counts).double().numpy()
    assert weights[2] == 0
    assert weights[3] / weights[0] == pytest.approx((100 / 9000) ** power)
    assert (counts * weights).sum() / counts.sum() == pytest.approx(1)


def test_weights_by_name_are_taken_as_given():
    assert losses.weigh_classes({"c": 5.0}, tuple("abcd"), np.ones(4)).tolist() == [1, 1, 5, 1]
    assert losses.weigh_classes("none", tuple("ab"), np.ones(2)).tolist() == [1, 1]


def test_lovasz_keeps_its_precision_over_many_pixels():
    # In float32, differences of Jaccard values that lie a millionth apart would be off by several percent.
    generator = torch.Generator().manual_seed(0)
    pixels = 1 << 19
    errors = torch.randperm(pixels, generator=generator) / pixels
    truth = torch.rand(pixels, generator=generator) < 0.3
    order = errors.argsort(descending=True)
    hit = truth[order].double()
    jaccard = 1 - (hit.sum() - hit.cumsum(0)) / (hit.sum() + (1 - hit).cumsum(0))
    expected = jaccard.diff(prepend=torch.zeros(1)).float()
    torch.testing.assert_close(losses._lovasz_weights(errors, truth)[order], expected, rtol=1e-4, atol=0)


def test_lovasz_of_a_class_that_is_not_there_is_finite():
    """A GPU computes it, rather than be waited for, and then counts it for nothing."""
    errors = torch.rand(50, requires_grad=True)
    weights = losses._lovasz_weights(errors.detach(), torch.zeros(50, dtype=torch.bool))
    assert weights.isfinite().all()
