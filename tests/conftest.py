"""Which tests are run where.

`make test` runs everything. Slow tests that draw more examples of what fast ones prove already are `exhaustive`: CI leaves
them out.
"""

from __future__ import annotations

from pathlib import Path

import pytest

SAMPLED = {"solver", "ops", "profiler", "codegen"}
ALWAYS = {"test_baselines.py"}
"""Slow, and not just more of the same."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = Path(item.path)
        if path.parent.name in SAMPLED and path.name not in ALWAYS and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.exhaustive)
