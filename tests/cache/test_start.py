"""A second start does not trace; whatever a trace may depend on makes it trace again; damaged entries are made anew.

Models are small files of their own, imported as modules of the test, so that their sources and globals can change.
"""

from __future__ import annotations

import importlib
import json
import logging
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from autopar.cache.programs import program_of, program_text
from autopar.cache.start import remembered_joint, remembered_program
from autopar.cache.store import HEADER, digest
from autopar.cache.tables import NotStorable, graph_table, target_of
from autopar.codegen.emit import emit
from autopar.codegen.hold import hold
from autopar.errors import TraceError
from autopar.ir.program import Program
from autopar.tracer import trace
from tests.planned import planned

HELPER = """
FACTOR = 2.0
def scaled(x):
    return x * FACTOR
"""
SOURCE = """
import os
import torch
from torch import nn
from torch.nn import functional as F
from {helper} import scaled
import {helper} as helper

SHIFT = 1.0

class Config:
    def __init__(self):
        self.eps, self.deep = 0.5, {{"power": 2}}

class Inner(nn.Module):
    limit = 3.0
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
    def forward(self, x):
        return F.relu(self.linear(x)).clamp(max=self.limit)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.config, self.act, self.flag = Config(), torch.tanh, True
        self.inner, self.other = Inner(), Inner()
        self.table = torch.tensor([1.0, 2.0, 3.0, 4.0])
        self.register_buffer("mask", torch.ones(4))
    def forward(self, x, y=None, *, times=1):
        x = self.act(self.inner(x)) + self.config.eps ** self.config.deep["power"] + SHIFT
        if self.flag and os.environ.get("CACHE_TEST_VARIABLE"):
            x = x * 3
        for _ in range(times):
            x = scaled(x) + helper.FACTOR
        return {{"loss": (self.other(x) * self.mask * self.table).sum()}}
"""
NAME = "model_of_cache_test"


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that modules are imported from, with the cache of the tests in it."""
    where = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPAR_CACHE_DIR", str(where / "cache"))
        patch.syspath_prepend(str(where))
        patch.setattr(sys, "dont_write_bytecode", True)
        yield where


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("AUTOPAR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def source(workplace: Path) -> Iterator[ModuleType]:
    """A model's module, with a helper module; of names that nothing else has."""
    (workplace / f"{NAME}_helper.py").write_text(HELPER)
    (workplace / f"{NAME}.py").write_text(SOURCE.format(helper=f"{NAME}_helper"))
    importlib.invalidate_caches()
    yield importlib.import_module(NAME)
    for module in (NAME, f"{NAME}_helper"):
        sys.modules.pop(module, None)


@pytest.fixture(scope="module")
def entry(source: ModuleType, workplace: Path) -> Path:
    """That of the usual call."""
    assert start(usual(source))[1]
    (path,) = (workplace / "cache").glob("*.program")
    return path


X = torch.zeros(2, 4)
Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def usual(source: ModuleType) -> Call:
    return source.Model(), (X,), {"times": 2}


def start(call: Call, **options: Any) -> tuple[Program, bool]:
    """The program, and whether it was traced."""
    model, args, kwargs = call
    traced = []

    def make(around: Any) -> Program:
        traced.append(True)
        return trace(model, args, kwargs, around=around)

    return remembered_program(model, args, kwargs, options.pop("precision", None), make, **options), bool(traced)


def is_traced(call: Call, precision: str | None = None) -> bool:
    """Whether it is not found; nothing is made."""
    model, args, kwargs = call
    made: Any = object()
    return remembered_program(model, args, kwargs, precision, lambda around: made, keep=False) is made


def test_the_second_start_does_not_trace_and_gives_the_same(source: ModuleType, entry: Path) -> None:
    second, traced = start(usual(source))
    assert not traced
    assert program_text(second) == program_text(trace(*usual(source)))
    assert start(usual(source), use=False)[1]


