"""The largest size that a budget allows: each term of the closed form is solved for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import sympy

from autopar.errors import InputError


def largest_size(
    symbol: sympy.Symbol,
    terms: Sequence[sympy.Expr],
    budget: int,
    fixed: Mapping[sympy.Symbol, int],
    assumptions: Sequence[sympy.Basic],
    what: str,
) -> int:
    """The largest size at which no term is above `budget`; 0 if there is none.

    Terms grow with the size. At most what the assumptions allow. Raises InputError if every size fits.
    """
    open_terms = [term.xreplace(dict(fixed)) for term in terms]
    if any(not term.free_symbols and term > budget for term in open_terms):
        return 0
    growing = [term for term in open_terms if term.free_symbols]
    roots = [root(term - budget, symbol) for term in growing]
    found = min(roots, default=math.inf)
    allowed = [a.xreplace(dict(fixed)) for a in assumptions]
    limits = [limit(a, symbol) for a in allowed if a.free_symbols == {symbol}]
    found = min([found, *limits])
    if found == math.inf:
        raise InputError(f"memory does not grow with {what}: every size fits in {budget} bytes")
    fits = fitting(growing, symbol, budget)
    size = max(int(found), 0)
    while size and not fits(size):
        size -= 1
    return size


def root(difference: sympy.Expr, symbol: sympy.Symbol) -> float:
    """The size from which on the difference is positive, to within one."""
    polynomial = sympy.Poly(difference, symbol) if difference.is_polynomial(symbol) else None
    if polynomial is None:
        return bisect(lambda n: bool(difference.xreplace({symbol: sympy.Integer(n)}) <= 0))
    if polynomial.degree() == 1:
        slope, offset = polynomial.all_coeffs()
        return math.floor(-offset / slope) if slope > 0 else math.inf
    above = [r for r in sympy.real_roots(polynomial) if r > 0]
    if not above:
        return math.inf if polynomial.LC() < 0 else 0
    return int(sympy.floor(above[-1]))


def limit(assumption: sympy.Basic, symbol: sympy.Symbol) -> float:
    """The largest size for which an assumption holds, inf if it holds for all large ones."""
    return bisect(lambda n: bool(assumption.xreplace({symbol: sympy.Integer(n)})))


HUGE = 1 << 48


def bisect(holds: Callable[[int], bool]) -> float:
    """The largest n up to HUGE at which it holds, for what holds up to some n."""
    if holds(HUGE):
        return math.inf
    low, high = 0, HUGE
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def fitting(terms: Sequence[sympy.Expr], symbol: sympy.Symbol, budget: int) -> Callable[[int], bool]:
    return lambda size: all(term.xreplace({symbol: sympy.Integer(size)}) <= budget for term in terms)
