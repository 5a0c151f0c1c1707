"""Local forward graphs under the type checker of the `spmd_types` package, which knows nothing of plans.

Conversions become that package's own collectives, so its rules say what type comes out of what. What it cannot infer is
declared here, and nothing else:

- inputs and state have the types that the plan says;
- a value that sums over a factor which the plan cuts becomes partial (V -> P) right where the sum is: the checker sees that
  operands vary, not that the sum over the varying dim is pending;
- factories make the same value everywhere (R); where the plan cuts the dim along which a factory or an expand repeats
  values, each device makes a piece of it (R -> V);
- two sharded implementations that communicate inside: cross-entropy (V -> I over the vocabulary) and layer norm (V -> V).

S(d) is V to the checker. Of a tensor without gradient R and I are one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import spmd_types as spmd
import spmd_types.checker
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.distributed.device_mesh import init_device_mesh

from autopar.codegen.accept import chosen_strategies
from autopar.codegen.local import LocalRegion
from autopar.ir.mesh import MeshSpec
from autopar.ir.placement import Placement, State
from autopar.ir.plan import PlannedRegion
from autopar.ops.rule import INVARIANT as REDUCED_INSIDE
from autopar.ops.sharded import common, layers, losses, norms
from autopar.ops.strategies import Strategy
from autopar.ops.units import Unit, needs_grad
from autopar.torch_private import fake_process_group

aten = torch.ops.aten
Group = Any
PUBLIC: Mapping[Any, Callable[..., Any]] = {
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.neg.default: torch.neg,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
    aten.sum.default: torch.sum,
    aten.sum.dim_IntList: torch.sum,
    aten.mean.default: torch.mean,
    aten.mean.dim: torch.mean,
    aten.reshape.default: torch.reshape,
    aten.view.default: torch.reshape,
    aten.permute.default: torch.permute,
    aten.transpose.int: torch.transpose,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.squeeze.dims: torch.squeeze,
    aten.contiguous.default: torch.Tensor.contiguous,
    aten.clone.default: torch.clone,
    aten.expand.default: torch.Tensor.expand,
    aten.cat.default: torch.cat,
    aten.split_with_sizes.default: torch.split,
    aten.select.int: torch.select,
}
"""The names under which the checker knows that these ops are linear."""

REPEATING = {aten.expand.default, aten.full.default, aten.zeros.default, aten.ones.default}

spmd.register_local_autograd_function(layers.EmbeddingVocab)


@contextmanager
def fake_mesh(spec: MeshSpec) -> Iterator[tuple[Group, ...]]:
    """The groups of a mesh that moves nothing, with type checking on."""
    with fake_process_group(spec.devices):
        mesh = init_device_mesh("cpu", spec.sizes, mesh_dim_names=spec.names)
        groups = tuple(mesh.get_group(name) for name in spec.names)
        with spmd.set_current_mesh(mesh), spmd.checker.typecheck(local=True):
            yield groups


def letter_of(state: State) -> Any:
    return spmd.V if isinstance(state, int) else {"R": spmd.R, "I": spmd.I, "P": spmd.P}[state]


def types_of(placement: Placement, groups: Sequence[Group]) -> dict[Group, Any]:
    return {group: letter_of(state) for group, state in zip(groups, placement.states, strict=True)}


class TypedRun:
    """Runs one region's local forward graph; every value has a type, and each tensor's is the one that the plan says."""

    def __init__(self, local: LocalRegion, planned: PlannedRegion, spec: MeshSpec, groups: Sequence[Group]) -> None:
        self.local, self.spec, self.groups = local, spec, groups
        self.group = dict(zip(spec.names, groups, strict=True))
        self.placements = {name: (tensor, placement) for (tensor, placement), name in local.values.items()}
        strategies = chosen_strategies(local.units, planned, spec, "")
        self.home = {node.name: (unit, strategies[unit.name], node) for unit in local.units for node in unit.nodes}
        self.checked = 0

    def run(self, graph: fx.Graph | None = None) -> None:
        """Raises SpmdTypeError where the graph is wrong."""
        done: dict[fx.Node, Any] = {}
        descriptions = iter(self.local.inputs)
        for node in (graph or self.local.graph).nodes:
            if node.op == "output":
                for value, wanted in zip(node.args[0], self.local.graph.output_node().args[0], strict=True):
                    self.check(done[value], wanted.name)
                return
            if node.op == "placeholder":
                done[node] = self.given(node, next(descriptions))
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), done.__getitem__)
                done[node] = self.call(node, args, kwargs)
            if node.name in self.placements:
                self.check(done[node], node.name)

    def given(self, node: fx.Node, like: Any) -> Tensor:
        with spmd.no_typecheck():
            value = torch.zeros(like.shape, dtype=like.dtype).requires_grad_(like.needs_grad)
        if node.name in self.placements:
            types = types_of(self.placements[node.name][1], self.groups)
        else:
            types = {g: spmd.V if node.name == f"coordinate_{n}" else spmd.R for n, g in self.group.items()}
        return spmd.assert_type(value, types)  # type: ignore[no-any-return]

    def call(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if "conversion" in node.meta:
            _, before, after = node.meta["conversion"]
            return self.convert(args[0], before, after)
        if node.target in TYPED:
            value = TYPED[node.target](self, *args, **kwargs)
        else:
            value = PUBLIC.get(node.target, node.target)(*args, **kwargs)  # type: ignore[arg-type]
        origin = self.home.get(node.meta.get("origin", ""))
        if origin is None or any(source.meta.get("origin") == node.meta["origin"] for source in node.all_input_nodes):
            return value
        if not node.all_input_nodes:
            spmd.assert_type(value, dict.fromkeys(self.groups, spmd.R))
        return self.summed(self.repeated(value, *origin), *origin)

    def convert(self, x: Tensor, before: Placement, after: Placement) -> Any:
        (axis,) = (a for a, states in enumerate(zip(before.states, after.states, strict=True)) if states[0] != states[1])
        old, new, group = before.states[axis], after.states[axis], self.groups[axis]
        src, dst = (spmd.S(s) if isinstance(s, int) else letter_of(s) for s in (old, new))
        if old == "P":
            spmd.assert_type(x, {group: spmd.P})  # the reductions of the package would take V for P
            return (spmd.reduce_scatter if isinstance(new, int) else spmd.all_reduce)(x, group, src=src, dst=dst)
        if isinstance(old, int):
            return (spmd.all_to_all if isinstance(new, int) else spmd.all_gather)(x, group, src=src, dst=dst)
        return spmd.convert(x, group, src=src, dst=dst, expert_mode=(old, new) == ("R", "I"))

    def repeated(self, value: Any, unit: Unit, strategy: Strategy, node: fx.Node) -> Any:
        """A piece of the dim along which this node (a factory, an expand) repeats the same values."""
        seen = {factor for source in node.all_input_nodes for dim in unit.dims[source] for factor in dim}
        made = {factor for dim in unit.dims[node] for factor in dim} - seen
        for axis, factor in enumerate(strategy.factors):
            if factor in made and node.target in REPEATING:
                value = spmd.reinterpret(value, self.groups[axis], src=spmd.R, dst=spmd.V, expert_mode=True)
        return value

    def summed(self, value: Any, unit: Unit, strategy: Strategy, node: fx.Node) -> Any:
        """Partial on the axes that cut a factor which this node sums over."""
        before = {factor for source in node.all_input_nodes for factor in unit.reduced_at.get(source, ())}
        for axis, factor in enumerate(strategy.factors):
            if factor in unit.reduced_at[node] and factor not in before and REDUCED_INSIDE not in unit.marks[factor]:
                value = spmd.reinterpret(value, self.groups[axis], src=spmd.V, dst=spmd.P)
        return value

    def check(self, value: Tensor, name: str) -> None:
        tensor, placement = self.placements[name]
        differentiable = needs_grad(self.local.region.nodes[tensor])
        for axis, (group, wanted) in enumerate(types_of(placement, self.groups).items()):
            found = spmd.get_axis_local_type(value, group)
            if found != wanted and (differentiable or {found, wanted} != {spmd.R, spmd.I}):
                raise spmd.SpmdTypeError(f"{name} is {found} on axis {self.spec.names[axis]}, the plan says {placement}")
            self.checked += 1


def cross_entropy(run: TypedRun, logits: Tensor, target: Tensor, weight: Tensor | None, **options: Any) -> Any:
    """Types of the loss over local classes and tokens, then of the sum over the vocabulary."""
    vocab = [run.group[name] for name, _ in options["vocab_axes"]]
    for group in (*vocab, *(run.group[name] for name, _ in options["token_axes"])):
        spmd.assert_type(logits, {group: spmd.V})
    assert weight is None, "the types of class weights are not looked at"
    loss = F.cross_entropy(logits, torch.zeros_like(target))
    for group in vocab:
        loss = spmd.all_reduce(loss, group, src=spmd.P, dst=spmd.I)
    return loss


def layer_norm(
    run: TypedRun, x: Tensor, normalized: int, weight: Tensor | None, bias: Tensor | None, eps: float, axes: common.Axes
) -> Any:
    """As over the local piece: statistics are summed inside, forward and backward."""
    for given in (x, weight, bias):
        for name, _ in axes if given is not None else ():
            spmd.assert_type(given, {run.group[name]: spmd.V})
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


TYPED: Mapping[Any, Callable[..., Any]] = {losses.cross_entropy: cross_entropy, norms.layer_norm_hidden: layer_norm}
"""Sharded implementations that communicate inside, to what has their type."""
