"""Models of repeated blocks, each with something that a tracer which traces a block once could get wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

SIZE = 8
LOG: list[int] = []
CALLS = {"count": 0}


class Pair(NamedTuple):
    main: Tensor
    extra: Tensor | None


class Block(nn.Module):
    """A residual block with a hook for tests: `twist(block, x)` is applied to its result."""

    def __init__(self, index: int, twist: Callable[[Any, Tensor], Any] = lambda block, x: x) -> None:
        super().__init__()
        self.index, self.twist, self.log = index, twist, []  # type: ignore[var-annotated]
        self.linear, self.norm = nn.Linear(SIZE, SIZE), nn.LayerNorm(SIZE)
        self.register_buffer("seen", torch.zeros(()))
        self.scale = 1.0

    def forward(self, x: Tensor) -> Any:
        return self.twist(self, x + torch.relu(self.linear(self.norm(x))))


class Stack(nn.Module):
    """Blocks in a list, and code between them that a test may choose."""

    def __init__(self, blocks: list[nn.Module], between: Callable[[Any, int, Any], Any] = lambda block, i, x: block(x)) -> None:
        super().__init__()
        self.embed = nn.Linear(SIZE, SIZE)
        self.blocks, self.between = nn.ModuleList(blocks), between
        self.extra = nn.Parameter(torch.ones(SIZE))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i, block in enumerate(self.blocks):
            x = self.between(block, i, x)
        return x.square().mean()


def stack(twist: Callable[[Any, Tensor], Any] = lambda block, x: x, *, count: int = 4, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return Stack([Block(i, twist) for i in range(count)], **kwargs)


def skips() -> nn.Module:
    """A U-Net's way: what went in on one side comes back on the other."""
    kept: list[Tensor] = []

    def between(block: Any, i: int, x: Tensor) -> Tensor:
        if i < 2:
            kept.append(x)
            return block(x)  # type: ignore[no-any-return]
        return block(x + kept.pop())  # type: ignore[no-any-return]

    return stack(between=between)


def hidden_states() -> nn.Module:
    class Collecting(Stack):
        def forward(self, x: Tensor) -> Any:
            states = [x]
            for i, block in enumerate(self.blocks):
                x = block(x)
                states += [x] if i in (1, 3) else []
            return {"loss": x.square().mean(), "states": tuple(states)}

    return Collecting([Block(i) for i in range(4)])


def tied(first: int, second: int) -> nn.Module:
    model = stack()
    model.blocks[second].linear.weight = model.blocks[first].linear.weight  # type: ignore[union-attr, index]
    return model


def shared_module() -> nn.Module:
    model = stack()
    norm = nn.LayerNorm(SIZE)
    for block in model.blocks:  # type: ignore[union-attr]
        block.norm = norm  # type: ignore[union-attr]
    return model


def same_block_twice() -> nn.Module:
    block = Block(0)
    return Stack([block, block, block])


def nested() -> nn.Module:
    return Stack([nn.Sequential(Block(0), Block(1)) for _ in range(3)])


def by_pair() -> nn.Module:
    """Two kinds that alternate by an attribute, as sliding and full attention do."""

    def twist(block: Any, x: Tensor) -> Tensor:
        return x.tanh() if block.kind == "full" else x

    model = stack(twist, count=6)
    for i, block in enumerate(model.blocks):  # type: ignore[union-attr, arg-type]
        block.kind = "full" if i % 2 else "sliding"
    return model


class Outer(nn.Module):
    """Its block reaches a tensor of the outer module without being given it."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(SIZE))
        self.inner = Stack([Block(i, lambda block, x: x * self.gain) for i in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.gain.sum()  # type: ignore[no-any-return]


class Hidden(nn.Module):
    """Blocks take a tensor from a place that only the code between them fills."""

    def __init__(self) -> None:
        super().__init__()
        box: dict[str, Tensor] = {}
        self.blocks = nn.ModuleList(Block(i, lambda block, x: x + box["y"]) for i in range(3))
        self.box = box

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            self.box["y"] = x * 2
            x = block(x)
        return x.sum()


def written_buffer(block: Any, x: Tensor) -> Tensor:
    block.seen.add_(1)
    return x + block.seen


def new_buffer(block: Any, x: Tensor) -> Tensor:
    block.seen = block.seen + 1
    return x + block.seen


def counted(block: Any, x: Tensor) -> Tensor:
    CALLS["count"] += 1
    return x * CALLS["count"]


def logged(block: Any, x: Tensor) -> Tensor:
    LOG.append(1)
    return x * len(LOG)


def diced(block: Any, x: Tensor) -> Tensor:
    return x * random.randint(1, 1000)


def constant(block: Any, x: Tensor) -> Tensor:
    return x + torch.tensor([float(i) for i in range(SIZE)])


def without_gradient(block: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x.exp()
    return x + y + x.detach()


def in_place(block: Any, x: Tensor) -> Tensor:
    y = x.view(-1)
    y.add_(1)
    return x


def reset_counters() -> None:
    CALLS["count"] = 0
    LOG.clear()
    random.seed(0)


def unpacked(take: Callable[[Any], Tensor]) -> Callable[[Any, int, Any], Any]:
    return lambda block, i, x: take(block(x))


def frozen() -> nn.Module:
    model = stack(count=6)
    for block in model.blocks[:3]:  # type: ignore[index]
        block.requires_grad_(False)
    return model


def hooked() -> nn.Module:
    model = stack()
    for i, block in enumerate(model.blocks):  # type: ignore[union-attr, arg-type]
        block.linear.register_forward_hook(lambda module, args, out, i=i: out * (i + 1))  # type: ignore[misc]
        block.register_forward_hook(lambda module, args, out, i=i: out + i)  # type: ignore[misc]
    return model


class Passing(nn.Module):
    """Blocks that hand on what they were given, a mask say, and take a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PassingBlock() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones_like(x)
        given: Any = {"x": x, "mask": mask, "none": None}
        for block in self.blocks:
            given = block(given, flag=True)
            assert given["mask"] is mask
        return (given["x"] * given["mask"]).sum()


class PassingBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(SIZE, SIZE)

    def forward(self, given: dict[str, Any], flag: bool) -> dict[str, Any]:
        return {"x": self.linear(given["x"]) * given["mask"], "mask": given["mask"], "none": None, "flag": flag, "three": 3}


@dataclass(frozen=True)
class Case:
    """A model, and how many calls of blocks have to be copies at least; 0: none may be.

    What a model is that `counts` its runs outside of itself depends on how often it was traced before.
    """

    make: Callable[[], nn.Module]
    repeats: int
    counts: bool = False


def under_no_grad(block: Any, i: int, x: Tensor) -> Any:
    with torch.no_grad():
        x = block(x)
    return x + 1 if i % 2 else x


def write_into_view(block: Any, i: int, x: Tensor) -> Any:
    y = block(x)
    y += 1
    return y


def weights_outside(block: Any, i: int, x: Tensor) -> Any:
    return block(x) + block.linear.weight.sum()


def regularized() -> nn.Module:
    class Regularized(Stack):
        def forward(self, x: Tensor) -> Tensor:
            loss = super().forward(x)
            for p in self.parameters():
                loss = loss + p.square().sum()
            return loss

    return Regularized([Block(i) for i in range(4)])


CASES: dict[str, Case] = {
    "plain": Case(stack, 3),
    "skips": Case(skips, 3),
    "hidden states": Case(hidden_states, 2),
    "tied in a pair": Case(lambda: tied(0, 2), 2),
    "tied elsewhere": Case(lambda: tied(1, 3), 2),
    "shared module": Case(shared_module, 3),
    "same block twice": Case(same_block_twice, 2),
    "nested": Case(nested, 2),
    "two kinds": Case(by_pair, 4),
    "frozen": Case(frozen, 3),
    "closure over a parameter": Case(Outer, 0),
    "closure over a tensor": Case(Hidden, 0),
    "written buffer": Case(lambda: stack(written_buffer), 0),
    "new buffer": Case(lambda: stack(new_buffer), 0),
    "global counter": Case(lambda: stack(counted), 0, counts=True),
    "global list": Case(lambda: stack(logged), 0, counts=True),
    "dice": Case(lambda: stack(diced), 0, counts=True),
    "own counter": Case(lambda: stack(lambda b, x: (setattr(b, "index", b.index + 1), x * b.index)[1]), 0),
    "own list": Case(lambda: stack(lambda b, x: (b.log.append(1), x * len(b.log))[1]), 0),
    "index matters": Case(lambda: stack(lambda b, x: x * b.index), 0),
    "index by vars": Case(lambda: stack(lambda b, x: x * vars(b)["index"]), 0),
    "attribute set outside": Case(
        lambda: stack(lambda b, x: x * b.scale, between=lambda b, i, x: (setattr(b, "scale", i), b(x))[1]), 0
    ),
    "training flag": Case(
        lambda: stack(lambda b, x: x * 2 if b.training else x, between=lambda b, i, x: b.train(i != 1)(x)), 2
    ),
    "constant": Case(lambda: stack(constant), 0),
    "no_grad and detach inside": Case(lambda: stack(without_gradient), 3),
    "no_grad outside": Case(lambda: stack(between=under_no_grad), 2),
    "in place inside": Case(lambda: stack(in_place), 3),
    "in place outside": Case(lambda: stack(between=write_into_view), 3),
    "in place on a view outside": Case(lambda: stack(lambda b, x: x.view(-1).view(x.shape), between=write_into_view), 0),
    "returns its input": Case(lambda: stack(lambda b, x: (x, x.shape[0]), between=unpacked(lambda y: y[0])), 3),
    "returns a named tuple": Case(lambda: stack(lambda b, x: Pair(x, None), between=unpacked(lambda y: y.main)), 3),
    "returns two that share memory": Case(
        lambda: stack(lambda b, x: x.chunk(2, -1), between=unpacked(lambda y: torch.cat(y, -1))), 0
    ),
    "returns one with and one without gradient": Case(
        lambda: stack(lambda b, x: (x, x.detach() * 2), between=unpacked(lambda y: y[0] * y[1])), 3
    ),
    "returns a list of its own": Case(lambda: stack(lambda b, x: [x, b.log], between=unpacked(lambda y: y[0])), 0),
    "hands on": Case(Passing, 2),
    "hooks": Case(hooked, 0),
    "hooks on blocks": Case(
        lambda: [m := stack(), [b.register_forward_hook(lambda mod, a, o, i=i: o + i) for i, b in enumerate(m.blocks)]][0], 3
    ),
    "data-dependent": Case(lambda: stack(lambda b, x: x + torch.rand_like(x)), 3),
    "weights read outside": Case(lambda: stack(between=weights_outside), 3),
    "all weights read": Case(regularized, 3),
    "passed a weight": Case(lambda: stack(between=lambda b, i, x: b(x + b.linear.weight[0])), 3),
}
