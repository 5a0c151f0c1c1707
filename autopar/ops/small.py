"""Small calls that stand for a call of a program: what an op is tried on where nobody wrote a row for it.

A call of the program is known by shapes only, and may be huge. A small one keeps what can matter to the op: ranks, dims of
size one, which dims are equal, whether a dim is larger than, equal to, or a multiple of a number among the arguments. Three
sets of sizes are made: cut into halves, into thirds, and into odd halves (or, where numbers divide a dim, into pieces that
have no divisor with them in common).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from autopar.ops.drawn import is_unknown, kind_of
from autopar.torch_private import OpOverload, example_of

SETS = 3
UNEVEN = 2
"""The set whose pieces have no divisor in common with what divides the whole."""
PARTS = (2, 3, 2)
LEAST = 4
"""Dims that are smaller stay as they are."""
STEPS = 64
"""So many sizes are looked at for a dim."""
COARSE = 32
"""What sizes are multiples of where an op refuses smaller ones (a block size written into its code)."""
MOST_ELEMENTS, FEW_ELEMENTS = 2**18, 2**14
"""Of all tensors of a small call together; calls of the program with no more than few are tried at their own size, too."""
PRIMES = (2, 3, 5, 7, 11, 13)


class Unsuited(Exception):
    """Why a call cannot be tried."""


@dataclass(frozen=True)
class Slot:
    """Where an operand goes in the arguments, by its position."""

    operand: int


@dataclass(frozen=True, kw_only=True)
class Form:
    """What is known of a tensor; `dtype` as it is tried."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    needs_grad: bool


@dataclass(frozen=True, kw_only=True)
class CallForm:
    """One call. `arguments` by schema name, those given; the first `positional` by position. `operands` as
    `tensor_operands(node)`; None where none is given."""

    target: OpOverload
    arguments: tuple[tuple[str, Any], ...]
    positional: int
    operands: tuple[Form | None, ...]
    results: tuple[Form, ...]

    def elements(self) -> int:
        """Of all operands and results together, where their sizes are known."""
        return sum(
            math.prod(o.shape) for o in (*self.operands, *self.results) if o is not None and min(o.shape, default=1) >= 0
        )


@dataclass(frozen=True, kw_only=True)
class SmallCall:
    """A call of small sizes; `parts`: into how many pieces a dim of a size may be cut (sizes that no number divides lack)."""

    form: CallForm
    parts: tuple[tuple[int, int], ...]

    def parts_of(self, size: int) -> int | None:
        return dict(self.parts).get(size)


def form_of(node: torch.fx.Node) -> CallForm:
    """Raises Unsuited for what is not tried at all."""
    target = node.target
    if not isinstance(target, OpOverload):
        raise Unsuited("it is no operator of torch.ops")
    if target._schema.is_mutable:
        raise Unsuited("it writes into its operands")
    if is_unknown(node) or kind_of(node) is not None:
        raise Unsuited("it draws random numbers")
    operands: list[Form | None] = []
    arguments: list[tuple[str, Any]] = []
    for i, declared in enumerate(target._schema.arguments):
        given = node.args[i] if i < len(node.args) else node.kwargs.get(declared.name)
        if "Tensor" in str(declared.type):
            value = tuple(slot(v, operands) for v in given) if isinstance(given, list | tuple) else slot(given, operands)
        else:
            value = known(given)
        if i < len(node.args) or declared.name in node.kwargs:
            arguments.append((declared.name, value))
    while operands and operands[-1] is None:
        operands.pop()
    return CallForm(
        target=target,
        arguments=tuple(arguments),
        positional=len(node.args),
        operands=tuple(operands),
        results=tuple(forms_of(node)),
    )


def slot(given: Any, operands: list[Form | None]) -> Any:
    if not isinstance(given, torch.fx.Node):
        operands.append(None)
        return given
    (form,) = forms_of(given)
    operands.append(form)
    return Slot(len(operands) - 1)


