"""A closed form equals a fresh profile at every size, and the largest size that it finds is the one that a search finds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import autopar
from autopar.errors import InputError
from autopar.profiler.profile import Profile, ProfileAt
from tests.profiler.profiled import dims, dynamic, example, static, zoo
from tests.zoo import ZOO

SIZES = ((20, 24), (3, 9), (2, 31), (7, 2))
"""(batch, seq). From 16 samples on, torch may choose another convolution; that must not change bytes."""

each_model = zoo(fast=("gpt2", "mlp", "resnet"), cases=[(name, "default") for name in ZOO])


def fresh(name: str, batch: int, seq: int) -> tuple[dict[str, int], Profile]:
    """(sizes of the dynamic dims, profile without symbols) of the zoo's inputs of that batch and seq, where these are free."""
    free = dims(name)
    batch = batch if "batch" in free else ZOO[name].batch
    seq = {"whisper": ZOO[name].seq, "mamba": ZOO[name].seq}.get(name, seq)
    _, inputs = ZOO[name].build(batch=batch, seq=seq)
    sizes = {named: inputs[key].shape[dim] for named, where in free.items() for key, dim in where.items()}
    return sizes, static(name, batch=batch, seq=seq if "seq" in free else 0)


def apart(got: ProfileAt, wanted: ProfileAt) -> dict[str, tuple[Any, Any]]:
    """Fields that differ: numbers at all, seconds by more than rounding."""
    pairs = {field: (a, b) for (field, a), b in zip(asdict(got).items(), asdict(wanted).values(), strict=True)}
    same = {field: b if not field.endswith("_s") else pytest.approx(b, rel=1e-9) for field, (_, b) in pairs.items()}
    return {field: pair for field, pair in pairs.items() if pair[0] != same[field]}


@each_model
@pytest.mark.parametrize(("batch", "seq"), SIZES)
def test_closed_forms_equal_a_fresh_profile(name: str, attention: str, batch: int, seq: int) -> None:
    """Every figure, and every level of memory over time."""
    sizes, wanted = fresh(name, batch, seq)
    figures = dynamic(name)
    assert apart(figures.at(**sizes), wanted.at()) == {}
    assert figures.memory(**sizes).levels == wanted.memory().levels


@given(batch=st.integers(2, 70), seq=st.integers(2, 64))
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_closed_forms_at_random_sizes(batch: int, seq: int) -> None:
    """GPT-2 in both dims, by chance."""
    sizes, wanted = fresh("gpt2", batch, seq)
    figures = dynamic("gpt2")
    assert apart(figures.at(**sizes), wanted.at()) == {}


@pytest.mark.slow
@given(name=st.sampled_from(sorted(ZOO)), batch=st.integers(2, 40), seq=st.integers(2, 32))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_closed_forms_of_random_models_at_random_sizes(name: str, batch: int, seq: int) -> None:
    sizes, wanted = fresh(name, batch, seq)
    assert apart(dynamic(name).at(**sizes), wanted.at()) == {}


@each_model
def test_sizes_of_one(name: str, attention: str) -> None:
    """Torch does some things otherwise for dims of one (no copy where strides do not matter); FLOPs stay, bytes hardly move.

    Most in mamba: 4 % of what is saved for one sample.
    """
    sizes, wanted = fresh(name, 1, 12)
    got, exact = dynamic(name).at(**sizes), wanted.at()
    for figure in ("forward_flops", "backward_flops", "torch_forward_flops", "torch_backward_flops"):
        assert getattr(got, figure) == getattr(exact, figure)
    for figure in ("saved_bytes", "peak_bytes", "inference_peak_bytes"):
        assert getattr(got, figure) == pytest.approx(getattr(exact, figure), rel=0.05 if figure == "saved_bytes" else 0.02)


def searched(figures: Profile, dim: str, budget: int, **sizes: int) -> int:
    """The largest size by trying one after the other, as long as assumptions hold."""
    found = 0
    try:
        while figures.at(**{**sizes, dim: found + 1}).peak_bytes <= budget:
            found += 1
    except InputError as error:
        assert "holds while" in str(error)  # noqa: PT017
    return found


