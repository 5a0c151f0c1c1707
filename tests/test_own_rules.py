"""Rules of users in a plan: functions and module classes that cannot be traced are cut, run, and equal to one device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

import autopar
from autopar.cache.start import start_key
from autopar.cache.values import Unclear
from autopar.errors import ConstraintError, RuleError
from autopar.ops.tables import USER_RULES
from autopar.planning.key import rules_of_users
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.own_rules import Gated, mixed
from tests.processes import run_processes

CUT_HIDDEN = autopar.Constraints(pins=["op=autopar_user.Gated: factor=n on gpu"])


def cut_of(plan: autopar.Plan) -> dict[str, set[str | None]]:
    """What is cut of the ops of users, by their names."""
    units = [(name, unit) for region in plan.regions.values() for name, unit in region.units.items()]
    return {op: {f for name, unit in units if op in name for f in unit.factors} for op in ("routed", "Gated")}


@pytest.mark.parametrize("mesh", ["2", "2x2"])
def test_function_and_class_are_cut_and_equal_to_one_device(mesh: str) -> None:
    model, batch = mixed()
    report = autopar.verify(model, mesh, kwargs=batch, hardware=toy_hardware())
    assert report.max_relative_error <= 1e-9, report.tensors[:3]
    found = cut_of(report.plan)
    assert found["routed"] - {None}
    assert found["Gated"] - {None}


@pytest.mark.parametrize("mesh", ["2", "2x2"])
def test_own_implementation_runs_where_its_factor_is_cut(mesh: str) -> None:
    """Its hidden dim cut: a norm over all devices, and an offset that is added once."""
    model, batch = mixed()
    report = autopar.verify(model, mesh, kwargs=batch, hardware=toy_hardware(), constraints=CUT_HIDDEN)
    assert report.max_relative_error <= 1e-9, report.tensors[:3]
    assert "n" in cut_of(report.plan)["Gated"]


def test_a_pin_of_an_op_that_is_not_there_lists_those_of_rules_by_their_names() -> None:
    model, batch = mixed()
    wrong = autopar.Constraints(pins=["op=autopar_user.Gate: tensor=gpu"])
    with pytest.raises(ConstraintError, match=r"autopar_user\.Gated, autopar_user\.routed, .*linear"):
        autopar.plan(model, "2", kwargs=batch, hardware=toy_hardware(), constraints=wrong)


def test_a_plan_that_cannot_cut_an_op_names_op_and_node() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(8, 8)
            self.flipped = Flipped()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.flipped(self.linear(x)).square().mean()  # type: ignore[no-any-return]

    class Flipped(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.flip(x, [0, 1])

    pinned = autopar.Constraints(pins=["flipped: batch=gpu"])
    with pytest.raises(ConstraintError, match=r"aten\.flip\.default at flipped \(test_own_rules\.py:\d+\).*@autopar\.op_rule"):
        autopar.plan(Net(), "2", (torch.randn(4, 8),), hardware=toy_hardware(), constraints=pinned)


def test_a_row_that_does_not_fit_a_call_names_factor_op_and_node() -> None:
    @autopar.op_rule("t k, t n -> t n")
    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x @ weight

    class Wrong(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return product(x, self.weight).square().mean()

    wanted = r"factor t is 4 in dim 0 of operand 0 \[4, 8\], but 8 in dim 0 of operand 1 \[8, 8\].* at test_own_rules\.py:\d+"
    with pytest.raises(RuleError, match=wanted):
        autopar.plan(Wrong(), "2", (torch.randn(4, 8),))


def test_a_row_of_an_op_that_does_not_fit_a_call_names_op_and_node() -> None:
    @autopar.op_rule("t k -> k t")
    @torch.library.custom_op("tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    twice.register_fake(torch.empty_like)
    twice.register_autograd(lambda ctx, gradient: 2 * gradient)

    class Wrong(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(8, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return twice(self.linear(x)).square().mean()

    with pytest.raises(RuleError, match=r"factor k is 6 in dim 1 of operand 0 .*tests\.twice\.default at .*test_own_rules\.py"):
        autopar.plan(Wrong(), "2", (torch.randn(4, 8),))


def train(rank: int) -> None:
    """Two steps of the parallel model, against those of the model itself."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("gpu",))
    model, batch = mixed()
    serial, _ = mixed()
    options = {"hardware": toy_hardware(), "constraints": CUT_HIDDEN}
    parallel = autopar.compile(model.double(), mesh, kwargs={"x": batch["x"].double()}, **options)  # type: ignore[arg-type]
    assert "n" in cut_of(parallel.plan)["Gated"]
    serial = serial.double()
    losses = []
    for one in (parallel, serial):
        stepper = torch.optim.SGD(one.parameters(), lr=0.1)
        for _ in range(3):
            stepper.zero_grad()
            loss = one(x=batch["x"].double())
            loss.backward()
            stepper.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.slow
def test_two_processes_train_as_one() -> None:
    run_processes(2, train)


def test_eager_calls_are_as_before() -> None:
    model, batch = mixed()
    assert type(model.layers[0]) is Gated
    before = {name: id(tensor) for name, tensor in model.named_parameters()}
    autopar.plan(model, "2", kwargs=batch)
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == before
    assert [type(layer) for layer in model.layers] == [Gated, Gated]
    loss = model(**batch)
    assert "Backward" in type(loss.grad_fn).__name__
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_key_of_a_plan_depends_on_the_code_of_its_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = mixed()
    program = trace(model, (), batch)
    before = rules_of_users(program)
    assert {text.partition(":")[0] for text in before} == {"autopar_user.routed.default", "autopar_user.Gated.default"}
    for op, rule in list(USER_RULES.items()):
        if str(op) == "autopar_user.Gated.default":
            monkeypatch.setitem(USER_RULES, op, replace(rule, version="another"))
    assert len(rules_of_users(program) - before) == 1


def test_a_program_with_a_class_that_has_a_rule_is_traced_at_each_start() -> None:
    """What was traced before the class had its rule must not be taken for it."""
    model, batch = mixed()
    with pytest.raises(Unclear, match="Gated has a rule"):
        start_key(model, (), batch, None)
