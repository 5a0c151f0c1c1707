"""Code as text, and whose it is: torch, numpy, Python and autopar go by their versions, everything else by what it says."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
import types
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

from autopar.planning.key import source_folders

INSTALLED = ("site-packages", "dist-packages")
TORCH_NEEDS = ("sympy", "mpmath", "networkx", "jinja2", "fsspec", "filelock", "typing_extensions", "tqdm", "numpy")
"""Packages that torch calls for its own ends."""
FOREIGN_MODULES = frozenset({"torch", "autopar", *TORCH_NEEDS, *sys.stdlib_module_names}) - {"__main__", "__mp_main__"}


def code_digest(code: types.CodeType) -> str:
    """Of all that it does, and of its lines, which graphs are annotated with."""
    found = hashlib.sha256()
    lines = (code.co_filename, code.co_firstlineno, code.co_linetable, code.co_exceptiontable)
    names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    found.update(repr((lines, names, counts)).encode())
    found.update(code.co_code)
    for constant in code.co_consts:
        found.update(constant_text(constant).encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def constant_text(constant: object) -> str:
    if isinstance(constant, types.CodeType):
        return code_digest(constant)
    if isinstance(constant, frozenset):
        return f"{{{sorted(map(constant_text, constant))}}}"
    if isinstance(constant, tuple):
        return f"({', '.join(map(constant_text, constant))})"
    return f"{type(constant).__name__} {constant!r}"


def codes(code: types.CodeType) -> list[types.CodeType]:
    """The code and all that is written inside it."""
    return [code, *(inner for c in code.co_consts if isinstance(c, types.CodeType) for inner in codes(c))]


@cache
def foreign_folders() -> tuple[str, ...]:
    """Of torch, what it needs, and autopar."""
    found = {f"{folder}{os.sep}" for folder in source_folders()}
    for name in ("torch", *TORCH_NEEDS):
        spec = PathFinder.find_spec(name)
        if spec is not None and spec.origin is not None:
            file = Path(spec.origin)
            found.add(f"{file.parent}{os.sep}" if file.stem == "__init__" else str(file))
    return tuple(found)


@cache
def standard_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple({f"{paths[name]}{os.sep}" for name in ("stdlib", "platstdlib")})


def is_installed(path: str) -> bool:
    """Whether it is a file of an installed package, and so hardly ever written at while it is in use."""
    return any(part in INSTALLED for part in Path(path).parts)


@cache
def is_foreign_file(path: str) -> bool:
    if path.startswith(("<frozen ", "<eval_with_key>", *foreign_folders())):
        return True
    return path.startswith(standard_folders()) and not is_installed(path)


def is_foreign_module(name: str | None) -> bool:
    return name is None or name.partition(".")[0] in FOREIGN_MODULES


def is_installed_module(name: str) -> bool:
    """Whether it is loaded from an installed package."""
    return is_installed(str(getattr(sys.modules.get(name), "__file__", None) or ""))


def file_digest(path: str) -> str | None:
    """Of its content; None for code that came from no file."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None
