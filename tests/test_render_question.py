"""What is said below a comparison, where the clock and the plan disagree about who is first."""

from __future__ import annotations

import pytest

from autopar.ir.mesh import MeshSpec
from autopar.planning.compare import OURS, Comparison, Way
from autopar.render_question import clock_verdict


def comparison(*ways: Way) -> Comparison:
    return Comparison(model="model", mesh=MeshSpec.of("4"), hardware="cpu", budget_bytes=100, ways=ways)


def way(name: str, step_time_s: float, clock_s: float, peak_bytes: float = 50.0) -> Way:
    return Way(
        name=name,
        checkpoint="none",
        step_time_s=step_time_s,
        clock_s=clock_s,
        peak_bytes=peak_bytes,
        fits=peak_bytes <= 100,
        sent_bytes={"gpu": 0.0},
        time_s={},
        redone_flops=0,
    )


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([way("ddp", 1.5, 1.6)], None),
        ([way("ddp", 0.8, 1.1)], None),
        ([way("ddp", 1.5, 1.0)], "this plan is 1.25× slower: 1.25 s, against 1 s of ddp, checkpoint none"),
        ([way("ddp", 0.8, 2.5)], "this plan is 2.00× faster: 1.25 s, against 2.5 s of ddp, checkpoint none"),
        ([way("ddp", 1.5, 3.0), way("tp", 2.0, 1.0)], "this plan is 1.25× slower: 1.25 s, against 1 s of tp, checkpoint none"),
        ([way("ddp", 1.5, 1.249)], None),
        ([way("ddp", 1.5, 0.1, peak_bytes=101.0)], None),
    ],
    ids=["first by both", "second by both", "first by the plan", "first by the clock", "another", "as fast", "too large"],
)
def test_a_sentence_says_where_only_one_of_the_two_has_the_plan_first(others: list[Way], said: str | None) -> None:
    found = list(clock_verdict(comparison(way(OURS, 1.0, 1.25), *others)))
    assert len(found) == (said is not None)
    assert all(sentence.endswith(said or "") for sentence in found)
