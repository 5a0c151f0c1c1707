"""ParallelModule: the emitted program as an ordinary `nn.Module`.

Parameters are DTensors under the names of the original model, so optimizers, `clip_grad_norm_`, `state_dict` and distributed
checkpoints work as people know them. One `autograd.Function` runs all forward graphs, its backward all backward graphs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from autopar.codegen.accumulate import Accumulates, accumulation_bytes
from autopar.codegen.emit import Emitted
from autopar.codegen.executor import Tape
from autopar.codegen.likeness import resemble
from autopar.codegen.listing import listing
from autopar.codegen.measure import Counted, measure
from autopar.codegen.randomness import Randomness, shared_randomness
from autopar.codegen.readable import forward_graph
from autopar.codegen.shards import in_its_room, local_part, without_padding
from autopar.codegen.trained import require_gradients
from autopar.codegen.variant import Modes, Variant, Variants
from autopar.codegen.weights import Weights
from autopar.errors import InputError
from autopar.ir.autocast import autocast_on, require_autocast
from autopar.ir.plan import Plan
from autopar.ir.program import Program
from autopar.ir.run import unflatten_outputs
from autopar.torch_private import placed_like


class More(Protocol):
    """Makes programs for calls that no program of a module is for."""

    def __call__(self, parallel: ParallelModule, modes: Modes, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Variant:
        """Trace and plan for such a call."""

    def switched(self, variant: Variant) -> None:
        """Called when another program than that of the call before is about to run."""


class ParallelModule(Accumulates, Weights):
    """One device's part of a model, run under a plan.

    Call it as the original model: with the global batch on every rank, or with DTensors. Outputs have the model's own
    structure: scalars are plain tensors, everything else is a DTensor at the plan's placement (`.full_tensor()` gathers).
    """

    guard: Callable[[], AbstractContextManager[None]] = nullcontext
    """`with parallel.guard():` around a training loop makes a failure because another process ended a PeerError that names it.
    Forward and backward are inside already; it is for optimizers, clipping and checkpoints."""

    def __init__(
        self,
        emitted: Emitted,
        model: nn.Module,
        mesh: DeviceMesh,
        more: More | None = None,
        randomness: Randomness | None = None,
    ) -> None:
        """`more` makes the programs for other shapes and modes than that of `emitted`; without it these are errors.
        `randomness`: where random numbers come from; without it of a seed that rank 0 chooses."""
        super().__init__()
        self._mesh, self._emitted, self._more = mesh, emitted, more
        self._mirror(model)
        self._variants = Variants(inspect.signature(model.forward))
        self._latest = Variant.of(emitted, mesh)
        self._variants.add(self._modes(), self._latest)
        self._take_weights(model)
        resemble(self, model)
        self.randomness = randomness or shared_randomness(mesh)

    @property
    def plan(self) -> Plan:
        """The plan that was compiled first; those of other shapes and modes are in `plans`."""
        return self._emitted.plan

    @property
    def program(self) -> Program:
        return self._emitted.program

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans of all shapes and modes that were met, in this order."""
        return tuple({id(variant.plan): variant.plan for variant in self.variants}.values())

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All programs so far, the first one first."""
        return tuple(self._variants.all)

    @property
    def variants_now(self) -> tuple[Variant, ...]:
        """The programs so far for the modes that its modules are in."""
        return () if self._is_pending() else tuple(self._variants.of_modes.get(self._modes(), ()))

    @property
    def known_variants(self) -> Variants:
        """Which program is for which call."""
        return self._variants

    def _is_pending(self) -> bool:
        return False

    def _mirror(self, model: nn.Module) -> None:
        """The model's tree of modules, as containers: each may be put into train or eval mode."""
        self.training = model.training
        made: dict[int, nn.Module] = {id(model): self}
        for path, module in model.named_modules(remove_duplicate=False):
            owner, _, last = path.rpartition(".")
            if path:
                container = made.setdefault(id(module), nn.Module())
                container.training = module.training
                self.get_submodule(owner).add_module(last, container)
        self._mirrored = list(made.values())

    def _modes(self) -> Modes:
        return tuple([module.training for module in self._mirrored])

    def measure(self) -> Counted:
        """What the emitted graphs do per step on this device: FLOPs, collectives and peak bytes, counted without running."""
        return measure(self._emitted)

    @property
    def accepts_loss_kwargs(self) -> bool:
        """For transformers' Trainer: whether it may pass `num_items_in_batch`, which it may if the examples had it."""
        return "num_items_in_batch" in self.program.inputs

    @property
    def accumulation_bytes(self) -> int:
        """What gradients take per device that wait under `no_sync`: in full size, where the plan counts them at rest."""
        return accumulation_bytes(self.variants[0].executor)

    @property
    def forward_graph(self) -> torch.fx.GraphModule:
        """The differentiable local forward program, conversions as explicit calls: `print(parallel.forward_graph.code)`."""
        return forward_graph(self._emitted)

    def print_readable(self) -> str:
        """The graphs that run, with shapes, source lines and conversions (docs/placements.md has their names); printed and
        returned. Per region type its program, and a forward and a backward graph per class of calls."""
        text = listing(self._emitted)
        print(text)
        return text

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.guard():
            return self._run(args, kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self._require_values()
        variant, inputs = self._prepared(args, kwargs)
        trained = self._parameters_by_name()
        require_gradients(self.program, trained)
        flat = _Step.apply(self, variant, list(inputs), list(trained), *inputs.values(), *trained.values())  # type: ignore[no-untyped-call]
        return unflatten_outputs(variant.program, variant.outputs(flat))

    def _prepared(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Variant, dict[str, Tensor]]:
        """The program for a call, and this device's pieces of its inputs; a new shape, mode or autocast makes a new program."""
        modes, autocast = self._modes(), autocast_on(self._mesh.device_type)
        variant = self._variants.find(modes, autocast, args, kwargs)
        if variant is None and self._more is not None:
            variant = self._more(self, modes, args, kwargs)
            self._variants.add(modes, variant)
            self._latest = variant
        variant = variant or self._variants.all[0]
        require_autocast(variant.program, autocast)
        if variant is not self._latest:
            if self._more is not None:
                self._more.switched(variant)
            self._latest = variant
        return variant, variant.inputs(*self._variants.arranged(variant, args, kwargs))

    @cached_property
    def _places(self) -> dict[str, dict[str, tuple[nn.Module, str]]]:
        """By kind, parameters and buffers of the program by name: the module that has each, and its name there."""
        found: dict[str, dict[str, tuple[nn.Module, str]]] = {"parameter": {}, "buffer": {}}
        for name, state in self.program.state.items():
            if state.kind in found:
                path, _, last = name.rpartition(".")
                found[state.kind][name] = self.get_submodule(path), last
        return found

    @cached_property
    def _padded(self) -> dict[str, tuple[int, ...]]:
        """Parameters that rest cut unevenly: the shape that graphs see of each."""
        sizes = self.plan.mesh.sizes
        uneven = {n: s for n, s in self.plan.state.items() if not s.placement.divides(s.shape, sizes)}
        return {name: state.placement.local_shape(state.shape, sizes) for name, state in uneven.items()}

    def _parameters_by_name(self) -> dict[str, Tensor]:
        return {name: getattr(*place) for name, place in self._places["parameter"].items()}

    @torch.no_grad()
    def _state(self, variant: Variant) -> dict[str, Tensor]:
        local = dict(variant.constants)
        for name, resting in self._parameters_by_name().items():
            assert isinstance(resting, DTensor), f"parameter {name} was replaced by a plain tensor"
            local[name] = resting.to_local()
            if name in self._padded:
                local[name] = in_its_room(local[name], self._padded[name])
        return local | {name: getattr(*place) for name, place in self._places["buffer"].items()}


class PlannedOnFirstBatch(ParallelModule):
    """A ParallelModule that is built when it is first called, from that batch; until then it has no parameters to give."""

    def __init__(
        self,
        build: Callable[[tuple[Any, ...], dict[str, Any]], Emitted],
        model: nn.Module,
        mesh: DeviceMesh,
        more: More | None = None,
        randomness: Randomness | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.training = model.training
        self.randomness = randomness or shared_randomness(mesh)
        self._pending: tuple[Any, ...] | None = (build, model, mesh, more)
        resemble(self, model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._pending is not None:
            build, model, mesh, more = self._pending
            ParallelModule.__init__(self, build(args, kwargs), model, mesh, more, self.randomness)
            self._pending = None
        return super().forward(*args, **kwargs)

    def train(self, mode: bool = True) -> PlannedOnFirstBatch:
        if self._pending is not None:
            self._pending[1].train(mode)
        super().train(mode)
        return self

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        self._require_plan("parameters")
        return super().named_parameters(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._require_plan("state_dict")
        return super().state_dict(*args, **kwargs)

    def _is_pending(self) -> bool:
        return self._pending is not None

    def _require_plan(self, what: str) -> None:
        if self._pending is not None:
            raise InputError(f"{what} before the first batch: call the module once first, or pass args=/kwargs= to compile")


class _Step(torch.autograd.Function):
    """All forward graphs; in backward all backward graphs. Saved tensors are freed as backward goes: it runs once."""

    @staticmethod
    def forward(
        ctx: Any, parallel: ParallelModule, variant: Variant, inputs: list[str], trained: list[str], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        program = variant.program
        values = dict(zip(inputs, tensors[: len(inputs)], strict=True))
        keep = any(ctx.needs_input_grad)
        state = parallel._state(variant)
        keys = parallel.randomness.keys(variant.draws)
        ctx.tape = variant.executor.forward(values, state, keep=keep, keys=keys)
        ctx.parallel, ctx.variant, ctx.inputs, ctx.trained = parallel, variant, inputs, trained
        with torch.no_grad():
            for name, value in program.mutations.items():
                parallel.get_buffer(name).copy_(values[value])
        names = [v for v in program.outputs if v is not None]
        outputs = [values[v] for v in names]
        if program.loss is not None:
            ctx.mark_non_differentiable(*(o for n, o in zip(names, outputs, strict=True) if n != program.loss))
        ctx.outputs = names
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
        parallel: ParallelModule = ctx.parallel
        variant: Variant = ctx.variant
        tape: Tape | None = ctx.tape
        if tape is None:
            raise RuntimeError("backward ran already and freed what it saved: autopar does not support retain_graph")
        ctx.tape = None
        resting = parallel._parameters_by_name()
        given = {name: t for name, t in zip(ctx.outputs, tangents, strict=True) if t is not None}
        with parallel.guard():
            into_inputs, gradients = parallel._gradient_sync.backward(variant.executor, tape, given, parallel._state(variant))
        return (
            None,
            None,
            None,
            None,
            *(into_inputs.get(name) for name in ctx.inputs),
            *(_gradient(gradients.pop(name, None), resting[name], name in parallel._padded) for name in ctx.trained),
        )


def _gradient(local: Tensor | None, resting: Tensor, padded: bool) -> Tensor | None:
    """A local gradient as that of its parameter, of the same placement and dtype, without padding."""
    if local is not None and padded:
        local = without_padding(local, local_part(resting).shape)
    return None if local is None else placed_like(local.to(resting.dtype), resting)
