import json

import numpy as np
import pytest
import torch
from conftest import count_margins, draw

from comp import config, device
from comp.data import npz
from comp.data.arrays import TrainSplit
from comp.ensemble import blend as blending
from comp.ensemble.make_submission import predict_blend
from comp.errors import Refused
from comp.model import metrics, predict, segmenter
from comp.train import runs

CPU = device.Device(torch.device("cpu"), torch.float32, "a test")
COMPETITION = config.Competition(name="tiny", classes=("ground", "stripe", "spot"))


def split(count=30):
    images, masks = draw(count, 0, (16, 16))
    return TrainSplit(images[..., None], masks, np.array([f"p{i}" for i in range(count)]), None, None)


def write_fold(folder, number, ids, probabilities, masks):
    folder.mkdir(parents=True)
    margins = count_margins(masks, probabilities.argmax(1).astype(np.uint8), 3)
    members = [
        ("ids", ids.shape, ids.dtype, [ids]),
        ("probabilities", probabilities.shape, np.float16, [probabilities]),
        ("margins", (len(ids), 4, 3), np.int64, [margins]),
    ]
    npz.write_npz(folder / runs.OOF, members)
    (folder / runs.METRICS).write_text(json.dumps({"fold": number, "train_images": 1, "valid_images": len(ids)}))
    return runs.read_fold(folder)


def run(place, name, data, noise, bias=(1, 1, 1), folds=3):
    """A run whose predictions are the truth with noise, and with some classes always under-rated."""
    rng = np.random.default_rng(len(name))
    made = []
    for number in range(folds):
        rows = np.arange(number, len(data.ids), folds)
        p = np.eye(3)[data.masks[rows]].transpose(0, 3, 1, 2) + noise * rng.random((len(rows), 3, 16, 16))
        p *= np.array(bias)[:, None, None]
        folder, p = place / name / f"fold-{number}", p / p.sum(1, keepdims=True)
        made.append(write_fold(folder, number, data.ids[rows], p, data.masks[rows]))
    return made


def test_class_weights_are_found_where_they_help(tmp_path):
    data = split()
    blend = blending.search_weights([run(tmp_path, "biased", data, 1.6, (1, 1, 0.5))], data, COMPETITION)
    assert blend.kind == "class weights" and blend.classes[2] > blend.classes[0]
    assert blend.scores[blend.kind] > blend.scores["equal weights"] + 0.02


def test_what_does_not_help_is_not_used(tmp_path):
    data = split()
    blend = blending.search_weights([run(tmp_path, "perfect", data, 0.1)], data, COMPETITION)
    assert blend.classes == (1, 1, 1) and blend.kind == "equal weights" and blend.scores[blend.kind] == 1


def test_a_better_run_weighs_more(tmp_path):
    data = split()
    chosen = [run(tmp_path, "good", data, 1.3), run(tmp_path, "bad", data, 9.0)]
    blend = blending.search_weights(chosen, data, COMPETITION)
    assert sum(blend.runs) == pytest.approx(1)
    assert blend.runs[0] > 0.6 and blend.scores["run weights"] > blend.scores["equal weights"]


def test_weights_are_judged_on_folds_they_did_not_see(tmp_path):
    # Fold 2 wants the opposite of folds 0 and 1: weights fitted with a look at it would seem to help.
    data = split()
    folds = run(tmp_path, "a", data, 1.6, (1, 1, 0.5))[:1] + run(tmp_path, "b", data, 1.6, (1, 1, 2.0))[1:2]
    blend = blending.search_weights([folds], data, COMPETITION)
    assert blend.scores["class weights"] < blend.scores["equal weights"] and blend.classes == (1, 1, 1)


def test_one_fold_cannot_be_judged(tmp_path):
    data = split()
    blend = blending.search_weights([run(tmp_path, "biased", data, 1.6, (1, 1, 0.5))[:1]], data, COMPETITION)
    assert blend.classes == (1, 1, 1)


def test_missing_and_mismatched_folds_are_refused(tmp_path):
    data = split()
    three, two = run(tmp_path, "three", data, 1.0), run(tmp_path, "two", data, 1.0, folds=2)
    with pytest.raises(Refused, match="fold 2 is not finished"):
        blending.same_folds([three, two], [0, 1, 2])
    assert [[f.number for f in r] for r in blending.same_folds([three, two], [1, 0])] == [[1, 0], [1, 0]]
    with pytest.raises(Refused, match="validated on other images"):
        blending.search_weights([three[:2], two], data, COMPETITION)
    data.masks[data.ids == "p1"] = 2
    with pytest.raises(Refused, match="fold-1: the training masks have changed since"):
        blending.search_weights([three], data, COMPETITION)
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
    settings = config.Predict(tta=tta or "flips", batch_size=2)
    blended = predict_blend([chosen[:2], chosen[2:]], [0.25, 0.75], data, tta, batch_size, CPU)
    rows, got = zip(*blended, strict=True)
    assert np.concatenate(rows).tolist() == list(range(7))
    expected = 0
    for fold, weight in zip(chosen, (0.125, 0.125, 0.75), strict=True):
        model = segmenter.load_model(fold.folder / runs.MODEL, CPU)[0]
        batches = predict.predict_rows(model, data.images, np.arange(7), settings)
        expected = expected + weight * torch.cat([p for _, p in batches])
    torch.testing.assert_close(torch.cat(got), expected)


def test_labels_are_the_largest_after_weighting():
    probabilities = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1)
    assert blending.label_images(probabilities, [1, 1, 1]).item() == 0
    assert blending.label_images(probabilities, [1, 2, 1]).item() == 1
    assert blending.label_images(probabilities, [1, 1, 4]).item() == 2


def test_the_search_counts_as_the_metric_does(tmp_path):
    data = split()
    chosen = run(tmp_path, "noisy", data, 1.6)
    blend = blending.search_weights([chosen], data, COMPETITION)
    margins = []
    for fold in chosen:
        ids, probabilities, _ = fold.oof()
        rows = [data.ids.tolist().index(name) for name in ids]
        margins.append(count_margins(data.masks[rows], probabilities.argmax(1).astype(np.uint8), 3))
    expected = metrics.score(np.concatenate(margins), COMPETITION.metric)
    assert blend.scores["equal weights"] == pytest.approx(expected, abs=1e-6)
