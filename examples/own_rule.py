"""Code that cannot be traced, inside a model: a function and a module class, each with a rule of one line.

python examples/own_rule.py
"""

import torch
from torch import Tensor, nn

import autopar


def on_own_experts(x: Tensor, choice: Tensor, up: Tensor, down: Tensor, *, axes, coordinates) -> Tensor:
    """What runs in the place of `grouped` where the experts are cut: each device serves those that it has.

    `axes` are the mesh axes that cut them, as (group name, size), outermost first, `coordinates` this device's places there.
    Other experts' rows stay zero, so what the devices have adds up to the result: the row says so, since it has no `e`.
    """
    piece = 0
    for (_, size), coordinate in zip(axes, coordinates, strict=True):
        piece = piece * size + coordinate
    return grouped(x, choice - piece * up.shape[0], up, down)


@autopar.op_rule("t i!, t, e n i!, e o! n -> t o!", sharded={"e": on_own_experts})
def grouped(x: Tensor, choice: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Each row of x [t, i] through the expert that it chose. How many rows an expert has is data: nothing to trace."""
    out = x.new_zeros(x.shape[0], down.shape[1])
    for expert in range(up.shape[0]):
        rows = (choice == expert).nonzero().squeeze(1)
        out = out.index_add(0, rows, (x[rows] @ up[expert].T).relu() @ down[expert].T)
    return out


@autopar.op_rule("t h!, h! -> t h!", kind="norm")
class ClippedNorm(nn.Module):
    """A norm that looks at its numbers. Its weight is the row's second operand."""

    def __init__(self, width: int, limit: float = 3.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        y = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.weight
        return y.clamp(-self.limit, self.limit) if float(y.detach().abs().max()) > self.limit else y


class Regression(nn.Module):
    """Both of them between two layers; returns the loss."""

    def __init__(self, width: int = 64, hidden: int = 256, experts: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.norm = ClippedNorm(width)
        self.router = nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, hidden, width) / 8)
        self.down = nn.Parameter(torch.randn(experts, width, hidden) / 16)
        self.last = nn.Linear(width, width)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        scores = self.router(y).softmax(-1)
        mixed = grouped(y, scores.argmax(-1), self.up, self.down) * scores.amax(-1, keepdim=True)
        return (self.last(y + mixed) - target).square().mean()


def main() -> None:
    torch.manual_seed(0)
    x, choice = torch.randn(8, 6), torch.randint(0, 4, (8,))
    weights = torch.randn(4, 10, 6), torch.randn(4, 6, 10)
    print(autopar.check_rule(grouped, x, choice, *weights))
    print(autopar.check_rule(ClippedNorm(6), x))
    try:
        autopar.check_rule(grouped, x, choice, *weights, rule="t i!, t, e n i!, e o! n -> t o!")
    except autopar.errors.RuleError as error:
        print(f"without its own implementation:\n{error}")

    model = Regression()
    batch = {"x": torch.randn(512, 64), "target": torch.randn(512, 64)}
    experts = autopar.Constraints(pins=["op=grouped: factor=e on gpu"])
    plan = autopar.plan(model, "2x2", kwargs=batch, constraints=experts)
    for region in plan.regions.values():
        for name, unit in region.units.items():
            print(f"{name:24} {unit.kind:10} cut over {dict(zip(plan.mesh.names, unit.factors, strict=True))}")
    report = autopar.verify(model, "2x2", kwargs=batch, plan=plan)
    print(f"equal to one device: {report.ok}, largest relative error {report.max_relative_error:.1e}")
    if not report.ok:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
