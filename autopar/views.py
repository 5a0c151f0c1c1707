"""How plans, fronts, profiles, reports and answers about plans look: tables, for terminals and notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autopar.ir.pareto import Pareto
from autopar.ir.plan import Plan
from autopar.ir.shown import renderables
from autopar.planning.compare import Comparison
from autopar.planning.explain import Explained, WhyNot
from autopar.profile_view import View
from autopar.profiler.profile import Profile
from autopar.render import plan_renderables
from autopar.render_profile import profile_renderables
from autopar.render_question import comparison_renderables, explained_renderables, why_not_renderables
from autopar.render_search import front_renderables
from autopar.render_verify import report_renderables
from autopar.verification import Report

if TYPE_CHECKING:
    from rich.console import RenderableType


@renderables.register
def _(plan: Plan) -> list[RenderableType]:
    return plan_renderables(plan)


@renderables.register
def _(front: Pareto) -> list[RenderableType]:
    return front_renderables(front)


@renderables.register
def _(profile: Profile) -> list[RenderableType]:
    """At the sizes of the example inputs."""
    return profile_renderables(View(profile=profile, sizes=profile.examples))


@renderables.register
def _(report: Report) -> list[RenderableType]:
    return report_renderables(report)


@renderables.register
def _(found: Comparison) -> list[RenderableType]:
    return comparison_renderables(found)


@renderables.register
def _(one: Explained) -> list[RenderableType]:
    return explained_renderables([one])


@renderables.register
def _(answer: WhyNot) -> list[RenderableType]:
    return why_not_renderables(answer)
