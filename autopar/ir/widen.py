"""A program in double precision, casts included: for proofs, where rounding must not hide a wrong plan.

Models cast to float32 on purpose (logits before a loss); a float64 model would still compute there in float32, and sums in
another order would differ by 1e-7. Here every floating tensor of the program becomes float64,
also what factory ops make without being told a dtype.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from autopar.ir.program import Program, Region, TensorSpec
from autopar.torch_private import pytree


def widened(program: Program) -> Program:
    """The same program (fingerprint included: plans for the one fit the other) on float64 tensors."""
    return replace(
        program,
        regions={name: widen_region(region) for name, region in program.regions.items()},
        values={name: widen_spec(spec) for name, spec in program.values.items()},
        state={
            name: replace(s, spec=widen_spec(s.spec), value=None if s.value is None else widen(s.value), gradient_dtype=None)
            for name, s in program.state.items()
        },
    )


def widen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def widen_spec(spec: TensorSpec) -> TensorSpec:
    return replace(spec, dtype=torch.float64) if spec.dtype.is_floating_point else spec


def widen_region(region: Region) -> Region:
    graph = torch.fx.Graph()
    copied: dict[torch.fx.Node, torch.fx.Node] = {}
    graph.output(graph.graph_copy(region.graph, copied))
    for old, new in copied.items():
        new.meta = dict(old.meta)
        if "val" in old.meta:
            new.meta["val"] = pytree.tree_map_only(torch.Tensor, widen_fake, old.meta["val"])
        new.args, new.kwargs = pytree.tree_map_only(torch.dtype, widen_dtype, (new.args, new.kwargs))
        if old.kwargs.get("dtype") is None and "device" in old.kwargs and old.meta["val"].is_floating_point():
            new.kwargs = {**new.kwargs, "dtype": torch.float64}
    return replace(region, graph=graph)


def widen_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else dtype


def widen_fake(value: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(value, dtype=torch.float64) if value.is_floating_point() else value
