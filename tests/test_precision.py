"""Mixed precision: what rests, is computed with, travels and arrives in which dtype."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

import autopar
from autopar.api import plan_program
from autopar.codegen.all_ranks import run_all_ranks
from autopar.codegen.emit import Emitted
from autopar.codegen.measure import Counted
from autopar.errors import InputError, PlanError
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.ir.precision import Precision
from autopar.ops.flops import collectives_of
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.models import gpt2
from tests.planned import GAP

BF16, FP32 = torch.bfloat16, torch.float32
MIXED = MixedPrecisionPolicy(param_dtype=BF16, reduce_dtype=FP32)
ZERO3 = autopar.Constraints(pins=("**: batch=gpu", "**: rest=S(0) on gpu"))


class Net(nn.Module):
    """A tied weight, a frozen one, a buffer, and an output beside the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.again = nn.Linear(16, 32, bias=False)
        self.again.weight = self.up.weight
        self.norm = nn.LayerNorm(16)
        self.norm.weight.requires_grad_(False)
        self.register_buffer("scale", torch.full((16,), 0.5))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.nn.functional.gelu(self.up(x)) + self.again(x)
        y = self.norm(x + self.down(hidden)) * self.scale.to(x.dtype)
        return {"loss": y.float().square().mean(), "y": y}


@dataclass(frozen=True)
class Case:
    plan: Plan
    emitted: Emitted
    counted: Counted


@lru_cache(maxsize=8)
def case(mesh: str, policy: MixedPrecisionPolicy, constraints: autopar.Constraints | None = None) -> Case:
    torch.manual_seed(0)
    program = trace(Net(), (torch.randn(8, 16),), precision=policy)
    options: dict[str, Any] = {} if constraints is None else {"constraints": constraints}
    return Case(*plan_program(program, MeshSpec.of(mesh), hardware=toy_hardware(), gap=GAP, **options))


def travelling(emitted: Emitted) -> dict[str, set[torch.dtype]]:
    """Dtypes of the collectives that lead from a parameter, and of those that lead to a gradient of one."""
    found: dict[str, set[torch.dtype]] = {"gathered": set(), "reduced": set()}
    for region in emitted.regions.values():
        state = region.joint.inputs[len(region.local.region.inputs) :]
        of_state = set(state)
        for node in region.joint.forward:
            if node.all_input_nodes and set(node.all_input_nodes) <= of_state:
                of_state.add(node)
                if collectives_of([node]):
                    found["gathered"].add(node.meta["val"].dtype)
        for gradient in region.joint.gradients[len(region.local.region.inputs) :]:
            node = gradient
            while node is not None and not collectives_of([node]):
                node = node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None
            if node is not None:
                found["reduced"].add(node.meta["val"].dtype)
    return found


@pytest.mark.parametrize(
    ("policy", "gathered", "reduced"),
    [
        (MIXED, BF16, FP32),
        (MixedPrecisionPolicy(param_dtype=BF16), BF16, BF16),
        (MixedPrecisionPolicy(reduce_dtype=BF16), FP32, BF16),
        (MixedPrecisionPolicy(), FP32, FP32),
    ],
)
def test_gathers_and_reductions_have_the_dtypes_of_the_policy(
    policy: MixedPrecisionPolicy, gathered: torch.dtype, reduced: torch.dtype
) -> None:
    found = case("2", policy, ZERO3)
    assert travelling(found.emitted) == {"gathered": {gathered}, "reduced": {reduced}}
    sent = {(c.kind, c.phase): c.bytes for c in found.plan.figures.collectives}
    trained = sum(p.numel() for p in Net().parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in Net().parameters() if not p.requires_grad)
    assert sent["reduce_scatter", "backward"] == trained * reduced.itemsize
    assert sent["all_gather", "forward"] == (trained + frozen) * gathered.itemsize


@pytest.mark.parametrize("mesh", ["2", "2x2"])
@pytest.mark.parametrize("policy", [MIXED, MixedPrecisionPolicy(reduce_dtype=BF16)])
def test_what_is_counted_on_the_graphs_is_what_the_plan_says(mesh: str, policy: MixedPrecisionPolicy) -> None:
    found = case(mesh, policy)
    figures, counted = found.plan.figures, found.counted
    assert counted.collectives == figures.collectives
    assert counted.forward_flops == figures.forward_flops
    assert counted.backward_flops == figures.backward_flops + figures.redone_flops
    assert counted.peak_bytes <= found.plan.peak_bytes


def test_weights_rest_whole_and_cost_what_they_rest_in() -> None:
    found = case("2", MIXED, ZERO3)
    assert {s.dtype for s in found.plan.state.values()} == {"float32"}
    whole = sum(p.numel() * 4 * (3 if p.requires_grad else 1) for p in Net().parameters())
    assert found.counted.state_bytes == whole // 2 + 16 * 4
    assert found.plan.figures.time_s["casts of parameters"] > 0


