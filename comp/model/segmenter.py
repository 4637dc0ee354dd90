"""Networks by segmentation-models-pytorch's names: architecture, encoder, encoder weights; and weights in and out."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comp import files
from comp.config import Config, Model, validate_config
from comp.data.arrays import Neighbours
from comp.device import Device, is_out_of_memory
from comp.distributed import is_lost_peer
from comp.errors import Refused, did_you_mean
from comp.model import hub, networks

# Arguments of architectures that are not a recipe's to choose.
SETTLED = "in_channels channels classes encoder encoder_name encoder_weights activation aux_params".split()


class Segmenter(nn.Module):
    """A network that takes images as they are stored, and knows the device that it lies on.

    Input: uint8 or float (N, C, H, W) in 0..255, any H and W. Output: logits (N, classes, H, W).
    It normalises the images and pads them to what the decoder can take. Raises Refused for batches that
    the network cannot take, such as a single image where batch norm follows global pooling."""

    device: Device
    overlap = False  # whether classes may overlap, so that each one's logit is compared with the first one's alone
    net: Any  # an nn.Module, most with an encoder
    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor, multiple: int):
        super().__init__()
        self.net, self.multiple, self.frozen = net, multiple, False
        self.register_buffer("mean", mean.float().view(1, -1, 1, 1))
        self.register_buffer("std", std.float().view(1, -1, 1, 1))

    def place(self, device: Device) -> "Segmenter":
        """Move to a device, which also decides the precision of its predictions."""
        self.device = device
        return self.to(device.device)

    def train(self, mode: bool = True) -> "Segmenter":
        super().train(mode)
        if self.frozen:
            self.net.encoder.eval()  # its batch statistics stay, too
        return self

    def freeze(self, frozen: bool) -> None:
        """Keep the encoder as it is, from the next call of `train` on, or no longer."""
        if frozen != self.frozen:
            self.frozen = frozen
            self.net.encoder.requires_grad_(not frozen)

    def forward(self, images: Tensor) -> Tensor:
        x = (images.float() - self.mean) / self.std
        height, width = x.shape[2:]
        pad = (-width % self.multiple, -height % self.multiple)
        if any(pad):
            # Reflection looks like more of the image; it needs more image than padding.
            mode = "reflect" if pad[0] < width and pad[1] < height else "replicate"
            x = F.pad(x, (0, pad[0], 0, pad[1]), mode=mode)
        x = x.contiguous(memory_format=torch.channels_last)
        try:
            return self.net(x)[..., :height, :width]
        # A network says in its own words which sizes and batches it cannot take, and only when it meets them.
        except (RuntimeError, ValueError, AssertionError) as error:
            if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError) or is_lost_peer(error):
                raise
            shape = "×".join(map(str, x.shape[2:]))
            more = "; raise batch_size" if "more than 1 value per channel" in str(error) else ""
            problem = " ".join(str(error).split())[:200]
            raise Refused(f"model: this network cannot take {len(x)} × {shape} pixels: {problem}{more}") from error


def build_segmenter(model: Model, channels: int, classes: int, mean: Tensor, std: Tensor) -> tuple[Segmenter, str]:
    """Build a network; return it with one line on its encoder's weights.

    `mean` and `std` (C,), of 0..255, are used unless weights bring their own. Raises Refused for unknown names."""
    net = _create_network(model, channels, classes)
    encoder: Any = getattr(net, "encoder", None)
    if encoder is None and (model.encoder_weights != "none" or model.freeze_encoder):
        raise Refused(f"model: {model.architecture} has no encoder that could take weights or be frozen")
    note = f"{model.encoder} from scratch" if encoder else "from scratch"
    if weights := hub.find_weights(model):
        note = f"{weights.about}: {load_fitting(encoder, weights.path)}"
        mean, std = torch.tensor(weights.mean) * 255, torch.tensor(weights.std) * 255
        if channels != 3:
            mean, std = mean.mean().expand(channels), std.mean().expand(channels)
    stride = encoder.output_stride if encoder else 2 ** len(model.options.get("widths", ()))
    segmenter = Segmenter(net, mean, std, max(32, stride))
    segmenter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return segmenter, note


def measure_normalisation(images: np.ndarray | Neighbours, rows: np.ndarray, most: int = 4096) -> tuple[Tensor, Tensor]:
    """Mean and deviation per channel of uint8 images (N, H, W, C), over at most `most` rows; alike on every machine."""
    rows = rows[:: max(1, len(rows) // most)]
    channels = images.shape[3]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(rows), 64):
        some = images[rows[start : start + 64]]
        counts += np.stack([np.bincount(some[..., c].ravel(), minlength=256) for c in range(channels)])
    values, total = np.arange(256.0), counts.sum(1)
    mean = counts @ values / total
    variance = counts @ values**2 / total - mean**2
    return torch.from_numpy(mean), torch.from_numpy(np.sqrt(np.maximum(variance, 1.0)))


def _create_network(model: Model, channels: int, classes: int) -> nn.Module:
    import segmentation_models_pytorch as smp
    import timm

    known = {kind.__name__.lower(): kind for kind in (*smp.MODEL_ARCHITECTURES_MAPPING.values(), *networks.ALL)}
    if not (kind := known.get(model.architecture.lower())):
        names = [kind.__name__ for kind in known.values()]
        raise Refused(f"model.architecture: no {model.architecture!r}{did_you_mean(model.architecture, names)}")
    options = list(inspect.signature(kind).parameters)  # smp itself takes any keyword without a word
    for name in model.options:
        if name not in options or name in SETTLED:
            raise Refused(f"model.options.{name}: {kind.__name__} has no such option{did_you_mean(name, options)}")
    arguments = {"in_channels": channels, "classes": classes} | model.options
    if "encoder_name" in options:
        timms = model.encoder.startswith("tu-") and timm.is_model(model.encoder[3:].partition(".")[0])
        if not timms and model.encoder not in smp.encoders.encoders:
            names = [*smp.encoders.encoders, *(f"tu-{name}" for name in timm.list_models())]
            raise Refused(f"model.encoder: no {model.encoder!r}{did_you_mean(model.encoder, names)}")
        arguments |= {"encoder_name": model.encoder, "encoder_weights": None}
    if kind is smp.DPT:
        arguments["dynamic_img_size"] = True  # else timm's transformers take one size alone
    try:
        return kind(**arguments)
    except Exception as error:  # others' constructors raise nearly anything on odd options
        raise Refused(f"model: {model.architecture} with {model.encoder}: {' '.join(str(error).split())}") from None


def load_fitting(module: nn.Module, path: Path) -> str:
    """Load what fits of a file's tensors, by their keys; tell what did and what did not. Refused: less than half."""
    import timm

    given, wanted = files.read_tensors(path)[0], module.state_dict()
    fitting, unused = {}, []
    for key, value in given.items():
        # timm's encoders sit one level deeper, and some of their stages are one level flatter, than in a file.
        names = (f"model.{key}", f"model.{key.replace('.', '_', 1)}", f"model.model.{key}", key)
        name = next((name for name in names if name in wanted), None)
        shape = wanted[name].shape if name else None
        if shape and len(shape) == value.ndim == 4 and value.shape[1] == 3 < len(value):  # a first layer, for colours
            value = timm.models.adapt_input_conv(shape[1], value)
        if name and value.shape == shape:
            fitting[name] = value
        else:
            unused.append(key)
    missing = [key for key in wanted if key not in fitting and not key.endswith("num_batches_tracked")]
    fit = f"{len(fitting)} of {len(wanted)} tensors"
    if len(missing) > len(wanted) / 2:
        raise Refused(f"{path}: fits {fit}; it has {next(iter(given), 'nothing')!r}, not {missing[0]!r}")
    module.load_state_dict(fitting, strict=False)
    note = f"{fit} fitted"
    for what, keys in (("from scratch", missing), ("unused", unused)):
        if keys:
            note += f"; {len(keys)} {what}: {', '.join(keys[:3])}{', …' if len(keys) > 3 else ''}"
    return note


