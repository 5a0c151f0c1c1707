"""Models that do something unusual, on blocks of two linears."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH = 8


def linear(bias: bool = True) -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH, bias=bias)


class Unusual(nn.Module):
    """x [4, 8] -> a loss."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.body(x).square().mean()}

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Layers(Unusual):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def body(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Block(nn.Module):
    def __init__(self, mode: str = "", scale: float = 1.0) -> None:
        super().__init__()
        self.one, self.two, self.mode, self.scale = linear(), linear(), mode, scale
        self.register_buffer("seen", torch.zeros(WIDTH))
        self.calls, self.shared = 0, {"calls": 0}

    def forward(self, x: Tensor, *, residual: Tensor | None = None, flag: bool = False) -> Tensor:
        y = self.two(F.gelu(self.one(x)))
        if self.mode == "told":
            y = y.sin() if self.calls % 2 else y
        if self.mode == "shared":
            y = y.sin() if self.shared["calls"] % 2 else y
            self.shared["calls"] += 1
        if self.mode == "buffer":
            self.seen += y.detach().mean(0)
        if self.mode == "dropout":
            y = F.dropout(y, 0.5, self.training)
        if self.mode == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                y = self.one(y).float()
        if self.mode == "inplace":
            y.add_(1).relu_()
        return y if residual is None else y + residual if flag else (y * residual).tanh()


class Checkpointed(Layers):
    def body(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x


class Twice(Layers):
    """The same blocks, run twice over: shared weights."""

    def body(self, x: Tensor) -> Tensor:
        for layer in [*self.layers, *self.layers]:
            x = layer(x)
        return x


class OneTwice(Layers):
    """Only one of the blocks is run twice."""

    def body(self, x: Tensor) -> Tensor:
        return self.layers[2](super().body(x))  # type: ignore[no-any-return]


class Keywords(Layers):
    def body(self, x: Tensor) -> Tensor:
        first = x
        for i, layer in enumerate(self.layers):
            x = layer(x, residual=first, flag=i % 2 == 0)
        return x


class ByIndex(Layers):
    """What is done to a member depends on its index."""

    def body(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x) if i % 2 else layer(x).sin() if i < 3 else layer(x.detach())
        return x


class Told(Layers):
    """It sets attributes of its blocks before it runs them."""

    def body(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            layer.calls = i
            x = layer(x)
        return x


class Sharing(Layers):
    """Its blocks share a dict, in which they count."""

    def __init__(self, *layers: Block) -> None:
        super().__init__(*layers)
        for layer in layers:
            layer.shared = layers[0].shared

    def body(self, x: Tensor) -> Tensor:
        self.layers[0].shared["calls"] = 0
        return super().body(x)


class Skips(Layers):
    """Every result is needed until the end; one is needed twice."""

    def body(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.layers:
            found.append(layer(found[-1]))
        return torch.cat([*found, found[1]], dim=-1)


class Hooked(Layers):
    """Its own code registers hooks on its blocks while it runs."""

    def body(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handles = [layer.register_forward_hook(lambda m, a, r: seen.append(r)) for layer in self.layers]
        super().body(x)
        for handle in handles:
            handle.remove()
        return torch.stack(seen)


class Frozen(Layers):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        for layer in self.layers[:2]:
            layer.requires_grad_(False)


class Tied(Unusual):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(32, WIDTH), nn.Linear(WIDTH, 32, bias=False)
        self.head.weight = self.table.weight

    def body(self, x: Tensor) -> Tensor:
        return self.head(self.table(x.new_zeros(4, 6, dtype=torch.long)))  # type: ignore[no-any-return]


class TiedBlocks(Layers):
    """Each block has the first one's second linear."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        for layer in self.layers:
            layer.two = layers[0].two


CONSTANT = torch.linspace(0, 1, WIDTH)


class Closure(Unusual):
    """Its code reads tensors that are neither parameters nor buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.mine = linear(), torch.ones(WIDTH)
        self.fetch: Callable[[], Tensor] = lambda: CONSTANT

    def body(self, x: Tensor) -> Tensor:
        return self.linear(x * self.fetch() + self.mine)  # type: ignore[no-any-return]


class Branches(Unusual):
    """It asks for data that its code alone decides."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()

    def body(self, x: Tensor) -> Tensor:
        mask = torch.arange(x.shape[0]) > 1
        if bool(mask.all()):
            x = x.sin()
        return self.linear(x[: int(mask.sum())])  # type: ignore[no-any-return]


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad  # type: ignore[no-any-return]


class OwnFunction(Layers):
    def body(self, x: Tensor) -> Tensor:
        return Square.apply(super().body(x))  # type: ignore[no-any-return, no-untyped-call]


def blocks(mode: str = "", count: int = 4) -> list[nn.Module]:
    return [Block(mode) for _ in range(count)]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Layers(*blocks()),
    "checkpoint": lambda: Checkpointed(*blocks()),
    "twice": lambda: Twice(*blocks()),
    "one twice": lambda: OneTwice(*blocks()),
    "keywords": lambda: Keywords(*blocks()),
    "by index": lambda: ByIndex(*blocks()),
    "skips": lambda: Skips(*blocks()),
    "hooks": lambda: Hooked(*blocks()),
    "frozen": lambda: Frozen(*blocks()),
    "all but one frozen": lambda: Layers(*(b.requires_grad_(i == 2) for i, b in enumerate(blocks()))),
    "tied": Tied,
    "tied blocks": lambda: TiedBlocks(*blocks()),
    "closure": Closure,
    "branches": Branches,
    "own function": lambda: OwnFunction(*blocks()),
    "told": lambda: Told(*blocks("told")),
    "sharing": lambda: Sharing(*blocks("shared")),
    "buffers": lambda: Layers(*blocks("buffer")),
    "dropout": lambda: Layers(*blocks("dropout")),
    "autocast": lambda: Layers(*blocks("autocast")),
    "in place": lambda: Layers(*blocks("inplace")),
    "two kinds": lambda: Layers(*(Block("" if i % 2 else "dropout") for i in range(6))),
    "other attributes": lambda: Layers(*(Block(scale=float(i)) for i in range(4))),
    "relu in place": lambda: Layers(linear(), nn.ReLU(inplace=True), linear(), nn.ReLU(inplace=True)),
    "batchnorm": lambda: Layers(linear(), nn.BatchNorm1d(WIDTH), linear(), nn.BatchNorm1d(WIDTH)),
    "nested": lambda: Layers(*(nn.Sequential(*blocks(count=2)) for _ in range(3))),
    "lists of lists": lambda: Layers(*(Layers2(*blocks(count=2)) for _ in range(3))),
    "half": lambda: Layers(*blocks()).double(),
}


class Layers2(Layers):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.body(x)


FOLDED = {"plain": 4, "keywords": 4, "skips": 4, "buffers": 4, "dropout": 4, "in place": 4, "nested": 3, "lists of lists": 3}


def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = MODELS[name]()
    return model, {"x": torch.randn(4, WIDTH, dtype=next(model.parameters()).dtype)}
