"""What a training run is beside its weights: the step, random states, a schedule, and what the user adds, as one small file."""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from autopar.codegen.randomness import Randomness
from autopar.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RunState:
    """`random_states`: one per rank that saved. `model`: the state of a parallel module's own random
    numbers."""

    step: int
    random_states: Sequence[dict[str, Any]]
    scheduler: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    extra: Any = None

    def to_bytes(self) -> bytes:
        """Readable without running code; raises InputError if `extra` or the schedule holds other things than data."""
        buffer = io.BytesIO()
        torch.save(vars(self), buffer)
        try:
            RunState.from_bytes(buffer.getvalue())
        except Exception as error:
            raise InputError(
                "extra and the scheduler's state of a checkpoint may hold numbers, text, tensors, and lists, tuples and dicts "
                f"of these, since loading runs no code: {str(error).splitlines()[0]}"
            ) from error
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> RunState:
        return cls(**torch.load(io.BytesIO(data), weights_only=True, map_location="cpu"))


def randomness_of(model: nn.Module) -> Randomness | None:
    """Where a parallel module's random numbers come from; None for a plain one, which draws from torch's generator."""
    found = getattr(model, "randomness", None)
    return found if isinstance(found, Randomness) else None


def random_state() -> dict[str, Any]:
    """Of all generators that a training loop draws from in this process: torch's, Python's, and numpy's if it is in use."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if "numpy" in sys.modules:
        name, keys, *rest = sys.modules["numpy"].random.get_state()
        state["numpy"] = (name, keys.tolist(), *rest)
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """As `random_state` gave it."""
    torch.set_rng_state(state["torch"])
    random.setstate(cast(Any, state["python"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "numpy" in state:
        import numpy

        name, keys, *rest = state["numpy"]
        numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))


def random_state_of(rank: int, world_size: int, saved: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The state that a rank goes on with; None if other ranks saved, each with random numbers of its own.

    With the same number of ranks, its own. With another number, the common one if all drew the same numbers (each sees the
    global batch); otherwise there is no right answer, and ranks keep their present ones.
    """
    if len(saved) == world_size:
        return saved[rank]
    return saved[0] if all(torch.equal(s["torch"], saved[0]["torch"]) for s in saved) else None
