"""Closed forms as people read them: `524 kFLOP·batch·seq² + 15 GFLOP·batch·seq`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sympy

POWERS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
NEGLIGIBLE = 5e-4
"""Terms that are a smaller share of the sum are left out where sizes are given: numbers have three figures."""


def spell(expression: sympy.Expr | int, unit: Callable[[float], str], sizes: Mapping[sympy.Symbol, int] | None = None) -> str:
    """Terms of highest degree first, each coefficient with its unit; of a maximum, the term that is largest at `sizes`.

    >>> from autopar.bytes import human
    >>> batch, seq = sympy.symbols("batch seq", positive=True)
    >>> spell(2048 * batch * seq**2 + 12 * seq + 3 * 2**20, human)
    '2 KiB·batch·seq² + 12 B·seq + 3 MiB'
    >>> spell(2048 * batch * seq**2 + 12 * seq, human, {batch: 8, seq: 1024})
    '2 KiB·batch·seq²'
    """
    expression = sympy.sympify(expression)
    if sizes and isinstance(expression, sympy.Max):
        expression = max(expression.args, key=lambda term: value(term, sizes))
    terms = {term: float(c) for term, c in sympy.expand(expression).as_coefficients_dict().items() if c}
    if sizes:
        whole = abs(value(expression, sizes))
        terms = {term: c for term, c in terms.items() if abs(c * value(term, sizes)) >= NEGLIGIBLE * whole}
    ordered = sorted(terms, key=lambda term: (-degree(term), str(term)))
    text = " + ".join(unit(terms[t]) if t == 1 else f"{unit(terms[t])}·{monomial(t)}" for t in ordered)
    return text.replace("+ -", "− ") or unit(0)


def value(term: sympy.Expr, sizes: Mapping[sympy.Symbol, int]) -> float:
    return float(term.xreplace(dict(sizes)))


def degree(term: sympy.Expr) -> int:
    return int(sympy.Poly(term).total_degree()) if term.free_symbols and term.is_polynomial() else 0


def monomial(term: sympy.Expr) -> str:
    """
    >>> monomial(sympy.Symbol("batch") * sympy.Symbol("seq") ** 2)
    'batch·seq²'
    """
    return "·".join(
        f"{base}{str(power).translate(POWERS) if power != 1 else ''}" if power.is_Integer and power > 0 else str(base**power)
        for base, power in sorted(term.as_powers_dict().items(), key=lambda pair: str(pair[0]))
    )