@pytest.mark.parametrize("mesh", ["2", "2x2"])
def test_training_on_all_ranks_is_mixed_precision_training(mesh: str) -> None:
    """Against the same by hand: copies of the parameters in bfloat16, gradients of these, steps of the float32 ones."""
    found = case(mesh, MIXED)
    torch.manual_seed(0)
    net, x = Net(), torch.randn(8, 16)
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    ours = run_all_ranks(found.emitted, state, {"x": x}, 3, lambda given: torch.optim.SGD(given, lr=0.5))
    initial = {name: p.detach().clone() for name, p in net.named_parameters()}
    stepper = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5)
    for loss in ours.losses:
        copies = {name: p.to(BF16) for name, p in net.named_parameters()}
        result = torch.func.functional_call(net, copies, (x.to(BF16),))
        assert loss == pytest.approx(result["loss"].item(), rel=1e-2)
        stepper.zero_grad()
        result["loss"].backward()
        stepper.step()
    assert {t.dtype for t in ours.gradients.values()} == {t.dtype for t in ours.weights.values()} == {FP32}
    assert ours.replica_difference == 0
    for name, weight in net.named_parameters():
        if weight.requires_grad:
            moved = weight.detach() - initial[name]
            error = (ours.weights[name] - weight.detach()).norm() / moved.norm()
            assert error < 0.06, (name, error)


class Sum(nn.Module):
    """The gradient of its weight is the sum of the batch: 256 + 1 is 257, and 256 in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).sum()


def halves() -> Tensor:
    return torch.stack([torch.full((4,), 256.0), torch.ones(4)])


@pytest.mark.parametrize("rest", ["S(0)", "whole"])
@pytest.mark.parametrize(("reduce", "total"), [(FP32, 257.0), (BF16, 256.0), (None, 256.0)])
def test_gradients_are_added_up_in_the_dtype_that_is_asked_for(rest: str, reduce: torch.dtype | None, total: float) -> None:
    policy = MixedPrecisionPolicy(param_dtype=BF16, reduce_dtype=reduce)
    constraints = autopar.Constraints(pins=("**: batch=gpu", f"**: rest={rest} on gpu"))
    program = trace(Sum(), (halves(),), precision=policy)
    _, emitted, _ = plan_program(program, MeshSpec.of("2"), hardware=toy_hardware(), constraints=constraints)
    ran = run_all_ranks(emitted, {"weight": torch.zeros(4)}, {"x": halves()}, 1, lambda given: torch.optim.SGD(given))
    assert ran.gradients["weight"].tolist() == [total] * 4
    assert ran.gradients["weight"].dtype == FP32


def test_verify_in_a_precision() -> None:
    report = autopar.verify(Net(), "2x2", (torch.randn(8, 16),), precision=MIXED, hardware=toy_hardware(), time_limit_s=8)
    assert report.ok, report.tensors[:3]
    assert str(report.plan.precision) == "compute=bfloat16, reduce=float32"


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A mesh of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,), mesh_dim_names=("gpu",))
    finally:
        dist.destroy_process_group()


def test_what_users_see(alone: DeviceMesh) -> None:
    net, x = Net(), torch.randn(8, 16)
    policy = MixedPrecisionPolicy(param_dtype=BF16, reduce_dtype=FP32, output_dtype=torch.float64)
    parallel = autopar.compile(net, alone, (x,), precision=policy)
    result = parallel(x)
    assert {result["loss"].dtype, result["y"].dtype} == {torch.float64}
    result["loss"].backward()
    assert {p.dtype for p in (*parallel.parameters(), *net.parameters())} == {FP32}
    gradients = [p.grad for p in parallel.parameters() if p.requires_grad]
    assert all(isinstance(g, DTensor) and g.dtype == FP32 for g in gradients)
    assert parallel.norm.weight.grad is None
    assert "computed_in(up_weight, torch.bfloat16, torch.float32)" in parallel.print_readable()
    kept = autopar.compile(net, alone, (x,), precision=MixedPrecisionPolicy(param_dtype=BF16))
    assert (kept(x)["loss"].dtype, kept(x)["y"].dtype) == (FP32, BF16)


def test_a_half_precision_model_with_float32_weights_at_rest(alone: DeviceMesh) -> None:
    net, x = Net().to(BF16), torch.randn(8, 16, dtype=BF16)
    parallel = autopar.compile(net, alone, (x,), precision="parameters=float32")
    assert {p.dtype for p in parallel.parameters()} == {FP32}
    parallel(x)["loss"].backward()
    assert parallel.up.weight.grad.dtype == FP32
    torch.testing.assert_close(parallel(x)["y"].full_tensor(), net(x)["y"], rtol=2e-2, atol=2e-2)


def test_inputs_stay_as_they_are_where_the_policy_says_so() -> None:
    for cast in (True, False):
        program = trace(Sum(), (halves(),), precision=MixedPrecisionPolicy(param_dtype=BF16, cast_forward_inputs=cast))
        targets = [str(n.target) for region in program.regions.values() for n in region.graph.nodes]
        assert ("aten._to_copy.default" in targets) is cast
        assert {spec.dtype for spec in program.values.values()} == {FP32, BF16} if cast else {FP32}


def test_a_plan_is_for_its_precision() -> None:
    plan = case("2", MIXED).plan
    assert Plan.from_json(plan.to_json()) == plan
    x = (torch.randn(8, 16),)
    with pytest.raises(PlanError, match=r"for precision compute=bfloat16, reduce=float32, .* in the model's own"):
        plan.require(trace(Net(), x), plan.mesh)
    with pytest.raises(PlanError, match=r"is captured in precision compute=bfloat16: give the same"):
        plan.require(trace(Net(), x, precision="bfloat16"), plan.mesh)
    with pytest.raises(PlanError, match=r"field precision: compute='int4' is no floating-point dtype"):
        Plan.from_json(plan.to_json().replace('"compute": "bfloat16"', '"compute": "int4"'))
    with pytest.raises(PlanError, match="field precision"):
        Plan.from_json(plan.to_json().replace('"compute": "bfloat16"', '"computed": "bfloat16"'))


@pytest.mark.parametrize("given", [BF16, {"compute": "bfloat16"}])
def test_what_is_no_precision(given: object) -> None:
    with pytest.raises(InputError, match="is no precision: give a torch"):
        trace(Net(), (torch.randn(8, 16),), precision=given)


def test_nothing_asked_for_is_no_precision() -> None:
    x = (torch.randn(8, 16),)
    plain = trace(Net(), x)
    assert plain.precision is None
    assert {trace(Net(), x, precision=p).fingerprint for p in (MixedPrecisionPolicy(), "", Precision())} == {plain.fingerprint}
    assert trace(Net(), x, precision=MIXED).fingerprint != trace(Net(), x, precision="bfloat16").fingerprint


def test_a_model_is_traced_in_a_precision_as_if_it_had_it() -> None:
    """Same graphs as of `model.bfloat16()`, and the model stays as it is."""
    model, kwargs = gpt2()
    mixed = trace(model, (), kwargs, precision="bfloat16")
    assert {p.dtype for p in model.parameters()} == {FP32}
    half = trace(model.to(BF16), (), kwargs)
    text = {name: str(region.graph) for name, region in half.regions.items()}
    assert {name: str(region.graph) for name, region in mixed.regions.items()} == text
    assert [s.dtype for s in mixed.values.values()] == [s.dtype for s in half.values.values()]


class Exact(Net):
    """Says itself where autocast must not cast."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.up(x)
        with torch.autocast("cpu", enabled=False):
            y = self.norm(self.down(hidden.float()))
        return {"loss": y.square().mean() + hidden.float().square().mean(), "y": y}


