"""While a model is traced, modules whose class has a rule are one op each: their code is not run."""

from __future__ import annotations

from typing import Any

from torch import nn

from autopar.errors import TraceError
from autopar.ir.opaque import Opaque, opaque_of, remember, state_of, tensor_at
from autopar.tracer.blocks import become, own
from autopar.tracer.replica import NotReplicable, replicate

KEY = "_instance_of_rule"


def with_ops(model: nn.Module) -> nn.Module:
    """The model itself, or a twin of it in which modules with a rule call their op. Raises TraceError, RuleError."""
    found = {path: (module, opaque) for path, module in model.named_modules() if (opaque := opaque_of(module)) is not None}
    if not found:
        return model
    try:
        twin = replicate(model)
    except NotReplicable as error:
        first = next(iter(found.values()))[1].kind.__name__
        raise TraceError(f"{first} has a rule, but {type(model).__name__} cannot be traced around it: {error}") from error
    for path, (module, opaque) in found.items():
        stand_in(twin.get_submodule(path), opaque, state_of(opaque, module), remember(opaque, module, path))
    return twin


def stand_in(module: nn.Module, opaque: Opaque, names: tuple[str, ...], key: str) -> None:
    """Make a module of ours call the op of its class. What differs between instances is an attribute, not code."""
    op = opaque.op(names)
    own(module)[KEY] = key

    def forward(this: Any, *args: Any, **kwargs: Any) -> Any:
        return op(own(this)[KEY], *opaque.bind(*args, **kwargs), *(tensor_at(this, name) for name in names))

    become(module, {"forward": forward})
