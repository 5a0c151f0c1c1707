"""Programs for calls that come later: other batch sizes, without labels, in eval mode.

A call that no program of the module is for is traced on a copy of the model without weights. If that gives a program which is
there already (a model without dropout is the same in eval mode), the program serves both. Otherwise it is planned around the
parameters as they rest now, once, and kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from autopar.codegen.emit import Emitted
from autopar.codegen.module import ParallelModule
from autopar.codegen.variant import Modes, Variant
from autopar.errors import InputError, RankError
from autopar.ir.placement import Placement
from autopar.ir.precision import said
from autopar.ir.program import Program
from autopar.runtime.agreement import FAILURE, Record, agree, inputs_of, record_of
from autopar.runtime.skeleton import skeleton
from autopar.torch_private import pytree

logger = logging.getLogger("autopar")

Trace = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], Program]
MakePlan = Callable[[Program, Mapping[str, Placement]], Emitted]
"""The program with the best plan in which parameters rest as given ({}: anywhere)."""


@contextmanager
def with_gradients() -> Iterator[None]:
    """Programs can be trained, also if they are made by a call that wants no gradients."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@dataclass(kw_only=True)
class Programs:
    """Makes the first program of a module, and those for later calls; with `allowed` False a new program is an error.

    The same happens on every rank, so all ranks have to call the module with the same shapes. They compare what they trace,
    and what they have `said` already, before anything else happens between them.
    """

    model: nn.Module
    trace: Trace
    plan: MakePlan
    said: Record
    allowed: bool = True

    @with_gradients()
    def first(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Emitted:
        """Of the model itself; from then on a copy without weights stands for it."""
        emitted = self.plan(self.traced(args, kwargs), {})
        self.model = skeleton(self.model)
        return emitted

    def traced(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Program:
        args, kwargs = pytree.tree_map_only(DTensor, like_whole, (args, dict(kwargs)))
        try:
            program = self.trace(self.model, args, kwargs)
        except Exception as error:
            with suppress(RankError):
                agree({FAILURE: f"{type(error).__name__}: {error}"})
            raise
        agree(record_of(program, self.said))
        return program

    def switched(self, variant: Variant) -> None:
        """All ranks change to another program at the same call."""
        agree({"about": "a program", "inputs": inputs_of(variant.program), "program": variant.program.fingerprint})

    @with_gradients()
    def __call__(self, parallel: ParallelModule, modes: Modes, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Variant:
        began_s = time.monotonic()
        with in_modes(self.model, modes):
            program = self.traced(args, kwargs)
        for variant in parallel.variants:
            if same(variant.program, program):
                return variant.serving(program)
        if not self.allowed:
            raise InputError(refusal(parallel, program))
        resting = {name: parallel.plan.state[name].placement for name, s in program.state.items() if s.kind == "parameter"}
        emitted = self.plan(program, resting)
        if dist.get_rank() == 0:
            logger.warning(
                "planned again, in %.1f s, for %s in %s mode and %s, which are new to this module. Parameters stay where they "
                "are; the plan is kept for further such calls",
                time.monotonic() - began_s,
                ", ".join(f"{name} {text}" for name, text in inputs_of(program).items()),
                "train" if parallel.training else "eval",
                said(program.precision),
            )
        return Variant.of(emitted, parallel.variants[0].mesh)


@contextmanager
def in_modes(model: nn.Module, modes: Modes) -> Iterator[None]:
    """With each module in its train or eval mode, for a while."""
    before = [module.training for module in model.modules()]
    _set_modes(model, modes)
    try:
        yield
    finally:
        _set_modes(model, before)


def _set_modes(model: nn.Module, modes: Sequence[bool]) -> None:
    for module, training in zip(model.modules(), modes, strict=True):
        module.training = training


def same(one: Program, other: Program) -> bool:
    """Whether graphs of the one can run the other: they do the same, under the same names."""
    return (
        one.fingerprint == other.fingerprint
        and one.calls == other.calls
        and list(filter(None, one.inputs)) == list(filter(None, other.inputs))
        and one.outputs == other.outputs
    )


def refusal(parallel: ParallelModule, program: Program) -> str:
    """The first difference from the program that was compiled."""
    difference = parallel.plan.difference(program)
    return (
        f"this call needs another program than {program.name} was compiled for: {difference}. Pass the batch that was planned "
        "for, or compile with replan=True, or again for this shape"
    )


def like_whole(tensor: DTensor) -> torch.Tensor:
    """A tensor without data that has the global shape."""
    like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return like.requires_grad_(tensor.requires_grad)
