"""Which tests are run where.

`make test` runs everything. Slow tests that draw more examples of what fast ones prove already are `exhaustive`: CI leaves
them out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

SAMPLED = {"solver", "ops", "profiler", "codegen"}
ALWAYS = {"test_baselines.py"}
"""Slow, and not just more of the same."""


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests see no plans of earlier runs, and leave none in the user's cache; processes that they start inherit it.

    Plans of tests/planned.py are shared by the workers of one run.
    """
    own = tmp_path_factory.getbasetemp()
    plans = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "plans"
    plans.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPAR_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("AUTOPAR_TEST_PLANS", str(plans))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = Path(item.path)
        if path.parent.name in SAMPLED and path.name not in ALWAYS and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.exhaustive)