def known(given: Any) -> Any:
    """An argument that is no tensor, hashable; sizes that nodes compute at their example's value."""
    if isinstance(given, list | tuple):
        return tuple(map(known, given))
    return example_of(given.meta["val"]) if isinstance(given, torch.fx.Node) else given


def forms_of(node: torch.fx.Node) -> Iterator[Form]:
    value, flags = node.meta["val"], node.meta["needs_grad"]
    many = isinstance(value, tuple | list)
    values = value if many else (value,)
    for v, flag in zip(values, flags if many else (flags,), strict=True):
        if not isinstance(v, torch.Tensor):
            raise Unsuited(f"one of its results is {type(v).__name__}, no tensor")
        shape = tuple(example_of(n) for n in v.shape)
        if not all(isinstance(n, int) for n in shape):
            raise Unsuited("the shapes of its results depend on data")
        yield Form(shape=shape, dtype=tried_dtype(v.dtype), needs_grad=bool(flag))


def tried_dtype(dtype: torch.dtype) -> torch.dtype:
    """All floating-point dtypes are tried as one."""
    return torch.complex128 if dtype.is_complex else torch.float64 if dtype.is_floating_point else dtype


def small_calls(form: CallForm) -> tuple[tuple[SmallCall, ...], ...]:
    """Ways to shrink a call, best first; each a call per set of sizes. Only what the op takes in all sets can be used."""
    own = tuple(own_size(form, order) for order in range(SETS)) if form.elements() <= FEW_ELEMENTS else ()
    makers: list[Callable[[CallForm, int], SmallCall | None]] = [multiples, replaced, coarse]
    if spells_shape(form):
        makers[:2] = [replaced, multiples]
    found = []
    for make in makers:
        made = [small for order in range(SETS) if (small := make(form, order)) is not None]
        if len(made) == SETS and all(small.form.elements() <= MOST_ELEMENTS for small in made):
            found.append(tuple(dict.fromkeys((*made, *own[:1]))))
    found.sort(key=lambda way: len(way) == 1)
    return tuple(dict.fromkeys((*found, *([tuple(dict.fromkeys(own))] if own else []))))


def spells_shape(form: CallForm) -> bool:
    """Whether a list among the arguments is the end of the first result's shape."""
    return bool(form.results) and any(ends(value, form.results[0].shape) for _, value in form.arguments)


def ends(value: Any, shape: Sequence[int]) -> bool:
    """Whether a list spells the last dims of a shape, -1 standing for one of them."""
    if not isinstance(value, tuple) or not value or not all(isinstance(n, int) and n is not True for n in value):
        return False
    return len(value) <= len(shape) and all(a in (b, -1) for a, b in zip(value, shape[len(shape) - len(value) :], strict=True))


def numbers_in(form: CallForm) -> frozenset[int]:
    """Whole numbers among the arguments, those left out too, as magnitudes, and how many results there are; 0 and 1 are no
    sizes."""
    named = dict(form.arguments)
    declared = form.target._schema.arguments
    values = [
        len(form.results),
        *named.values(),
        *(a.default_value for a in declared if a.name not in named and a.has_default_value()),
    ]
    flat = itertools.chain.from_iterable(v if isinstance(v, tuple | list) else (v,) for v in values)
    return frozenset(abs(v) for v in flat if isinstance(v, int) and not isinstance(v, bool) and abs(v) > 1)


def sizes_in(forms: Iterable[Form | None]) -> list[int]:
    """Each once, in order of appearance."""
    return list(dict.fromkeys(n for form in forms if form is not None for n in form.shape if n > 1))


def own_size(form: CallForm, order: int) -> SmallCall:
    """The call as it is; each set cuts into other numbers of pieces where sizes have several divisors."""
    parts = []
    for n in sizes_in(form.operands + form.results):
        counts = [p for p in (*PRIMES, 4) if n % p == 0]
        parts += [(n, counts[order % len(counts)])] if counts else []
    return SmallCall(form=form, parts=tuple(parts))


