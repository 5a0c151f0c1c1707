"""A program in double precision, casts included: for proofs, where rounding must not hide a wrong plan.

Models cast to float32 on purpose (logits before a loss); a float64 model would still compute there in float32, and sums in
another order would differ by 1e-7. Here every floating tensor of the program becomes float64, a
complex one complex128, also what factory ops make without being told a dtype.
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


def wide(dtype: torch.dtype) -> torch.dtype:
    """float64 for floating dtypes, complex128 for complex ones, others as they are."""
    return torch.complex128 if dtype.is_complex else torch.float64 if dtype.is_floating_point else dtype


def widen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(wide(tensor.dtype))


def widen_spec(spec: TensorSpec) -> TensorSpec:
    return replace(spec, dtype=wide(spec.dtype))


def widen_region(region: Region) -> Region:
    graph = torch.fx.Graph()
    copied: dict[torch.fx.Node, torch.fx.Node] = {}
    graph.output(graph.graph_copy(region.graph, copied))
    for old, new in copied.items():
        new.meta = dict(old.meta)
        if "val" in old.meta:
            new.meta["val"] = pytree.tree_map_only(torch.Tensor, widen_fake, old.meta["val"])
        new.args, new.kwargs = pytree.tree_map_only(torch.dtype, wide, (new.args, new.kwargs))
        if old.kwargs.get("dtype") is None and "device" in old.kwargs:
            new.kwargs = {**new.kwargs, "dtype": wide(old.meta["val"].dtype)}
    return replace(region, graph=graph)


def widen_fake(value: torch.Tensor) -> torch.Tensor:
    return value if wide(value.dtype) == value.dtype else torch.empty_like(value, dtype=wide(value.dtype))
