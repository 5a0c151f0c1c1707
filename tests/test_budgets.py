"""From a loose budget to the tightest: plans change, and the emitted program is what the plan says."""

from __future__ import annotations

import pytest

from tests.planned import planned, tightest

NAME, MESH = "gpt2", "2x2"


@pytest.mark.slow
def test_five_budgets_from_loose_to_tightest() -> None:
    loose, _, _ = planned(NAME, MESH)
    lowest = tightest(NAME, MESH)
    low, high = int(lowest[0].peak_bytes) + 1, int(loose.peak_bytes) + 1
    budgets = [low + (high - low) * i // 4 for i in range(5)]
    found = [lowest, *(planned(NAME, MESH, budget) for budget in budgets[1:])]
    for budget, (plan, _, counted) in zip(budgets, found, strict=True):
        assert counted.peak_bytes <= budget
        figures = plan.figures
        assert counted.forward_flops == figures.forward_flops
        assert (counted.backward_flops, counted.redone_flops) == (figures.backward_flops, figures.redone_flops)
        assert counted.collectives == figures.collectives
    assert len({plan.model_dump_json(include={"regions", "state"}) for plan, _, _ in found}) == len(budgets), "the plan changes"
    costs = [plan.step_time_s for plan, _, _ in found]
    assert costs[0] >= costs[-1] * (1 - 0.02), "memory is never worth nothing"
    assert any(c.redone for r in found[0][0].regions.values() for c in r.classes), "the tightest plan recomputes"
