"""Op rules: which dims of an op's tensors are one loop, and what follows from it. `explain` shows one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopar.ops.explanation import explain as explain

__all__ = ["explain"]


def __getattr__(name: str) -> Any:
    """Loaded when first used: the rules need torch."""
    if name == "explain":
        from autopar.ops.explanation import explain

        return explain
    raise AttributeError(f"module 'autopar.ops' has no attribute {name!r}")
