"""What is left to choose from while wishes are applied, and how the choices of a unit or a parameter are told to the user."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from autopar.errors import ConstraintError
from autopar.ir.constraints import Statement
from autopar.ir.placement import Placement
from autopar.solver.problem import Strategy, Unit
from autopar.solver.selection import Key

Options = frozenset[Hashable]
MENTIONED = 3
"""How many units an error tells about."""


@dataclass
class Choices:
    """What is left to choose from for every unit or state group, and which wish took what away."""

    what: str
    left: dict[Hashable, Options]
    wishes: dict[Hashable, list[tuple[str, Options]]] = field(default_factory=dict)

    def restrict(self, key: Hashable, wish: str, allowed: Iterable[Hashable]) -> None:
        """Raises ConstraintError, naming the wishes that contradict each other, if nothing is left."""
        options = frozenset(allowed)
        before = self.wishes.setdefault(key, [])
        left = self.left[key] & options
        if not left:
            against = [other for other, taken in before if not taken & options][:1] or [other for other, _ in before]
            where = " of ".join(reversed(key)) if isinstance(key, tuple) else key
            raise ConstraintError(
                f"{', '.join(dict.fromkeys(against))} and {wish} contradict each other: together they leave no choice for "
                f"{self.what} {where}. Drop one of them"
            )
        self.left[key] = left
        before.append((wish, options))


def places(group: str, shape: Sequence[int], options: Iterable[Placement], axes: Mapping[int, str]) -> str:
    """Where a parameter can rest on these axes (index -> name)."""
    found = list(options)
    each = [f"on {name} {_listed(_state_text(p, axis) for p in found)}" for axis, name in axes.items()]
    return f"{group} {list(shape)} can rest {', '.join(each)}"


def choices(units: Mapping[Key, Unit], keys: Sequence[Key], said: Statement, axes: Mapping[int, str]) -> str:
    """Which unit has which choices on the axes that a statement speaks of."""
    shown = [f"{unit} of {region} {_unit_choices(units[region, unit], said, axes)}" for region, unit in keys[:MENTIONED]]
    more = f"; and {len(keys) - MENTIONED} more units" if len(keys) > MENTIONED else ""
    return "; ".join(shown) + more


def _unit_choices(unit: Unit, said: Statement, axes: Mapping[int, str]) -> str:
    texts = [f"on {name} {_listed(_seen(unit, said, s, axis) for s in unit.strategies)}" for axis, name in axes.items()]
    return f"{'can be' if said.subject in ('role', 'factor') else 'has'} {', '.join(texts)}"


def _seen(unit: Unit, said: Statement, strategy: Strategy, axis: int) -> str:
    """What a strategy is to a statement of this subject."""
    if said.subject == "role":
        return strategy.roles[axis] or "none"
    if said.subject == "factor":
        return strategy.factors[axis] or "none"
    names, at = (unit.operands, strategy.operands) if said.subject == "in" else (unit.results, strategy.results)
    return " ".join(f"{name} {_state_text(p, axis)}" for name, p in zip(names, at, strict=True)) or "nothing"


def _state_text(placement: Placement, axis: int) -> str:
    state = placement.states[axis]
    return f"S({state})" if isinstance(state, int) else str(state)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(set(words)))
