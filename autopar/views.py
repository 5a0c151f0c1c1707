"""How plans, fronts, profiles, reports and answers about plans look: tables, for terminals and notebooks."""

from __future__ import annotations

from rich.console import RenderableType

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


def of_profile(profile: Profile) -> list[RenderableType]:
    """At the sizes of the example inputs."""
    return profile_renderables(View(profile=profile, sizes=profile.examples))


def of_unit(one: Explained) -> list[RenderableType]:
    return explained_renderables([one])


renderables.register(Plan, plan_renderables)
renderables.register(Pareto, front_renderables)
renderables.register(Profile, of_profile)
renderables.register(Report, report_renderables)
renderables.register(Comparison, comparison_renderables)
renderables.register(Explained, of_unit)
renderables.register(WhyNot, why_not_renderables)
