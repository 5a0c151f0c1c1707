"""What repeats is one region; what differs is not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from autopar.ir.program import Program
from autopar.tracer import trace
from tests.models import MODELS
from tests.tracer.small import Normed, Stack

X = torch.randn(4, 8)


def regions(program: Program) -> list[tuple[str, int]]:
    return [(name, len(program.calls_of(name))) for name in program.regions]


@pytest.mark.parametrize(
    ("name", "stack"),
    [("gpt2", "transformer.h"), ("llama", "model.layers"), ("bert", "bert.encoder.layer"), ("vit", "vit.layers")],
)
def test_depth_is_multiplicity(name: str, stack: str) -> None:
    model, kwargs = MODELS[name](device="meta", layers=4)
    program = trace(model, (), kwargs)
    assert regions(program) == [("start", 1), (f"{stack}.*", 4), ("end", 1)]
    assert [c.path for c in program.calls][1:-1] == [f"{stack}.{i}" for i in range(4)]


def test_the_last_block_gets_back_its_residual_add() -> None:
    model, kwargs = MODELS["mlp"](layers=4)
    program = trace(model, (), kwargs)
    assert regions(program) == [("blocks.0", 1), ("blocks.*", 3), ("end", 1)]  # the first one's input needs no gradient


def test_a_block_that_differs_is_its_own_region() -> None:
    program = trace(Stack(nn.GELU(), nn.GELU(), nn.ReLU(), nn.GELU()), (X,))
    assert dict(regions(program))["blocks.*"] == 3
    assert dict(regions(program))["blocks.2"] == 1


def test_a_constant_a_frozen_weight_and_a_shape_all_count() -> None:
    for change in (
        lambda model: setattr(model.blocks[1].norm, "eps", 0.5),
        lambda model: model.blocks[1].linear.weight.requires_grad_(False),
        lambda model: setattr(model.blocks[1].linear, "bias", None),
    ):
        model = Stack(nn.GELU(), nn.GELU(), nn.GELU())
        change(model)
        assert dict(regions(trace(model, (X,))))["blocks.*"] == 2


def test_a_plain_model_is_one_region() -> None:
    program = trace(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.Tanh()), (X,))
    assert regions(program) == [("model", 1)]


def test_values_calls_and_graphs_fit_together() -> None:
    for model, args in (
        (MODELS["llama"](device="meta", layers=3)),
        (Stack(nn.GELU(), nn.GELU()), {"x": X}),
        (Normed(), {"x": X[:, :4]}),
    ):
        program = trace(model, (), args)
        known = {v for v in program.inputs if v is not None}
        for call in program.calls:
            region = program.regions[call.region]
            assert set(call.inputs) <= known
            known |= set(call.outputs)
            region.graph.lint()
            for names, inner in ((call.inputs, region.inputs), (call.outputs, [n.name for n in region.outputs])):
                for value, node in zip(names, (region.nodes[n] for n in inner), strict=True):
                    spec = program.values[value]
                    assert (spec.shape, spec.dtype, spec.needs_grad) == (
                        tuple(node.meta["val"].shape),
                        node.meta["val"].dtype,
                        node.meta["needs_grad"],
                    )
            assert [program.state[s].spec.shape for s in call.state] == [
                tuple(region.nodes[s].meta["val"].shape) for s in region.state
            ]
            for node in region.graph.nodes:
                assert node.op == "output" or {"val", "needs_grad", "path", "source"} <= set(node.meta)
        assert {v for v in program.outputs if v} | set(program.mutations.values()) <= known
        assert known == set(program.values)


def test_names_paths_and_sources_read_well() -> None:
    model, kwargs = MODELS["gpt2"](device="meta")
    block = trace(model, (), kwargs).regions["transformer.h.*"]
    assert {"attn_c_attn_addmm", "mlp_act_tanh", "ln_1_layer_norm", "ln_1_weight"} <= set(block.nodes)
    node = block.nodes["attn_scaled_dot_product_attention"]
    assert node.meta["path"] == "attn"
    assert node.meta["source"].endswith(".py:" + node.meta["source"].split(":")[1])
    assert block.nodes["attn_c_attn_addmm"].meta["path"] == "attn.c_attn"


SCRIPT = """
from tests.models import MODELS
from autopar.tracer import trace
model, kwargs = MODELS["mlp"](device="{}", layers=3)
print(trace(model, (), kwargs).fingerprint)
"""


def test_fingerprint_is_of_the_program_alone() -> None:
    def elsewhere(device):
        run = [sys.executable, "-c", SCRIPT.format(device)]
        return subprocess.run(run, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}).stdout.strip()

    def here(layers=3, batch=8):
        model, kwargs = MODELS["mlp"](layers=layers, batch=batch)
        return trace(model, (), kwargs).fingerprint

    assert elsewhere("cpu") == elsewhere("meta") == here()
    assert len({here(), here(layers=4), here(batch=4)}) == 3


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_fingerprint_does_not_depend_on_the_device(name) -> None:
    prints = {trace(model, (), kwargs).fingerprint for model, kwargs in (MODELS[name](device=d) for d in ("cpu", "meta"))}
    assert len(prints) == 1
