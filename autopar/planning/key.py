"""What a plan depends on, as one hash: the traced program in full, where and how it is planned, and the code that plans.

The program is traced before it is looked up, so a model whose code changed in any way that matters has another key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node

from autopar.ir.mesh import MeshSpec
from autopar.ir.program import Program
from autopar.ops.rows import DiscoveredRow, all_discovered
from autopar.ops.tables import own_rule
from autopar.planning.planner import Planner

NOT_PLANNED = ("val", "source", "stack_trace", "nn_module_stack")
"""What nodes know that plans do not depend on, or that `value_text` says."""

SOLVERS = ("highspy", "pulp")


def key_of(planner: Planner, mesh: MeshSpec, budget_bytes: int | None) -> str:
    """A hex digest."""
    parts = {
        "code": code(),
        "versions": versions(),
        "program": list(program_text(planner.program)),
        "mesh": [mesh.sizes, mesh.names, mesh.links],
        "budget": budget_bytes,
        "micro_batches": planner.micro_batches,
        "aims": repr(planner.aims),
        "discovered": [[*where, row.text] for where, row in rows(planner.program)],
        "rules": sorted(rules_of_users(planner.program)),
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def rules_of_users(program: Program) -> set[str]:
    """Those of its ops, as text that is another one when a row or the code behind it is."""
    targets = {node.target for region in program.regions.values() for node in region.graph.nodes}
    return {f"{target}: {rule}" for target in targets if (rule := own_rule(target)) is not None}


def rows(program: Program) -> Iterator[tuple[tuple[str, str], DiscoveredRow]]:
    """What is discovered of ops without a rule: their code is no part of the program's text."""
    for region, found in all_discovered(program).items():
        yield from (((region, node), row) for node, row in found.items())


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"torch": torch.__version__}
    for name in SOLVERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


@cache
def code() -> str:
    """Of all sources of this package: a newer version may price or choose otherwise, whatever its number is."""
    found = hashlib.sha256()
    for folder in source_folders():
        for path in sorted(folder.rglob("*.py")):
            found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def source_folders() -> list[Path]:
    """Of the package, and of its parts that are elsewhere in an editable install."""
    import autopar.codegen
    import autopar.profiler
    import autopar.solver

    packages = (autopar, autopar.codegen, autopar.profiler, autopar.solver)
    return sorted({Path(folder) for package in packages for folder in package.__path__})


def program_text(program: Program) -> Iterator[str]:
    """Everything in a program, names and module paths (of which plans and constraints speak) among it, but values."""
    yield from (f"{f.name} {getattr(program, f.name)!r}" for f in fields(program) if f.name not in ("regions", "state"))
    yield from (repr(replace(state, value=None)) for state in program.state.values())
    for name, region in program.regions.items():
        yield f"region {name} {region.inputs} {region.state}"
        yield from (node_text(node) for node in region.graph.nodes)


def node_text(node: Node) -> str:
    meta = {key: value for key, value in sorted(node.meta.items()) if key not in NOT_PLANNED}
    return f"{node.name} {node.target} {node.args} {node.kwargs} {value_text(node.meta.get('val'))} {meta}"


def value_text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(value_text, value))
    return f"{value.dtype}{tuple(value.shape)}{value.stride()}" if isinstance(value, torch.Tensor) else repr(value)
