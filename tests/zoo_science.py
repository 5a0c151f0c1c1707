"""Plain torch models of generative imaging and of physics, each with a training batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo_parts import HEADS, HIDDEN, Inputs

Case = tuple[nn.Module, Inputs]


class DiffusionTransformer(nn.Module):
    """Blocks whose norms are shifted, scaled and gated by the noise level and the class, as in DiT; predicts the noise."""

    def __init__(self, layers: int, patch: int = 4, channels: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, HIDDEN, patch, stride=patch)
        self.places = nn.Parameter(torch.randn(1, 16, HIDDEN) * 0.02)
        self.noise = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN))
        self.classes = nn.Embedding(10, HIDDEN)
        self.blocks = nn.ModuleList(DiffusionBlock() for _ in range(layers))
        self.norm = nn.LayerNorm(HIDDEN, elementwise_affine=False)
        self.leave = nn.Linear(HIDDEN, patch * patch * channels)
        self.patch, self.channels = patch, channels

    def forward(self, image: Tensor, noise: Tensor, level: Tensor, label: Tensor) -> dict[str, Tensor]:
        share = torch.cos(level * torch.pi / 2)[:, None, None, None]
        noisy = image * share + noise * (1 - share**2).sqrt()
        waves = level[:, None] * torch.exp(torch.linspace(0, 6, HIDDEN // 2, dtype=level.dtype))
        condition = self.noise(torch.cat([waves.sin(), waves.cos()], dim=-1)) + self.classes(label)
        x = self.patches(noisy).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            x = block(x, condition)
        side = int(x.shape[1] ** 0.5)
        pixels = self.leave(self.norm(x)).view(-1, side, side, self.patch, self.patch, self.channels)
        guess = torch.einsum("nhwpqc->nchpwq", pixels).reshape(noise.shape)
        return {"loss": F.mse_loss(guess, noise)}


class DiffusionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN, elementwise_affine=False) for _ in range(2))
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN, 6 * HIDDEN))
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.mlp = nn.Sequential(nn.Linear(HIDDEN, 4 * HIDDEN), nn.GELU(approximate="tanh"), nn.Linear(4 * HIDDEN, HIDDEN))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.condition(condition).unsqueeze(1).chunk(6, dim=-1)
        q, k, v = self.qkv(self.norms[0](x) * (1 + scale) + shift).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + gate * self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + gate_mlp * self.mlp(self.norms[1](x) * (1 + scale_mlp) + shift_mlp)  # type: ignore[no-any-return]


class Flow(nn.Module):
    """A residual net on a periodic 3-D field: circular convolutions, and a loss with finite differences and a divergence."""

    def __init__(self, layers: int, channels: int = 8) -> None:
        super().__init__()
        self.enter = nn.Conv3d(3, channels, 3, padding=1, padding_mode="circular")
        self.blocks = nn.ModuleList(nn.Conv3d(channels, channels, 3, padding=1, padding_mode="circular") for _ in range(layers))
        self.coarse = nn.Conv3d(channels, channels, 2, stride=2)
        self.leave = nn.Conv3d(channels, 3, 1)

    def forward(self, velocity: Tensor, after: Tensor) -> dict[str, Tensor]:
        x = F.gelu(self.enter(velocity))
        for block in self.blocks:
            x = x + F.gelu(block(x))
        x = x + F.interpolate(self.coarse(x), scale_factor=2, mode="trilinear")
        guess = velocity + self.leave(x)
        divergence = sum(torch.roll(guess[:, i], -1, i + 1) - guess[:, i] for i in range(3))
        return {"loss": F.mse_loss(guess, after) + 0.1 * torch.mean(divergence**2)}


def diffusion_transformer(batch: int = 8) -> Case:
    torch.manual_seed(0)
    model = DiffusionTransformer(layers=2)
    image, noise = torch.randn(2, batch, 4, 16, 16)
    return model, {"image": image, "noise": noise, "level": torch.rand(batch), "label": torch.randint(10, (batch,))}


def flow(batch: int = 4) -> Case:
    torch.manual_seed(0)
    return Flow(layers=2), dict(zip(("velocity", "after"), torch.randn(2, batch, 3, 8, 8, 8), strict=True))


SCIENCE = {"diffusion_transformer": diffusion_transformer, "flow": flow}
