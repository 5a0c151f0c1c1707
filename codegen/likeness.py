"""What libraries look for on a model beside parameters and a call: a compiled module answers as the model did."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

CARRIED = ("config", "loss_type", "main_input_name")
"""Plain data that training loops read: transformers' Trainer decides by them how losses are scaled and shifted."""


def resemble(parallel: nn.Module, model: nn.Module) -> None:
    """Give the compiled module the model's class name, the signature of its `forward`, and the attributes in `CARRIED`.

    As `fully_shard` does, the module's class becomes one of its own, derived from what it was: tools ask classes, too.
    """
    cls = type(parallel)
    if "resembles" in vars(cls):
        return
    signature = inspect.signature(model.forward)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return cls.forward(self, *args, **kwargs)

    forward.__signature__ = signature.replace(parameters=[itself, *signature.parameters.values()])  # type: ignore[attr-defined]
    members = {"forward": forward, "resembles": type(model), "__doc__": cls.__doc__, "__module__": cls.__module__}
    parallel.__class__ = type(type(model).__name__, (cls,), members)
    for name in CARRIED:
        if hasattr(model, name) and not isinstance(getattr(model, name), nn.Module):
            setattr(parallel, name, getattr(model, name))
