"""Whether costs grow with the batch no faster than the batch does, read off the measured formulas."""

from __future__ import annotations

from collections.abc import Iterator

from autopar.profiler.model_cost import Measured, ModelCost
from autopar.profiler.unit_cost import Monomial
from autopar.solver.roles import BATCH, roles


def grows_faster_than_batch(cost: ModelCost) -> bool:
    """Whether some kernel's FLOPs or bytes have a degree above one in the factors that the batch runs over.

    Then a step of several micro-batches could take less time than one of a single batch: a loss that compares every sample
    with every other one does.
    """
    units = {name: tuple(m.unit for m in measured) for name, measured in cost.regions.items()}
    found = roles(cost.program, units)
    return any(
        degree_in(monomial, {factor for factor, role in found[name][m.unit.name].items() if role == BATCH}) > 1
        for name, measured in cost.regions.items()
        for m in measured
        for monomial in monomials(m)
    )


def monomials(measured: Measured) -> Iterator[Monomial]:
    for node in (*measured.cost.forward, *measured.cost.backward):
        yield node.flops
        yield from node.moved


def degree_in(monomial: Monomial, factors: set[str]) -> int:
    return sum(degree for factor, degree in monomial.degrees if factor in factors)
