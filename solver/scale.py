"""Seconds and bytes as numbers that a solver likes: absolute tolerances of 1e-6 and below then mean parts per billion."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.solver.problem import Problem

SCALE = 1000.0
"""What a budget and a cost are scaled to."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Units of the program in a byte, and in a second."""

    byte: float = 1.0
    second: float = 1.0


def scale_of(*, size: float | None = None, cost_s: float | None = None) -> Scale:
    """By a typical size in bytes and a typical cost; what is left out, or zero, is not scaled."""
    return Scale(byte=SCALE / size if size else 1.0, second=SCALE / cost_s if cost_s else 1.0)


def typical_s(problem: Problem) -> float:
    """A cost to scale by: each unit at its fastest."""
    fastest = sum(
        sum(region.classes) * min(s.forward_s + s.backward_s for s in unit.strategies)
        for region in problem.regions
        for unit in region.units
    )
    longest = max((s.forward_s + s.backward_s for r in problem.regions for u in r.units for s in u.strategies), default=0.0)
    return fastest or longest or 1.0


def ample_bytes(problem: Problem) -> float:
    """More than any plan needs: as good as no budget, for the model that says what is kept has rows of memory."""
    found = sum(max(at.values(), default=0.0) for g in problem.state.values() for at in (g.bytes_at, g.step_bytes_at))
    for region in problem.regions:
        calls = sum(region.classes)
        found += 4 * calls * sum(max(t.bytes_at.values(), default=0.0) for t in region.tensors.values())
        found += sum(max(calls * s.saved_bytes + s.backward_temp_bytes for s in u.strategies) for u in region.units)
    return 2 * found
