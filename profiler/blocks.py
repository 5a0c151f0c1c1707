"""Repeated blocks: which modules of a model do the same, so that one of them is run and the others are not.

Two members of a container (`nn.ModuleList`, `nn.Sequential`, ...) are equal if their classes, their parameters' and buffers'
shapes and dtypes, and all plain attributes are, at every depth. An integer that is the member's own index is equal to the
other's index: `layer_idx`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

FEWEST = 2
"""Members of a repeated block."""

BOOKKEEPING = frozenset(nn.Module().__dict__)
HOOKS = tuple(name for name in BOOKKEEPING if name.endswith("_hooks"))


@dataclass(frozen=True, eq=False)
class BlockType:
    """Equal modules in order, by path; `container` is the path of what holds them and others, `size` in all."""

    container: str
    size: int
    members: tuple[tuple[str, nn.Module], ...]

    @property
    def path(self) -> str:
        """`layers.*` for all members of a container, `layers.[0-10:2]` for some of them."""
        return f"{self.container}.{self.selection}" if self.container else self.selection

    @property
    def selection(self) -> str:
        names = [path.rpartition(".")[2] for path, _ in self.members]
        if len(names) == self.size:
            return "*"
        numbers = [int(name) for name in names if name.isdigit()]
        steps = {b - a for a, b in pairwise(numbers)}
        if len(numbers) < len(names) or len(steps) != 1:
            return f"[{','.join(names)}]"
        step = steps.pop()
        return f"[{numbers[0]}-{numbers[-1]}{f':{step}' if step > 1 else ''}]"


def repeated(model: nn.Module) -> list[BlockType]:
    """Groups of at least `FEWEST` equal members of one container, outermost first; no member lies inside another group."""
    return list(_repeated(model, "", _owned_once(model)))


def _repeated(module: nn.Module, path: str, once: set[int]) -> Iterator[BlockType]:
    groups: list[list[tuple[int, str, nn.Module]]] = []
    children = [(i, f"{path}.{name}" if path else name, child) for i, (name, child) in enumerate(module.named_children())]
    if isinstance(module, nn.ModuleList | nn.Sequential):
        for member in children:
            for group in groups:
                if equal(group[0][2], group[0][0], member[2], member[0]):
                    group.append(member)
                    break
            else:
                groups.append([member])
    taken: set[int] = set()
    for group in groups:
        if len(group) >= FEWEST and all(_is_own(member, once) for _, _, member in group):
            yield BlockType(path, len(children), tuple((name, member) for _, name, member in group))
            taken |= {index for index, _, _ in group}
    for index, name, child in children:
        if index not in taken:
            yield from _repeated(child, name, once)


def _owned_once(model: nn.Module) -> set[int]:
    """Ids of modules, parameters and buffers that occur once in the model."""
    counts: Counter[int] = Counter()
    for module in model.modules():
        counts.update(id(child) for child in module._modules.values() if child is not None)
        counts.update(id(t) for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)
    return {found for found, count in counts.items() if count == 1}


def _is_own(member: nn.Module, once: set[int]) -> bool:
    """Whether it has something to run, and shares no module and no tensor with anything else."""
    own = [*member.modules(), *member.parameters(), *member.buffers()]
    return any(True for _ in member.parameters()) and all(id(part) in once for part in own)


def equal(a: nn.Module, i: int, b: nn.Module, j: int) -> bool:
    """Whether member `a` at index `i` and member `b` at index `j` do the same on equal inputs, as far as can be seen."""
    if type(a) is not type(b) or any(getattr(m, hooks) for m in (a, b) for hooks in HOOKS):
        return False
    if _tensors(a) != _tensors(b) or a._modules.keys() != b._modules.keys():
        return False
    plain_a, plain_b = (_plain(m) for m in (a, b))
    if plain_a.keys() != plain_b.keys() or not all(_same(plain_a[k], i, plain_b[k], j) for k in plain_a):
        return False
    return all(
        x is y if x is None or y is None else equal(x, i, y, j)
        for x, y in zip(a._modules.values(), b._modules.values(), strict=True)
    )


def _plain(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in module.__dict__.items() if k == "training" or k not in BOOKKEEPING}


def _tensors(module: nn.Module) -> list[tuple[Any, ...]]:
    found = {**module._parameters, **module._buffers}
    return [(n, t) if t is None else (n, t.shape, t.stride(), t.dtype, t.requires_grad) for n, t in found.items()]


def _same(x: Any, i: int, y: Any, j: int) -> bool:
    if x is y or (x == i and y == j and type(x) is type(y) is int):
        return True
    if type(x) is not type(y):
        return False
    if isinstance(x, bool | int | float | complex | str | bytes | torch.dtype | torch.device | torch.Size | Enum):
        return bool(x == y)
    if isinstance(x, partial):
        return _same((x.func, x.args, x.keywords), i, (y.func, y.args, y.keywords), j)
    if isinstance(x, list | tuple):
        return len(x) == len(y) and all(_same(p, i, q, j) for p, q in zip(x, y, strict=True))
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(_same(x[k], i, y[k], j) for k in x)
    return False