def multiples(form: CallForm, order: int, step: int = 1) -> SmallCall | None:
    """Arguments as they are, dims in the same relation to them."""
    numbers, sizes = numbers_in(form), sizes_in(form.operands)
    small = {n: n for n in sizes if n < LEAST or n in numbers}
    parts = dict(smallest_part(n) for n in small)
    for n in sizes if order != 1 else reversed(sizes):
        if n in small:
            continue
        found = like(n, numbers, order, frozenset(small.values()), step)
        small[n], parts[small[n]] = found if found is not None else (n, smallest_part(n)[1])
    return shrunk(form, small, parts, form.arguments)


def coarse(form: CallForm, order: int) -> SmallCall | None:
    return multiples(form, order, COARSE)


def like(n: int, numbers: frozenset[int], order: int, taken: frozenset[int], step: int) -> tuple[int, int] | None:
    """A small size that is to these numbers as `n` is, and into how many pieces to cut it; None if there is none."""
    below, above = [a for a in numbers if a < n], [a for a in numbers if a > n]
    step, parts = math.lcm(step, *(a for a in below if n % a == 0)), PARTS[order]
    block = step if step > 1 else 2
    if order == UNEVEN:
        parts = block
    for size in range(step, step * STEPS + max(below, default=0), step):
        if above and size >= min(above):
            return None
        fits = size % parts == 0 and size not in taken and size > max(below, default=LEAST - 1) and size >= LEAST
        if fits and (order != UNEVEN or (math.gcd(size // parts, block) == 1 and size > parts)):
            return size, parts
    return None


def smallest_part(n: int) -> tuple[int, int]:
    """A size and the smallest number that divides it; a size that is hard to divide is its own."""
    return n, next((p for p in PRIMES if n % p == 0), n)


def replaced(form: CallForm, order: int) -> SmallCall | None:
    """Sizes that stand among the arguments are replaced there; a size that is a product of two others stays one."""
    sizes, numbers = sizes_in(form.operands + form.results), numbers_in(form)
    fresh = (n for n in itertools.count(PARTS[order] * 2, PARTS[order]) if order != UNEVEN or n // 2 % 2)
    factors = {n: max((m for m in sizes if m < n and n % m == 0 and n // m in sizes), default=None) for n in sizes}
    small = {n: n if n < LEAST else next(fresh) for n, m in factors.items() if n < LEAST or m is None}
    for n in sorted(set(sizes) - set(small)):
        small[n] = small[m] * small[n // m] if (m := factors[n]) is not None else n
    for n, a in itertools.product(sizes_in(form.operands), numbers - set(sizes)):
        if (n > a) != (small[n] > a) or (n % a == 0 and small[n] % a):
            return None
    arguments = tuple((name, exchanged(value, small)) for name, value in form.arguments)
    parts = dict(smallest_part(s) for s in small.values())
    parts |= {s: PARTS[order] for s in small.values() if s % PARTS[order] == 0}
    made = shrunk(form, small, parts, arguments)
    return replace(made, form=replace(made.form, results=tuple(resized(r, small) for r in form.results)))


def exchanged(value: Any, small: Mapping[int, int]) -> Any:
    if isinstance(value, tuple):
        return tuple(exchanged(v, small) for v in value)
    return small.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def resized(form: Form, small: Mapping[int, int]) -> Form:
    return replace(form, shape=tuple(small.get(n, n) for n in form.shape))


def shrunk(
    form: CallForm, small: Mapping[int, int], parts: Mapping[int, int], arguments: tuple[tuple[str, Any], ...]
) -> SmallCall:
    """The call at other sizes; results keep their ranks, and -1 stands for a size that is not known."""
    operands = tuple(None if o is None else resized(o, small) for o in form.operands)
    results = tuple(replace(r, shape=tuple(1 if n == 1 else -1 for n in r.shape)) for r in form.results)
    changed = replace(form, operands=operands, results=results, arguments=arguments)
    return SmallCall(form=changed, parts=tuple(sorted(parts.items())))
