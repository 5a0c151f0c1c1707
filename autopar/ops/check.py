"""check_rule: for a rule of yours, the proof that tests run for the rules of autopar.

Every strategy of the row runs on all ranks of a mesh, in this process and in float64: each rank on its pieces, with the sharded
implementation where there is one. Results and gradients, put together again, must be those of the whole op.
"""

from __future__ import annotations

import math
import random
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autopar.errors import InputError, RuleError
from autopar.ir.opaque import opaque_of, remember, state_of, tensor_at
from autopar.ir.own_functions import is_function, tensors_of, use_of
from autopar.ir.widen import widen
from autopar.ops import tables
from autopar.ops.factors import Factor
from autopar.ops.names import op_named
from autopar.ops.pieces import difference
from autopar.ops.proof import Call, full_run, prove, unit_of
from autopar.ops.row_sizes import factor_sizes
from autopar.ops.rule import WHOLE, Signature, tensor_operands
from autopar.ops.strategies import strategies
from autopar.ops.units import Unit, rule_of, shapes_of
from autopar.ops.user_rules import Said, Sharded, class_with, overload_of, own_function, row
from autopar.torch_private import pytree

Mesh = tuple[int, ...]
MESHES: tuple[Mesh, ...] = ((2,), (3,), (2, 2))
LARGEST = 2**20
"""Elements of a tensor; larger shapes than that are not tried, but for the example itself."""


@dataclass(frozen=True, kw_only=True)
class Proved:
    """A strategy that was run: what it cuts on each axis of the mesh, and the placements of the op's tensors."""

    mesh: Mesh
    factors: tuple[Factor | None, ...]
    operands: tuple[str, ...]
    results: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class RuleReport:
    """What `check_rule` ran, all of it equal to the whole op; `skipped`: shapes that the op itself does not take."""

    op: str
    rule: str
    strategies: tuple[Proved, ...]
    skipped: tuple[str, ...] = ()

    @property
    def cut(self) -> tuple[Factor, ...]:
        """The factors that some strategy cuts."""
        return tuple(dict.fromkeys(f for s in self.strategies for f in s.factors if f is not None))

    def __str__(self) -> str:
        shapes = {s.shapes for s in self.strategies}
        lines = [
            f"{self.op} is what its rule says, forward and gradients: {len(self.strategies)} runs on {len(shapes)} shapes",
            f"  rule  {self.rule}",
            f"  cut   {', '.join(self.cut) or 'nothing: no factor can be'}",
        ]
        for mesh in dict.fromkeys(s.mesh for s in self.strategies):
            ways = dict.fromkeys(", ".join(f or "-" for f in s.factors) for s in self.strategies if s.mesh == mesh)
            lines.append(f"  mesh {'x'.join(map(str, mesh)):4} {' | '.join(ways)}")
        return "\n".join([*lines, *(f"  not tried: {text}" for text in self.skipped)])


def check_rule(
    op: Any,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    rule: str | None = None,
    sharded: Sharded | None = None,
    params: Sequence[str] | None = None,
    meshes: Sequence[Mesh] = MESHES,
    shapes: int = 3,
) -> RuleReport:
    """Prove the rule of an op, a function or a module by running all its strategies against the whole op.

    `args` and `kwargs` are an example call; `op` may also be a name such as "aten.linear". With `rule` (and `sharded`,
    `params`) that row is tried instead of the registered one. On each of the `meshes` the example runs as it is, then on so
    many other `shapes`: factors are made larger, numbers are drawn like those of the example, integers from among them.

    Raises RuleError where the shapes do not fit the row, and with the counterexample where a strategy gives something else:
    what was cut, the placements, and the element that is furthest off. InputError for an op without a rule.

    >>> print(check_rule("aten.mm", torch.randn(4, 6), torch.randn(6, 2)).cut)
    ('m', 'k', 'n')
    """
    with nullcontext() if rule is None else rules_as_before():
        call = call_of(op, args, dict(kwargs or {}), rule, sharded or {}, params)
        if tables.rule_for(call.target) is None:
            raise InputError(f"{call.target} has no rule to check: give it one with @autopar.op_rule, or rule=")
        return proved(call, meshes, shapes)


@contextmanager
def rules_as_before() -> Iterator[None]:
    """A row that is only tried is forgotten afterwards."""
    before = dict(tables.USER_RULES)
    try:
        yield
    finally:
        tables.USER_RULES.clear()
        tables.USER_RULES.update(before)


def call_of(
    op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], text: str | None, sharded: Sharded, params: Sequence[str] | None
) -> Call:
    """The op, and its arguments in float64; a row that is given is registered for it."""
    said = Said(params=None if params is None else tuple(params))
    if isinstance(op, nn.Module):
        rule = None if text is None else row(text, "matmul", sharded, type(op))
        opaque = opaque_of(op) if rule is None else class_with(type(op), rule, said)
        if opaque is None:
            raise InputError(f"{type(op).__name__} has no rule to check: give it one with @autopar.op_rule, or rule=")
        names = state_of(opaque, op)
        tensors = (tensor_at(op, name) for name in names)
        return doubled(opaque.op(names), (remember(opaque, op, ""), *opaque.bind(*args, **kwargs), *tensors), {})
    if is_function(op):
        if text is not None:
            tables.USER_RULES[op] = row(text, "matmul", sharded, op)
        use = use_of(op, args)
        return doubled(use.op(len(tensors_of(op.apply(*args)))), use.taken, {})
    if text is not None and isinstance(op, types.FunctionType) and overload_of(op) is None:
        op = own_function(op, row(text, "matmul", sharded, op), said)
    elif text is not None:
        tables.USER_RULES[op_named(op)] = row(text, "matmul", sharded, op_named(op))
    return doubled(op_named(op), args, kwargs)