def autocast_gradients(net: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    with torch.autocast("cpu", dtype=BF16):
        result = net(x)
    result["loss"].backward()
    return result, {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", [Net, Exact])
def test_autocast_around_compile_is_honoured(kind: type[Net], alone: DeviceMesh, caplog: pytest.LogCaptureFixture) -> None:
    net, x = kind(), torch.randn(8, 16)
    with torch.autocast("cpu", dtype=BF16):
        parallel = autopar.compile(net, alone, (x,))
    assert str(parallel.plan.precision) == "autocast=bfloat16"
    (theirs, expected), (ours, found) = autocast_gradients(net, x), autocast_gradients(parallel, x)
    assert torch.equal(ours["loss"], theirs["loss"])
    torch.testing.assert_close(ours["y"].full_tensor(), theirs["y"], rtol=0, atol=0)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name].full_tensor(), gradient, rtol=1e-6, atol=1e-8)
    assert not torch.equal(theirs["y"], net(x)["y"])
    torch.testing.assert_close(parallel(x)["y"].full_tensor(), net(x)["y"])
    assert "planned again" in caplog.text


def test_another_autocast_than_captured_is_another_program(alone: DeviceMesh) -> None:
    net, x = Net(), torch.randn(8, 16)
    parallel = autopar.compile(net, alone, (x,), replan=False)
    with torch.autocast("cpu", dtype=BF16), pytest.raises(InputError, match="the program is in precision autocast=bfloat16"):
        parallel(x)
    parallel._more = None
    with torch.autocast("cpu", dtype=BF16), pytest.raises(InputError, match=r"captured without torch\.autocast and is called"):
        parallel(x)


def test_autocast_for_another_device_is_refused() -> None:
    with torch.autocast("cpu", dtype=BF16), pytest.raises(InputError, match="autocast is on for cpu, the model is on meta"):
        trace(Net().to("meta"), (torch.randn(8, 16),))


def test_verify_under_autocast() -> None:
    with torch.autocast("cpu", dtype=BF16):
        report = autopar.verify(Net(), "2", (torch.randn(8, 16),), hardware=toy_hardware(), time_limit_s=8)
    assert report.ok, report.tensors[:3]
