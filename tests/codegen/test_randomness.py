"""Keys of a step's draws, and the state that they follow from."""

from __future__ import annotations

import pytest
import torch

from autopar.codegen.randomness import Randomness
from autopar.errors import InputError
from autopar.ops.draws import Draw

CPU = torch.device("cpu")
DROPOUT = Draw(kind="dropout", numbers=(0.1,), shape=(4, 6), dtype=torch.float32)
NORMAL = Draw(kind="normal", numbers=(0.0, 1.0), shape=(8,), dtype=torch.float64)
DRAWS = [(DROPOUT, NORMAL), (), (DROPOUT,)]


def test_every_draw_of_every_step_has_a_key_of_its_own() -> None:
    source = Randomness(CPU, seed=3)
    steps = [source.keys(DRAWS) for _ in range(3)]
    assert [[tuple(table.shape) for table in call] for call in steps[0]] == [[(2, 4)], [], [(1, 4)]]
    rows = [tuple(row) for step in steps for call in step for table in call for row in table.tolist()]
    assert len(set(rows)) == 9
    assert len({number for row in rows for number in row}) == 36


def test_a_program_that_draws_nothing_counts_nothing() -> None:
    source = Randomness(CPU)
    assert source.keys([(), ()]) == ()
    assert source.state_dict() == {"seed": 0, "step": 0}


@pytest.mark.parametrize("random", ["counters", "serial"])
def test_going_on_from_a_state(random: str) -> None:
    source = Randomness(CPU, 5, random)  # type: ignore[arg-type]
    source.keys(DRAWS)
    state = source.state_dict()
    expected = source.keys(DRAWS)
    other = Randomness(CPU, 6, random)  # type: ignore[arg-type]
    other.load_state_dict(state)
    for ours, theirs in zip(other.keys(DRAWS), expected, strict=True):
        assert len(ours) == len(theirs)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_serial_keys_are_the_states_of_a_serial_run() -> None:
    torch.manual_seed(1)
    found = [row for call in Randomness(CPU, random="serial").keys(DRAWS) for table in call for row in table]
    left = torch.get_rng_state()
    torch.manual_seed(1)
    for key, draw in zip(found, (DROPOUT, NORMAL, DROPOUT), strict=True):
        assert torch.equal(key, torch.get_rng_state())
        if draw is DROPOUT:
            torch.nn.functional.dropout(torch.zeros(4, 6), 0.1)
        else:
            torch.randn(8, dtype=torch.float64)
    assert torch.equal(left, torch.get_rng_state())


def test_what_users_get_wrong() -> None:
    with pytest.raises(InputError, match=r'"counters" .* or "serial"'):
        Randomness(CPU, random="parallel")  # type: ignore[arg-type]
    for seed in (-1, 2**63, 1.5, True):
        with pytest.raises(InputError, match=r"seed is .*: an integer from 0"):
            Randomness(CPU, seed)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"generator.*random=.counters"):
        Randomness(CPU).load_state_dict({"generator": torch.get_rng_state()})
    with pytest.raises(InputError, match="step is -1"):
        Randomness(CPU).load_state_dict({"seed": 0, "step": -1})