def doubled(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Floating tensors in float64, and such that gradients are wanted."""
    args, kwargs = pytree.tree_map_only(Tensor, own_double, (args, kwargs))
    return Call(target, args, kwargs)


def own_double(tensor: Tensor) -> Tensor:
    return widen(tensor.detach()).clone().requires_grad_(tensor.is_floating_point())


def proved(call: Call, meshes: Sequence[Mesh], shapes: int) -> RuleReport:
    """Run the call as it is, then on other shapes; raises RuleError at the first strategy that is wrong."""
    done: list[Proved] = []
    skipped: list[str] = []
    unit, operands = fitting_unit(call)
    signature = strict_signature(unit)
    require_same_twice(unit, operands)
    for mesh in meshes:
        done += run_all(unit, operands, mesh)
        for trial in range(shapes):
            other = rescaled(call, unit, signature, math.prod(mesh), trial)
            try:
                larger = unit_of([other])
            except Exception as error:
                skipped.append(
                    f"{shapes_in(other)}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                )
                continue
            done += run_all(*larger, mesh)
    return RuleReport(op=str(call.target), rule=row_text(unit), strategies=tuple(done), skipped=tuple(dict.fromkeys(skipped)))


def fitting_unit(call: Call) -> tuple[Unit, list[Tensor]]:
    """As `unit_of`; where the op cannot run on shapes that do not fit its row either, the RuleError says the latter."""
    try:
        return unit_of([call])
    except RuleError:
        raise
    except Exception:
        rule = tables.rule_for(call.target)
        if rule is not None and rule.text:
            factor_sizes(rule.text, [x.shape for x in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(x, Tensor)])
        raise


def strict_signature(unit: Unit) -> Signature:
    """How the row fits the call; raises RuleError where it does not (a unit is kept whole then)."""
    node = unit.nodes[0]
    operands = [None if n is None else shapes_of(n)[0] for n in tensor_operands(node)]
    try:
        return rule_of(node).signature(node, operands, shapes_of(node))
    except ValueError as error:
        raise RuleError(f"{node.target}: {error}") from error


def require_same_twice(unit: Unit, operands: Sequence[Tensor]) -> None:
    first, second = (full_run(unit, operands) for _ in range(2))
    grads = [(a, b) for a, b in zip(first[2], second[2], strict=True) if a is not None and b is not None]
    for a, b in [*zip(first[0], second[0], strict=True), *grads]:
        if told := difference(a, b, 0.0):
            raise RuleError(
                f"{unit.nodes[0].target} gives something else when it runs again: it {told}. Backward runs the code again, so "
                "it must not draw random numbers or change what it reads"
            )


def run_all(unit: Unit, operands: Sequence[Tensor], mesh: Mesh) -> list[Proved]:
    shapes = tuple(tuple(x.shape) for x in operands)
    found = strategies(unit, mesh)
    prove(unit, operands, mesh, found)
    return [
        Proved(
            mesh=mesh,
            factors=s.factors,
            operands=tuple(map(str, s.operands)),
            results=tuple(map(str, s.results)),
            shapes=shapes,
        )
        for s in found
    ]


def row_text(unit: Unit) -> str:
    rule = rule_of(unit.nodes[0])
    return rule.text or f"by shapes and attributes ({getattr(rule.fit, '__name__', 'fit')})"


def rescaled(call: Call, unit: Unit, signature: Signature, devices: int, trial: int) -> Call:
    """The call on tensors of other sizes: each factor that may be cut is made larger, in the first trial so that the devices
    divide all of them, later most."""
    dice = random.Random(trial)
    sizes = {f: int(n) for f, n in signature.sizes.items()}
    for factor, size in sizes.items():
        if WHOLE not in signature.marks[factor]:
            even = size * devices // math.gcd(size, devices)
            sizes[factor] = dice.choice([even, even, 2 * even, size]) if trial else even
    wanted = {
        id(node.meta["val"]): [
            math.prod(sizes[f] for f in dim) if dim else n for dim, n in zip(dims, shapes_of(node)[0], strict=True)
        ]
        for node, dims in zip(tensor_operands(unit.nodes[0]), signature.operands, strict=False)
        if node is not None and dims is not None
    }
    generator = torch.Generator().manual_seed(dice.randrange(2**31))

    def like(tensor: Tensor) -> Tensor:
        shape = wanted.get(id(tensor), list(tensor.shape))
        return drawn_like(tensor, shape if math.prod(shape) <= LARGEST else list(tensor.shape), generator)

    args, kwargs = pytree.tree_map_only(Tensor, like, (call.args, call.kwargs))
    return Call(call.target, args, kwargs)


def drawn_like(tensor: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Elements from among those of the tensor, numbers a little off: of the same signs and ranges."""
    if not tensor.numel():
        return tensor
    chosen = torch.randint(tensor.numel(), tuple(shape), generator=generator)
    found = tensor.detach().reshape(-1)[chosen]
    if not tensor.is_floating_point():
        return found
    if not bool(found.any()):
        found = torch.randn(tuple(shape), generator=generator, dtype=tensor.dtype)
    off = 0.75 + torch.rand(tuple(shape), generator=generator, dtype=tensor.dtype) / 2
    return (found * off).requires_grad_()


def shapes_in(call: Call) -> str:
    return ", ".join(str(list(x.shape)) for x in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(x, Tensor))
