"""Which tensors are alive where, whatever their placements: shared by the memory rows and by the checker."""

from __future__ import annotations

from autopar.solver.problem import Problem, Region, Unit


def spanning(problem: Problem, region: Region, unit: Unit) -> tuple[str, ...]:
    """Tensors alive across `unit` without being its operands or results: made before it, needed after it.

    State, program inputs and what `passing` names are counted elsewhere.
    """
    here = region.position[unit.name]
    passing_by = passing(problem, region)

    def counted_elsewhere(name: str) -> bool:
        boundary = region.inputs.get(name)
        return name in region.state or (
            boundary is not None and (problem.boundaries[boundary].resident or boundary in passing_by)
        )

    return tuple(
        name
        for name, (made, last) in region.lives.items()
        if made < here < last and name not in unit.operands and name not in unit.results and not counted_elsewhere(name)
    )


def passing(problem: Problem, region: Region) -> tuple[str, ...]:
    """Boundaries whose value stays in memory while all calls of the region run, and whose gradient does in backward.

    These are the values that pass over the region from an earlier to a later one, and those that all its calls read.
    """
    return tuple(name for name in problem.boundaries if _passes(problem, region, name))


def returned_before(problem: Problem, region: Region) -> tuple[str, ...]:
    """Outputs of the program that earlier regions made: the caller's, and so in memory from then on."""
    earlier = problem.regions[: problem.regions.index(region)]
    made = {boundary for r in earlier for _, boundary in r.outputs}
    return tuple(
        name for name, b in problem.boundaries.items() if b.returned and name in made and name not in passing(problem, region)
    )


def returned(problem: Problem) -> tuple[str, ...]:
    """All outputs of the program: in memory while any backward runs."""
    return tuple(name for name, boundary in problem.boundaries.items() if boundary.returned)


def _passes(problem: Problem, region: Region, name: str) -> bool:
    here = problem.regions.index(region)
    makers = [i for i, r in enumerate(problem.regions) if name in dict(r.outputs).values()]
    readers = [i for i, r in enumerate(problem.regions) if name in r.inputs.values()]
    boundary = problem.boundaries[name]
    if boundary.resident or not readers or not min(makers, default=-1) < here <= max(readers):
        return False
    return not boundary.carried if here in readers else here not in makers


def gradients_of(problem: Problem, region: Region) -> tuple[str, ...]:
    """State groups whose gradients appear while the region's backward runs: those that no later region reads."""
    later = {g for r in problem.regions[problem.regions.index(region) + 1 :] for g in r.state.values()}
    return tuple(dict.fromkeys(g for g in region.state.values() if g not in later))