def changed(make: Callable[[ModuleType, nn.Module], Any]) -> Callable[[ModuleType, pytest.MonkeyPatch], Call]:
    """Something is done to the model before the call."""

    def change(source: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Call:
        model, args, kwargs = usual(source)
        make(source, model)
        return model, args, kwargs

    return change


def assign(path: str, value: Any) -> Callable[[ModuleType, pytest.MonkeyPatch], Call]:
    """Of the model, if the path begins so, otherwise of its module."""

    def change(source: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Call:
        call = usual(source)
        *way, last = path.split(".")
        where: Any = call[0] if way and way[0] == "model" else source
        for step in way[1:] if way and way[0] == "model" else way:
            where = getattr(where, step)
        monkeypatch.setattr(where, last, value)
        return call

    return change


def rewritten(which: str, before: str, after: str) -> Callable[[ModuleType, pytest.MonkeyPatch], Call]:
    def change(source: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Call:
        path = Path(str((source if which == "model" else source.helper).__file__))
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))
        reload(source)
        return usual(source)

    return change


def rewritten_behind_its_back(source: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The file, not what is loaded."""
    path = Path(str(source.helper.__file__))
    path.write_text(path.read_text() + "# more")
    return usual(source)


def reload(source: ModuleType) -> None:
    importlib.reload(source.helper)
    importlib.reload(source)


def closure(number: float) -> Callable[..., Any]:
    return lambda x: x * number


def tie(source: ModuleType, model: Any) -> None:
    model.other.linear.weight = model.inner.linear.weight


CHANGES: Mapping[str, Callable[[ModuleType, pytest.MonkeyPatch], Call]] = {
    "source": rewritten("model", "clamp(max", "clamp(min"),
    "a comment, which moves lines": rewritten("model", "SHIFT = 1.0", "# here\nSHIFT = 1.0"),
    "source of a helper": rewritten("helper", "x * FACTOR", "x / FACTOR"),
    "a source that is not loaded again": rewritten_behind_its_back,
    "a global": assign("SHIFT", 2.0),
    "a global of a helper": assign("helper.FACTOR", 3.0),
    "an imported function": assign("scaled", lambda x: x - 1),
    "a function of a module": assign("F.relu", lambda x: x),
    "a method of torch": assign("nn.Linear.forward", lambda self, x: x),
    "a method of the class": assign("Inner.forward", lambda self, x: x),
    "an attribute of the class": assign("Inner.limit", 4.0),
    "an attribute of the config": assign("model.config.eps", 0.25),
    "deep in the config": assign("model.config.deep", {"power": 3}),
    "a flag": assign("model.flag", False),
    "another function": assign("model.act", torch.sigmoid),
    "a closure": assign("model.act", closure(2.0)),
    "the same closure over another number": assign("model.act", closure(3.0)),
    "forward of one instance": assign("model.inner.forward", lambda x: x),
    "a tensor attribute": assign("model.table", torch.tensor([1.0, 2.0, 3.0, 5.0])),
    "a buffer's values": changed(lambda source, model: model.mask.fill_(2)),
    "a buffer's dtype": changed(lambda source, model: setattr(model, "mask", model.mask.double())),
    "requires_grad": changed(lambda source, model: model.inner.linear.weight.requires_grad_(False)),
    "a parameter's dtype": changed(lambda source, model: model.double()),
    "a tie": changed(tie),
    "a hook": changed(lambda source, model: model.inner.register_forward_hook(lambda module, args, out: out * 2)),
    "train": changed(lambda source, model: model.inner.eval()),
    "another module": changed(lambda source, model: setattr(model, "act", nn.GELU())),
    "shape": lambda source, _: (source.Model(), (torch.zeros(3, 4),), {"times": 2}),
    "dtype of an input": lambda source, _: (source.Model(), (X.bfloat16(),), {"times": 2}),
    "an input that wants a gradient": lambda source, _: (source.Model(), (X.clone().requires_grad_(),), {"times": 2}),
    "a number among the inputs": lambda source, _: (source.Model(), (X,), {"times": 3}),
    "how an input is given": lambda source, _: (source.Model(), (), {"x": X, "times": 2}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_is_traced_again(what: str, source: ModuleType, entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_traced(usual(source))
    written = {path: path.read_text() for path in map(Path, (str(source.__file__), str(source.helper.__file__)))}
    try:
        assert is_traced(CHANGES[what](source, monkeypatch))
    finally:
        monkeypatch.undo()
        for path, text in written.items():
            if path.read_text() != text:
                path.write_text(text)
                reload(source)
    assert not is_traced(usual(source))


def test_the_state_of_torch_counts(source: ModuleType, entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usually = usual(source)
    assert not is_traced(usually)
    assert is_traced(usually, precision="compute=bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        assert is_traced(usually)
    with torch.no_grad():
        assert is_traced(usually)
    with torch.device("meta"):
        assert is_traced(usually)
    torch.set_default_dtype(torch.float64)
    try:
        assert is_traced(usually)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        assert is_traced(usually)
    finally:
        torch.use_deterministic_algorithms(False)
    for where, value in (("autopar.cache.start.versions", dict), ("autopar.cache.start.code", str)):
        with monkeypatch.context() as patch:
            patch.setattr(where, value)
            assert is_traced(usually)
    monkeypatch.setenv("CACHE_TEST_VARIABLE", "1")
    assert is_traced(usually)
    monkeypatch.undo()
    assert not is_traced(usually)


def test_code_that_cannot_be_read_is_traced_each_time(
    source: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "autopar")
    model, args, kwargs = usual(source)
    model.stream = (n for n in (1.0,))
    assert is_traced((model, args, kwargs))
    assert "traced at each start: a builtins.generator" in caplog.text
    monkeypatch.setattr(source, "SHIFT", Opaque(1.0))  # read when the code runs, and no part of the model
    assert start(usual(source))[1]
    assert "model_of_cache_test.SHIFT" in caplog.text
    assert not list(folder.glob("*.program"))


class Opaque(float):
    """With a state that nobody can read."""

    def __init__(self, value: float) -> None:
        self.stream = (n for n in (value,))


LATE = """
from torch import nn
class Model(nn.Module):
    def forward(self, x):
        from {name}_late import made
        return {{"loss": (x * made).sum()}}
"""
LOADED = """
'''A module that runs code of its own when it is loaded.'''
import os
SHARE = 2.0
def computed():
    return SHARE * float(os.environ.get("CACHE_TEST_VARIABLE", "1"))
made = computed()
made_of = os.environ.get("CACHE_TEST_OTHER")
"""


def test_modules_that_a_trace_loads_count_by_what_is_taken_from_them(
    workplace: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ran in them while they were loaded does not run again, and their globals were not there yet."""
    name, late = f"{NAME}_lazy", f"{NAME}_lazy_late"
    (workplace / f"{name}.py").write_text(LATE.format(name=name))
    (workplace / f"{late}.py").write_text(LOADED)
    importlib.invalidate_caches()
    call = (importlib.import_module(name).Model(), (X,), {})
    assert start(call)[1]
    assert not is_traced(call)
    monkeypatch.setenv("CACHE_TEST_OTHER", "1")
    assert is_traced(call), "the environment that it reads"
    monkeypatch.delenv("CACHE_TEST_OTHER")
    assert not is_traced(call)
    (workplace / f"{late}.py").write_text(LOADED.replace("2.0", "3.0"))
    assert is_traced(call), "its file"
    for module in (name, late):
        sys.modules.pop(module)


def test_watching_leaves_a_debugger_alone(source: ModuleType, folder: Path) -> None:
    calls: list[str] = []
    sys.settrace(lambda frame, event, arg: calls.append(frame.f_code.co_name))
    try:
        start(usual(source))
    finally:
        assert sys.gettrace() is not None
        sys.settrace(None)
    assert "forward" in calls
    assert not list(folder.glob("*.program")), "an entry was made although not everything was seen"


def test_a_failed_trace_leaves_no_entry(folder: Path, source: ModuleType) -> None:
    with pytest.raises(TraceError, match=rf"at {NAME}.py:\d+ .*reduction dim"):
        start((source.Model(), (torch.zeros(2, 3),), {}))
    assert not folder.exists()
    assert sys.gettrace() is None


def test_entries_that_were_damaged_are_made_again(source: ModuleType, entry: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, data, chance = entry, entry.read_bytes(), random.Random(0)
    for number in range(300):
        broken = bytearray(data)
        at = chance.randrange(len(broken))
        if number % 3 == 0:
            del broken[at : at + chance.randrange(1, 100)]
        elif number % 3 == 1:
            broken[at] ^= 1 << chance.randrange(8)
        else:
            broken[at:at] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 5)))
        path.write_bytes(bytes(broken))
        assert is_traced(usual(source)), number
        assert "damaged" in caplog.text, number
        caplog.clear()
    for content in ({}, {"ran": 1}, {"ran": {"names": []}, "facts": "", "program": ""}, [], None):
        text = json.dumps(content)
        path.write_text(f"{HEADER}{digest(text)}\n{text}")
        assert is_traced(usual(source)), content
    path.write_bytes(b"")
    assert start(usual(source))[1]
    assert not is_traced(usual(source))
    path.write_bytes(data)


