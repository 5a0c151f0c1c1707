"""Which parameters are trained: fixed when a model is compiled, since frozen ones have no gradient in the graphs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from autopar.errors import InputError
from autopar.ir.program import Program


def require_gradients(program: Program, parameters: Mapping[str, Tensor]) -> None:
    """Raise InputError if a parameter wants a gradient that the emitted graphs do not compute.

    The other way round is fine: autograd drops the gradient of what was frozen since.
    """
    if not torch.is_grad_enabled():
        return
    for name, parameter in parameters.items():
        if parameter.requires_grad and not program.state[name].spec.needs_grad:
            raise InputError(
                f"parameter {name} requires a gradient, but was frozen when the model was compiled, so the emitted graphs do "
                "not compute one: compile again with it unfrozen, or freeze it again with requires_grad_(False)"
            )
