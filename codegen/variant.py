"""One program of a module, ready to run, and the calls that it is for.

A module has several where its code differs by what it is called with: other batch sizes, without labels, in eval mode. All of
them use the same parameters and buffers, which stay where they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from autopar.codegen.emit import Emitted
from autopar.codegen.executor import Executor
from autopar.codegen.randomness import draws_of
from autopar.codegen.shards import as_dtensor, as_global, held, piece, without_padding
from autopar.errors import InputError
from autopar.ir.plan import Plan
from autopar.ir.program import Program
from autopar.ir.run import zip_inputs
from autopar.ops.draws import Draw
from autopar.torch_private import pytree

Given = tuple[tuple[Any, ...], dict[str, Any]]
Modes = tuple[bool, ...]
"""`training` of every module of the model, in the order of `modules()`."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """`constants` are tensors of the model's code; `place` is this device's coordinate on each mesh axis."""

    emitted: Emitted
    mesh: DeviceMesh
    place: tuple[int, ...]
    constants: Mapping[str, Tensor]

    @property
    def program(self) -> Program:
        return self.emitted.program

    @property
    def plan(self) -> Plan:
        return self.emitted.plan

    @classmethod
    def of(cls, emitted: Emitted, mesh: DeviceMesh) -> Variant:
        place = mesh.get_coordinate()
        assert place is not None, "this process is no part of the mesh"
        constants = {}
        for name, state in emitted.program.state.items():
            if state.kind == "constant":
                assert state.value is not None
                constants[name] = state.value.to(mesh.device_type)
        return cls(emitted=emitted, mesh=mesh, place=tuple(place), constants=constants)

    def serving(self, program: Program) -> Variant:
        """The same graphs for a program that differs at most in the structure of its inputs and outputs."""
        if (program.in_spec, program.out_spec) == (self.program.in_spec, self.program.out_spec):
            return self
        return replace(self, emitted=replace(self.emitted, program=program))

    @cached_property
    def executor(self) -> Executor:
        coordinates = [torch.tensor(c, device=self.mesh.device_type) for c in self.place]
        return Executor(self.emitted, {n: self.mesh.get_group(n).group_name for n in self.plan.mesh.names}, coordinates)

    @cached_property
    def draws(self) -> list[tuple[Draw, ...]]:
        """The random numbers that each call of the program draws."""
        return draws_of(self.program)

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """This device's pieces of the inputs, by name; raises InputError if they are not those that were planned for."""
        return {name: self.local(name, tensor) for name, tensor in zip_inputs(self.program, args, kwargs)}

    def local(self, name: str, tensor: Tensor) -> Tensor:
        """This device's piece of an input; raises InputError if its shape or dtype is not the planned one."""
        planned = self.plan.inputs[name]
        if not self.takes(name, tensor):
            raise InputError(
                f"input {name} is {described(tensor)}, the plan is for {planned.dtype}{list(planned.shape)}: "
                "pass the global batch that was planned for, or compile again for this shape"
            )
        if isinstance(tensor, DTensor):
            return tensor.redistribute(self.mesh, as_dtensor(planned.placement)).to_local().contiguous()
        if tensor.requires_grad and torch.is_grad_enabled():
            return _Piece.apply(tensor, self, name)  # type: ignore[no-any-return, no-untyped-call]
        return self.piece(name, tensor)

    def piece(self, name: str, tensor: Tensor) -> Tensor:
        """This device's piece of an input that is whole here."""
        placement = self.plan.inputs[name].placement
        return piece(tensor, placement, self.place, self.plan.mesh.sizes).to(self.mesh.device_type).contiguous()

    def whole(self, name: str, local: Tensor) -> DTensor:
        """An input as a DTensor, from this device's piece."""
        planned = self.plan.inputs[name]
        local = local.to(self.mesh.device_type, non_blocking=True).contiguous()
        return as_global(local, planned.placement, planned.shape, self.mesh)

    def takes(self, name: str, tensor: Tensor) -> bool:
        """Whether shape and dtype are the planned ones."""
        planned = self.plan.inputs[name]
        return tuple(tensor.shape) == planned.shape and tensor.dtype == getattr(torch, planned.dtype)

    def fits(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether these inputs, in this form, are what it was traced with."""
        try:
            given = zip_inputs(self.program, args, kwargs)
        except InputError:
            return False
        values = self.program.values
        return all(self.takes(name, t) and (values[name].needs_grad or not t.requires_grad) for name, t in given)

    def outputs(self, flat: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """By name, as users see them: scalars as they are, all else as a DTensor."""
        names = [v for v in self.program.outputs if v is not None]
        return {name: self._global(name, tensor) for name, tensor in zip(names, flat, strict=True)}

    def _global(self, name: str, tensor: Tensor) -> Tensor:
        spec, placement = self.program.values[name], self.plan.boundaries[name]
        if not spec.shape:
            return tensor
        shape = tuple(int(n) for n in spec.shape)
        ranges = held(shape, placement, self.place, self.plan.mesh.sizes)
        return as_global(without_padding(tensor, [end - start for start, end in ranges]), placement, shape, self.mesh)


class _Piece(torch.autograd.Function):
    """This device's piece of an input that is whole on every device: so is its gradient, put together from all pieces."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, variant: Variant, name: str) -> Tensor:
        ctx.variant, ctx.name, ctx.device = variant, name, tensor.device
        return variant.piece(name, tensor).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.variant.whole(ctx.name, gradient).full_tensor().to(ctx.device), None, None


def described(tensor: Tensor) -> str:
    """As in float32[8, 16]."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


@dataclass
class Variants:
    """The programs of a module by the calls that they are for. `signature` is that of the model's `forward`."""

    signature: inspect.Signature
    known: dict[Hashable, Variant] = field(default_factory=dict)
    of_modes: dict[Modes, list[Variant]] = field(default_factory=dict)

    def add(self, modes: Modes, variant: Variant) -> None:
        self.of_modes.setdefault(modes, []).append(variant)

    @property
    def all(self) -> list[Variant]:
        """Each once, in the order in which they were made."""
        return list({id(v): v for variants in self.of_modes.values() for v in variants}.values())

    def find(self, modes: Modes, autocast: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Variant | None:
        """The one for this call under this autocast, its inputs having been brought to its form; None if there is none."""
        key = (modes, autocast, looks(args, kwargs))
        if key not in self.known:
            for variant in self.of_modes.get(modes, ()):
                if variant.program.autocast == autocast and variant.fits(*self.arranged(variant, args, kwargs)):
                    self.known[key] = variant
                    break
        return self.known.get(key)

    def arranged(self, variant: Variant, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Given:
        """The inputs as this variant was traced: by position or by name, what is left out and left at None being the same."""
        program = variant.program
        traced_args, traced_kwargs = pytree.tree_unflatten(list(range(len(program.inputs))), program.in_spec)
        if len(args) == len(traced_args) and set(kwargs) == set(traced_kwargs):
            return args, dict(kwargs)
        return arrange(self.signature, args, kwargs, len(traced_args), list(traced_kwargs))


def arrange(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any], positional: int, names: list[str]
) -> Given:
    """The same call with so many positional arguments and these names; as it was given where that is not the same."""
    known = signature.parameters
    named = [n for n, p in known.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    by_place = [n for n, p in known.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(args) > len(by_place) or positional > len(by_place):
        return args, dict(kwargs)
    given = dict(zip(by_place, args, strict=False)) | dict(kwargs)
    wanted = [*by_place[:positional], *names]
    values = {n: known[n].default for n in wanted if n in named and known[n].default is None} | given
    left_out = [v for n, v in given.items() if n not in wanted and not (n in named and v is None and known[n].default is None)]
    if left_out or not set(wanted) <= set(values):
        return args, dict(kwargs)
    return tuple(values[n] for n in by_place[:positional]), {n: values[n] for n in names}


def looks(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """What of a call decides which program it needs: structure, shapes and dtypes, and everything that is no tensor."""
    leaves, spec = pytree.tree_flatten((args, dict(sorted(kwargs.items()))))
    return str(spec), tuple([_look(leaf) for leaf in leaves])


def _look(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.requires_grad
    return type(leaf), repr(leaf)
