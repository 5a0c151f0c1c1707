"""Which code ran while a model was traced, and what it could read: as a compiler's depfile, but of a running program.

While the model's own code runs, every function that is entered is noted (but for torch's, which go by version), with the
values, at that moment, of all globals that it names. If in another process all of that is the same, and the model and its
inputs are, then the same code would run there and do the same. Ops of torch are left out of the watching: nothing of the
model's runs inside them, and they are nearly all of the time.
"""

from __future__ import annotations

import dis
import functools
import os
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import resolve_name
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from autopar.cache.code import (
    code_digest,
    codes,
    file_digest,
    is_foreign_file,
    is_foreign_module,
    is_installed,
    is_installed_module,
)
from autopar.cache.tables import NAMESPACES
from autopar.cache.values import Unclear, Values
from autopar.torch_private import OpOverload, OpOverloadPacket

ENVIRONMENT = frozenset({"environ", "environb", "getenv"})
CALLABLES = (types.FunctionType, types.MethodType, functools.partial, nn.Module)
IMPORTING = "<frozen importlib"
"""Python's own code around that of a module which is loaded."""
IMPORT_NAME = dis.opmap["IMPORT_NAME"]
SILENT = frozenset(
    f"__{name}__"
    for name in (
        *("dict", "weakref", "doc", "module", "annotations", "abstractmethods", "parameters", "orig_bases", "slots", "repr"),
        *("match_args", "dataclass_fields", "dataclass_params", "static_attributes", "firstlineno", "qualname"),
    )
)
"""Names in classes that say nothing of what their instances do."""
MISSING = "missing"


@dataclass
class Ran:
    """What a trace depended on besides its arguments: digests of what was read, and by which names code asks for attributes.

    `globals`: by module and name. `files`: by path. `environment`: by variable. `unclear`: the first thing that mattered and
    could not be read.
    """

    globals: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, str | None] = field(default_factory=dict)
    environment: dict[str, str | None] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    unclear: str | None = None

    def differs(self, classes: Classes) -> str | None:
        """The first thing that is not now as it was then; `classes` learns of those of the values. Raises Unclear."""
        for path, digest in self.files.items():
            if file_digest(path) != digest:
                return path
        for name, value in self.environment.items():
            if os.environ.get(name) != value:
                return f"environment variable {name}"
        for module, named in self.globals.items():
            namespace = vars(sys.modules[module]) if module in sys.modules else {}
            for name, digest in named.items():
                if global_digest(namespace, name, classes) != digest:
                    return f"{module}.{name}"
        return None


class Classes:
    """Follows values to classes, whose attributes count if code asks for them by name."""

    def __init__(self) -> None:
        self.found: dict[type, None] = {}

    def function(self, found: types.FunctionType) -> str:
        return "" if self.is_foreign(found) else code_digest(found.__code__)

    def kind(self, found: type, *, called: bool) -> None:
        self.found.update(dict.fromkeys(found.__mro__))
        of_classes: type = type(found)
        self.found.update(dict.fromkeys(of_classes.__mro__))

    def module(self, found: types.ModuleType) -> None:
        return

    def is_foreign(self, found: types.FunctionType) -> bool:
        return is_foreign_file(found.__code__.co_filename)

    def digest(self, value: Any) -> str:
        return Values(self).digest(value)

    def facts(self, names: Iterable[str]) -> Iterator[str]:
        """Of all classes: what they have by these names, and their special methods; raises Unclear."""
        wanted = {*names, "forward"}
        for kind in list(self.found):
            place = f"{kind.__module__}.{kind.__qualname__}"
            for name, value in sorted(vars(kind).items()):
                special = name.startswith("__") and name.endswith("__")
                if name not in SILENT and (name in wanted or special):
                    yield f"{place}.{name} {self.member(kind, name, value)}"

    def member(self, kind: type, name: str, value: Any) -> str:
        if is_foreign_module(kind.__module__):
            patched = isinstance(value, types.FunctionType) and not self.is_foreign(value)
            return self.digest(value) if patched else getattr(value, "__qualname__", "")
        try:
            return self.digest(value)
        except Unclear as error:
            if is_installed_module(kind.__module__):
                return f"a {type(value).__qualname__}"
            raise Unclear(f"{kind.__qualname__}.{name}: {error}") from error


def global_digest(namespace: Mapping[str, Any], name: str, classes: Classes) -> str:
    """Of what a module has by that name; raises Unclear, but for what is in installed packages."""
    if name not in namespace:
        return MISSING
    try:
        return classes.digest(namespace[name])
    except Unclear as error:
        module = str(namespace.get("__name__"))
        if is_installed_module(module):
            return f"a {type(namespace[name]).__qualname__}"
        raise Unclear(f"{module}.{name}: {error}") from error


