"""Why a model could not be traced, in words that name the model's own code."""

from __future__ import annotations

import linecache
import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from autopar.errors import TraceError

if TYPE_CHECKING:
    from autopar.tracer.dynamic import Dynamic

TORCH = str(Path(torch.__file__).parent)
OURS = str(Path(__file__).parent)

DATA_DEPENDENT = re.compile(r"data-dependent|data dependent|unbacked|Tensor\.item\(\)|_local_scalar_dense|DynamicOutputShape")
DATA_FIXES = (
    "the code asks for the value of a tensor, which is known only when the model runs. Usual fixes: torch.where instead of "
    "`if`, torch.cond for two branches, a mask instead of an index of unknown length, or a plain Python number or flag "
    "instead of a tensor"
)


def explain(error: Exception, dynamic: Dynamic) -> TraceError:
    """The TraceError to raise in the place of what `torch.export` raised."""
    if isinstance(error, TraceError):
        return error
    text = str(error)
    if violated := re.search(
        r"marked (L\['(\w+)'\]\S*)\.size\(\)\[(\d+)\] as dynamic but your code specialized it[^(]*\((\d+)\)", text
    ):
        _, name, dim, size = violated.groups()
        marked = _dim_name(dynamic, name, int(dim))
        return TraceError(
            f"dim {dim} of input {name!r} cannot be dynamic{marked}: the model's code fixes it to {size}; "
            "leave it out of `dynamic`, or make the code work for any size"
        )
    where = _place(error)
    if DATA_DEPENDENT.search(f"{type(error).__name__} {text}"):
        return TraceError(f"the model branches or sizes a tensor on data{where}: {DATA_FIXES}")
    reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return TraceError(f"torch.export cannot trace the model{where}: {type(error).__name__}: {reason}")


def _dim_name(dynamic: Dynamic, name: str, dim: int) -> str:
    for marked, where in dynamic.names.items():
        if (where if isinstance(where, int) else where.get(name)) == dim:
            return f" as {marked!r}"
    return ""


def _place(error: BaseException) -> str:
    """ " at file.py:12 (`code`)" of the innermost frame that belongs to neither torch nor us; "" if there is none."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        if not file.startswith((TORCH, OURS, "<")):
            return f" at {Path(file).name}:{line} (`{linecache.getline(file, line).strip()}`)"
    return ""
