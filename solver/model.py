"""The ILP of design.md, section 6: sharding, conversions and what backward keeps, in one program.

Without `memory`, only x, y, f: everything that backward reads is kept. With it also k, r, z per class and the memory rows.
Seconds and bytes are scaled so that a solver's absolute tolerances mean the same for every model.
"""

from __future__ import annotations

from autopar.solver.backward import backward
from autopar.solver.forward import choose, convert, run_units
from autopar.solver.memory import fit_memory
from autopar.solver.objective import finish_objective
from autopar.solver.scale import Scale
from autopar.solver.space import Space
from autopar.solver.variables import Model

UNSCALED = Scale()


def build(
    space: Space,
    *,
    memory: bool,
    minimise_peak: bool = False,
    coarse: bool = False,
    scale: Scale = UNSCALED,
) -> Model:
    """The program over a space; `coarse` only for its relaxation (see `Model`)."""
    model = Model(space=space, memory=memory, minimise_peak=minimise_peak, coarse=coarse, byte=scale.byte, second=scale.second)
    choose(model)
    for region in space.problem.regions:
        run_units(model, region)
        convert(model, region)
        if memory:
            backward(model, region)
    if memory:
        fit_memory(model)
    finish_objective(model)
    return model
