"""Mixtures of experts are found in what is traced of them, mean the same afterwards, and nothing else is taken for one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autopar.ir.experts import EXPERTS
from autopar.ir.program import Program
from autopar.ir.run import run_program
from autopar.tracer import trace
from tests.tracer.test_numerics import state_of
from tests.zoo import ZOO

pytest.importorskip("transformers.integrations.moe")
grouped_mm = torch.ops.transformers.grouped_mm_fallback
"""What transformers calls where torch's own op is not for the dtype."""
HIDDEN, WIDTH, COUNT = 8, 16, 4


def calls_of_experts(program: Program) -> list[torch.fx.Node]:
    regions = [program.regions[call.region] for call in program.calls]
    return [n for region in regions for n in region.graph.find_nodes(op="call_function", target=EXPERTS)]


def equals_eager(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Program:
    program = trace(model, args, kwargs)
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses = [out["loss"] for out in (run_program(program, state_of(model), args, kwargs), model(*args, **kwargs))]
    torch.testing.assert_close(*losses)
    grads = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    return program


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_each_block_has_one_op(name: str, dtype: torch.dtype) -> None:
    """transformers falls back to an op of its own where torch's is not for the dtype; both are found."""
    model, kwargs = ZOO[name].build()
    program = trace(model.to(dtype), (), kwargs)
    found = calls_of_experts(program)
    assert len(found) == model.config.num_hidden_layers
    assert all(node.args[0].meta["val"].dim() == 3 for node in found), "batch and sequence are one dim"
    assert all(node.args[3].meta["val"].dim() == 4 for node in found), "gate and up are one dim"
    left = {str(n.target) for region in program.regions.values() for n in region.graph.nodes}
    assert not left & {"aten.sort.default", "aten.index_put.default", "aten._grouped_mm.default"}


@pytest.mark.parametrize("router_logits", [False, True])
def test_the_program_equals_the_eager_model(router_logits: bool) -> None:
    """With the loss that balances the experts' load, too, which reads the router's logits of all layers."""
    model, kwargs = ZOO["mixtral"].build()
    model.config.output_router_logits = router_logits
    program = equals_eager(model, (), kwargs)
    assert len(calls_of_experts(program)) == model.config.num_hidden_layers


class Mixture(nn.Module):
    """A mixture of experts as transformers writes it; `odd` names a way in which it is not quite one."""

    def __init__(self, odd: str = "") -> None:
        super().__init__()
        self.odd = odd
        self.router = nn.Linear(HIDDEN, COUNT)
        self.up = nn.Parameter(torch.randn(COUNT, 2 * WIDTH if odd != "no gate" else WIDTH, HIDDEN))
        self.down = nn.Parameter(torch.randn(COUNT, *((WIDTH, HIDDEN) if odd == "transposed" else (HIDDEN, WIDTH))))
        self.up_bias = nn.Parameter(torch.randn(COUNT, self.up.shape[1])) if "bias" in odd else None
        self.down_bias = nn.Parameter(torch.randn(COUNT, HIDDEN)) if "bias" in odd else None

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = tokens.view(-1, HIDDEN)
        scale, index = self.router(x).softmax(-1).topk(2, dim=-1)
        ids, order = index.reshape(-1).sort(descending=self.odd == "descending")
        counts = torch.histc(ids.float(), bins=COUNT, min=0, max=COUNT - 1 if self.odd != "other bins" else COUNT)
        offsets = counts.cumsum(0, dtype=torch.int32)
        rows = x[order // 2] if self.odd != "other rows" else x[order // 4]
        wide = grouped_mm(rows, self.up.transpose(1, 2), offsets)
        if self.up_bias is not None:
            wide = wide + self.up_bias[ids if self.odd != "biases of others" else index.reshape(-1)]
        if self.odd == "no gate":
            inner = F.gelu(wide, approximate="tanh")
        elif self.odd.startswith("interleaved"):
            gate, value = wide[..., ::2].clamp(max=1.5), wide[..., 1::2].clamp(-1.5, 1.5 if "biases" in self.odd else 2)
            inner = (value + 1) * (gate * torch.sigmoid(gate * 1.7))
        else:
            gate, value = wide.chunk(2, dim=-1)
            inner = F.silu(gate) * (value + 1 if self.odd == "shifted" else value)
        down = self.down if self.odd == "transposed" else self.down.transpose(1, 2)
        out = grouped_mm(inner, down, offsets)
        out = out if self.down_bias is None else out + self.down_bias[ids]
        out = out * scale.reshape(-1)[order].unsqueeze(-1)
        back = torch.empty_like(order)
        back[order] = torch.arange(order.shape[0])
        result = out[back].view(-1, 2, HIDDEN)
        return {"loss": (result.sum(1) if self.odd != "not summed" else result[:, 0]).square().mean()}


@pytest.mark.parametrize("odd", ["", "no gate", "transposed", "biases", "interleaved, biases"])
def test_forms_of_it(odd: str) -> None:
    torch.manual_seed(0)
    program = equals_eager(Mixture(odd), (torch.randn(2, 6, HIDDEN),), {})
    assert len(calls_of_experts(program)) == 1


@pytest.mark.parametrize(
    "odd", ["descending", "other bins", "other rows", "shifted", "not summed", "interleaved", "biases of others"]
)
def test_what_is_no_mixture_stays_as_it_is(odd: str) -> None:
    torch.manual_seed(0)
    assert calls_of_experts(trace(Mixture(odd), (torch.randn(2, 6, HIDDEN),))) == []
