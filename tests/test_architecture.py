"""The shape of the code base, held by reading its sources; each check is first shown to be able to fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture import MAPPED, MAY_IMPORT, STAGES, Source, patched_torch, private_torch, too_long, wrong_imports

ROOT = Path(__file__).parent.parent
LIBRARY = ("autopar", *MAPPED)
OTHERS = ("examples", "benchmarks", "tests")


def sources(*folders: str) -> Iterator[Source]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = ".".join(("autopar", *parts) if folder in MAPPED else parts)
            is_package = path.name == "__init__.py"
            yield Source(module=module.removesuffix(".__init__"), text=path.read_text(encoding="utf-8"), is_package=is_package)


def test_sources_finds_the_mapped_folders() -> None:
    modules = {source.module for source in sources(*LIBRARY)}
    assert {"autopar", "autopar.errors", "autopar.ir.mesh", "autopar.solver", "autopar.solver.problem"} <= modules


def test_import_order() -> None:
    assert [wrong for source in sources(*LIBRARY) for wrong in wrong_imports(source)] == []


def test_mapped_folders_are_never_imported_by_their_bare_names() -> None:
    assert [wrong for source in sources(*OTHERS) for wrong in wrong_imports(source)] == []


def test_private_torch_names_are_in_one_file() -> None:
    library = (s for s in sources(*LIBRARY, "examples", "benchmarks") if s.module != "autopar.torch_private")
    assert [wrong for source in library for wrong in private_torch(source)] == []


def test_torch_is_not_patched() -> None:
    assert [wrong for source in sources(*LIBRARY, "examples", "benchmarks") for wrong in patched_torch(source)] == []


def test_no_file_is_too_long() -> None:
    assert [wrong for source in sources(*LIBRARY, *OTHERS) for wrong in too_long(source)] == []


def test_the_import_order_has_no_cycle_and_names_existing_stages() -> None:
    """Peel off, again and again, the stages that may see no stage that is left."""
    left = {stage: set(MAY_IMPORT[stage]) for stage in STAGES}
    while free := [stage for stage, seen in left.items() if not seen & set(left)]:
        for stage in free:
            del left[stage]
    assert left == {}
    assert all((ROOT / s).exists() or (ROOT / "autopar" / s).exists() or (ROOT / f"autopar/{s}.py").exists() for s in STAGES)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("autopar.ir.mesh", "from autopar.ops import rule"),
        ("autopar.ir.mesh", "import autopar.solver"),
        ("autopar.ir.mesh", "import autopar.api"),
        ("autopar.ir.mesh", "import autopar"),
        ("autopar.ir.mesh", "from ..solver import problem"),
        ("autopar.ir.mesh", "from autopar import solver"),
        ("autopar.ir.mesh", "def late():\n    from autopar.tracer import export"),
        ("autopar.ops.rule", "import autopar.profiler.flops"),
        ("autopar.tracer.export", "import autopar.codegen"),
        ("autopar.profiler.flops", "from autopar.solver.problem import Problem"),
        ("autopar.solver.ilp", "from autopar.codegen import runtime"),
        ("autopar.codegen.lower", "from autopar.solver import problem"),
        ("autopar.codegen.lower", "from autopar.profiler import flops"),
        ("autopar.cli", "from autopar.solver import problem"),
        ("autopar.api", "import solver"),
        ("autopar.api", "from codegen.lower import lower"),
        ("tests.solver.test_ilp", "from profiler import flops"),
    ],
)
def test_wrong_imports_are_noticed(module: str, text: str) -> None:
    assert len(wrong_imports(Source(module=module, text=text))) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("autopar.ir.mesh", "from autopar.errors import MeshError\nfrom autopar.ir import placement\nfrom . import program"),
        ("autopar.solver.ilp", "from autopar.profiler import flops\nfrom .problem import Problem\nimport solver_tools"),
        ("autopar.codegen.lower", "from autopar.ops import rule"),
        ("autopar.cli", "from autopar.api import plan\nfrom autopar import hardware"),
        ("autopar.api", "import autopar.solver, autopar.codegen"),
    ],
)
def test_right_imports_pass(module: str, text: str) -> None:
    assert wrong_imports(Source(module=module, text=text)) == []


def test_relative_imports_of_a_package_resolve_from_itself() -> None:
    assert len(wrong_imports(Source(module="autopar.ir", text="from ..ops import rule", is_package=True))) == 1
    assert wrong_imports(Source(module="autopar.ir", text="from .ops import rule", is_package=True)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import torch._dynamo",
        "from torch import _C",
        "from torch._subclasses import FakeTensorMode",
        "from torch.distributed._tensor import api",
        "import torch\ntorch._C",
        "import torch\ntorch.nn._reduction",
        "import torch\ntorch.distributed._tensor",
        "import torch as t\nt._dynamo",
        "import torch.distributed as dist\ndist._get_default_group",
        "from torch import nn\nnn._reduction",
        "from torch import Tensor\nTensor._make_subclass",
        "import torch\ngetattr(torch, '_C')",
        "import importlib\nimportlib.import_module('torch._dynamo')",
    ],
)
def test_private_torch_names_are_noticed(text: str) -> None:
    assert len(private_torch(Source(module="autopar.api", text=text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.ops.aten._softmax.default\ntorch.ops._c10d_functional.all_reduce(1)",
        "import torch\ntorch.__version__",
        "from torch import nn\nnn.Linear(2, 2)",
        "from autopar.torch_private import fake_process_group as _fake",
        "self._torch = other._x",
    ],
)
def test_public_torch_names_pass(text: str) -> None:
    assert private_torch(Source(module="autopar.api", text=text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.manual_seed = None",
        "import torch\ntorch.nn.Module.forward = mine",
        "from torch import nn\nnn.Linear.reset_parameters = mine",
        "import torch.nn.functional as F\nF.gelu, other = mine, 1",
        "import torch\ntorch.backends.cudnn.benchmark |= True",
        "import torch\ndel torch.compile",
        "import torch\nsetattr(torch.Tensor, 'mine', 1)",
    ],
)
def test_patches_of_torch_are_noticed(text: str) -> None:
    assert len(patched_torch(Source(module="autopar.api", text=text))) == 1


def test_ordinary_assignments_pass() -> None:
    text = "import torch\nx = torch.zeros(2)\nx.grad = torch.ones(2)\nself.module.weight = x\ntorch.zeros(2).grad = x"
    assert patched_torch(Source(module="autopar.api", text=text)) == []


def test_long_files_are_noticed() -> None:
    assert too_long(Source(module="autopar.api", text="\n" * 450)) == []
    assert len(too_long(Source(module="autopar.api", text="\n" * 451))) == 1
