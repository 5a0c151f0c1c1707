"""Ops made of Python code that is not traced into: whatever it does, a Program has one node for it.

The code runs as it is, forward; backward runs it again, with autograd on, and differentiates that. What tracing has to know,
the shapes of results, is said by whoever defines the op. Results are contiguous and own their memory.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from autopar.errors import RuleError
from autopar.torch_private import OpOverload, autograd_inside_op

NAMESPACE = "autopar_user"
DEFINED: set[str] = set()
"""Names that are taken."""
SIMPLE = (bool, int, float, str)

Code = Callable[..., Any]
Parameters = Mapping[str, inspect.Parameter]


def define(
    name: str,
    code: Code,
    parameters: Parameters,
    results: int,
    fake: Callable[..., tuple[Tensor, ...]],
    *,
    namespace: str = NAMESPACE,
    checked: bool = True,
) -> Any:
    """An op that runs `code`, with a backward; `fake` makes its results from tensors without data.

    `parameters` have annotations (see `annotated`). A name that is taken gets a number. Where `fake` is somebody's word, real
    results are `checked` against it.
    """
    name = free_name(name)

    def full(given: tuple[Any, ...]) -> tuple[Any, ...]:
        """With the defaults that torch leaves out."""
        return (*given, *(parameter.default for parameter in list(parameters.values())[len(given) :]))

    op = torch.library.custom_op(
        f"{namespace}::{name}",
        lambda *given: single(forward(name, code, fake if checked else None, full(given), results)),
        mutates_args=(),
        schema=schema(parameters, returned(results)),
    )
    op.register_fake(lambda *given: single(fake(*full(given))))
    back = torch.library.custom_op(
        f"{namespace}::{name}_backward",
        lambda gradients, wanted, *given: backward(name, code, gradients, wanted, given, results),
        mutates_args=(),
        schema=schema(backward_parameters(parameters), list[Tensor]),
    )
    back.register_fake(lambda gradients, wanted, *given: [torch.empty_like(x).contiguous() for x in chosen(given, wanted)])
    register_backward(op, back)
    return op


def free_name(name: str) -> str:
    base = re.sub(r"\W+", "_", name).strip("_")
    found, count = base, 1
    while found in DEFINED:
        count += 1
        found = f"{base}_{count}"
    DEFINED.add(found)
    return found


def annotated(function: Callable[..., Any], what: str, *, method: bool = False) -> dict[str, inspect.Parameter]:
    """The parameters of a function, or of a method without `self`, all with types: where nothing is written, of the default
    if there is one, else a tensor.

    Raises RuleError for what no op can take: a list of tensors, any number of arguments.
    """
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # names that exist only for type checkers
        hints = {}
    found = {}
    for name, given in list(inspect.signature(function).parameters.items())[method:]:
        if given.kind in (given.VAR_KEYWORD, given.VAR_POSITIONAL):
            if given.kind is given.VAR_POSITIONAL:
                raise RuleError(f"{what} takes any number of arguments (*{name}): give each one a name")
            continue
        hint = hints.get(name, type(given.default) if isinstance(given.default, SIMPLE) else Tensor)
        if given.default is None and hint is Tensor:
            hint = Tensor | None
        found[name] = inspect.Parameter(name, given.POSITIONAL_OR_KEYWORD, default=given.default, annotation=hint)
        try:
            schema({name: found[name]}, Tensor)
        except ValueError as error:
            raise RuleError(
                f"{what} takes {name!r} of type {hint}: an op takes tensors, numbers, text and lists of numbers; annotate it "
                "with one of these types"
            ) from error
        if hint == list[Tensor] or hint == Sequence[Tensor]:
            raise RuleError(f"{what} takes {name!r}, a list of tensors: give each tensor a name of its own")
    return found


def is_tensor(parameter: inspect.Parameter) -> bool:
    return parameter.annotation in (Tensor, Tensor | None, typing.Optional[Tensor])  # noqa: UP045 - another object


def schema(parameters: Parameters, result: Any) -> str:
    """In torch's notation; raises ValueError for a type that it does not have."""

    def prototype() -> None: ...

    prototype.__signature__ = inspect.Signature(list(parameters.values()), return_annotation=result)  # type: ignore[attr-defined]
    return torch.library.infer_schema(prototype, mutates_args=())


def returned(results: int) -> Any:
    return Tensor if results == 1 else tuple[(Tensor,) * results]  # type: ignore[misc]


def backward_parameters(parameters: Parameters) -> Parameters:
    """Gradients of the floating results, which arguments are to get one, and what forward got."""

    def of(name: str, annotation: Any) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)

    first = {"gradients__": of("gradients__", list[Tensor]), "wanted__": of("wanted__", list[bool])}
    return first | {name: of(name, parameter.annotation) for name, parameter in parameters.items()}


