"""A custom op inside a model: its rule is one line, and then it is planned and verified like every other op.

python examples/custom_op.py
"""

import torch
from torch import Tensor, nn

import autopar


@autopar.op_rule("b* h, h -> b* h", kind="pointwise")
@torch.library.custom_op("example::scaled_square", mutates_args=())
def scaled_square(x: Tensor, scale: Tensor) -> Tensor:
    """scale · x², elementwise in `[..., hidden]`: every dim may be cut, and `scale` is cut with the hidden one."""
    return scale * x * x


@scaled_square.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


def save_for_backward(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
    x, scale = ctx.saved_tensors
    return 2 * gradient * scale * x, (gradient * x * x).flatten(0, -2).sum(0)


scaled_square.register_autograd(backward, setup_context=save_for_backward)


class Regression(nn.Module):
    """Two layers with the op between them; returns the loss."""

    def __init__(self, features: int = 64, hidden: int = 1024) -> None:
        super().__init__()
        self.up = nn.Linear(features, hidden)
        self.scale = nn.Parameter(torch.ones(hidden))
        self.down = nn.Linear(hidden, features)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        y = self.down(scaled_square(self.up(x), self.scale))
        return ((y - target) ** 2).mean()


def main() -> None:
    torch.manual_seed(0)
    model = Regression()
    batch = {"x": torch.randn(2048, 64), "target": torch.randn(2048, 64)}
    plan = autopar.plan(model, "2x2", kwargs=batch)
    for region in plan.regions.values():
        for name, unit in region.units.items():
            print(f"{name:24} {unit.kind:10} cut over {dict(zip(plan.mesh.names, unit.factors, strict=True))}")
    report = autopar.verify(model, "2x2", kwargs=batch, plan=plan)
    print(f"equal to one device: {report.ok}, largest relative error {report.max_relative_error:.1e}")
    if not report.ok:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
