import json
import struct

import pytest
import safetensors.torch
import timm
import torch

from comp import config, device
from comp.errors import Refused
from comp.model import segmenter

CPU = device.Device(torch.device("cpu"), torch.float32, "a test")
MEAN, STD = torch.tensor([100.0]), torch.tensor([50.0])


def build(channels=1, classes=3, **model):
    return segmenter.build_segmenter(
        config.Model(**model), channels, classes, MEAN.expand(channels), STD.expand(channels)
    )


@pytest.mark.parametrize("size", [(64, 128), (50, 70), (33, 31), (20, 300), (5, 7)])
def test_any_size_goes_in_and_comes_out(size):
    model, _ = build(encoder="resnet18")
    assert model.eval()(torch.zeros(2, 1, *size, dtype=torch.uint8)).shape == (2, 3, *size)


@pytest.mark.parametrize("architecture", ["unet", "FPN", "Linknet", "DeepLabV3Plus", "Segformer", "MAnet"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_architectures_by_name_for_any_number_of_channels(architecture, channels):
    model, _ = build(channels, architecture=architecture, encoder="resnet18")
    images = torch.randint(0, 256, (2, channels, 32, 64), dtype=torch.uint8)
    assert model.eval()(images).shape == (2, 3, 32, 64)


@pytest.mark.parametrize(
    "model",
    [
        {"architecture": "Unet", "encoder": "tu-hrnet_w18_small"},  # hrnet_w18 is four times as slow to build
        {"architecture": "FPN", "encoder": "tu-hrnet_w18_small"},
        {"architecture": "PSPNet", "encoder": "resnet18"},
        {"architecture": "UPerNet", "encoder": "resnet18"},
        {"architecture": "Unet", "encoder": "resnet18", "options": {"decoder_attention_type": "scse"}},
        {"architecture": "Segformer", "encoder": "mit_b0"},
        {"architecture": "DPT", "encoder": "tu-vit_tiny_patch16_224", "options": {"decoder_fusion_channels": 16}},
        {"architecture": "PlainUnet", "options": {"widths": [4] * 8}},
        {"architecture": "Deconvolution", "options": {"widths": [4] * 7, "pool": True}},
    ],
)
def test_a_step_and_a_prediction_at_odd_sizes(model):
    torch.manual_seed(0)
    network, _ = build(3, **model)
    images = torch.randint(0, 256, (2, 3, 50, 71), dtype=torch.uint8)
    logits = network.train()(images)
    logits.square().mean().backward()
    assert logits.shape == (2, 3, 50, 71)
    assert sum(float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None) > 0
    with torch.no_grad():
        assert network.eval()(images[:1, :, :49]).isfinite().all()


@pytest.mark.parametrize(
    ("model", "images", "says"),
    [
        ({"architecture": "DeepLabV3Plus"}, 1, "cannot take 1 × 64×96 pixels: Expected more than 1 value"),
        ({"architecture": "UPerNet"}, 1, "; raise batch_size"),
        ({"architecture": "PAN"}, 2, "cannot take 2 × 64×96 pixels: "),
        ({"architecture": "DPT", "encoder": "tu-vit_small_patch14_dinov2"}, 2, "cannot take 2 × 64×96 pixels: "),
        ({"encoder": "tu-swin_tiny_patch4_window7_224"}, 2, "cannot take 2 × 64×96 pixels: "),
    ],
)
def test_a_batch_that_a_network_cannot_take_is_refused_in_one_line(model, images, says):
    with pytest.raises(Refused) as refused:
        build(3, **model)[0].train()(torch.zeros(images, 3, 50, 70))
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("PlainUnet", {"block": "residual", "dropout": 0.1, "widths": [8, 16]}),
        ("PlainUnet", {"block": "squeeze_excite", "widths": [8, 16, 32]}),
        ("DualUnet", {"widths": [8, 16]}),
        ("Deconvolution", {"widths": [8, 16, 16, 16, 16]}),
        ("Deconvolution", {"widths": [8, 16, 16], "kernel": 7, "pool": True}),
        ("EncoderDeconvolution", {"widths": [16, 16, 8, 8, 8]}),
    ],
)
def test_the_reports_own_networks(architecture, options, tmp_path):
    model, _ = build(3, architecture=architecture, options=options)
    images = torch.randint(0, 256, (2, 3, 50, 70), dtype=torch.uint8)
    logits = model(images)
    assert logits.shape == (2, 3, 50, 70)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_frozen_encoder_does_not_learn():
    model, _ = build(architecture="EncoderDeconvolution")
    model.freeze(True)
    assert not any(p.requires_grad for p in model.net.encoder.parameters())
    assert any(p.requires_grad for p in model.parameters())
    before = {key: value.clone() for key, value in model.net.encoder.state_dict().items()}
    model.train()(torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8))
    assert all(torch.equal(before[key], value) for key, value in model.net.encoder.state_dict().items())
    model.freeze(False)
    assert all(p.requires_grad for p in model.parameters())


def test_images_are_normalised_inside():
    model, _ = build()
    model.eval()
    images = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8)
    expected = model.net((images.float() - 100) / 50)
    torch.testing.assert_close(model(images), expected)


def test_a_model_is_rebuilt_from_its_file_alone(tmp_path):
    loaded = config.load_config("demo", overrides=["model.options={encoder_depth=3, decoder_channels=[8,8,8]}"])
    model, _ = segmenter.build_segmenter(loaded.model, 1, 5, MEAN, STD)
    segmenter.save_model(model, tmp_path / "m.safetensors", loaded)
    again, its_config = segmenter.load_model(tmp_path / "m.safetensors", CPU)
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    assert its_config == loaded
    assert torch.equal(again(images), model.eval()(images))


