"""autopar: an ahead-of-time auto-parallel compiler for PyTorch.

Sharding, collectives and what backward keeps are decided together, by one ILP, before the first step.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopar import errors as errors
    from autopar import ops as ops
    from autopar.api import compile as compile
    from autopar.api import pareto as pareto
    from autopar.api import plan as plan
    from autopar.api import profile as profile
    from autopar.ir.assumed import assume as assume
    from autopar.ir.constraints import Constraints as Constraints
    from autopar.ir.mesh import MeshSpec as MeshSpec
    from autopar.ir.pareto import Pareto as Pareto
    from autopar.ir.plan import Plan as Plan
    from autopar.ops.check import check_rule as check_rule
    from autopar.ops.user_rules import op_rule as op_rule
    from autopar.questions import compare as compare
    from autopar.questions import explain as explain
    from autopar.questions import why_not as why_not
    from autopar.runtime.checkpoint import Checkpoints as Checkpoints
    from autopar.runtime.loader import own_slice as own_slice
    from autopar.runtime.loader import shard_loader as shard_loader
    from autopar.timelines import timeline as timeline
    from autopar.timelines import trace as trace
    from autopar.verification import verify as verify

__version__ = "0.1.0"

_HOMES = {
    "assume": "autopar.ir.assumed",
    "compare": "autopar.questions",
    "compile": "autopar.api",
    "explain": "autopar.questions",
    "pareto": "autopar.api",
    "plan": "autopar.api",
    "profile": "autopar.api",
    "timeline": "autopar.timelines",
    "trace": "autopar.timelines",
    "verify": "autopar.verification",
    "why_not": "autopar.questions",
    "Checkpoints": "autopar.runtime.checkpoint",
    "Constraints": "autopar.ir.constraints",
    "MeshSpec": "autopar.ir.mesh",
    "Pareto": "autopar.ir.pareto",
    "Plan": "autopar.ir.plan",
    "check_rule": "autopar.ops.check",
    "op_rule": "autopar.ops.user_rules",
    "own_slice": "autopar.runtime.loader",
    "shard_loader": "autopar.runtime.loader",
}

__all__ = [
    "Checkpoints",
    "Constraints",
    "MeshSpec",
    "Pareto",
    "Plan",
    "__version__",
    "assume",
    "check_rule",
    "compare",
    "compile",
    "errors",
    "explain",
    "op_rule",
    "ops",
    "own_slice",
    "pareto",
    "plan",
    "profile",
    "shard_loader",
    "timeline",
    "trace",
    "verify",
    "why_not",
]


def __getattr__(name: str) -> Any:
    """Public names are loaded when first used, so that `import autopar` and the CLI's help stay fast."""
    if name in ("errors", "ops"):
        return import_module(f"autopar.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'autopar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
