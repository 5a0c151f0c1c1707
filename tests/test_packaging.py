"""What pyproject.toml says about the folders, and that wheel and editable install both hold it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAPPED = {"autopar.solver": "solver", "autopar.profiler": "profiler", "autopar.codegen": "codegen"}
IMPORTED = ("autopar", "autopar.ir", "autopar.hardware", *MAPPED)

PROBE = """
import importlib, json, solver
from importlib import resources
files = {name: importlib.import_module(name).__file__ for name in %r}
from autopar.hardware import known
typed = resources.files("autopar").joinpath("py.typed").is_file()
print(json.dumps({"files": files, "hardware": known(), "typed": typed, "decoy": solver.DECOY}))
"""


def packages_in(root: Path) -> set[str]:
    """Import names of all folders below `root` with an `__init__.py` that belong to the distribution."""
    tops = {"autopar": "autopar"} | {folder: name for name, folder in MAPPED.items()}
    found = set()
    for top, name in tops.items():
        for init in (root / top).rglob("__init__.py"):
            found.add(".".join((name, *init.parent.relative_to(root / top).parts)))
    return found


def test_the_package_list_is_complete() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages_in(ROOT)


def test_packages_in_finds_nested_and_mapped_packages(tmp_path: Path) -> None:
    for folder in ("autopar/new", "solver/deep/er", "tests/ops"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").touch()
    assert packages_in(tmp_path) == {"autopar.new", "autopar.solver.deep.er"}


def test_mapped_folders() -> None:
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {"autopar": "autopar"} | MAPPED


def test_every_requirement_has_its_reason_beside_it() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    groups = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    first = {
        requirement: re.search(re.escape(f'"{requirement}"') + r",\s*(#.*)?", text) for group in groups for requirement in group
    }
    assert [requirement for requirement, match in first.items() if match is None or not match.group(1)] == []


def test_the_same_pins_in_pre_commit() -> None:
    pins = dict(
        requirement.split("==") for requirement in PROJECT["project"]["optional-dependencies"]["dev"] if "==" in requirement
    )
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    ruff, local = config["repos"]
    assert ruff["rev"] == f"v{pins['ruff']}"
    assert [hook["name"].split()[:2] for hook in local["hooks"]] == [["mypy", pins["mypy"]]]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads: a build leaves its traces beside the sources."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("autopar", *MAPPED.values()):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, copy)
    return copy


@pytest.fixture
def decoy(tmp_path: Path) -> Path:
    """A folder with a user's own solver.py and codegen package in it."""
    (tmp_path / "solver.py").write_text("DECOY = True\n")
    (tmp_path / "codegen").mkdir()
    (tmp_path / "codegen" / "__init__.py").write_text('raise AssertionError("imported the codegen of a user")\n')
    return tmp_path


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def probe(python: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Import everything beside the decoys; where each package was found."""
    found = json.loads(run(python, "-c", PROBE % (IMPORTED,), cwd=cwd, env=env))
    assert found["decoy"] is True
    assert found["typed"] is True
    shipped = sorted(path.stem for path in (ROOT / "autopar" / "hardware").glob("*.json"))
    assert sorted([*found["hardware"], "links"]) == shipped
    return {name: Path(file) for name, file in found["files"].items()}


@pytest.mark.slow
def test_wheel(checkout: Path, decoy: Path, tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, checkout, cwd=tmp_path)
    (wheel,) = tmp_path.glob("autopar-*.whl")
    target = tmp_path / "installed"
    run(*pip, "install", "--no-deps", "--target", target, wheel, cwd=tmp_path)
    files = probe(sys.executable, decoy, {"PYTHONPATH": str(target)})
    assert {name: file.parent.relative_to(target) for name, file in files.items()} == {
        name: Path(*name.split(".")) for name in IMPORTED
    }
    assert not (target / "solver").exists()


@pytest.mark.slow
def test_editable_install(checkout: Path, decoy: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    python = venv / "bin" / "python"
    # Borrows dependencies and pip from this environment, but not its editable autopar: nested .pth files are not read.
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ("install", "--no-deps", "--no-build-isolation", "--ignore-installed", "--editable")
    run(python, "-m", "pip", "--quiet", *install, checkout, cwd=tmp_path)
    files = probe(python, decoy)
    assert {name: file.parent for name, file in files.items()} == {
        name: checkout / MAPPED.get(name, name.replace(".", "/")) for name in IMPORTED
    }
    assert (venv / "bin" / "autopar").exists()
