"""The measurements of `plan_quality.py` as Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

GIB = 2**30
Line = dict[str, Any]


def line(found: Line) -> str:
    """One measurement in one line, for who watches."""
    where = " ".join(str(found.get(k)) for k in ("what", "model", "mesh", "batch", "budget") if found.get(k) is not None)
    took = f"({found['all_seconds']:.0f} s)"
    if "failure" in found:
        return f"{where}: {found['failure']} {took}"
    if found["what"] == "row":
        gains = ", ".join(f"{name} {times(found[key])}" for name, key in GAINS)
        return f"{where}: {seconds(found['ours']['cost_s'])}, {gains} {'; '.join(found['failed'])} {took}"
    if found["what"] == "frame":
        return f"{where}: {gib(found['smallest_bytes'])} to {gib(found['loose_bytes'])} GiB {took}"
    return f"{where}: {found.get('largest') or [k for k in ('ours', 'two_stage', 'baseline') if found.get(k)]} {took}"


GAINS = (
    ("baseline", "gain_baseline"),
    ("two-stage", "gain_two_stage"),
    ("best share", "gain_two_stage_best_share"),
)


def tables(lines: Sequence[Line]) -> str:
    """All tables, each with a title."""
    rows = sorted((x for x in lines if x["what"] == "row" and "failure" not in x), key=order)
    failures = [x for x in lines if "failure" in x]
    parts = []
    if rows:
        parts += ["Step times, and how much longer others take", overview(rows), headline(rows)]
        parts += ["Each baseline with its best checkpoint (s: selective, f: full)", by_baseline(rows)]
    if batches := [x for x in lines if x["what"] == "batch"]:
        parts += ["Largest batch", batch_table(batches)]
    if failed := [x for x in rows if x["failed"]]:
        parts += ["Failed checks", "\n".join(f"- {name(x)}: {'; '.join(x['failed'])}" for x in failed)]
    if failures:
        parts += ["Not measured", "\n".join(f"- {line(x)}" for x in failures)]
    return "\n\n".join(parts) or "nothing measured yet"


def order(x: Line) -> tuple[Any, ...]:
    return x["model"], x["mesh"].count("x"), x["mesh"] != "8", -x["budget_bytes"]


def name(x: Line) -> str:
    return f"{Path(x['model']).stem} {x['mesh']} {x['budget']}"


def overview(rows: Iterable[Line]) -> str:
    header = (
        "model",
        "mesh",
        "budget",
        "GiB",
        "ours",
        "status",
        "best baseline",
        "×",
        "two-stage",
        "×",
        "best share",
        "×",
        "search",
    )
    return markdown(header, [overview_row(x) for x in rows])


def overview_row(x: Line) -> tuple[str, ...]:
    ours, best = x["ours"], x["best_baseline"]
    status = "none" if ours["cost_s"] is None else "optimal" if ours["status"] == "optimal" else f"gap {ours['gap']:.1%}"
    return (
        Path(x["model"]).stem,
        x["mesh"],
        x["budget"],
        gib(x["budget_bytes"]),
        seconds(ours["cost_s"]),
        status,
        f"{best['name']}, {best['checkpoint']}" if best else "none fits",
        times(x["gain_baseline"]),
        seconds(x["two_stage"]["cost_s"]),
        times(x["gain_two_stage"]),
        seconds(x["two_stage_best_share"]["cost_s"]),
        times(x["gain_two_stage_best_share"]),
        f"{x['ours']['seconds']:.0f} s",
    )


def by_baseline(rows: Sequence[Line]) -> str:
    names = list(dict.fromkeys(b["name"] for x in rows for b in x["baselines"]))
    body = []
    for x in rows:
        cells = [Path(x["model"]).stem, x["mesh"], x["budget"], seconds(x["ours"]["cost_s"])]
        body.append((*cells, *(baseline_cell([b for b in x["baselines"] if b["name"] == n]) for n in names)))
    return markdown(("model", "mesh", "budget", "ours", *names), body)


def baseline_cell(found: Sequence[Line]) -> str:
    if not found:
        return ""
    fitting = [b for b in found if b["fits"]]
    if not fitting:
        return f"({gib(min(b['peak_bytes'] for b in found))} GiB)"
    best = min(fitting, key=lambda b: b["cost_s"])
    return seconds(best["cost_s"]) + {"none": "", "selective": " s", "full": " f"}[best["checkpoint"]]


def headline(rows: Sequence[Line]) -> str:
    """Geometric means over rows where the other way fits, and how often it does not."""
    said = []
    for what, key in GAINS:
        gains = [x[key] for x in rows if x[key]]
        only = sum(x[key] is None and x["ours"]["cost_s"] is not None for x in rows)
        if gains:
            mean = math.exp(sum(map(math.log, gains)) / len(gains))
            said.append(f"{what}: {times(mean)} on average, up to {times(max(gains))}, does not fit in {only} of {len(rows)}")
    proven = sum(x["ours"].get("status") == "optimal" for x in rows)
    return "; ".join(
        [*said, f"proven optimal in {proven} of {len(rows)}; failed checks in {sum(bool(x['failed']) for x in rows)}"]
    )


def batch_table(batches: Iterable[Line]) -> str:
    header = ("model", "mesh", "GiB", "ours", "two-stage", "best share", "best baseline")
    ways = ("ours", "two_stage", "two_stage_best_share", "baseline")
    body = [
        (Path(x["model"]).stem, x["mesh"], gib(x["budget"]), *(str(x["largest"][way] or "none") for way in ways))
        for x in sorted(batches, key=lambda x: (x["model"], x["mesh"]))
    ]
    return markdown(header, body)


def markdown(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def seconds(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g} s" if value >= 1 else f"{value * 1e3:.4g} ms"


def times(value: float | None) -> str:
    return "does not fit" if value is None else f"{value:.3f}"


def gib(size: float) -> str:
    return f"{size / GIB:.3g}"