def save_model(model: Segmenter, path: Path, config: Config) -> None:
    """Write weights as safetensors; the metadata holds the configuration, and with it what rebuilds the model."""
    # One key alone: safetensors writes several in any order, and equal models would have unequal hashes.
    metadata = {"config": config.model_dump_json()}
    files.write_tensors(path, {key: value.contiguous() for key, value in model.state_dict().items()}, metadata)


def load_model(path: Path, device: Device) -> tuple[Segmenter, Config]:
    """Rebuild a model, in evaluation mode, and its configuration from its file alone. Raises Refused."""
    tensors, metadata = files.read_tensors(path)
    if "config" not in metadata or not {"mean", "std"} <= tensors.keys():
        raise Refused(f"{path}: not a model file of this library (its metadata holds no configuration)")
    try:
        config = validate_config(json.loads(metadata["config"]))
        without = config.model.model_copy(update={"encoder_weights": "none"})
        mean, std = tensors["mean"].flatten(), tensors["std"].flatten()
        model, _ = build_segmenter(without, len(mean), len(config.competition.classes), mean, std)
        model.load_state_dict(tensors)
        model.overlap = config.competition.overlap
    except (ValueError, RuntimeError, RecursionError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise Refused(f"{path}: weights do not fit their own configuration: {reason}") from None
    return model.place(device).eval(), config