def test_encoder_weights_from_a_file_are_matched_by_key(tmp_path, monkeypatch):
    source, _ = build(3, encoder="tu-resnet10t")
    weights = {key.removeprefix("model."): value.contiguous() for key, value in source.net.encoder.state_dict().items()}
    file = tmp_path / "encoder.safetensors"
    safetensors.torch.save_file(weights | {"fc.weight": torch.zeros(10, 512)}, file)
    for channels in (3, 1, 4):
        model, note = build(channels, encoder="tu-resnet10t", encoder_weights=str(file))
        assert "1 unused: fc.weight" in note and "from scratch" not in note
        ours, theirs = model.net.encoder.state_dict(), source.net.encoder.state_dict()
        assert torch.equal(ours["model.layer4.0.conv1.weight"], theirs["model.layer4.0.conv1.weight"])
        if channels in (1, 3):  # a grey picture must meet the response that the weights were made for
            stem = "model.conv1.0.weight"
            torch.testing.assert_close(ours[stem].sum(1), theirs[stem].sum(1), atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(segmenter.files, "KAGGLE_INPUT", tmp_path)  # in a kernel it is found by its name
    assert "1 unused: fc.weight" in build(3, encoder="tu-resnet10t", encoder_weights="weights/encoder.safetensors")[1]
    with pytest.raises(Refused, match=r"fits 0 of \d+ tensors; it has"):
        build(3, encoder="resnet18", encoder_weights=str(_file(tmp_path, {"a": torch.zeros(1)})))


def test_a_start_of_other_channels_leaves_the_normalisation(tmp_path):
    loaded = config.load_config("demo")
    start, _ = segmenter.build_segmenter(loaded.model, 3, 5, torch.full((3,), 90.0), torch.full((3,), 40.0))
    segmenter.save_model(start, tmp_path / "m.safetensors", loaded)
    model, _ = segmenter.build_segmenter(loaded.model, 1, 5, MEAN, STD)
    assert "unused: mean, std" in segmenter.load_fitting(model, tmp_path / "m.safetensors")
    assert model.mean.flatten().tolist() == MEAN.tolist() and model.std.flatten().tolist() == STD.tolist()
    ours, theirs = (one.net.encoder.conv1.weight for one in (model, start))
    torch.testing.assert_close(ours[:, 0], theirs.sum(1), atol=1e-5, rtol=1e-4)


def test_timms_own_weights_fit_an_encoder_whose_stages_it_flattens(tmp_path):
    weights = {key: value.clone() for key, value in timm.create_model("convnext_atto").state_dict().items()}
    file = _file(tmp_path, weights)
    model, note = build(3, encoder="tu-convnext_atto", encoder_weights=str(file), options={"decoder_channels": [8] * 5})
    assert "from scratch" not in note
    ours = model.net.encoder.state_dict()["model.stages_2.blocks.0.conv_dw.weight"]
    assert torch.equal(ours, weights["stages.2.blocks.0.conv_dw.weight"])


def _file(folder, tensors):
    safetensors.torch.save_file(tensors, folder / "other.safetensors")
    return folder / "other.safetensors"


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"architecture": "Unt"}, "model.architecture: no 'Unt'; did you mean 'Unet'?"),
        ({"encoder": "resnet19"}, "model.encoder: no 'resnet19'; did you mean 'resnet1"),
        ({"encoder": "tu-resnet19"}, "model.encoder: no 'tu-resnet19'; did you mean 'tu-resnet1"),
        ({"options": {"decoder_chanels": [8]}}, "model.options.decoder_chanels: Unet has no such option"),
        ({"options": {"decoder_channels": [8]}}, "model: Unet with resnet18"),
        ({"encoder_weights": "imagent"}, "imagent"),
        ({"architecture": "PlainUnet", "options": {"block": "quadruple"}}, "block: no 'quadruple'"),
        ({"architecture": "PlainUnet", "freeze_encoder": True}, "has no encoder"),
        ({"architecture": "EncoderDeconvolution", "options": {"widths": [8, 8]}}, "widths: one for each"),
        ({"encoder_weights": "nowhere.safetensors"}, "nowhere.safetensors: no such file"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(model, says):
    with pytest.raises(Refused) as refused:
        build(**model)
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "no configuration", "other weights"])
def test_a_broken_model_file_is_refused(tmp_path, damage):
    path = tmp_path / "m.safetensors"
    loaded = config.load_config("demo", overrides=["model.options={encoder_depth=3, decoder_channels=[8,8,8]}"])
    model, _ = segmenter.build_segmenter(loaded.model, 1, 5, MEAN, STD)
    segmenter.save_model(model, path, loaded)
    data = path.read_bytes()
    if damage == "no configuration":
        safetensors.torch.save_file({"mean": MEAN}, path)
    elif damage == "other weights":
        header = struct.unpack("<Q", data[:8])[0]
        about = json.loads(data[8 : 8 + header])["__metadata__"]
        safetensors.torch.save_file({"mean": MEAN, "std": STD}, path, metadata=about)
    else:
        path.write_bytes({"truncated": data[:-100], "empty": b"", "text": b"not a model file at all"}[damage])
    with pytest.raises(Refused) as refused:
        segmenter.load_model(path, CPU)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
