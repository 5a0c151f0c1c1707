"""A hand-made plan of a two-layer model on a 2x4 mesh, with one of everything that tables show."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from autopar.ir.plan import Plan

SHARDED, WHOLE = "I, S(1)", "I, I"


def unit(kind: str, nodes: str, *axes: tuple[str, str] | None) -> dict[str, Any]:
    """`nodes` separated by spaces; per axis (factor, role) or None."""
    factors, roles = [a and a[0] for a in axes], [a and a[1] for a in axes]
    return {"kind": kind, "nodes": nodes.split(), "factors": factors, "roles": roles}


def conversion(tensor: str, *path: str) -> list[dict[str, str]]:
    return [{"tensor": tensor, "before": b, "after": a} for b, a in pairwise(path)]


def choice(calls: int, kept: dict[str, str], **rest: Any) -> dict[str, Any]:
    found = {"kept": [{"tensor": t, "placement": p} for t, p in kept.items()]}
    return {"calls": calls, "kept_internals": [], "redone": [], "reconverted": []} | found | rest


def collective(kind: str, axis: str, phase: str, count: int, total: int) -> dict[str, Any]:
    return {"kind": kind, "axis": axis, "phase": phase, "count": count, "bytes": total}


START = {
    "units": {
        "arange": unit("whole", "arange", None, None),
        "mask": unit("pointwise", "le mask", None, None),
        "index": unit("view", "index", None, None),
        "wte_embedding": unit("embedding", "wte_embedding", ("b", "batch"), ("h", "tensor")),
    },
    "converted": conversion("wte_embedding", "S(0), S(2)", "S(0), I"),
    "classes": [choice(1, {"mask": WHOLE})],
}

REDUCE = conversion("fc_reshape", "S(0), P", "S(0), S(1)")
GATHER = conversion("fc_weight", "S(1), S(0)", "S(1), R", "R, R")
LAYER = {
    "units": {
        "ln_layer_norm": unit("norm", "ln_layer_norm", ("b", "batch"), ("s", "sequence")),
        "fc_addmm": unit("matmul", "fc_addmm fc_reshape", ("b", "batch"), ("k", "tensor")),
        "add": unit("pointwise", "add", ("d0", "batch"), ("~", "partial")),
    },
    "converted": [*GATHER, *REDUCE, *conversion("wte", "S(0), I", "S(0), S(1)")],
    "classes": [
        choice(1, {"wte": "S(0), I"}, redone=["ln_layer_norm", "fc_addmm"], reconverted=GATHER + REDUCE),
        choice(1, {"wte": "S(0), I"}, redone=["ln_layer_norm", "fc_addmm"], reconverted=GATHER + REDUCE),
        choice(2, {"wte": "S(0), I", "fc_reshape": "S(0), S(1)", "fc_weight": "R, R"}, kept_internals=["ln_layer_norm"]),
    ],
}

END = {
    "units": {"cross_entropy_loss": unit("loss", "cross_entropy_loss", ("b", "batch"), ("c", "tensor"))},
    "converted": conversion("cross_entropy_loss", "P, I", "I, I"),
    "classes": [choice(1, {}, kept_internals=["cross_entropy_loss"])],
}

FIGURES = {
    "estimated_peak_bytes": 1000.0 * 2**20,
    "estimated_peak_where": "h.* backward",
    "forward_flops": 54525952,
    "backward_flops": 109051904,
    "redone_flops": 1000000,
    "collectives": [
        collective("all_gather", "gpu", "forward", 8, 8 * 2**20),
        collective("all_gather", "gpu", "backward", 4, 4 * 2**20),
        collective("all_reduce", "node", "backward", 2, 3000),
    ],
    "memory_bytes": {
        "h.0.fc.weight at rest [S(1), S(0)]": 600.0 * 2**20,
        "h.*.wte [S(0), I] kept x 4": 300.0 * 2**20,
        "h.*.ln_layer_norm saved inside x 2": 50.0 * 2**20,
        "h.*.fc_addmm backward temporaries": 40.0 * 2**20,
        "gradient of add": 8.0 * 2**20,
        "input_ids (program input) [S(0), I]": 2.0 * 2**20,
    },
    "time_s": {"compute": 0.0123, "communication on gpu": 0.00086, "recomputation": 0.00004},
}

STATE = {
    "wte.weight": {"shape": [128, 64], "dtype": "float32", "placement": SHARDED},
    **{f"h.{i}.ln.weight": {"shape": [64], "dtype": "float32", "placement": WHOLE} for i in range(4)},
    **{f"h.{i}.fc.weight": {"shape": [64, 256], "dtype": "bfloat16", "placement": "S(1), S(0)"} for i in range(4)},
}

DATA: dict[str, Any] = {
    "format": "autopar-plan",
    "version": 1,
    "model": "TinyModel",
    "fingerprint": "0123",
    "mesh": {"sizes": [2, 4], "names": ["node", "gpu"]},
    "hardware": "h100-sxm",
    "cost_model": 1,
    "optimizer": "adamw",
    "budget_bytes": 2**30,
    "status": "feasible",
    "step_time_s": 0.0132,
    "lower_bound_s": 0.0129,
    "gap": 1 - 0.0129 / 0.0132,
    "peak_bytes": 1000.0 * 2**20,
    "peak_where": "h.* backward",
    "notes": ["time limit: no better plan was found"],
    "figures": FIGURES,
    "inputs": {"input_ids": {"shape": [8, 16], "dtype": "int64", "placement": "S(0), I"}},
    "state": STATE,
    "boundaries": {"input_ids": "S(0), I", "wte_embedding": "S(0), I"},
    "regions": {"start": START, "h.*": LAYER, "end": END},
}


def small_plan(**changes: Any) -> Plan:
    return Plan.model_validate(DATA | changes)


def costing(peak_bytes: float, step_time_s: float) -> Plan:
    """The small plan with other figures, which agree with each other."""
    parts = {
        "memory_bytes": {"all at rest": peak_bytes},
        "time_s": {"compute": step_time_s},
        "estimated_peak_bytes": peak_bytes,
    }
    changes = {
        "peak_bytes": peak_bytes,
        "step_time_s": step_time_s,
        "lower_bound_s": step_time_s,
        "gap": 0.0,
        "budget_bytes": None,
    }
    return small_plan(figures=FIGURES | parts, **changes)