def test_a_table_cannot_name_what_it_likes() -> None:
    for text in (
        "function os system",
        "function builtins eval",
        "op aten.add",
        "function autopar.api compile",
        "op os.x.y",
        "",
    ):
        with pytest.raises((ValueError, AttributeError)):
            target_of(text)
    graph = torch.fx.Graph()
    graph.output(graph.call_function(print, ()))
    with pytest.raises(NotStorable, match="print"):
        graph_table(graph)


def test_no_room_or_permission_costs_a_notice(
    source: ModuleType, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert start(usual(source))[1]
    assert "cannot keep the traced program" in caplog.text
    caplog.clear()
    (tmp_path / "cache").unlink()
    with pytest.MonkeyPatch.context() as patch:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("autopar.cache.store.write_atomically", full)
        assert start(usual(source))[1]
    assert "No space left" in caplog.text


@pytest.mark.parametrize("name", ["gpt2", "mlp"])
def test_joint_graphs_are_found_again(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, emitted, counted = planned(name, "2")
    emit(emitted.program, plan, "cpu", remembered_joint)
    monkeypatch.setattr("autopar.cache.start.trace_joint", lambda *_: pytest.fail("traced again"))
    second = emit(program_of(program_text(emitted.program)), plan, "cpu", remembered_joint)
    assert hold(second) == counted
    for region, again in zip(emitted.regions.values(), second.regions.values(), strict=True):
        assert str(again.joint.graph) == str(region.joint.graph)
        for halves, those in zip(region.classes, again.classes, strict=True):
            assert str(those.forward) == str(halves.forward)
            assert str(those.backward) == str(halves.backward)