def single(results: tuple[Tensor, ...]) -> Any:
    return results if len(results) > 1 else results[0]


def chosen(given: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
    return [x for x, w in zip(given, wanted, strict=True) if w]


def forward(
    name: str, code: Code, fake: Callable[..., tuple[Tensor, ...]] | None, given: Sequence[Any], results: int
) -> tuple[Tensor, ...]:
    """Run the code; raises RuleError if what it returns is not what the rule says, which `fake` knows."""
    found = owned(called(name, code, given, results), given)
    if fake is None:
        return found
    for i, (real, said) in enumerate(zip(found, fake(*given), strict=True)):
        if (real.shape, real.dtype) != (said.shape, said.dtype):
            ours, rules = (f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in (real, said))
            raise RuleError(f"{name} returns {ours} as result {i}, and {rules} by its rule: correct that, or give `shape=`")
    return found


def called(name: str, code: Code, given: Sequence[Any], results: int) -> tuple[Tensor, ...]:
    """What the code returns; raises RuleError if that is not so many tensors, or if it writes into what it was given."""
    tensors = [x for x in given if isinstance(x, Tensor)]
    versions = [x._version for x in tensors]
    found = code(*given)
    found = tuple(found) if isinstance(found, tuple | list) else (found,)
    if len(found) != results or not all(isinstance(x, Tensor) for x in found):
        kinds = ", ".join(type(x).__name__ for x in found)
        raise RuleError(f"{name} returns ({kinds}), its rule has {results} results: return that many tensors")
    if versions != [x._version for x in tensors]:
        raise RuleError(f"{name} writes into a tensor that it was given: clone that first, and return what is new")
    return found


def owned(results: Sequence[Tensor], given: Sequence[Any]) -> tuple[Tensor, ...]:
    """The same values, contiguous, each in memory of its own."""
    taken = {x.untyped_storage().data_ptr() for x in given if isinstance(x, Tensor)}
    found = []
    for x in results:
        x = x.detach().contiguous()
        if x.untyped_storage().data_ptr() in taken:
            x = x.clone()
        taken.add(x.untyped_storage().data_ptr())
        found.append(x)
    return tuple(found)


def backward(
    name: str, code: Code, gradients: Sequence[Tensor], wanted: Sequence[bool], given: Sequence[Any], results: int
) -> list[Tensor]:
    """Gradients of the wanted arguments, by running the code again; zeros for one that no result depends on."""
    with autograd_inside_op(), torch.enable_grad():
        leaves = [x.detach().requires_grad_() if w else x for x, w in zip(given, wanted, strict=True)]
        floating = [x for x in called(name, code, leaves, results) if x.is_floating_point()]
        ends = [(x, g) for x, g in zip(floating, gradients, strict=True) if x.requires_grad]
        sources = chosen(leaves, wanted)
        if not ends:
            return [torch.zeros_like(x) for x in sources]
        found = torch.autograd.grad([x for x, _ in ends], sources, [g for _, g in ends], allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(sources, found, strict=True)]
    return list(owned(grads, [*given, *gradients]))


def register_backward(op: Any, back: Any) -> None:
    """Autograd of the op: tensors are kept as they came in, and go to `back`."""

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.constants = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
        ctx.floating = [x.is_floating_point() for x in (output if isinstance(output, tuple) else (output,))]
        ctx.save_for_backward(*(inputs[i] for i in ctx.places))

    def differentiate(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        given = list(ctx.constants)
        for i, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            given[i] = tensor
        flags = [bool(flag) for flag in ctx.needs_input_grad]  # of what the caller gave, without defaults
        wanted = [i < len(flags) and flags[i] for i in range(len(given))]
        found = iter(back(chosen(gradients, ctx.floating), wanted, *given))
        return tuple(next(found) if w else None for w in wanted)

    op.register_autograd(differentiate, setup_context=keep)


def register_flops(op: OpOverload, forward: Callable[..., Any], *, get_raw: bool = False) -> None:
    """Tell torch, which has a table of formulas, what an op of ours computes: shapes of tensors, or with `get_raw` tensors, to
    FLOPs. Backward is three times forward: run again, and two products for each."""

    def backward(gradients: Any, wanted: Any, *given: Any, **_: Any) -> Any:
        return 3 * forward(*given)

    back = getattr(getattr(torch.ops, op.namespace), f"{op.overloadpacket.__name__}_backward")
    register_flop_formula(op.overloadpacket, get_raw=get_raw)(forward)
    register_flop_formula(back, get_raw=get_raw)(backward)
