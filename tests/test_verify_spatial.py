"""Convolutional models on all ranks in one process equal the serial run, running statistics included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import autopar
from autopar.verification import Report
from tests.hardware_toy import toy_hardware
from tests.planned import GAP, TIME_LIMIT_S
from tests.zoo_parts import Net, UNet

BATCH = 4


def residual() -> nn.Module:
    """Convolutions with a bias in front of batch norms, pools that overlap and that do not."""
    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    second = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(first, second, nn.Flatten(), nn.Linear(16, 10))


class Depthwise(nn.Module):
    """A block of ConvNeXt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(self.near(x).movedim(1, -1))))).movedim(-1, 1)  # type: ignore[no-any-return]


def patches() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), Depthwise(8), nn.Conv2d(8, 16, 2, stride=2), Depthwise(16))


def volumes() -> nn.Module:
    down = nn.Sequential(nn.Conv3d(2, 8, 3, padding=1), nn.InstanceNorm3d(8, track_running_stats=True), nn.MaxPool3d(2))
    up = nn.Sequential(nn.Conv3d(8, 8, 3, padding="same", groups=2), nn.Upsample(scale_factor=2, mode="trilinear"))
    return nn.Sequential(down, nn.LeakyReLU(), up, nn.BatchNorm3d(8), nn.ConvTranspose3d(8, 4, 2, stride=2))


def waves() -> nn.Module:
    """As in a vocoder."""
    up = weight_norm(nn.ConvTranspose1d(8, 8, 4, stride=2, padding=1, groups=2))
    return nn.Sequential(up, nn.ReflectionPad1d(3), nn.Conv1d(8, 8, 3, dilation=3), nn.GroupNorm(2, 8), nn.AvgPool1d(3, 2, 1))


Models = dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]
MODELS: Models = {
    "unet": (lambda: UNet(8, 1), (3, 16, 16)),
    "residual": (residual, (3, 16, 16)),
    "patches": (patches, (3, 32, 32)),
    "volumes": (volumes, (2, 8, 8, 8)),
    "waves": (waves, (8, 16)),
}
FREE: tuple[str, ...] = ()
TOGETHER = ("op=*batch_norm*: batch=*",)
"""Batch norms cut over the batch, which takes the statistics of all devices: the cheapest plans cut channels."""


def verified(name: str, mesh: str, pins: tuple[str, ...]) -> Report:
    body, shape = MODELS[name]
    torch.manual_seed(0)
    model, x = Net(body()), torch.randn(BATCH, *shape)
    with torch.no_grad():
        y = torch.randn_like(model.body(x))
    constraints = autopar.Constraints(pins=pins)
    options = {"hardware": toy_hardware(), "gap": GAP, "time_limit_s": TIME_LIMIT_S, "constraints": constraints}
    return autopar.verify(model, mesh, kwargs={"x": x, "y": y}, **options)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["2", pytest.param("4", marks=pytest.mark.exhaustive), "2x2"])
@pytest.mark.parametrize(("name", "pins"), [*((name, FREE) for name in MODELS), ("residual", TOGETHER), ("volumes", TOGETHER)])
def test_all_ranks_equal_the_serial_run(name: str, pins: tuple[str, ...], mesh: str) -> None:
    report = verified(name, mesh, pins)
    assert report.ok, report.tensors[:3]
    cut = {f for region in report.plan.regions.values() for s in region.units.values() for f in s.factors}
    assert cut - {None}, "a plan that cuts nothing proves nothing"
    if name in ("residual", "volumes"):
        assert any(t.name.endswith("running_var") for t in report.tensors)
