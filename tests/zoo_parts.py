"""What the zoo is built of besides transformers' classes: sizes, inputs, networks of plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]

HIDDEN, HEADS, VOCAB, LABELS, IMAGE = 32, 4, 96, 10, 32


def tokens(batch: int, seq: int) -> Inputs:
    ids = torch.randint(2, VOCAB, (batch, seq))
    return {"input_ids": ids, "labels": ids.clone()}


def padded_tokens(batch: int, seq: int) -> Inputs:
    mask = torch.ones(batch, seq, dtype=torch.long)
    mask[::2, -3:] = 0
    return {**tokens(batch, seq), "attention_mask": mask}


def pixels(batch: int, seq: int) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, IMAGE, IMAGE), "labels": torch.randint(LABELS, (batch,))}


class Net(nn.Module):
    """A body, and the mean squared error of what it returns."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.mse_loss(self.body(x), y)}


class UNet(nn.Module):
    """Two scales with a skip connection; GroupNorm and SiLU, as in diffusion models."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.Sequential(*(self.block(channels, channels) for _ in range(layers)))
        self.shrink = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.middle = nn.Sequential(*(self.block(2 * channels, 2 * channels) for _ in range(layers)))
        self.grow = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.up = self.block(2 * channels, channels)
        self.leave = nn.Conv2d(channels, 3, 1)

    @staticmethod
    def block(inward: int, outward: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inward, outward, 3, padding=1), nn.GroupNorm(4, outward), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(self.enter(x))
        x = self.grow(self.middle(self.shrink(skip)))
        return self.leave(self.up(torch.cat([x, skip], dim=1)))  # type: ignore[no-any-return]


def mlp(layers: int, attention: str) -> nn.Module:
    blocks = (nn.Sequential(nn.Linear(HIDDEN, 2 * HIDDEN), nn.GELU(), nn.Linear(2 * HIDDEN, HIDDEN)) for _ in range(layers))
    return Net(nn.Sequential(*blocks))


def encoder(layers: int, attention: str) -> nn.Module:
    layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, 4 * HIDDEN, dropout=0.0, batch_first=True)
    return Net(nn.TransformerEncoder(layer, layers, enable_nested_tensor=False))


def batchnorm(layers: int, attention: str) -> nn.Module:
    conv = (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(layers))
    return Net(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *conv, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 8 * 8, LABELS)))


def pair(x: tuple[int, ...], y: tuple[int, ...]) -> Callable[[int, int], Inputs]:
    """Random x and y of these shapes, batch first; -1 stands for seq."""

    def make(batch: int, seq: int) -> Inputs:
        sized = [[batch, *(seq if n == -1 else n for n in shape)] for shape in (x, y)]
        return {"x": torch.randn(sized[0]), "y": torch.randn(sized[1])}

    return make


def features(batch: int, seq: int) -> Inputs:
    """Two audio frames per position of the encoder, and half as many tokens to say."""
    return {"input_features": torch.randn(batch, 16, 2 * seq), "labels": torch.randint(2, VOCAB, (batch, seq // 2))}


def waveform(batch: int, seq: int) -> Inputs:
    return {"input_values": torch.randn(batch, 40 * seq), "labels": torch.randint(LABELS, (batch,))}


def segments(batch: int, seq: int) -> Inputs:
    images = torch.randn(batch, 3, 2 * IMAGE, 2 * IMAGE)
    return {"pixel_values": images, "labels": torch.randint(LABELS, (batch, 2 * IMAGE, 2 * IMAGE))}


def captions(batch: int, seq: int) -> Inputs:
    ids = torch.randint(3, VOCAB - 1, (batch, seq))
    ids[:, -1] = VOCAB - 1
    return {"input_ids": ids, "pixel_values": torch.randn(batch, 3, IMAGE, IMAGE)}


class Clip(nn.Module):
    """CLIP, asked for its contrastive loss."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        out = self.clip(input_ids=input_ids, pixel_values=pixel_values, return_loss=True)
        return {"loss": out.loss}
