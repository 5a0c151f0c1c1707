"""For every op with a rule, calls of it: shapes and attributes that a `Pick` chooses. One module per family of the table.

Choices list the usual case first: hypothesis picks among all of them, the golden text shows the first ones.
"""

from __future__ import annotations

from tests.ops.examples import (
    creation,
    elementwise,
    indexing,
    losses,
    matrices,
    movement,
    normalization,
    pointwise,
    random,
    reductions,
    scatters,
    spatial,
    spectral,
)
from tests.ops.examples.common import Examples

FAMILIES = (
    matrices,
    spatial,
    normalization,
    losses,
    reductions,
    indexing,
    scatters,
    movement,
    elementwise,
    spectral,
    random,
    creation,
)
EXAMPLES: Examples = {op: example for family in FAMILIES for op, example in family.EXAMPLES.items()}
"""One per row of the table."""
POINTWISE = pointwise.EXAMPLES
