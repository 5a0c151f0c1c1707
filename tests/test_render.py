"""Plans as text: a golden table of a hand-made plan, and what must hold at any width."""

from __future__ import annotations

import doctest
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autopar import render, seconds
from autopar.codegen.measure import Counted
from autopar.ir.placement import Placement
from autopar.ir.plan import Plan, PlannedConversion
from autopar.ir.region_view import call_ranges, chains, pattern, region_view
from autopar.render import print_plan
from tests.small_plan import DATA, choice, small_plan, unit

GOLDEN = Path(__file__).parent / "golden" / "plan_100.txt"
"""To accept a change: run this file as a script (`python -m tests.test_render`) and read the difference."""


def text(plan: Plan, width: int, measured: Counted | None = None, **options: Any) -> str:
    out = io.StringIO()
    print_plan(plan, measured, Console(file=out, width=width, **options))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def counted(plan: Plan, **changes: Any) -> Counted:
    """What a program that does exactly as planned is counted to do, but for `changes`."""
    figures = plan.figures
    as_planned = {
        "forward_flops": figures.forward_flops,
        "backward_flops": figures.backward_flops,
        "redone_flops": figures.redone_flops,
        "collectives": figures.collectives,
        "peak_bytes": int(plan.peak_bytes),
        "peak_where": plan.peak_where,
        "state_bytes": 0,
    }
    return Counted(**(as_planned | changes))


def test_the_tables_of_a_plan() -> None:
    plan = small_plan()
    assert text(plan, 100, counted(plan)) == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_line_is_wider_than_the_console_and_no_column_is_lost(width: int) -> None:
    shown = text(small_plan(), width)
    assert max(map(len, shown.splitlines())) <= width
    header = next(line for line in shown.splitlines() if line.startswith("unit") and "2–3" in line)
    for column in ("node", "gpu", "conversions", "2–3"):
        assert column in header


def test_long_names_are_broken_and_not_cut() -> None:
    name = "transformer_encoder_block_self_attention_projection_addmm"
    layer = DATA["regions"]["h.*"]
    renamed = layer | {"units": layer["units"] | {name: unit("matmul", name, None, None)}}
    shown = text(small_plan(regions=DATA["regions"] | {"h.*": renamed}), 100)
    assert max(map(len, shown.splitlines())) <= 100
    first = next(i for i, line in enumerate(shown.splitlines()) if line.startswith(name[:20]))
    assert "".join(line.split()[0] for line in shown.splitlines()[first : first + 3]).startswith(name)


def test_no_escape_codes_where_the_output_is_no_terminal() -> None:
    assert "\x1b" not in text(small_plan(), 100)
    assert "\x1b" in text(small_plan(), 100, force_terminal=True, color_system="standard")


def test_what_was_counted_otherwise_is_shown() -> None:
    plan = small_plan()
    assert "equal" in text(plan, 100, counted(plan))
    assert "counted" not in text(plan, 100).partition("memory at the peak")[0]
    shown = text(
        plan, 100, counted(plan, collectives=plan.figures.collectives[:2], forward_flops=2 * plan.figures.forward_flops)
    )
    assert "+100.00%" in shown
    assert "2.93 KiB in 2, counted –" in shown


def test_a_plan_without_collectives_says_so() -> None:
    plan = small_plan(figures=DATA["figures"] | {"collectives": []})
    assert "no collectives" in text(plan, 100)


def test_small_units_with_a_cut_or_a_conversion_are_shown() -> None:
    start = DATA["regions"]["start"]
    units = start["units"] | {"mask": unit("pointwise", "le mask", ("b", "batch"), None)}
    rows = region_view(small_plan(regions=DATA["regions"] | {"start": start | {"units": units}}), "start").rows
    assert [row.name for row in rows] == ["arange", "mask", "index", "wte_embedding", "  → result"]


def test_layers_are_never_folded() -> None:
    layer = DATA["regions"]["h.*"]
    plain = {"units": {n: unit("norm", n, None, None) for n in "ab"}, "converted": [], "classes": [choice(4, {})]}
    rows = region_view(small_plan(regions=DATA["regions"] | {"h.*": plain}), "h.*").rows
    assert [row.name for row in rows] == ["a", "b"]
    assert len(layer["units"]) > 0


def test_equal_classes_share_a_column() -> None:
    assert region_view(small_plan(), "h.*").classes == ("calls 0–1", "calls 2–3")
    assert call_ranges([5]) == ("for backward",)
    assert call_ranges([1, 2, 1]) == ("call 0", "calls 1–2", "call 3")


def converted(*pairs: tuple[str, str]) -> list[PlannedConversion]:
    return [PlannedConversion(tensor="t", before=Placement.parse(b), after=Placement.parse(a)) for b, a in pairs]


@pytest.mark.parametrize(
    ("pairs", "lines"),
    [
        ([("S(0), R", "R, R"), ("S(0), S(0)", "S(0), R")], ["gather gpu node"]),  # in order of the path, whatever is said first
        ([("I, S(1)", "I, R"), ("I, S(1)", "I, I")], ["gather gpu", "gather_invariant gpu"]),
        ([("I, S(1)", "I, S(2)")], ["exchange gpu (1 to 2)"]),
        ([("P, I", "I, I"), ("I, I", "I, S(0)")], ["reduce node, slice gpu (0)"]),
        ([], []),
    ],
)
def test_chains_of_conversions(pairs: list[tuple[str, str]], lines: list[str]) -> None:
    assert list(chains(converted(*pairs), ("node", "gpu"))) == lines


@pytest.mark.parametrize(
    ("name", "expected"),
    [("h.3.attn.weight", "h.*.attn.weight"), ("conv1.weight", "conv1.weight"), ("0.1.w2", "*.*.w2"), ("h.12", "h.*")],
)
def test_pattern(name: str, expected: str) -> None:
    assert pattern(name) == expected


def test_a_name_without_a_twin_keeps_its_number() -> None:
    state = {"layers.0.weight": DATA["state"]["wte.weight"]}
    assert "layers.0.weight" in text(small_plan(state=state), 100)


def test_memory_of_an_unknown_purpose_is_not_lost() -> None:
    assert render.memory_split({"a at rest [I]": 1.0, "b kept x 2": 5.0, "something new": 2.0}) == {
        "kept for backward": 5.0,
        "other": 2.0,
        "state at rest: parameters, gradients, optimizer": 1.0,
    }


def test_examples_of_the_docstrings() -> None:
    for module in (render, seconds):
        result = doctest.testmod(module)
        assert result.attempted >= 1
        assert result.failed == 0


if __name__ == "__main__":
    GOLDEN.write_text(text(small_plan(), 100, counted(small_plan())), encoding="utf-8")
