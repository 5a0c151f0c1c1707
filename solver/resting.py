"""Parameters that are somewhere already: a program that shares them with another one is planned around where they rest."""

from __future__ import annotations

from collections.abc import Mapping

from autopar.errors import ConstraintError
from autopar.ir.placement import Placement
from autopar.solver.build import Builder
from autopar.solver.restriction import Restriction


def resting(builder: Builder, at: Mapping[str, Placement]) -> Restriction:
    """Only plans in which each named parameter rests at that placement.

    Raises ConstraintError if equal layers of this program hold parameters that rest in different places: they are planned as
    one, and so would have to rest alike.
    """
    pinned: dict[str, tuple[str, Placement]] = {}
    for name, placement in at.items():
        group = builder.group_of.get(name)
        if group is None:
            continue
        first, other = pinned.setdefault(group, (name, placement))
        if other != placement:
            raise ConstraintError(
                f"{first} rests at [{other}] and {name} at [{placement}], but in this program they belong to equal layers, "
                "which are planned as one: compile for this shape first, or pin both alike with Constraints(parameters=...)"
            )
    return Restriction(rest=lambda group, placement: group not in pinned or pinned[group][1] == placement)
