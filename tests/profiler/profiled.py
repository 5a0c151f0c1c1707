"""Profiles of the zoo and what real runs of it cost, each made once in a process."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest

import autopar
from autopar.profiler.profile import Profile
from tests.profiler.eager import CORRECTED, TORCH, Flops, saved_tensors, training_flops
from tests.profiler.eager_memory import Measured, inference, training_steps
from tests.zoo import ZOO

LAYERS = 4
"""Enough that a block's first, middle and last call differ."""

CASES = [(name, attention) for name, setup in ZOO.items() for attention in setup.attention]


def zoo(fast: Iterable[str], cases: Iterable[tuple[str, str]] = CASES) -> Any:
    """Parametrizes a test with each model and attention of the zoo; all but the fast ones are slow."""
    chosen = set(fast)
    return pytest.mark.parametrize(
        ("name", "attention"),
        [
            pytest.param(n, a, id=f"{n}-{a}", marks=[] if n in chosen and a == "default" else [pytest.mark.slow])
            for n, a in cases
        ],
    )


@cache
def static(
    name: str, attention: str = "default", *, batch: int = 0, seq: int = 0, layers: int = LAYERS, **options: Any
) -> Profile:
    """Without symbols."""
    model, kwargs = ZOO[name].build(batch=batch, seq=seq, layers=layers, attention=attention)
    return autopar.profile(model, kwargs=kwargs, name=name, **options)


@cache
def dynamic(name: str, attention: str = "default", *, layers: int = LAYERS, **options: Any) -> Profile:
    """In all dims that the zoo says can be left open."""
    model, kwargs = ZOO[name].build(layers=layers, attention=attention)
    return autopar.profile(model, kwargs=kwargs, name=name, dynamic=dims(name), **options)


def dims(name: str) -> dict[str, dict[str, int]]:
    """As `autopar.profile` takes them: name of the dim -> input -> dim."""
    found: dict[str, dict[str, int]] = {}
    for key, marks in ZOO[name].dynamic.items():
        for dim, named in marks.items():
            found.setdefault(named, {})[key] = dim
    return found


def example(name: str) -> dict[str, int]:
    """The sizes at which the zoo builds its inputs."""
    _, kwargs = ZOO[name].build()
    return {named: kwargs[key].shape[dim] for named, where in dims(name).items() for key, dim in where.items()}


@cache
def counted_by_torch(name: str, attention: str) -> Flops:
    return training_flops(*ZOO[name].build(layers=LAYERS, attention=attention), TORCH)


@cache
def counted_right(name: str, attention: str) -> Flops:
    return training_flops(*ZOO[name].build(layers=LAYERS, attention=attention), CORRECTED)


@cache
def saved_by_autograd(name: str, attention: str) -> int:
    return saved_tensors(*ZOO[name].build(layers=LAYERS, attention=attention)).bytes


@cache
def second_step(name: str, attention: str) -> Measured:
    """With AdamW, whose state is there."""
    return training_steps(*ZOO[name].build(layers=LAYERS, attention=attention))[1]


@cache
def inferred(name: str, attention: str) -> Measured:
    return inference(*ZOO[name].build(layers=LAYERS, attention=attention))
