"""The rows of `coverage.py` as a page of documentation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

Row = dict[str, Any]
MARKS = {"equal": "equal", "unequal": "UNEQUAL", "refused": "–"}
ACTIVATIONS = ("tensor", "sequence", "hidden")

HEAD = """# Models that work

Made by `python -m benchmarks.coverage`, from docs/coverage.json. Each model is a class of `transformers` or of plain torch,
unmodified, from a tiny config with random weights; each cell a training run of three AdamW steps with all ranks in one process,
in float64, under a plan for hardware on which cutting pays. *equal*: losses, outputs, all gradients, updated weights and
buffers are within 1e-9 (relative) of those of the serial run. The share tells how many units of the plan cut something.
"""


def cell(row: Row | None) -> str:
    """One row in a few characters."""
    if row is None:
        return ""
    if row["stage"] not in MARKS:
        return f"not {row['stage']}"
    share = ""
    if cuts := row.get("roles"):
        share = f" {100 * cuts.get('cut', 0) // cuts['units']}%"
    return f"{MARKS[row['stage']]}{share}"


def document(rows: Sequence[Row], further: Collection[str] = ()) -> str:
    """The whole page; models in `further` are only listed."""
    listed = [r for r in rows if r["model"] in further]
    rows = [r for r in rows if r["model"] not in further]
    free = [r for r in rows if not r["forced"]]
    parts = [HEAD, "## Plans that the solver chose", matrix(free, "mesh"), legend(free)]
    if forced := [r for r in rows if r["forced"]]:
        parts += ["## Plans that a pin forced on the first axis", FORCED, matrix(forced, "forced")]
    if listed:
        parts += ["## Further classes of transformers", names(listed)]
    parts += ["## Ops kept whole", whole(free)]
    if failures := [r for r in (*rows, *listed) if r["stage"] not in ("equal", "refused")]:
        parts += ["## What does not work", "\n".join(f"- {r['model']} on {r['mesh']}: {reason(r)}" for r in failures)]
    return "\n\n".join(parts) + "\n"


FORCED = """`--pin "**: batch=AXIS"` and the like; where the model does not allow it for every product, for a part of them.
–: refused, with the reason (a dim does not divide, or there is none)."""


REMARKS = {
    "MobileViTV2ForImageClassification": (
        "a gradient that cancels out: the serial run's own changes by 1.3e-9 with the order of the samples in the batch"
    ),
}
"""What is known of rows that are not equal."""


def reason(row: Row) -> str:
    said = str(row.get("failure") or f"{row.get('worst', '')}, {row.get('error', 0.0):.1e}").splitlines()[0]
    return f"{said} ({REMARKS[row['model']]})" if row["model"] in REMARKS else said


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def matrix(rows: Sequence[Row], by: str) -> str:
    """Models down, meshes (or what is forced) across; over several meshes the worst of them."""
    columns = sorted({r[by] for r in rows}, key=lambda c: (len(c), c))
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row["model"], row[by]
        if key not in found or row["stage"] not in ("equal", "refused") or found[key]["stage"] == "refused":
            found[key] = row
    models = sorted({r["model"] for r in rows})
    return table(["model", *columns], [[m, *(cell(found.get((m, c))) for c in columns)] for m in models])


def legend(rows: Sequence[Row]) -> str:
    """What plans cut besides the batch, and the largest error."""
    errors = [r["error"] for r in rows if "error" in r]
    cut = {r["model"] for r in rows if any(r.get("roles", {}).get(role) for role in ACTIVATIONS)}
    rest = sorted({r["model"] for r in rows} - cut)
    seconds = sum(r["seconds"] for r in rows)
    others = f" (not of {', '.join(rest)})" if rest else ""
    return (
        f"Largest error: {max(errors, default=0.0):.1e}. Activations are cut along more than the batch in at least one plan of "
        f"{len(cut)} models{others}. {len(rows)} rows took {seconds / 60:.0f} minutes together."
    )


def names(rows: Sequence[Row]) -> str:
    """Those that are equal, by name; after a slash what is special about the config."""
    equal = [r for r in rows if r["stage"] == "equal"]
    meshes = " and ".join(sorted({r["mesh"] for r in rows}))
    worst = max((r["error"] for r in equal), default=0.0)
    return (
        f"One line each in `tests/zoo_table.py`, on {meshes} (`--models more`): {len(equal)} of {len(rows)} are equal, the "
        f"largest error is {worst:.1e}.\n\n{', '.join(sorted({r['model'] for r in equal}))}."
    )


def whole(rows: Sequence[Row]) -> str:
    """Ops by how many models keep them whole."""
    users: dict[str, set[str]] = {}
    for row in rows:
        for op in row.get("kept_whole", {}):
            users.setdefault(op, set()).add(row["model"])
    order = sorted(users, key=lambda op: (-len(users[op]), op))
    return table(["op", "models"], [[f"`{op}`", ", ".join(sorted(users[op]))] for op in order])
