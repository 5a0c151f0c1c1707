"""Why a model could not be traced, in words that name the model's own code."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING

import torch
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from autopar.errors import AutoparError, RuleError, TraceError
from autopar.ir.assumed import Place
from autopar.tracer.answers import OURS, TORCH, Answers

if TYPE_CHECKING:
    from autopar.tracer.dynamic import Dynamic

DATA_TYPES = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)
DATA_DEPENDENT = re.compile(r"data-dependent|data dependent|unbacked|Tensor\.item\(\)|_local_scalar_dense|DynamicOutputShape")
UNKNOWN_TYPE = re.compile(r"Found <class '([\w.<>]+)'> in output|[Uu]nsupported input type <class '([\w.]+)'>")
DATA_FIXES = (
    "a tensor's value is known only when the model runs. Usual fixes: torch.where instead of `if`, torch.cond for two "
    "branches, a mask instead of an index of unknown length, a plain Python number instead of a tensor. For code that you "
    "cannot edit: "
)
INSTEAD = {
    "bincount": "to count up to a known n, x.new_zeros(n).index_add(0, x, torch.ones_like(x)), with weights instead of both",
    **dict.fromkeys(
        ("unique", "unique_consecutive"),
        "sort, and go on with all elements and a mask of those that differ from the one before, as torch.diff shows",
    ),
    **dict.fromkeys(("nonzero", "argwhere", "masked_select"), "a mask and torch.where, or torch.topk of a known number"),
    "repeat_interleave": "give output_size=",
    "one_hot": "give num_classes=",
}
"""What to write for functions whose results are as large as data say."""
WHOLE = "`@autopar.op_rule` on its function, or on the class of its module, which is then not traced into (docs/rules.md)"


def explain(error: Exception, dynamic: Dynamic, answers: Answers) -> AutoparError:
    """The error to raise in the place of what `torch.export` raised, a TraceError if it is not one of ours; `answers` say where
    symbols in it are from."""
    if isinstance(error, RuleError):
        return RuleError(f"{error}{at(_place(error))}")
    if isinstance(error, AutoparError):
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
    place = _place(error)
    where = at(place and place.quoted)
    if DATA_DEPENDENT.search(f"{type(error).__name__} {text}"):
        return TraceError(f"the model branches or sizes a tensor on data{where}{_read_at(text, place, answers)}")
    if is_cast(error):
        return TraceError(
            f"the model casts or moves one of its modules while it runs{where}: a trace has one set of parameters; cast the "
            f"module before, and in this line its inputs. For code that you cannot edit: {WHOLE}"
        )
    if lost := re.search(
        r"fake tensor in the exported program constant's list.*model attribute: ([\w.]*?)\.?lifted_tensor", text, re.S
    ):
        inside = f" in {lost[1]}" if lost[1] else ""
        return TraceError(
            f"the model makes a tensor{inside} that a trace cannot follow: usually by .data (detach() does the same), or by "
            "torch.autograd.grad within forward"
        )
    if re.search(r"\w*Cache\b.*not a known type|not a known type.*Cache\b|(Dynamic|Static)Cache", text):
        return TraceError(
            "the model returns a key-value cache, which training does not need: set model.config.use_cache = False, or pass "
            "use_cache=False among the inputs"
        )
    if unknown := UNKNOWN_TYPE.search(text):
        made, taken = unknown.groups()
        name = (made or taken).rpartition(".")[2]
        return TraceError(
            f"the model {'returns' if made else 'takes'} an object of type {name}: tensors, numbers, text, None, and tuples, "
            f"lists and dicts of them can be traced; and a dataclass after torch.export.register_dataclass({name})"
        )
    reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return TraceError(f"torch.export cannot trace the model{where}: {type(error).__name__}: {reason}")


def is_cast(error: BaseException | None) -> bool:
    """Whether torch raised it as a module was cast or moved by the code that it traced."""
    return "_apply(): Couldn't swap" in str(error)


def check_no_data_dependent_sizes(graph: Graph, made: Mapping[str, Place]) -> None:
    """Raise TraceError at the first value whose size, or which itself, is read from a tensor's data when the model runs.

    `made`: symbols, and the code that they are from.
    """
    fine: set[int] = set()
    for node in graph.nodes:
        val = node.meta.get("val")
        if id(val) in fine:  # copies of a block share their values
            continue
        fine.add(id(val))
        vals = val if isinstance(val, tuple | list) else [val]
        found = {str(symbol) for v in vals if isinstance(v, DATA_TYPES) for symbol in free_unbacked_symbols(v)}
        if found:
            place = next((made[symbol] for symbol in sorted(found & made.keys())), None)
            raise TraceError(f"the model sizes a tensor on data{at(place.quoted if place else node)}: {fixes(place)}{WHOLE}")


def fixes(place: Place | None) -> str:
    """What to do about a number or size of data, up to what helps with code that cannot be edited."""
    if place is None or place.call not in INSTEAD:
        return DATA_FIXES
    return (
        f"how large the result of torch.{place.call} is, only values tell. Instead: {INSTEAD[place.call]}. For code that you "
        "cannot edit: "
    )


def source_of(node: Node) -> str:
    """ "file.py:12" of the model's own innermost line (not torch's) that made the node, or ""."""
    found = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    found = [place for place in found if not place[0].startswith("<")]
    found = [place for place in found if "torch" not in PurePath(place[0]).parts] or found
    return f"{PurePath(found[-1][0]).name}:{found[-1][1]}" if found else ""


def at(place: Node | Place | str | None) -> str:
    """ " at file.py:12": the place, or that of the model's line that made the node; "" if it is not known."""
    known = source_of(place) if isinstance(place, Node) else place
    return f" at {known}" if known else ""


def _dim_name(dynamic: Dynamic, name: str, dim: int) -> str:
    for marked, where in dynamic.names.items():
        if (where if isinstance(where, int) else where.get(name)) == dim:
            return f" as {marked!r}"
    return ""


def _read_at(text: str, place: Place | None, answers: Answers) -> str:
    """Where the number that the code asks about was read from a tensor, or a size made, if elsewhere; and what to do."""
    symbols = re.findall(r"\bz?[uf]+\d+\b", text)
    sized = next((answers.sizes[symbol] for symbol in symbols if symbol in answers.sizes), None)
    if sized is None and place is not None and answers.failed in INSTEAD:
        sized = replace(place, call=answers.failed)
    read = next((answers.reads[symbol] for symbol in symbols if symbol in answers.reads), None)
    origin = sized or read or place
    elsewhere = "" if origin is None or origin == place else f", with a value that is read at {origin.quoted}"
    assume = f'`autopar.assume("{origin or "file.py:12"}", value)` if it is always the same, or ' if sized is None else ""
    return f"{elsewhere}: {fixes(sized)}{assume}{WHOLE}"


def _place(error: BaseException) -> Place | None:
    """Of the innermost frame that belongs to neither torch nor us."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        if not file.startswith((TORCH, *OURS, "<")):
            return Place(file=file, line=line, code=linecache.getline(file, line).strip())
    return None
