"""Roles of factors: also of what is expanded along the batch."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn import functional as F

from autopar.hardware import load
from autopar.ir.mesh import MeshSpec
from autopar.profiler.model_cost import measure
from autopar.solver.build import Builder, Setting
from autopar.solver.problem import Problem
from autopar.tracer import trace

BATCH, SEQ = 8, 16


class Shifted(nn.Module):
    """Attention with an expanded mask, over tokens shifted as T5 shifts those of its decoder, plus BERT's types of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.project = nn.Embedding(64, 32), nn.Linear(32, 32)
        self.kinds = nn.Embedding(4, 32)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        shifted = input_ids.new_zeros(input_ids.shape)
        shifted[..., 1:] = input_ids[..., :-1].clone()
        kinds = torch.zeros(1, SEQ, dtype=torch.int64).expand(input_ids.shape)
        x = self.embed(shifted) + self.kinds(kinds)
        heads = self.project(x).view(x.shape[0], SEQ, 4, 8).transpose(1, 2)
        ahead = torch.arange(SEQ)[:, None] >= torch.arange(SEQ)[None, :]
        mask = torch.where(ahead, 0.0, -1e9).expand(x.shape[0], 1, SEQ, SEQ)
        return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask).square().sum()


def problem() -> Problem:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = trace(Shifted(), (), {"input_ids": torch.zeros(BATCH, SEQ, dtype=torch.int64)})
        return Builder(measure(program), Setting(mesh=MeshSpec.of("4"), hardware=load("cpu"))).problem()


def test_batch_is_found_behind_shifts_and_in_what_is_expanded() -> None:
    (region,) = problem().regions
    able = {u.name: {s.roles for s in u.strategies} for u in region.units}
    dear = [u.name for u in region.units if u.kind in ("embedding", "matmul", "attention")]
    assert len(dear) == 4
    assert all(("batch",) in able[name] for name in dear)
    (types,) = [u.operands[1] for u in region.units if u.name.startswith("kinds")]
    (expand,) = [u.name for u in region.units if types in u.results]
    assert ("batch",) in able[expand]
