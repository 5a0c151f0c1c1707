"""What the architecture tests look for in one source text, each as a function that lists what is wrong.

Names are followed through imports: after `import torch.distributed as dist`, `dist._x` is `torch.distributed._x`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

STAGES = ("errors", "bytes", "ir", "hardware", "torch_private", "ops", "tracer", "profiler", "solver", "codegen", "runtime")
"""Parts of `autopar` with a place in the import order. All other modules are the API: they may use every stage."""

BASE = frozenset({"errors", "bytes", "ir"})
MAY_IMPORT: Mapping[str, frozenset[str]] = {
    "errors": frozenset(),
    "bytes": frozenset({"errors"}),
    "ir": frozenset({"errors", "bytes", "torch_private"}),
    "hardware": BASE,
    "torch_private": frozenset(),
    "ops": BASE | {"torch_private"},
    "tracer": BASE | {"torch_private"},
    "profiler": BASE | {"torch_private", "ops", "hardware"},
    "solver": BASE | {"ops", "hardware", "profiler"},
    "codegen": BASE | {"torch_private", "ops"},
    "runtime": BASE | {"torch_private", "hardware", "ops", "codegen"},
    "cli": frozenset({"errors", "hardware"}),
}
MAPPED = ("solver", "profiler", "codegen")
"""Top-level folders that are installed inside `autopar`."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file by its import name, `autopar.ir.mesh` for example; `is_package` for an `__init__.py`."""

    module: str
    text: str
    is_package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def part(self) -> str:
        """The first name below `autopar`; "" for `autopar` itself and for what is not of autopar."""
        head, *rest = self.module.split(".")
        return rest[0] if head == "autopar" and rest else ""

    def imports(self) -> Iterator[tuple[int, str]]:
        """(line, full dotted name) of everything imported, also inside functions and for type checking only."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((node.lineno, f"{self._from(node)}.{alias.name}") for alias in node.names)

    def _from(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.module.split(".")
        package = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*package, *([node.module] if node.module else [])])

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Local name -> full dotted name, of all that is imported from torch."""
        found = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                pairs = [(a.asname or a.name.split(".")[0], a.name if a.asname else a.name.split(".")[0]) for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                pairs = [(a.asname or a.name, f"{self._from(node)}.{a.name}") for a in node.names]
            else:
                continue
            found |= {local: full for local, full in pairs if full.split(".")[0] == "torch"}
        return found

    def torch_name(self, node: ast.expr) -> str | None:
        """The dotted torch name that an expression spells; None for any other expression."""
        if isinstance(node, ast.Name):
            return self.aliases.get(node.id)
        if isinstance(node, ast.Attribute) and (base := self.torch_name(node.value)):
            return f"{base}.{node.attr}"
        return None


def wrong_imports(source: Source) -> list[str]:
    """Imports against the order of the stages, and mapped folders imported by their bare names."""
    wrong = []
    for line, name in source.imports():
        head, part = (*name.split("."), "")[:2]
        if head in MAPPED:
            wrong.append(f"{source.module}:{line} imports {name}, which a user's own module may shadow: say autopar.{head}")
        elif head == "autopar" and source.part in MAY_IMPORT and part != source.part and not _allowed(source.part, part):
            wrong.append(f"{source.module}:{line} imports {name}: {source.part} may see {sorted(MAY_IMPORT[source.part])}")
    return wrong


def _allowed(importer: str, part: str) -> bool:
    return part in MAY_IMPORT[importer] or (importer == "cli" and part not in STAGES)


def private_torch(source: Source) -> list[str]:
    """Underscored names of torch, but for operators (`torch.ops.aten._softmax` is as public as any)."""
    return [f"{source.module}:{line} uses {name}" for line, name in _torch_names(source) if _is_private(name)]


def _is_private(name: str) -> bool:
    head, *rest = name.split(".")
    own = [word for word in rest if word.startswith("_") and not (word.startswith("__") and word.endswith("__"))]
    return head == "torch" and rest[:1] != ["ops"] and bool(own)


def _torch_names(source: Source) -> Iterator[tuple[int, str]]:
    yield from source.imports()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and (name := source.torch_name(node)) and node.attr.startswith("_"):
            yield node.lineno, name
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            yield from ((node.lineno, a.value) for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))
        elif isinstance(node, ast.Call) and _called(node) in ("getattr", "hasattr") and len(node.args) > 1:
            base, attribute = source.torch_name(node.args[0]), node.args[1]
            if base and isinstance(attribute, ast.Constant):
                yield node.lineno, f"{base}.{attribute.value}"


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def patched_torch(source: Source) -> list[str]:
    """Assignments to, and deletions of, attributes of torch's modules and classes."""
    return [f"{source.module}:{line} changes {name}" for line, name in _changed(source)]


def _changed(source: Source) -> Iterator[tuple[int, str]]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del) and (name := source.torch_name(node)):
            yield node.lineno, name
        elif isinstance(node, ast.Call) and _called(node) in ("setattr", "delattr"):
            yield from ((node.lineno, name) for arg in node.args[:1] if (name := source.torch_name(arg)))


def too_long(source: Source, limit: int = 450) -> list[str]:
    lines = source.text.count("\n")
    return [f"{source.module} has {lines} lines, more than {limit}: which questions does it answer?"] if lines > limit else []
