"""What users may import, and what importing it costs."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import autopar

PUBLIC = (
    "Checkpoints",
    "Constraints",
    "MeshSpec",
    "Pareto",
    "Plan",
    "__version__",
    "assume",
    "check_rule",
    "compare",
    "compile",
    "errors",
    "explain",
    "op_rule",
    "ops",
    "own_slice",
    "pareto",
    "plan",
    "profile",
    "shard_loader",
    "timeline",
    "trace",
    "verify",
    "why_not",
)


def test_public_names() -> None:
    assert tuple(sorted(autopar.__all__)) == PUBLIC


def test_every_public_name_is_there() -> None:
    assert [name for name in PUBLIC if not hasattr(autopar, name)] == []
    assert set(PUBLIC) <= set(dir(autopar))


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    assert not hasattr(autopar, "no_such_name")


def test_version_is_that_of_the_distribution() -> None:
    assert autopar.__version__ == importlib.metadata.version("autopar")


def heavy_imports(statement: str) -> str:
    """Which of the heavy packages are loaded in a fresh interpreter after the statement."""
    code = f"import sys\n{statement}\nprint(*sorted({{'torch', 'pulp', 'sympy', 'transformers', 'numpy'}} & set(sys.modules)))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_autopar_imports_nothing_heavy() -> None:
    assert heavy_imports("import autopar") == ""
    assert heavy_imports("from autopar import errors") == ""


def test_heavy_imports_notices_one() -> None:
    assert heavy_imports("import numpy") == "numpy"
