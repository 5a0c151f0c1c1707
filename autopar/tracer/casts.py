"""Modules that are cast or moved while they run, to what they are already: "self.router = self.router.to(torch.float32)".

Torch gives a module new parameters then, even if they are the same, and a trace cannot follow that. So the model is traced
again, with modules that do nothing where there is nothing to do. A real cast stays what it is, an error.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

from torch import Tensor, nn

from autopar.torch_private import without_modes
from autopar.tracer.blocks import derived, is_open
from autopar.tracer.replica import NotReplicable, replicate


class Cast:
    """Comes before a module's class."""

    def _apply(self: Any, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What `to`, `float`, `cuda` and their like go through: the module itself, if all its tensors remain what they are."""
        held = list(chain(self.parameters(recurse), self.buffers(recurse)))
        before = [tensor._version for tensor in held]
        with without_modes():
            idle = all(function(tensor) is tensor for tensor in held)
        if idle and before == [tensor._version for tensor in held]:
            return self
        return super()._apply(function, recurse)  # type: ignore[misc]


def with_idle_casts(model: nn.Module) -> nn.Module:
    """A twin of the model over the same tensors, whose modules may be cast to what they are; itself if it has no twin."""
    try:
        twin = replicate(model)
    except NotReplicable:
        return model
    classes: dict[type, type] = {}
    for module in filter(is_open, twin.modules()):
        kind = type(module)
        if kind not in classes:
            classes[kind] = derived(kind, {}, Cast)
        object.__setattr__(module, "__class__", classes[kind])
    return twin
