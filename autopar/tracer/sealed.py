"""Leaving out, while tracing, the parameters of blocks that will only be repetitions.

`torch.export` spends more than a millisecond on each parameter, used or not: with 126 layers, seconds. So the tables of
parameters of all but some blocks of a kind are empty for torch, and whoever asks them for one, while the model's code runs,
ends the trace: it is then made again with these tables left as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NoReturn

from torch import nn

from autopar.tracer.blocks import Block, own

FEW = 256
"""Up to so many parameters it is not worth it."""

SAMPLES = 2
"""Blocks of a kind that stay as they are: the first one's input may be the only one without a gradient."""

TABLES = ("_parameters", "_buffers")


class Unsealed(BaseException):
    """Parameters of the block at `path` are needed ("": of any); no `except Exception` of the model's code catches this."""

    def __init__(self, path: str = "") -> None:
        super().__init__(f"parameters of {path or 'blocks'} are needed")
        self.path = path


class Seal:
    """Knows whether the model's code is running, and whether it asked for something that was left out."""

    def __init__(self) -> None:
        self.running = False
        self.broken: Unsealed | None = None

    def watch(self, model: nn.Module) -> None:
        """`running` is True while the model's own code runs; `model` is one of ours."""
        model.register_forward_pre_hook(lambda *_: setattr(self, "running", True))
        model.register_forward_hook(lambda *_: setattr(self, "running", False), always_call=True)

    def refuse(self, path: str = "") -> NoReturn:
        self.broken = Unsealed(path)
        raise self.broken


class Sealed(dict[str, Any]):
    """An empty table that had `names` in it."""

    def __init__(self, names: frozenset[str], seal: Seal) -> None:
        super().__init__()
        self.names, self.seal = names, seal

    def _asked(self) -> None:
        if self.seal.running:
            self.seal.refuse()

    def __contains__(self, name: object) -> bool:
        if name in self.names:
            self._asked()
        return False

    def get(self, name: str, default: Any = None) -> Any:
        if name in self.names:
            self._asked()
        return default

    def __getitem__(self, name: str) -> Any:
        if name in self.names:
            self._asked()
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        self._asked()
        return super().__iter__()

    def __len__(self) -> int:
        self._asked()
        return 0

    def __eq__(self, other: object) -> bool:
        self._asked()
        return super().__eq__(other)

    def __setitem__(self, name: str, value: Any) -> None:
        self.seal.refuse()

    def _whole(self, *_: Any) -> Any:
        self._asked()
        return {}

    __delitem__ = pop = popitem = setdefault = update = __ior__ = __setitem__  # type: ignore[assignment]
    copy = __or__ = __ror__ = __reversed__ = _whole

    def keys(self) -> Any:
        self._asked()
        return super().keys()

    def values(self) -> Any:
        self._asked()
        return super().values()

    def items(self) -> Any:
        self._asked()
        return super().items()


def seal_repetitions(
    model: nn.Module, kinds: Mapping[Hashable, list[Block]], groups: Mapping[int, Hashable], opened: set[str], seal: Seal
) -> set[int]:
    """Seal the tables of all blocks but the first ones of each group, those `opened` by path, and those inside of others.

    `groups` says which blocks (by id) look alike but for what is different in each; returns the ids of the sealed blocks.
    """
    chosen: dict[int, Block] = {}
    inner = {id(part) for members in kinds.values() for block in members for path, part in block.parts.items() if path}
    for members in kinds.values():
        counts: Counter[Hashable] = Counter()
        candidates = []
        for block in members:
            group = groups.get(id(block), id(block))
            counts[group] += 1
            if counts[group] > SAMPLES and block.path not in opened and id(block.module) not in inner:
                candidates.append(block)
        if sum(len(block.originals) for block in candidates) > FEW:
            chosen |= {id(block.module): block for block in candidates}
    if not chosen:
        return set()
    kept = set(_outside(model, chosen))
    for block in chosen.values():
        for part in (part for part in block.parts.values() if id(part) not in kept):
            for table in TABLES:
                held = own(part)[table]
                if held and not isinstance(held, Sealed):
                    own(part)[table] = Sealed(frozenset(held), seal)
    seal.watch(model)
    return {id(module) for module in model.modules() if isinstance(own(module)["_parameters"], Sealed)} | set(chosen)


def _outside(module: nn.Module, chosen: Mapping[int, Block]) -> Iterator[int]:
    """Ids of the modules that are reached without passing a chosen block."""
    todo, seen = [module], set()
    while todo:
        one = todo.pop()
        if id(one) in chosen or id(one) in seen:
            continue
        seen.add(id(one))
        yield id(one)
        todo += one.children()
