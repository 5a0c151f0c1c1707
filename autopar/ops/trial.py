"""Small calls carried out with real numbers: whole, and cut into pieces that are put together again, with their gradients.

Numbers are drawn by seeds, in float64 where the op takes it, so every process sees the same. An op is only believed where
results are finite, depend on what it reads, and are the same in two runs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from autopar.ops.small import CallForm, Form, Slot, SmallCall, Unsuited
from autopar.torch_private import without_modes

SCALES = (1.0, 30.0, 0.1)
"""Of random numbers, one per draw: what clips or saturates does so in some of them."""
FLOOR = 1e-3
"""Differences count relative to the largest element, or to this."""


@dataclass(frozen=True)
class Domain:
    """From where floating-point operands are drawn: `low` to `high` evenly, or (None) normally; in which dtype."""

    dtype: torch.dtype
    low: float | None = None
    high: float = 1.0

    @property
    def tolerance(self) -> float:
        return 1e-9 if self.dtype == torch.float64 else 1e-4


DOMAINS = tuple(
    Domain(dtype, *ends) for dtype in (torch.float64, torch.float32) for ends in ((None, 1.0), (0.5, 1.5), (0.05, 0.95))
)


@dataclass(frozen=True)
class Loop:
    """A factor: the dim that it has in each operand and result, None where it has none; `reduced`: results that lack it and
    need a gradient are then sums over its pieces."""

    operands: tuple[int | None, ...]
    results: tuple[int | None, ...]
    reduced: bool = False


@dataclass(frozen=True)
class Run:
    """`gradients` of the operands: None where none is wanted."""

    results: list[Tensor]
    gradients: list[Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A small call on one draw of numbers. `spelled`: position of the argument that spells the first result's shape."""

    call: SmallCall
    domain: Domain
    operands: list[Tensor | None]
    cotangents: list[Tensor]
    whole: Run
    spelled: int | None = field(default=None)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first result."""
        return tuple(self.whole.results[0].shape)

    def holds(self, cuts: Sequence[tuple[Loop, int]], *, forward_only: bool = False) -> bool:
        """Whether these loops may be cut, each into so many pieces, all at once."""
        tolerance = self.domain.tolerance
        try:
            with quiet():
                upstream = None if forward_only else self.cotangents
                found = self.pieces(tuple(cuts), self.operands, upstream, self.shape)
        except Exception:
            return False
        return (
            same_all(found.results, self.whole.results, tolerance) if forward_only else same_runs(found, self.whole, tolerance)
        )

    def pieces(
        self,
        cuts: tuple[tuple[Loop, int], ...],
        operands: Sequence[Tensor | None],
        cotangents: Sequence[Tensor] | None,
        shape: tuple[int, ...],
    ) -> Run:
        """What the pieces give, put together as the loops say; without cotangents no gradients. Raises whatever the op raises,
        ValueError if pieces do not fit together."""
        if not cuts:
            return run(self.call.form, operands, cotangents, shape if self.spelled is not None else None, self.spelled)
        (loop, count), rest = cuts[0], cuts[1:]
        if (at := loop.results[0]) is not None:
            shape = (*shape[:at], evenly(shape[at], count), *shape[at + 1 :])
        done = []
        for piece in range(count):
            mine = [cut(x, d, count, piece) for x, d in zip(operands, loop.operands, strict=True)]
            upstream = None if cotangents is None else pieces_of(cotangents, loop.results, count, piece)
            done.append(self.pieces(rest, mine, upstream, shape))
        results = [
            joined([r.results[j] for r in done], d, loop.reduced, self.domain.tolerance) for j, d in enumerate(loop.results)
        ]
        gradients = [
            None if g is None or cotangents is None else joined([r.gradients[i] for r in done], loop.operands[i], True, 0.0)
            for i, g in enumerate(self.whole.gradients)
        ]
        return Run(results, gradients)

    def passes_sums(self, count: int) -> bool:
        """Whether the results of summands are summands of the results, and their gradients those of the whole."""
        operands = [x for x in self.operands if x is not None]
        if len(operands) < len(self.operands) or not all(x.is_floating_point() for x in operands):
            return False
        generator = torch.Generator().manual_seed(count)
        drawn = [[random(tuple(x.shape), self.domain, 1.0, generator) for x in operands] for _ in range(count - 1)]
        last = [x - sum(d[i] for d in drawn) for i, x in enumerate(operands)]
        try:
            with quiet():
                done = [run(self.call.form, list(summands), self.cotangents) for summands in (*drawn, last)]
        except Exception:
            return False
        summed = [torch.stack([r.results[j] for r in done]).sum(0) for j in range(len(self.cotangents))]
        tolerance = self.domain.tolerance
        return all(same_runs(Run(summed, r.gradients), self.whole, tolerance) for r in done)


@contextmanager
def quiet() -> Iterator[None]:
    """Outside of what is being traced, without autocast and warnings, with gradients; torch's generator stays as it is."""
    with (
        without_modes(),
        torch.device("cpu"),
        torch.random.fork_rng(devices=[]),
        torch.autocast("cpu", enabled=False),
        torch.inference_mode(False),
        torch.enable_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def trials_of(call: SmallCall, domain: Domain, spelled: int | None = None) -> list[Trial]:
    """One per draw. Raises Unsuited, or whatever the op raises."""
    return [drawn(call, domain, seed, scale, spelled) for seed, scale in enumerate(SCALES)]


def drawn(call: SmallCall, domain: Domain, seed: int, scale: float, spelled: int | None) -> Trial:
    """One draw; where its results are not finite, one that is not scaled."""
    form = call.form
    generator = torch.Generator().manual_seed(seed)
    bound = indices_below(call)
    operands = [None if o is None else values(o, domain, scale, bound, generator) for o in form.operands]
    with quiet():
        first = call_op(form, operands)
        require_alike(form, first)
        cotangents = [random(tuple(r.shape), domain, 1.0, generator).to(r.dtype) for r in first]
        before = [None if x is None else x.clone() for x in operands]
        whole, again = (run(form, operands, cotangents) for _ in range(2))
    made = [*whole.results, *(g for g in whole.gradients if g is not None)]
    if not all(bool(torch.isfinite(x).all()) for x in made):
        if scale != 1.0:
            return drawn(call, domain, seed, 1.0, spelled)
        raise Unsuited("its results, or its gradients, are not finite on random numbers")
    if not same_runs(again, whole, domain.tolerance):
        raise Unsuited("two runs of it differ: it is random, and devices will not agree")
    if not all(x is None or torch.equal(x, y) for x, y in zip(operands, before, strict=True) if y is not None):
        raise Unsuited("it writes into its operands")
    return Trial(call=call, domain=domain, operands=operands, cotangents=cotangents, whole=whole, spelled=spelled)


def require_alike(form: CallForm, results: Sequence[Tensor]) -> None:
    """The small results look as those of the program do."""
    expected = [tuple(r.shape) for r in form.results]
    found = [tuple(r.shape) for r in results]
    alike = len(expected) == len(found) and all(
        len(e) == len(f) and all(b == a or (a == -1 and b != 1) for a, b in zip(e, f, strict=True))
        for e, f in zip(expected, found, strict=True)
    )
    if not alike:
        raise Unsuited(f"on small shapes its results have shapes {found}, which do not correspond to those of the program")


def indices_below(call: SmallCall) -> int:
    """Whole numbers are drawn below this: valid as indices into any dim, and into any piece of one."""
    pieces = [n // (call.parts_of(n) or 1) for o in call.form.operands if o is not None for n in o.shape if n > 1]
    return max(2, min(pieces, default=2))


def values(form: Form, domain: Domain, scale: float, bound: int, generator: torch.Generator) -> Tensor:
    shape = list(form.shape)
    if form.dtype == torch.bool:
        return torch.randint(2, shape, generator=generator, device="cpu") == 1
    if form.dtype.is_complex:
        complex_dtype = torch.complex128 if domain.dtype == torch.float64 else torch.complex64
        return torch.randn(shape, dtype=complex_dtype, generator=generator, device="cpu") * scale
    if not form.dtype.is_floating_point:
        return torch.randint(bound, shape, generator=generator, device="cpu").to(form.dtype)
    return random(tuple(form.shape), domain, scale, generator)


def random(shape: tuple[int, ...], domain: Domain, scale: float, generator: torch.Generator) -> Tensor:
    if domain.low is None:
        return torch.randn(shape, dtype=domain.dtype, generator=generator, device="cpu") * scale
    return torch.rand(shape, dtype=domain.dtype, generator=generator, device="cpu") * (domain.high - domain.low) + domain.low


def call_op(
    form: CallForm, operands: Sequence[Tensor | None], shape: Sequence[int] | None = None, spelled: int | None = None
) -> list[Tensor]:
    """The op's results; with `shape`, that in place of the argument at position `spelled`."""
    floats = next((x.dtype for x in operands if x is not None and x.is_floating_point()), torch.float64)

    def filled(value: Any) -> Any:
        if isinstance(value, Slot):
            return operands[value.operand]
        if isinstance(value, tuple):
            return [filled(v) for v in value]
        if isinstance(value, torch.dtype):
            return floats if value.is_floating_point else value
        return torch.device("cpu") if isinstance(value, torch.device) else value

    given = [filled(value) for _, value in form.arguments[: form.positional]]
    if shape is not None and spelled is not None:
        given[spelled] = list(shape)[len(shape) - len(given[spelled]) :]
    made = form.target(*given, **{name: filled(value) for name, value in form.arguments[form.positional :]})
    results = list(made) if isinstance(made, tuple | list) else [made]
    if not all(isinstance(r, Tensor) for r in results):
        raise Unsuited("its results are not all tensors")
    return results


def run(
    form: CallForm,
    operands: Sequence[Tensor | None],
    cotangents: Sequence[Tensor] | None,
    shape: Sequence[int] | None = None,
    spelled: int | None = None,
) -> Run:
    """Results, and gradients of the operands that need one (none without cotangents): zeros where the op gives none."""
    given = [
        None if x is None or o is None else x.detach().requires_grad_(o.needs_grad)
        for x, o in zip(operands, form.operands, strict=True)
    ]
    results = call_op(form, given, shape, spelled)
    if cotangents is None:
        return Run([r.detach() for r in results], [None] * len(given))
    ends = [(r, c) for r, c in zip(results, cotangents, strict=True) if r.requires_grad]
    wanted = [x for x in given if x is not None and x.requires_grad]
    grads: Iterator[Tensor | None] = iter(())
    if ends and wanted:
        grads = iter(torch.autograd.grad([r for r, _ in ends], wanted, [c for _, c in ends], allow_unused=True))
    found: list[Tensor | None] = []
    for x in given:
        gradient = next(grads, None) if x is not None and x.requires_grad else None
        found.append(torch.zeros_like(x) if gradient is None and x is not None and x.requires_grad else gradient)
    return Run([r.detach() for r in results], found)


def evenly(size: int, count: int) -> int:
    if size % count:
        raise ValueError(f"{size} is not divided by {count}")
    return size // count


def cut(x: Tensor | None, dim: int | None, count: int, piece: int) -> Tensor | None:
    if x is None or dim is None:
        return x
    size = evenly(x.shape[dim], count)
    return x.narrow(dim, piece * size, size).contiguous()


def pieces_of(tensors: Sequence[Tensor], dims: Sequence[int | None], count: int, piece: int) -> list[Tensor]:
    found = [cut(x, d, count, piece) for x, d in zip(tensors, dims, strict=True)]
    return [x for x in found if x is not None]


def joined(pieces: Sequence[Any], dim: int | None, adds: bool, tolerance: float) -> Tensor:
    """Side by side along a dim, added up, or (if pieces do not add) the one value that all must be."""
    if dim is not None:
        return torch.cat(list(pieces), dim)
    if adds:
        return torch.stack(list(pieces)).sum(0)
    first: Tensor = pieces[0]
    if not all(same(other, first, tolerance) for other in pieces[1:]):
        raise ValueError("pieces differ")
    return first


def same_runs(found: Run, wanted: Run, tolerance: float) -> bool:
    gradients = zip(found.gradients, wanted.gradients, strict=True)
    return same_all(found.results, wanted.results, tolerance) and all(
        a is b or (a is not None and b is not None and same(a, b, tolerance)) for a, b in gradients
    )


def same_all(found: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float) -> bool:
    return all(same(a, b, tolerance) for a, b in zip(found, wanted, strict=True))


def same(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if not wanted.numel() or not (wanted.is_floating_point() or wanted.is_complex()):
        return torch.equal(found, wanted)
    size = max(float(wanted.abs().max()), FLOOR)
    return bool(((found - wanted).abs() <= tolerance * size).all()) and math.isfinite(size)
