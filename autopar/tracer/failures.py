"""Why a model could not be traced, in words that name the model's own code."""

from __future__ import annotations

import linecache
import re
import traceback
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from autopar.errors import TraceError

if TYPE_CHECKING:
    from autopar.tracer.dynamic import Dynamic

TORCH = str(Path(torch.__file__).parent)
OURS = (str(Path(__file__).parent), str(Path(__file__).parents[1] / "cache"))

DATA_TYPES = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)
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
    if re.search(r"\w*Cache\b.*not a known type|not a known type.*Cache\b|(Dynamic|Static)Cache", text):
        return TraceError(
            "the model returns a key-value cache, which training does not need: set model.config.use_cache = False, or pass "
            "use_cache=False among the inputs"
        )
    reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return TraceError(f"torch.export cannot trace the model{where}: {type(error).__name__}: {reason}")


def check_no_data_dependent_sizes(graph: Graph) -> None:
    """Raise TraceError at the first value whose size, or which itself, is read from a tensor's data when the model runs."""
    fine: set[int] = set()
    for node in graph.nodes:
        val = node.meta.get("val")
        if id(val) in fine:  # copies of a block share their values
            continue
        fine.add(id(val))
        vals = val if isinstance(val, tuple | list) else [val]
        if any(isinstance(v, DATA_TYPES) and free_unbacked_symbols(v) for v in vals):
            place = source_of(node)
            raise TraceError(f"the model branches or sizes a tensor on data{f' at {place}' if place else ''}: {DATA_FIXES}")


def source_of(node: Node) -> str:
    """ "file.py:12" of the model's own innermost line (not torch's) that made the node, or ""."""
    found = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    found = [place for place in found if "torch" not in PurePath(place[0]).parts] or found
    return f"{PurePath(found[-1][0]).name}:{found[-1][1]}" if found else ""


def _dim_name(dynamic: Dynamic, name: str, dim: int) -> str:
    for marked, where in dynamic.names.items():
        if (where if isinstance(where, int) else where.get(name)) == dim:
            return f" as {marked!r}"
    return ""


def _place(error: BaseException) -> str:
    """ " at file.py:12 (`code`)" of the innermost frame that belongs to neither torch nor us; "" if there is none."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        if not file.startswith((TORCH, *OURS, "<")):
            return f" at {Path(file).name}:{line} (`{linecache.getline(file, line).strip()}`)"
    return ""
