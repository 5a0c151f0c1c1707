"""A profile at the sizes that are asked about: what tables, JSON and pictures of it are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import sympy

from autopar.errors import InputError
from autopar.profiler.memory import MemoryAt
from autopar.profiler.profile import Profile, ProfileAt, Throughput
from autopar.profiler.rows import OpAt, prefixes


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The largest size of a dim within the budget, the other dims as they are.

    `size` is None if memory does not grow with it. `by_memory` is what memory alone would allow, where the model takes less.
    """

    dim: str
    size: int | None
    by_memory: int | None


@dataclass(frozen=True, kw_only=True)
class View:
    """`sizes` are those of the example inputs, of dynamic dims and others; `limits` the largest that the model takes."""

    profile: Profile
    sizes: Mapping[str, int]
    budget_bytes: int | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    on_named_hardware: bool = True

    @property
    def dims(self) -> dict[str, int]:
        """Sizes of the dynamic dims."""
        return {name: self.sizes[name] for name in self.profile.symbols}

    @property
    def title(self) -> str:
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        return f"{self.profile.name}, {sizes}" if sizes else self.profile.name

    @cached_property
    def at(self) -> ProfileAt:
        return self.profile.at(**self.dims)

    @cached_property
    def memory(self) -> MemoryAt:
        return self.profile.memory(**self.dims)

    @cached_property
    def ops(self) -> tuple[OpAt, ...]:
        return self.profile.ops_at(**self.dims)

    @cached_property
    def throughput(self) -> Throughput | None:
        return None if self.at.step_s is None else self.profile.throughput(**self.dims)

    @cached_property
    def module_s(self) -> Mapping[str, float]:
        """Seconds of forward and backward by module path, all that a module holds included."""
        found: dict[str, float] = {}
        for op in self.ops:
            for path in prefixes(op.row.path):
                found[path] = found.get(path, 0.0) + (op.seconds or 0.0)
        return found

    @cached_property
    def largest(self) -> tuple[Largest, ...]:
        """For each dynamic dim; empty without a budget."""
        return () if self.budget_bytes is None else tuple(self._largest(dim, self.budget_bytes) for dim in self.profile.symbols)

    def number(self, expression: sympy.Expr | int) -> int:
        """An expression in the dynamic dims, at the sizes."""
        return int(sympy.sympify(expression).xreplace(self.profile.values(self.dims)))

    def _largest(self, dim: str, budget_bytes: int) -> Largest:
        others = {name: size for name, size in self.dims.items() if name != dim}
        try:
            by_memory = self.profile.largest(dim, budget_bytes, **others)
        except InputError:
            return Largest(dim=dim, size=self.limits.get(dim), by_memory=None)
        return Largest(dim=dim, size=min(by_memory, self.limits.get(dim, by_memory)), by_memory=by_memory)