class Watch(TorchFunctionMode):
    """Notes in `ran` what is entered, while on. One thing that cannot be read, and nothing more is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.ran, self.classes = Ran(), Classes()
        self.seen: dict[int, types.CodeType] = {}
        self.imports: list[tuple[str, tuple[str, ...]]] = []
        self.later: list[tuple[str, str]] = []
        """Of modules of torch and Python, in which tracing itself replaces functions for a while."""
        self.imports_around = 0

    @contextmanager
    def on(self) -> Iterator[None]:
        """Around the model's code. Where somebody else watches already (a debugger), that is what is unclear."""
        if sys.gettrace() is not None:
            self.ran.unclear = "something else traces the interpreter"
        if self.ran.unclear:
            yield
            return
        self.imports_around = imports_under_way(sys._getframe())
        sys.settrace(self.entered)
        try:
            with self:
                yield
        finally:
            sys.settrace(None)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if sys.gettrace() is None or runs_own_code(func, args, kwargs):
            return func(*args, **kwargs)
        sys.settrace(None)
        try:
            return func(*args, **kwargs)
        finally:
            sys.settrace(self.entered)

    def entered(self, frame: types.FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if id(code) in self.seen:
            return
        own = not (self.ran.unclear or is_foreign_file(code.co_filename) or is_made_by_others(frame))
        if own and imports_under_way(frame) > self.imports_around:
            self.note_import(code, frame.f_globals)
            return
        self.seen[id(code)] = code
        if not own:
            return
        sys.settrace(None)
        try:
            self.note(code, frame.f_globals)
        except Unclear as error:
            self.ran.unclear = f"{code.co_qualname} reads {error}"
        finally:
            sys.settrace(self.entered)

    def note(self, code: types.CodeType, namespace: dict[str, Any]) -> None:
        """What a function that is entered names."""
        module = str(namespace.get("__name__"))
        self.ran.names.update(name for inner in codes(code) for name in inner.co_names)
        self.ran.files[code.co_filename] = file_digest(code.co_filename)
        if module not in sys.modules or vars(sys.modules[module]) is not namespace:
            if is_installed(code.co_filename):
                return
            raise Unclear(f"globals of no module, {module}")
        for inner in codes(code):
            for name in inner.co_names:
                self.read(module, name)
                if isinstance(found := namespace.get(name), types.ModuleType):
                    self.read_of(found, inner.co_names)
            self.note_environment(inner, namespace)
            if IMPORT_NAME in inner.co_code[::2]:
                self.imported(inner, namespace)

    def note_import(self, code: types.CodeType, namespace: dict[str, Any]) -> None:
        """What runs only to load a module, which may be there already another time: its globals count when they are named."""
        if code.co_filename not in self.ran.files:
            self.ran.files[code.co_filename] = file_digest(code.co_filename)
        for inner in codes(code):
            self.note_environment(inner, namespace)

    def note_environment(self, code: types.CodeType, namespace: dict[str, Any]) -> None:
        if ENVIRONMENT & set(code.co_names):
            words = [c for c in code.co_consts if isinstance(c, str)]
            words += [v for n in code.co_names if isinstance(v := namespace.get(n), str)]
            self.ran.environment |= {w: os.environ.get(w) for w in words if re.fullmatch(r"\w+", w)}

    def read(self, module: str, name: str) -> None:
        known = self.ran.globals.setdefault(module, {})
        namespace = vars(sys.modules[module])
        if name not in known and name in namespace:
            known[name] = global_digest(namespace, name, self.classes)

    def read_of(self, module: types.ModuleType, names: Iterable[str], depth: int = 4) -> None:
        """What code that has the module at hand may take from it."""
        namespace = vars(module)
        if module.__name__ not in sys.modules or vars(sys.modules[module.__name__]) is not namespace:
            return
        for name in namespace.keys() & set(names):
            value = namespace[name]
            if isinstance(value, types.ModuleType) and depth:
                self.read_of(value, names, depth - 1)
            elif not is_foreign_module(module.__name__):
                self.read(module.__name__, name)
            elif isinstance(value, READABLE):
                self.later.append((module.__name__, name))

    def imported(self, code: types.CodeType, namespace: dict[str, Any]) -> None:
        """Modules that the function imports when it runs."""
        level = 0
        for step in dis.get_instructions(code):
            if step.opname == "LOAD_CONST" and isinstance(step.argval, int):
                level = step.argval
            if step.opname == "IMPORT_NAME":
                package = namespace.get("__package__") or str(namespace.get("__name__", "")).rpartition(".")[0]
                try:
                    name = resolve_name("." * level + step.argval, package) if level else step.argval
                except ImportError:
                    continue
                self.imports.append((name, code.co_names))

    def finish(self) -> Ran:
        """What was noted; with what functions that ran imported."""
        try:
            for name, asked in self.imports:
                if name in sys.modules and not self.ran.unclear:
                    self.read_of(sys.modules[name], asked)
            for module, name in self.later:
                self.read(module, name)
        except Unclear as error:
            self.ran.unclear = str(error)
        return self.ran


READABLE = (types.FunctionType, types.BuiltinFunctionType, type, bool, int, float, str)
"""What is taken from torch's and Python's own modules: their functions may have been replaced."""


def is_made_by_others(frame: types.FrameType) -> bool:
    """Whether torch or Python runs there what it has written itself, such as the methods of a namedtuple."""
    caller = frame.f_back
    return frame.f_code.co_filename == "<string>" and caller is not None and is_foreign_file(caller.f_code.co_filename)


def imports_under_way(frame: types.FrameType | None) -> int:
    """How many of Python's own functions that load modules have led to a frame."""
    found = 0
    while frame is not None:
        found += frame.f_code.co_filename.startswith(IMPORTING)
        frame = frame.f_back
    return found


def runs_own_code(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether code that is not torch's may run inside a function of torch: it is given some, or defined by others."""
    if isinstance(func, OpOverload | OpOverloadPacket):
        return str(func).partition(".")[0] not in NAMESPACES
    if isinstance(func, types.FunctionType) and not is_foreign_file(func.__code__.co_filename):
        return True
    return any(isinstance(a, CALLABLES) for a in (*args, *kwargs.values()))
