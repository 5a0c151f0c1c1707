"""A profile as JSON: every figure as a formula and as a number. docs/profile.md lists the keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import sympy

from autopar.profile_view import View
from autopar.profiler.memory import KINDS
from autopar.profiler.profile import ProfileAt
from autopar.profiler.rows import Figures, OpAt

FORMAT, VERSION = "autopar-profile", 1
POINTS = 256
"""Of the course of memory: so many stretches of equal length, the highest level of each."""


def to_json(view: View) -> str:
    """Text with a newline at its end."""
    return json.dumps(to_dict(view), indent=1) + "\n"


def to_dict(view: View) -> dict[str, Any]:
    profile = view.profile
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": profile.name,
        "sizes": dict(view.sizes),
        "dynamic": list(profile.symbols),
        "assumptions": [str(assumption) for assumption in profile.assumptions],
        "optimizer": profile.optimizer,
        "precision": {part: getattr(profile.precision, part) for part in ("parameters", "compute", "reduce")},
        "hardware": profile.hardware.name if profile.hardware else None,
        "figures": {f.name: figure(view, getattr(profile, f.name)) for f in fields(ProfileAt) if not f.name.endswith("_s")},
        "tokens": figure(view, profile.tokens) | {"unit": profile.unit},
        "seconds": seconds(view),
        "peak": peak(view),
        "timeline": course(view),
        "modules": [{"path": r.path, "calls": r.calls} | row(view, r) for r in profile.modules],
        "regions": [{"region": r.region, "calls": r.calls} | row(view, r) for r in profile.regions],
        "ops": [op(found) for found in view.ops],
        "budget": budget(view),
    }


def figure(view: View, expression: sympy.Expr | int) -> dict[str, Any]:
    return {"formula": str(expression), "value": view.number(expression)}


def row(view: View, found: Figures) -> dict[str, Any]:
    return {f.name: figure(view, getattr(found, f.name)) for f in fields(Figures)}


def seconds(view: View) -> dict[str, Any] | None:
    at, throughput = view.at, view.throughput
    if throughput is None:
        return None
    return {
        "forward_s": at.forward_s,
        "backward_s": at.backward_s,
        "optimizer_s": at.optimizer_s,
        "step_s": throughput.step_s,
        "per_s": throughput.tokens_per_s,
        "unit": throughput.unit,
        "mfu": throughput.mfu,
    }


def peak(view: View) -> dict[str, Any]:
    memory = view.memory
    return {
        "bytes": memory.peak_bytes,
        "phase": memory.phase,
        "path": memory.path,
        "op": memory.op,
        "index": memory.peak_index,
        "parts": {part: {"formula": str(memory.growth[part]), "value": size} for part, size in memory.split.items()},
        "alive": [asdict(alive) for alive in memory.alive],
    }


def course(view: View) -> dict[str, Any]:
    """The levels over time, thinned out; the highest of each stretch, so that no peak is lost."""
    memory = view.memory
    count = len(memory.levels)
    length = -(-count // POINTS)
    stretches = [range(start, min(start + length, count)) for start in range(0, count, length)]
    highest = [max(stretch, key=memory.levels.__getitem__) for stretch in stretches]
    resting = {part: size for part, size in memory.split.items() if part not in KINDS}
    return {
        "changes": count,
        "forward_end": memory.forward_end,
        "optimizer_step_bytes": memory.step_bytes,
        "resting": resting,
        "index": highest,
        "bytes": [memory.levels[i] for i in highest],
        "parts": {kind: [memory.course[kind][i] for i in highest] for kind in KINDS},
    }


def op(found: OpAt) -> dict[str, Any]:
    one, row = found.row.one, found.row
    formulas: Mapping[str, Any] = {"flops": one.flops, "other_flops": one.other_flops, "bytes": one.bytes}
    return {
        "op": row.op,
        "path": row.path,
        "region": row.region,
        "phase": row.phase,
        "dtype": row.dtype,
        "calls": row.calls,
        "one_call": {name: str(size) for name, size in formulas.items()},
        "flops": found.flops,
        "other_flops": found.other_flops,
        "bytes": found.bytes,
        "intensity": found.intensity,
        "seconds": found.seconds,
        "bound": found.bound,
    }


def budget(view: View) -> dict[str, Any] | None:
    if view.budget_bytes is None:
        return None
    largest = {found.dim: {"size": found.size, "by_memory": found.by_memory} for found in view.largest}
    return {"bytes": view.budget_bytes, "fits": view.at.peak_bytes <= view.budget_bytes, "largest": largest}
