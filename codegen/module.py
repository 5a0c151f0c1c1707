"""ParallelModule: the emitted program as an ordinary `nn.Module`.

Parameters are DTensors under the names of the original model, so optimizers, `clip_grad_norm_`, `state_dict` and distributed
checkpoints work as people know them. One `autograd.Function` runs all forward graphs, its backward all backward graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor

from autopar.codegen.emit import Emitted
from autopar.codegen.executor import Executor, Tape
from autopar.codegen.measure import Counted, measure
from autopar.codegen.readable import forward_graph
from autopar.codegen.shards import as_dtensor, piece
from autopar.codegen.trained import require_gradients
from autopar.errors import InputError
from autopar.ir.placement import Placement
from autopar.ir.plan import Plan
from autopar.ir.run import unflatten_outputs, zip_inputs


class ParallelModule(nn.Module):
    """One device's part of a model, run under a plan.

    Call it as the original model: with the global batch on every rank, or with DTensors. Outputs have the model's own
    structure: scalars are plain tensors, everything else is a DTensor at the plan's placement (`.full_tensor()` gathers).
    """

    def __init__(self, emitted: Emitted, model: nn.Module, mesh: DeviceMesh) -> None:
        super().__init__()
        self.plan: Plan = emitted.plan
        self.program = emitted.program
        self._mesh = mesh
        place = mesh.get_coordinate()
        assert place is not None, "this process is no part of the mesh"
        self._place = tuple(place)
        coordinates = [torch.tensor(c, device=mesh.device_type) for c in self._place]
        self._executor = Executor(emitted, {n: mesh.get_group(n).group_name for n in self.plan.mesh.names}, coordinates)
        self._emitted = emitted
        self._constants: dict[str, Tensor] = {}
        self._take_state(model)

    def _take_state(self, model: nn.Module) -> None:
        """Distribute the model's parameters as planned (rank 0's values count); buffers are whole everywhere."""
        given = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
        persistent = set(model.state_dict(keep_vars=True))
        for name, state in self.program.state.items():
            if state.kind == "constant":
                assert state.value is not None
                self._constants[name] = state.value.to(self._mesh.device_type)
                continue
            tensor = given[name]
            if tensor.is_meta:
                raise InputError(
                    f"{state.kind} {name} is on the meta device: give the model weights (to_empty, load_state_dict) first"
                )
            placed = distribute_tensor(tensor.detach(), self._mesh, as_dtensor(self.plan.state[name].placement))
            if state.kind == "parameter":
                kept: Any = nn.Parameter(placed, requires_grad=tensor.requires_grad)
            else:
                kept = placed.to_local().clone()
            for alias in (name, *state.aliases):
                self._attach(alias, kept, alias in persistent)

    def _attach(self, name: str, tensor: Tensor, persistent: bool) -> None:
        *path, last = name.split(".")
        owner: nn.Module = self
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(last, tensor)
        else:
            owner.register_buffer(last, tensor, persistent=persistent)

    def measure(self) -> Counted:
        """What the emitted graphs do per step on this device: FLOPs, collectives and peak bytes, counted without running."""
        return measure(self._emitted)

    @property
    def forward_graph(self) -> torch.fx.GraphModule:
        """The differentiable local forward program, conversions as explicit calls: `print(parallel.forward_graph.code)`."""
        return forward_graph(self._emitted)

    def print_readable(self) -> str:
        """The code of the forward program and of every region type's forward and backward graph; printed and returned."""
        parts = [self.forward_graph.code]
        for region in self._emitted.regions.values():
            parts += [region.local.module.code]
            for halves in region.classes:
                parts += [halves.forward.python_code("self").src, halves.backward.python_code("self").src]
        text = "\n".join(parts)
        print(text)
        return text

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = {name: self._local(name, tensor) for name, tensor in zip_inputs(self.program, args, kwargs)}
        trained = self._parameters_by_name()
        require_gradients(self.program, trained)
        flat = _Step.apply(self, list(inputs), list(trained), *inputs.values(), *trained.values())  # type: ignore[no-untyped-call]
        names = [v for v in self.program.outputs if v is not None]
        values = {name: self._global(name, tensor) for name, tensor in zip(names, flat, strict=True)}
        return unflatten_outputs(self.program, values)

    def _parameters_by_name(self) -> dict[str, Tensor]:
        return {name: self.get_parameter(name) for name, s in self.program.state.items() if s.kind == "parameter"}

    def _local(self, name: str, tensor: Tensor) -> Tensor:
        """This device's piece of an input; raises InputError if its shape or dtype is not the planned one."""
        planned = self.plan.inputs[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tuple(tensor.shape) != planned.shape or dtype != planned.dtype:
            raise InputError(
                f"input {name} is {dtype}{list(tensor.shape)}, the plan is for {planned.dtype}{list(planned.shape)}: "
                "pass the global batch that was planned for, or compile again for this shape"
            )
        if isinstance(tensor, DTensor):
            return tensor.redistribute(self._mesh, as_dtensor(planned.placement)).to_local()
        return piece(tensor, planned.placement, self._place, self.plan.mesh.sizes).to(self._mesh.device_type)

    def _global(self, name: str, tensor: Tensor) -> Tensor:
        """An output as users see it."""
        spec, placement = self.program.values[name], self.plan.boundaries[name]
        if not spec.shape:
            return tensor
        return as_global(tensor, placement, tuple(int(n) for n in spec.shape), self._mesh)

    @torch.no_grad()
    def _state(self) -> dict[str, Tensor]:
        local = dict(self._constants)
        for name, state in self.program.state.items():
            if state.kind == "parameter":
                resting = self.get_parameter(name)
                assert isinstance(resting, DTensor), f"parameter {name} was replaced by a plain tensor"
                local[name] = resting.to_local()
            elif state.kind == "buffer":
                local[name] = self.get_buffer(name)
        return local


class PlannedOnFirstBatch(ParallelModule):
    """A ParallelModule that is built when it is first called, from that batch; until then it has no parameters to give."""

    def __init__(self, build: Callable[[tuple[Any, ...], dict[str, Any]], Emitted], model: nn.Module, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self._pending: tuple[Any, ...] | None = (build, model, mesh)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._pending is not None:
            build, model, mesh = self._pending
            ParallelModule.__init__(self, build(args, kwargs), model, mesh)
            self._pending = None
        return super().forward(*args, **kwargs)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        self._require_plan("parameters")
        return super().named_parameters(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._require_plan("state_dict")
        return super().state_dict(*args, **kwargs)

    def _require_plan(self, what: str) -> None:
        if self._pending is not None:
            raise InputError(f"{what} before the first batch: call the module once first, or pass args=/kwargs= to compile")


def as_global(local: Tensor, placement: Placement, shape: tuple[int, ...], mesh: DeviceMesh) -> Tensor:
    """A local piece as the DTensor that it is a piece of."""
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, as_dtensor(placement), run_check=False, shape=torch.Size(shape), stride=stride)


class _Step(torch.autograd.Function):
    """All forward graphs; in backward all backward graphs. Saved tensors are freed as backward goes: it runs once."""

    @staticmethod
    def forward(
        ctx: Any, parallel: ParallelModule, inputs: list[str], trained: list[str], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        program = parallel.program
        values = dict(zip(inputs, tensors[: len(inputs)], strict=True))
        keep = any(ctx.needs_input_grad)
        state = parallel._state()
        ctx.tape = parallel._executor.forward(values, state, keep=keep)
        ctx.parallel, ctx.inputs, ctx.trained = parallel, inputs, trained
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
        tape: Tape | None = ctx.tape
        if tape is None:
            raise RuntimeError("backward ran already and freed what it saved: autopar does not support retain_graph")
        ctx.tape = None
        given = {name: t for name, t in zip(ctx.outputs, tangents, strict=True) if t is not None}
        into_inputs, gradients = parallel._executor.backward(tape, given, parallel._state())
        return (
            None,
            None,
            None,
            *(into_inputs.get(name) for name in ctx.inputs),
            *(_gradient(parallel, name, gradients.pop(name, None)) for name in ctx.trained),
        )


def _gradient(parallel: ParallelModule, name: str, local: Tensor | None) -> Tensor | None:
    if local is None:
        return None
    planned = parallel.plan.state[name]
    return as_global(local, planned.placement, planned.shape, parallel._mesh)
