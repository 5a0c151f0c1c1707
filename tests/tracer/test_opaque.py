"""Functions and modules with a rule are one node each, wherever they are; the rest of the model is traced as always."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import autopar
from autopar.errors import RuleError, TraceError
from autopar.ir.opaque import INSTANCES
from autopar.ir.program import Program
from autopar.tracer import trace
from tests.hardware_toy import toy_hardware
from tests.own_rules import Gated, Mixed, mixed


def calls_of(program: Program, op: str) -> list[tuple[str, str]]:
    """(path of the call of a region, name of the node) of each place where an op of a user stands."""
    return [
        (call.path, node.name)
        for call in program.calls
        for node in program.regions[call.region].graph.nodes
        if str(node.target).startswith(f"autopar_user.{op}")
    ]


def keys_of(program: Program) -> set[str]:
    return {
        node.args[0]
        for region in program.regions.values()
        for node in region.graph.nodes
        if node.op == "call_function" and node.args and isinstance(node.args[0], str)
    }


def test_layers_with_such_a_module_stay_one_region() -> None:
    model, batch = mixed(depth=4)
    program = trace(model, (), batch)
    assert [path for path, _ in calls_of(program, "Gated")] == [f"layers.{i}" for i in range(4)]
    assert len({call.region for call in program.calls if call.path.startswith("layers.")}) == 1
    assert len(calls_of(program, "routed")) == 1
    assert {n for n in program.state if n.startswith("layers.2.")} == {
        f"layers.2.{name}" for name in ("gate", "up", "down.weight", "offset")
    }
    assert program.state["layers.2.offset"].kind == "buffer"
    assert trace(model, (), batch, blocks_once=False).fingerprint == program.fingerprint


def test_instances_of_other_attributes_are_others() -> None:
    model, batch = mixed(depth=3)
    assert len(keys_of(trace(model, (), batch))) == 1
    model.layers[1].floor = 0.25  # type: ignore[assignment]
    program = trace(model, (), batch)
    assert len(keys_of(program)) == 2
    assert autopar.verify(model, "2", kwargs=batch, hardware=toy_hardware()).ok
    model.eval()
    assert not keys_of(trace(model, (), batch)) & keys_of(program), "what the code does may depend on the mode"


def test_what_is_kept_of_an_instance_has_no_tensors() -> None:
    model, batch = mixed()
    (key,) = keys_of(trace(model, (), batch))
    kept = INSTANCES[key]
    assert kept is not model.layers[0]
    assert all(tensor.is_meta for tensor in (*kept.parameters(), *kept.buffers()))


def test_shared_instances_and_tied_parameters() -> None:
    class Tied(Mixed):
        """One instance twice, and another with a parameter of its."""

        def __init__(self) -> None:
            super().__init__(depth=3)
            self.layers[1] = self.layers[0]
            self.layers[2].up = self.layers[0].up

    torch.manual_seed(0)
    model, batch = Tied(), {"x": torch.randn(8, 16)}
    program = trace(model, (), batch)
    assert len(calls_of(program, "Gated")) == 3
    assert "layers.2.up" in program.state["layers.0.up"].aliases
    for mesh in ("2", "2x2"):
        report = autopar.verify(model, mesh, kwargs=batch, hardware=toy_hardware())
        assert report.max_relative_error <= 1e-9, report.tensors[:3]


def test_in_another_precision_and_on_the_meta_device() -> None:
    model, batch = mixed()
    program = trace(model, (), batch, precision="compute=bfloat16")
    region = program.regions[next(c.region for c in program.calls if c.path == "layers.0")]
    (node,) = (n for n in region.graph.nodes if "Gated" in str(n.target))
    assert node.meta["val"].dtype == torch.bfloat16
    with torch.device("meta"):
        empty, _ = Mixed(), None
    assert trace(empty, (), batch).fingerprint == trace(model, (), batch).fingerprint


def test_dims_may_be_dynamic() -> None:
    model, batch = mixed()
    program = trace(model, (), batch, dynamic={"batch": 0})
    assert set(program.symbols) == {"batch"}
    assert len(calls_of(program, "routed")) == 1


def test_the_rule_names_all_tensors_of_the_module() -> None:
    class Holder(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).square().mean()  # type: ignore[no-any-return]

    more = Gated(16, 32)
    more.bias = nn.Parameter(torch.zeros(16))
    with pytest.raises(RuleError, match=r"the rule of Gated leaves out 'bias': name all its parameters and buffers"):
        trace(Holder(more), (torch.randn(8, 16),))
    fewer = Gated(16, 32)
    del fewer.up
    with pytest.raises(RuleError, match=r"the rule of Gated names 'up', which is none of its tensors: gate, down\.weight"):
        trace(Holder(fewer), (torch.randn(8, 16),))


def test_hooks_around_the_module_run_once() -> None:
    model, batch = mixed()
    model.layers[0].register_forward_hook(lambda module, args, output: 2 * output)
    report = autopar.verify(model, "2", kwargs=batch, hardware=toy_hardware())
    assert report.ok
    program = trace(model, (), batch)
    assert len(keys_of(program)) == 1
    nodes = [node for call in program.calls for node in program.regions[call.region].graph.nodes]
    assert sum(node.target is torch.ops.aten.mul.Tensor and node.args[1] == 2 for node in nodes) == 1


def test_code_that_branches_on_data_is_told_of_rules() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return (y if y.sum() > 0 else -y).square().mean()  # type: ignore[no-any-return]

    with pytest.raises(TraceError, match=r"test_opaque\.py:\d+.*@autopar\.op_rule"):
        trace(Branches(), (torch.randn(4, 8),))
