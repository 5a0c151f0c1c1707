"""Which ops of a region have no row in the table, and what was discovered of them: what plans list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autopar.ir.program import Program, Region
from autopar.ops import tables
from autopar.ops.discovered import found_for, row_text
from autopar.ops.units import fitted, is_getitem, is_size


@dataclass(frozen=True, kw_only=True)
class DiscoveredRow:
    """`text` as `row_text` writes it; `reason`: why all of it is whole, else ""."""

    op: str
    text: str
    reason: str


def discovered(region: Region) -> dict[str, DiscoveredRow]:
    """By node, in order."""
    found = {}
    for node in region.graph.nodes:
        if node.op == "call_function" and not is_getitem(node) and not is_size(node) and tables.rule_for(node.target) is None:
            finding = found_for(node)
            text = row_text(finding, fitted(node))
            found[node.name] = DiscoveredRow(op=str(node.target), text=text, reason=finding.reason)
    return found


def all_discovered(program: Program) -> Mapping[str, Mapping[str, DiscoveredRow]]:
    """By region and node."""
    return {name: discovered(region) for name, region in program.regions.items()}
