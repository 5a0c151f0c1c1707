"""Profiles as text and pictures: formulas as people read them, and what must hold of the tables at any width."""

from __future__ import annotations

import doctest
import io
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import sympy
import torch
from rich.console import Console
from torch import nn

import autopar
from autopar import formula, plot_profile, profile_tree, render_profile
from autopar.bytes import human
from autopar.formula import NEGLIGIBLE, spell
from autopar.plot_profile import LAYERS, stacks
from autopar.profile_tree import shown_depth, tree
from autopar.profile_view import View
from autopar.render_profile import print_profile

BATCH, SEQ = sympy.symbols("batch seq", integer=True, positive=True)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.off = nn.Linear(8, 32), nn.Linear(32, 8), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.off(x + self.narrow(self.wide(x).relu()))


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(5))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x).sum()


@cache
def view(**options: Any) -> View:
    profile = autopar.profile(Tower(), (torch.zeros(4, 6, 8),), dynamic={"batch": 0, "seq": 1}, **options)
    return View(profile=profile, sizes={"batch": 4, "seq": 6})


def text(shown: View, width: int = 140, **options: Any) -> str:
    out = io.StringIO()
    console = {k: options.pop(k) for k in ("force_terminal", "color_system") if k in options}
    print_profile(shown, console=Console(file=out, width=width, **console), **options)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def test_no_line_is_wider_than_the_console() -> None:
    for width in (80, 100, 140):
        assert max(map(len, text(view(), width, ops=True).splitlines())) <= width


def test_no_escape_codes_where_the_output_is_no_terminal() -> None:
    assert "\x1b" not in text(view())
    assert "\x1b" in text(view(), force_terminal=True, color_system="standard")


def test_shares_of_the_peak_add_up_to_the_peak() -> None:
    shown, memory = text(view()), view().memory
    assert sum(memory.split.values()) == memory.peak_bytes
    rows = shown.partition("memory at the peak")[2].partition("together")[0].splitlines()[3:-1]
    assert "parameters" in rows[0]
    assert human(memory.peak_bytes) in shown.partition("together")[2].splitlines()[0]


def test_growth_of_each_part_is_its_size_at_the_sizes() -> None:
    memory, number = view().memory, view().number
    assert {part: number(growth) for part, growth in memory.growth.items()} == memory.split
    assert view().number(sum(memory.growth.values())) == memory.peak_bytes


def test_the_course_of_each_kind_adds_up_to_the_levels() -> None:
    memory = view().memory
    rest = sum(size for part, size in memory.split.items() if part not in memory.course)
    sums = tuple(rest + sum(parts) for parts in zip(*memory.course.values(), strict=True))
    assert sums == memory.levels


def test_ops_at_a_size_add_up_to_the_figures() -> None:
    at, ops = view().at, view().ops
    assert sum(op.flops for op in ops) == at.forward_flops + at.backward_flops
    assert sum(op.bytes for op in ops) == at.moved_bytes
    assert sum(op.seconds or 0.0 for op in ops) == pytest.approx((at.forward_s or 0) + (at.backward_s or 0))
    assert view().module_s[""] == pytest.approx((at.forward_s or 0) + (at.backward_s or 0))


def test_what_bounds_an_op_is_its_largest_part() -> None:
    hardware = view().profile.hardware
    assert hardware is not None
    slow = replace(hardware, launch_s=0.0, peak_flops_per_s={"float32": 1.0})
    for device, bounds in ((slow, {"compute", "memory"}), (replace(hardware, launch_s=1.0), {"launch"})):
        shown = replace(view(), profile=replace(view().profile, hardware=device))
        assert {op.bound for op in shown.ops} == bounds


def test_a_list_and_its_members_are_one_row_and_what_costs_nothing_none() -> None:
    root = tree(view())
    rows = [(level, node.label, node.calls) for level, node in root.walk(9)]
    assert rows == [
        (0, "Tower", 1),
        (1, "blocks.*", 5),
        (2, "wide", 1),
        (2, "narrow", 1),
        (1, "head", 1),
    ]


def test_depth_is_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(view())
    assert len(list(root.walk(shown_depth(root)))) == 5
    monkeypatch.setattr(profile_tree, "ROWS", 4)
    assert shown_depth(root) == 1


def test_without_hardware_there_are_no_times_and_ops_are_ordered_by_bytes() -> None:
    bare = replace(view(), profile=replace(view().profile, hardware=None))
    shown = text(bare, ops=True)
    assert "step time" not in shown
    assert "time" not in shown.partition("modules")[2].partition("region types")[0]
    assert "ops that move most" in shown


def test_a_peak_above_the_budget_or_the_device_is_told() -> None:
    peak = view().at.peak_bytes
    assert f"of {human(peak / 2)} (200%)" in text(replace(view(), budget_bytes=peak // 2))
    hardware = view().profile.hardware
    assert hardware is not None
    assert f"on {hardware.name}" in text(view())
    assert f"on {hardware.name}" not in text(replace(view(), on_named_hardware=False))


def test_answers_name_the_limit_of_the_model() -> None:
    limited = replace(view(), budget_bytes=10**6, limits={"seq": 7})
    batch, seq = limited.largest
    assert batch.size == batch.by_memory == view().profile.max_batch(10**6, seq=6)
    assert (seq.size, seq.by_memory) == (7, view().profile.max_seq(10**6, batch=4))
    assert f"seq up to 7 at batch 4, the model's own limit (memory allows {seq.by_memory})" in text(limited)


def test_the_picture_stacks_up_to_the_peak() -> None:
    for optimizer in ("adamw", "sgd"):
        memory = view(optimizer=optimizer).memory
        x, layers = stacks(memory)
        assert set(layers) == {key for key, _, _ in LAYERS}
        assert sum(layers.values()).max() == memory.peak_bytes
        assert len(x) == len(memory.levels) + 2


@pytest.mark.parametrize(
    ("expression", "sizes", "expected"),
    [
        (0, None, "0 B"),
        (sympy.Integer(2048), None, "2 KiB"),
        (BATCH * (SEQ + 3), None, "1 B·batch·seq + 3 B·batch"),
        (2 * BATCH - 4, None, "2 B·batch − 4 B"),
        (sympy.Max(2 * BATCH, 3 * SEQ), {BATCH: 8, SEQ: 1}, "2 B·batch"),
        (sympy.Max(2 * BATCH, 3 * SEQ), {BATCH: 1, SEQ: 8}, "3 B·seq"),
        (4 * sympy.floor(SEQ / 2), None, "4 B·floor(seq/2)"),
    ],
)
def test_formulas(expression: Any, sizes: Any, expected: str) -> None:
    assert spell(expression, human, sizes) == expected


def test_terms_are_left_out_only_where_they_are_nothing() -> None:
    small = int(1 / NEGLIGIBLE)
    assert "seq" in spell(BATCH + SEQ, human, {BATCH: small // 2, SEQ: 1})
    assert "seq" not in spell(BATCH + SEQ, human, {BATCH: small * 2, SEQ: 1})


@pytest.mark.parametrize("module", [formula, render_profile, plot_profile], ids=lambda m: m.__name__)
def test_examples_of_the_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 1
    assert result.failed == 0
