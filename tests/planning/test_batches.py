"""Micro-batches: counts, example inputs of another size, and the choice between few large and many small ones."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import nn

import autopar
from autopar.errors import InputError
from autopar.planning.batches import batch_of, micro_batch_counts, with_batch
from autopar.planning.planner import Aims, Planner, silent
from autopar.planning.scaling import grows_faster_than_batch
from autopar.planning.settings import SettingSearch
from autopar.planning.shapes import mesh_shapes
from autopar.profiler.model_cost import measure
from autopar.solver.problem import Problem
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.models import mlp
from tests.planned import traced

GLOBAL, GAP = 512, 1e-3
MESH = autopar.MeshSpec((2,))


def test_counts_divide_the_batch() -> None:
    assert micro_batch_counts(64, 8) == (1, 2, 4, 8)
    assert micro_batch_counts(7) == (1, 7)
    assert micro_batch_counts(64, micro_batch=16) == (4,)
    with pytest.raises(InputError, match="larger than the global batch of 4"):
        micro_batch_counts(4, 5)
    with pytest.raises(InputError, match="10 samples is not divisible by micro-batches of 4: give 8 or 12"):
        micro_batch_counts(10, micro_batch=4)
    with pytest.raises(InputError, match="3 samples is not divisible by micro-batches of 4: give 4"):
        micro_batch_counts(3, micro_batch=4)
    for wrong in (0, -1, True, 2.0):
        with pytest.raises(InputError, match="global batch"):
            micro_batch_counts(wrong)  # type: ignore[arg-type]


def test_inputs_of_another_batch_size_keep_the_rest() -> None:
    x, positions = torch.arange(6).reshape(3, 2), torch.arange(2).reshape(1, 2)
    (bigger, same), kwargs = with_batch((x, positions), {"scale": 2.0, "y": x[:, 0]}, 5)
    assert bigger.tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert same is positions
    assert (kwargs["scale"], kwargs["y"].shape) == (2.0, (5,))
    assert with_batch((x.to("meta"),), {}, 7)[0][0].shape == (7, 2)
    with pytest.raises(InputError, match="no tensor with a batch dim"):
        batch_of((torch.tensor(1.0),), {"flag": True})


class Compares(nn.Module):
    """Every sample with every other one, as contrastive losses do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.linear(x)
        return (found @ found.transpose(0, 1)).square().mean()


def test_only_models_that_compare_samples_grow_faster_than_the_batch() -> None:
    assert not grows_faster_than_batch(measure(traced("mlp").program))
    assert not grows_faster_than_batch(measure(traced("gpt2").program))
    assert grows_faster_than_batch(measure(trace(Compares(), (torch.zeros(6, 8),))))


@lru_cache(maxsize=8)
def planner(count: int) -> Planner:
    model, kwargs = mlp(device="meta", batch=GLOBAL // count)
    aims = Aims(hardware=toy_hardware(link_bytes_per_s=1e9), optimizer="sgd", gap=GAP, time_limit_s=10)
    return Planner(trace(model, (), kwargs, name="mlp"), aims, micro_batches=count)


def problem(count: int) -> Problem:
    return planner(count).priced(MESH).problem


def test_micro_batches_hold_gradients_all_the_time_and_repeat_all_but_the_optimizer() -> None:
    one, four = problem(1), problem(4)
    trained = [name for name, group in one.state.items() if any(group.grad_bytes_at.values())]
    assert trained
    for name in trained:
        for placement, size in one.state[name].grad_bytes_at.items():
            assert four.state[name].bytes_at[placement] >= one.state[name].bytes_at[placement] + size
            assert four.state[name].step_s_at[placement] == one.state[name].step_s_at[placement]
    assert (one.micro_batches, four.micro_batches) == (1, 4)
    assert planner(4).loosest(MESH).cost_s >= planner(1).loosest(MESH).cost_s


@pytest.mark.parametrize(("share", "best"), [(None, 1), (0.8, 2), (0.6, None)])
def test_the_best_number_of_micro_batches_is_found(share: float | None, best: int | None) -> None:
    """With all the memory one batch is best, here; with less two are faster than recomputing; with still less a whole one
    does not fit, and there is not much between the others."""
    budget = share and share * planner(1).loosest(MESH).peak_bytes
    counts = (1, 2, 4)
    plan = SettingSearch(lambda n, s: planner(n), (MESH,), counts, budget, time_limit_s=60, gap=GAP, progress=silent).run().plan
    assert plan.inputs["x"].shape[0] * plan.micro_batches == GLOBAL
    assert [t.micro_batches for t in plan.tried] == [1, 2, 4]
    for tried in plan.tried:
        try:
            each = planner(tried.micro_batches).find(MESH, budget, incumbents=()).plan
        except autopar.errors.BudgetError:
            assert tried.outcome in ("does not fit", "cannot be faster")
            continue
        assert each.step_time_s >= plan.step_time_s * (1 - 2 * GAP)
        assert tried.lower_bound_s is not None
        assert tried.lower_bound_s <= each.step_time_s * (1 + 1e-9), (
            "a bound of fewer micro-batches that does not hold for more"
        )
    assert plan.micro_batches == best if best else plan.micro_batches > 1


def test_the_plan_is_for_one_micro_batch() -> None:
    model, kwargs = mlp(device="meta", batch=4)
    hardware = toy_hardware()
    plan = autopar.plan(
        model, "2", kwargs=kwargs, global_batch=16, hardware=hardware, constraints=autopar.Constraints(min_micro_batch=4)
    )
    assert plan.micro_batches * plan.inputs["x"].shape[0] == 16
    assert max(t.micro_batches for t in plan.tried) == 4
    again = autopar.plan(model, "2", kwargs=with_batch((), kwargs, plan.inputs["x"].shape[0])[1], hardware=hardware)
    assert again.fingerprint == plan.fingerprint


def test_shapes_and_micro_batches_together() -> None:
    shapes = mesh_shapes(4, 2)
    found = SettingSearch(lambda n, s: planner(n), shapes, (1, 2), None, time_limit_s=60, gap=GAP, progress=silent).run().plan
    assert [(t.mesh.sizes, t.micro_batches) for t in found.tried] == [((4,), 1), ((2, 2), 1), ((4,), 2), ((2, 2), 2)]
