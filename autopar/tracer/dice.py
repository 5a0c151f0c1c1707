"""Random numbers that a model's code takes from Python or numpy: a trace has those of one step, for all steps."""

from __future__ import annotations

import random
import sys
from typing import Any

from torch import nn


def dice() -> dict[str, Any]:
    """The states of Python's and numpy's own random numbers."""
    numpy = sys.modules.get("numpy")
    found: dict[str, Any] = {"Python": random.getstate()}
    if numpy is not None:
        found["numpy"] = [getattr(part, "tolist", lambda p=part: p)() for part in numpy.random.get_state()]
    return found


def thrown(before: dict[str, Any]) -> list[str]:
    """Whose random numbers have been drawn since."""
    return [name for name, state in dice().items() if before.get(name, state) != state]


def assumed_of(model: nn.Module, before: dict[str, Any]) -> dict[str, None]:
    """What its trace takes for granted if it has drawn some, a sentence for each source."""
    name = type(model).__name__
    return {f"what {name} draws from {source}'s random numbers is the same in every step": None for source in thrown(before)}
