"""Networks that segmentation-models-pytorch does not have, small and plain: those of the teams' reports.

Each takes (N, channels, H, W), H and W multiples of 32, and gives logits (N, classes, H, W)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

Widths = Sequence[int]  # channels at each size of the feature maps
WIDTHS = (32, 64, 128, 256)
DEEP, UP = (*WIDTHS, 512), (512, *WIDTHS[::-1])
BLOCKS = ("double", "residual", "squeeze_excite")


class DoubleConv(nn.Module):
    """Two convolutions: the block of the first U-Net (Ronneberger et al. 2015, arXiv:1505.04597).

    "residual" has a skip connection around them (He et al. 2015, arXiv:1512.03385), "squeeze_excite" weighs
    their channels by the whole image (Hu et al. 2017, arXiv:1709.01507)."""

    def __init__(self, inward: int, outward: int, block: str, dropout: float):
        super().__init__()
        first, second = Conv2dNormActivation(inward, outward), Conv2dNormActivation(outward, outward)
        self.body = nn.Sequential(first, second, nn.Dropout2d(dropout))
        if block == "squeeze_excite":
            from timm.layers import SEModule  # takes seconds, which refusals need not wait for

            self.body.append(SEModule(outward, rd_channels=max(4, outward // 16)))
        self.passing = nn.Conv2d(inward, outward, 1, bias=False) if block == "residual" else None

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if self.passing is None else self.body(x) + self.passing(x)


class PlainUnet(nn.Module):
    """A U-Net without a pretrained encoder: `widths` from the top to the bottom, `block` at each of them."""

    def __init__(self, in_channels: int, classes: int, widths: Widths = WIDTHS, block="double", dropout: float = 0.0):
        super().__init__()
        if block not in BLOCKS:
            raise ValueError(f"block: no {block!r}; there are {', '.join(BLOCKS)}")
        self.down = nn.ModuleList(DoubleConv(a, b, block, dropout) for a, b in pairwise((in_channels, *widths)))
        pairs = list(pairwise(widths[::-1]))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(low, high, 2, stride=2) for low, high in pairs)
        self.up = nn.ModuleList(DoubleConv(2 * high, high, block, dropout) for _, high in pairs)
        self.head: nn.Module = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for enlarge, block, skip in zip(self.enlarge, self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([enlarge(x), skip], 1))
        return self.head(x)


class DualUnet(nn.Module):
    """Two U-Nets side by side, of double and of squeeze-excite blocks, joined before one head."""

    def __init__(self, in_channels: int, classes: int, widths: Widths = WIDTHS, dropout: float = 0.0):
        super().__init__()
        self.one = PlainUnet(in_channels, classes, widths, "double", dropout)
        self.other = PlainUnet(in_channels, classes, widths, "squeeze_excite", dropout)
        self.one.head, self.other.head = nn.Identity(), nn.Identity()
        self.head = nn.Sequential(Conv2dNormActivation(2 * widths[0], widths[0]), nn.Conv2d(widths[0], classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.one(x), self.other(x)], 1))


class Deconvolution(nn.Sequential):
    """Convolutions down, transposed ones up, no skip connections; Xavier initialisation. `pool`: max-pooling halves."""

    def __init__(self, in_channels: int, classes: int, widths: Widths = DEEP, kernel: int = 3, pool: bool = False):
        down: list[nn.Module] = []
        for inward, outward in pairwise((in_channels, *widths)):
            down += [nn.Conv2d(inward, outward, kernel, stride=1 if pool else 2, padding=kernel // 2)]
            down += [nn.ReLU(inplace=True), nn.BatchNorm2d(outward)] + [nn.MaxPool2d(2)] * pool
        super().__init__(*down, Decoder(widths[::-1], classes))
        for name, values in self.named_parameters():
            if values.ndim == 4:
                nn.init.xavier_normal_(values)
            elif name.endswith("bias"):
                nn.init.zeros_(values)


class Decoder(nn.Sequential):
    """A transposed convolution per width, each of which doubles the size, and a head."""

    def __init__(self, widths: Widths, classes: int):
        up: list[nn.Module] = []
        for inward, outward in pairwise((*widths, widths[-1])):
            up += [nn.ConvTranspose2d(inward, outward, 3, stride=2, padding=1, output_padding=1)]
            up += [nn.ReLU(inplace=True), nn.BatchNorm2d(outward)]
        super().__init__(*up, nn.Conv2d(widths[-1], classes, 1))


class EncoderDeconvolution(nn.Module):
    """Any of segmentation-models-pytorch's encoders under transposed convolutions, without skip connections."""

    def __init__(self, encoder_name: str, encoder_weights: None, in_channels: int, classes: int, widths: Widths = UP):
        super().__init__()
        from segmentation_models_pytorch.encoders import get_encoder

        self.encoder: Any = get_encoder(encoder_name, in_channels, weights=encoder_weights)
        if len(widths) != (halvings := len(self.encoder.out_channels) - 1):
            raise ValueError(f"widths: one for each time that the encoder halves, {halvings}")
        self.decoder = Decoder([self.encoder.out_channels[-1], *widths[1:]], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x)[-1])


ALL = (PlainUnet, DualUnet, Deconvolution, EncoderDeconvolution)
