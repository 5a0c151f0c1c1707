"""For every op with a rule, calls of it: shapes and attributes that a `Pick` chooses. One module per family of the table.

Choices list the usual case first: hypothesis picks among all of them, the golden text shows the first ones.
"""

from __future__ import annotations

from importlib import import_module

from autopar.ops import tables
from tests.ops.examples import pointwise
from tests.ops.examples.common import Examples

FAMILIES = [import_module(f"{__name__}.{family.__name__.rpartition('.')[2]}") for family in tables.FAMILIES]
EXAMPLES: Examples = {op: example for family in FAMILIES for op, example in family.EXAMPLES.items()}
"""One per row of the table."""
POINTWISE = pointwise.EXAMPLES
