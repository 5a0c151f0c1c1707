"""Rules that users give: to ops, to Python functions and to whole module classes.

A function or a class becomes an op of its own, `autopar_user::...`, which a traced model calls in its place. Eagerly it runs
as it always did.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from autopar.errors import RuleError
from autopar.ir import opaque
from autopar.ir.own_functions import is_function
from autopar.ir.own_ops import annotated, define, is_tensor, register_flops
from autopar.ops import tables
from autopar.ops.factors import Factor
from autopar.ops.lowering.emit import IMPLEMENTATIONS
from autopar.ops.row_sizes import empty_results, product_flops, require_known_results
from autopar.ops.rule import OpRule, parse
from autopar.torch_private import OpOverload, OpOverloadPacket, graph_if_traced, is_fake

T = TypeVar("T")
Sharded = Mapping[Factor, str | Callable[..., Any]]
KINDS = ("matmul", "attention", "norm", "embedding", "loss", "reduction", "view", "pointwise", "whole")
PRODUCTS = ("matmul", "attention")
"""Kinds whose ops are taken to multiply their operands."""
OPS: dict[Any, OpOverload] = {}
"""Decorated functions, to their ops."""
POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


@dataclass(frozen=True, kw_only=True)
class Said:
    """What `op_rule` is told beside the row."""

    shape: Callable[..., Any] | None = None
    params: tuple[str, ...] | None = None

    def without_key(self) -> Said:
        """For the op of a class, whose first argument, the key of an instance, is not for users."""
        shape = self.shape
        return self if shape is None else replace(self, shape=lambda _, *given: shape(*given))


def op_rule(
    text: str,
    *,
    kind: str = "matmul",
    sharded: Sharded | None = None,
    shape: Callable[..., Any] | None = None,
    params: Sequence[str] | None = None,
) -> Callable[[T], T]:
    """Decorator: give an op, a function of tensors, an `autograd.Function` or a module class a row of the rule table
    (docs/rules.md).

    An op is what `torch.library.custom_op` returns, or an OpOverload; the row replaces the one that it had. A function or a
    class is not traced into: it may contain anything, is one op of a plan, and its backward is autograd's, of the code run
    again; an `autograd.Function` has its own. Operands are its tensors in the order of its arguments, then, of a module class,
    parameters and buffers: all in torch's order, or as named in `params`. `shape` gives the shapes of results from the
    arguments where the row does not tell them.

    `kind` groups the op with others for composing and for the known plans. `sharded` says, per factor, what runs where it is
    cut: a function `f(*local arguments, axes=[(group name, size), ...], coordinates=[...])`, or the name of an implementation
    that autopar has. Returns what it decorates, a function as one that does the same. Raises RuleError if the row is malformed.

    >>> @op_rule("t k, k n -> t n")
    ... def routed(x, w):
    ...     return x @ w if x.sum() > 0 else x.abs() @ w
    >>> tables.rule_for(OPS[routed]).text
    't k, k n -> t n'
    """
    parse(text)
    said = Said(shape=shape, params=None if params is None else tuple(params))
    if kind not in KINDS:
        raise RuleError(f"kind {kind!r} of rule {text!r} is none of {', '.join(KINDS)}")

    def register(given: Any) -> Any:
        rule = row(text, kind, sharded or {}, given)
        if isinstance(given, type) and issubclass(given, nn.Module):
            opaque.CLASSES[given] = class_with(given, rule, said)
            return given
        if is_function(given) and said != Said():
            raise RuleError(f"{given.__name__} tells its results itself, and has no parameters: leave out `shape` and `params`")
        op = given if is_function(given) else overload_of(given)
        if op is not None:
            tables.USER_RULES[op] = rule
            return given
        if not callable(given) or isinstance(given, type):
            raise RuleError(f"{given!r} is no op, function or module class that a rule could be given")
        return own_function(given, rule, said)

    return register


def overload_of(given: Any) -> OpOverload | None:
    """The op that a decorated function, a custom op, a packet or an overload stands for; None for other code."""
    if isinstance(given, types.FunctionType):
        return OPS.get(given)
    found = getattr(given, "_opoverload", given)
    if isinstance(found, OpOverloadPacket):
        found = getattr(found, found.overloads()[0])  # type: ignore[no-untyped-call]
    return found if isinstance(found, OpOverload) else None


def row(text: str, kind: str, sharded: Sharded, given: Any) -> OpRule:
    """The row, with implementations under names of their own. Raises RuleError for a factor or a name that is not there."""
    operands, results, whole = parse(text)
    factors = {word for tensor in (*operands, *results) for word in tensor} - {"1"}
    names: dict[Factor, str] = {}
    for factor, implementation in sharded.items():
        if factor not in factors or factor in whole or factor.endswith("*"):
            raise RuleError(
                f"rule {text!r} has no factor {factor!r} that could be cut, for which `sharded` has an implementation"
            )
        if isinstance(implementation, str):
            if implementation not in IMPLEMENTATIONS:
                known = ", ".join(IMPLEMENTATIONS)
                raise RuleError(
                    f"rule {text!r}: autopar has no implementation {implementation!r}; it has {known}. Or give a function"
                )
            names[factor] = implementation
        else:
            name = names[factor] = free_implementation(f"{name_of(given)}.{factor}")
            of_class = isinstance(given, type) and issubclass(given, nn.Module)
            tables.USER_IMPLEMENTATIONS[name] = of_instance(implementation) if of_class else implementation
    code = [c for c in (given, *sharded.values()) if not isinstance(c, str)]
    return OpRule(kind=kind, text=text, sharded=names, version=version_of(code))


def free_implementation(name: str) -> str:
    count = sum(known.rpartition("#")[0] == name for known in tables.USER_IMPLEMENTATIONS)
    return f"{name}#{count}"


def of_instance(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """An implementation for a class gets the module, without its tensors, in the place of the key."""

    @functools.wraps(implementation)
    def call(key: str, *args: Any, **kwargs: Any) -> Any:
        return implementation(opaque.INSTANCES[key], *args, **kwargs)

    return call


def name_of(given: Any) -> str:
    found = overload_of(given)
    return str(found) if found else str(given.__qualname__).rpartition("<locals>.")[2]


def version_of(code: Sequence[Any]) -> str:
    """A digest of the files that the code is written in; of the text of what was not in a file."""
    found = hashlib.sha256()
    for one in code:
        try:
            found.update(Path(inspect.getsourcefile(one) or "").read_bytes())
        except (TypeError, OSError):
            found.update(repr(getattr(getattr(one, "__code__", None), "co_code", "")).encode())
    return found.hexdigest()[:16]


def own_function(function: Callable[..., Any], rule: OpRule, said: Said) -> Callable[..., Any]:
    """The function, which a tracer sees as one op."""
    what = name_of(function)
    parameters = annotated(function, what)
    require_operands(rule, sum(map(is_tensor, parameters.values())), what)
    op = own_op(what, function, rule, parameters, said)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not any(map(has_no_data, (*args, *kwargs.values()))) and graph_if_traced() is None:
            return function(*args, **kwargs)
        return op(*in_order(what, signature.bind(*args, **kwargs), parameters))

    OPS[call] = op
    return call


def in_order(what: str, bound: inspect.BoundArguments, parameters: Mapping[str, inspect.Parameter]) -> tuple[Any, ...]:
    """All arguments, defaults included; raises RuleError for those that have no name in the signature."""
    bound.apply_defaults()
    if extra := [value for name, value in bound.arguments.items() if name not in parameters and value]:
        raise RuleError(f"{what} is called with {extra[0]!r}, which it gives no name: an op takes named arguments only")
    return tuple(bound.arguments[name] for name in parameters)


def has_no_data(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_meta or is_fake(value) or getattr(type(value), "without_data", False))


def class_with(kind: type[nn.Module], rule: OpRule, said: Said) -> opaque.Opaque:
    """A module class and its row; its ops are made when it is known how many tensors an instance has."""
    what = name_of(kind)
    forward = annotated(kind.forward, what, method=True)
    signature = inspect.signature(functools.partial(kind.forward, None))
    arguments = tuple(forward)

    @functools.cache
    def op(names: tuple[str, ...]) -> OpOverload:
        require_operands(rule, sum(map(is_tensor, forward.values())) + len(names), f"{what} with {', '.join(names)}")
        tensors = {f"state_{name.replace('.', '_')}": inspect.Parameter("_", POSITIONAL, annotation=Tensor) for name in names}
        parameters = {"instance": inspect.Parameter("instance", POSITIONAL, annotation=str)} | forward | tensors
        parameters = {n: p.replace(name=n, default=inspect.Parameter.empty) for n, p in parameters.items()}
        code = functools.partial(opaque.run, names, arguments)
        return own_op(what, code, rule, parameters, said.without_key())

    def bind(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return in_order(what, signature.bind(*args, **kwargs), forward)

    return opaque.Opaque(kind=kind, state=said.params, op=op, bind=bind)


def require_operands(rule: OpRule, count: int, what: str) -> None:
    wanted = len(parse(rule.text)[0])
    if count > wanted:
        raise RuleError(
            f"rule {rule.text!r} is of {wanted} operands, {what} has {count} tensors: write one for each, in their order"
        )


def own_op(
    what: str,
    code: Callable[..., Any],
    rule: OpRule,
    parameters: Mapping[str, inspect.Parameter],
    said: Said,
) -> OpOverload:
    """The op of a piece of code, with its row and its FLOPs."""
    if said.shape is None:
        require_known_results(rule.text)
    tensors = [i for i, parameter in enumerate(parameters.values()) if is_tensor(parameter)]
    fake = functools.partial(empty_results, rule.text, tensors, said.shape)
    overload: OpOverload = define(what, code, parameters, len(parse(rule.text)[1]), fake)._opoverload
    tables.USER_RULES[overload] = rule
    if rule.kind in PRODUCTS:
        count_flops(overload, rule.text, tensors)
    return overload


def count_flops(op: OpOverload, text: str, tensors: Sequence[int]) -> None:
    """Tell torch those of the row's products."""

    def forward(*given: Any, out_shape: Any = None) -> Any:
        return product_flops(text, [given[i] if i < len(given) else None for i in tensors])

    register_flops(op, forward)