@pytest.mark.parametrize(
    ("name", "dim", "fixed"),
    [
        ("gpt2", "batch", {"seq": 16}),
        ("gpt2", "seq", {"batch": 3}),
        ("mlp", "batch", {}),
        ("resnet", "batch", {}),
        pytest.param("t5", "seq", {"batch": 2}, marks=pytest.mark.slow),
        pytest.param("mixtral", "batch", {"seq": 7}, marks=pytest.mark.slow),
        pytest.param("whisper", "target", {"batch": 2}, marks=pytest.mark.slow),
        pytest.param("gemma2", "seq", {"batch": 1}, marks=pytest.mark.slow),
        pytest.param("unet", "batch", {}, marks=pytest.mark.slow),
    ],
)
def test_largest_size_equals_a_search(name: str, dim: str, fixed: dict[str, int]) -> None:
    """For budgets at, below and above what sizes need."""
    figures = dynamic(name)
    need = [figures.at(**fixed, **{dim: size}).peak_bytes for size in (1, 2, 5, 25)]
    for budget in (*need, need[0] - 1, need[1] - 1, need[2] + 1, need[3] - 1, sum(need) // 2):
        assert figures.largest(dim, budget, **fixed) == searched(figures, dim, budget, **fixed)
    assert figures.largest(dim, need[0] - 1, **fixed) == 0
    assert figures.largest(dim, need[3], **fixed) >= 25


def test_max_batch_and_max_seq_by_fresh_profiles() -> None:
    figures = dynamic("gpt2")
    batch, seq = figures.max_batch(2_000_000, seq=12), figures.max_seq("2MB", batch=3)
    assert batch > 2
    assert seq > 2
    for (b, s), fits in {(batch, 12): True, (batch + 1, 12): False, (3, seq): True, (3, seq + 1): False}.items():
        assert (static("gpt2", batch=b, seq=s).at().peak_bytes <= 2_000_000) == fits


def test_nothing_fits() -> None:
    figures = dynamic("gpt2")
    assert figures.max_batch(1, seq=12) == figures.max_seq("1KiB", batch=2) == 0
    rest = figures.at(batch=1, seq=1).parameter_bytes
    assert figures.max_batch(rest, seq=12) == 0


class Constant(nn.Module):
    """A model whose memory does not depend on its input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.w * x[0]).sum()


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.w * x.shape[0]).sum()


def test_the_input_alone_can_be_what_grows() -> None:
    """At most 5 vectors of 64 numbers and a counter rest or are alive at once, beside the input."""
    figures = autopar.profile(Constant(), (torch.randn(4, 64),), dynamic={"rows": 0})
    assert figures.at(rows=9).peak_bytes - figures.at(rows=8).peak_bytes == 256
    budget = figures.at(rows=100).peak_bytes
    assert (figures.largest("rows", budget + 255), figures.largest("rows", budget - 1)) == (100, 99)


def test_every_size_fits() -> None:
    figures = autopar.profile(Unused(), (torch.zeros(4, 0),), dynamic={"rows": 0})
    with pytest.raises(InputError, match=r"memory does not grow with 'rows' of Unused: every size fits in 1000000 bytes"):
        figures.largest("rows", 1_000_000)
    assert figures.largest("rows", 100) == 0


def test_assumptions_bound_the_largest_size() -> None:
    """BERT has 512 positions: more do not run, whatever the budget."""
    figures = dynamic("bert", layers=1)
    assert figures.max_seq("1TiB", batch=2) == 512
    assert figures.at(batch=2, seq=512).peak_bytes > figures.at(batch=2, seq=511).peak_bytes
    with pytest.raises(InputError, match=r"the profile of bert holds while .*seq.*512.*: profile again with example inputs"):
        figures.at(batch=2, seq=513)


def test_sizes_must_be_all_and_positive() -> None:
    figures = dynamic("mlp")
    with pytest.raises(InputError, match=r"has the dynamic dims \['batch'\], and sizes were given for \['batch', 'seq'\]"):
        figures.at(batch=2, seq=3)
    for wrong in (0, -1, True, 2.0, "2"):
        with pytest.raises(InputError, match=rf"'batch' of mlp must be a positive int, not {wrong!r}"):
            figures.at(batch=wrong)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="must be a positive int"):
            figures.memory(batch=wrong)  # type: ignore[arg-type]
    for ask in (figures.at, figures.memory, figures.throughput):
        with pytest.raises(InputError, match="has the dynamic dims"):
            ask()


def test_questions_about_dims_that_are_none() -> None:
    figures = dynamic("mlp")
    with pytest.raises(InputError, match=r"mlp has no dynamic dim 'seq'; it has \['batch'\]: profile with dynamic=\{'seq': "):
        figures.max_seq("1GiB", batch=2)
    with pytest.raises(InputError, match=r"sizes were given for \['batch'\]"):
        figures.max_batch("1GiB", batch=2)
    with pytest.raises(InputError, match="1 parsec"):
        figures.max_batch("1 parsec")


def test_examples_stay_what_they_were() -> None:
    """The example sizes only decide branches: other examples, the same closed forms."""
    model, kwargs = ZOO["gpt2"].build(batch=3, seq=20, layers=4)
    other = autopar.profile(model, kwargs=kwargs, name="gpt2", dynamic=dims("gpt2"))
    sizes = {name: 2 * size for name, size in example("gpt2").items()}
    assert other.at(**sizes) == dynamic("gpt2").at(**sizes)
    assert other.memory(**sizes).levels == dynamic("gpt2").memory(**sizes).levels
