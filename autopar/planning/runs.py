"""Settings of a sweep, all combinations of what is varied, and what came of each: one line of JSON per finished setting."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.machinery import PathFinder
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from autopar.bytes import human, parse_bytes
from autopar.errors import InputError
from autopar.ir.constraints import NO_CONSTRAINTS, Constraints
from autopar.ir.mesh import DEFAULT_AXIS_NAMES, MeshSpec

NO_LIMIT = "none"
"""As a budget: as much memory as the plan wants."""


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Setting(_Line):
    """All that a plan is searched with, as the command line was told. `files`: digests of those that are named, so that an
    edited model is another setting."""

    model: str
    files: dict[str, str] = Field(default_factory=dict)
    mesh: str
    hardware: str = "cpu"
    memory_bytes: int | None = None
    batch: int | None = None
    seq: int | None = None
    dtype: str | None = None
    precision: str | None = None
    optimizer: str = "adamw"
    overlap: bool = True
    gap: float = 1e-3
    time_limit_s: float = 60.0
    constraints: Constraints = NO_CONSTRAINTS

    @property
    def key(self) -> str:
        """The same for the same setting, in every process."""
        return self.model_dump_json()

    @property
    def traced(self) -> tuple[object, ...]:
        """Settings that are equal here are of one program."""
        return self.model, self.files.get(self.model), self.batch, self.seq, self.dtype, self.precision

    @property
    def aims(self) -> str:
        """Settings that are equal here, and of one program, differ in mesh and budget only."""
        return self.model_copy(update={"mesh": "", "memory_bytes": None}).model_dump_json()

    @property
    def memory(self) -> str:
        return "no limit" if self.memory_bytes is None else human(self.memory_bytes)

    def __str__(self) -> str:
        sizes = [f"{name} {size}" for name, size in (("batch", self.batch), ("seq", self.seq)) if size is not None]
        return ", ".join([f"{self.mesh} of {self.hardware}", self.memory, *sizes])

    def plan_file(self) -> str:
        """A name that tells the setting, and is no other one's."""
        sizes = [f"{letter}{size}" for letter, size in (("b", self.batch), ("s", self.seq)) if size is not None]
        parts = [Path(self.hardware).stem, self.mesh, self.memory.replace(" ", ""), *sizes]
        return f"{'-'.join(parts)}-{hashlib.sha256(self.key.encode()).hexdigest()[:8]}.json"


class Run(_Line):
    """What came of a setting, as a line of the file. Times in seconds, bytes per device.

    `smallest_bytes`: the smallest budget that works, where the setting does not fit. `took_s`: until this setting was
    finished, tracing and pricing included where they were not done before. `remembered`: the plan was not searched but found
    before. `plan`: the file that it was saved in.
    """

    format: Literal["autopar-sweep"] = "autopar-sweep"
    version: Literal[1] = 1
    setting: Setting
    outcome: Literal["fits", "does not fit", "impossible", "error"]
    message: str = ""
    status: str | None = None
    step_time_s: float | None = None
    lower_bound_s: float | None = None
    gap: float | None = None
    samples_per_s: float | None = None
    peak_bytes: float | None = None
    smallest_bytes: int | None = None
    time_s: dict[str, float] = Field(default_factory=dict)
    took_s: float = 0.0
    remembered: bool = False
    versions: dict[str, str] = Field(default_factory=dict)
    plan: str | None = None


def combinations(
    *,
    model: str,
    meshes: Iterable[MeshSpec],
    hardware: Iterable[str],
    memory: Iterable[str],
    batches: Iterable[int | None] = (None,),
    seqs: Iterable[int | None] = (None,),
    dtypes: Mapping[str, str | None] | None = None,
    **shared: Any,
) -> list[Setting]:
    """Every combination once, in the order given: hardware, batch, seq, mesh, memory. `dtypes`: of the weights, by hardware;
    `shared`: the other fields of `Setting`. Raises InputError for a budget that is none."""
    budgets = [None if text == NO_LIMIT else parse_bytes(text) for text in memory]
    found = [
        Setting(
            model=model,
            files=digests(model, device),
            mesh=mesh_text(mesh),
            hardware=device,
            memory_bytes=budget,
            batch=batch,
            seq=seq,
            dtype=(dtypes or {}).get(device),
            **shared,
        )
        for device, batch, seq, mesh, budget in product(hardware, batches, seqs, meshes, budgets)
    ]
    return list({setting.key: setting for setting in found}.values())


def mesh_text(mesh: MeshSpec) -> str:
    """
    >>> mesh_text(MeshSpec.of("node=2,gpu=4")), mesh_text(MeshSpec.of("data=2,tensor=4@pcie-4"))
    ('2x4', 'data=2,tensor=4@pcie-4')
    """
    if mesh.names == DEFAULT_AXIS_NAMES.get(len(mesh)) and not any(mesh.links):
        return str(mesh)
    links = mesh.links or (None,) * len(mesh)
    parts = zip(mesh.names, mesh.sizes, links, strict=True)
    return ",".join(f"{name}={size}{f'@{link}' if link else ''}" for name, size, link in parts)


def digests(model: str, hardware: str) -> dict[str, str]:
    """Of the files that a model's and a hardware's names stand for, by name; none where there is no such file."""
    paths = {model: model_file(model), hardware: Path(hardware)}
    found = {name: path for name, path in paths.items() if path is not None and path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in found.items()}


def model_file(model: str) -> Path | None:
    """What `autopar.models.load` would read: a config, the one in a folder, or the source of a function's module."""
    if Path(model).is_dir():
        return Path(model) / "config.json"
    head, colon, _ = model.rpartition(":")
    if not colon or model.endswith(".json"):
        return Path(model)
    return Path(head) if head.endswith(".py") else module_file(head)


def module_file(name: str) -> Path | None:
    """The source of a module, or of a package's `__init__`, here or among the installed ones. Nothing is imported, which
    `importlib.util.find_spec` would do with the packages around it."""
    top, *inner = name.split(".")
    here = str(Path.cwd())
    folders = sys.path if {"", here} & set(sys.path) else [here, *sys.path]
    try:
        found = PathFinder.find_spec(top, folders) or find_spec(top)
    except ValueError:  # empty, or imported without a spec, as __main__ is
        return None
    for part in inner:
        if found is None or found.submodule_search_locations is None:
            return None
        found = PathFinder.find_spec(part, list(found.submodule_search_locations))
    return Path(found.origin) if found is not None and found.has_location and found.origin else None


def split(values: Sequence[str], what: str) -> list[str]:
    """Of an option that takes several values, separated by commas, and may be repeated.

    >>> split(["8,2x4", "data=2,tensor=4"], "--meshes"), split(["8", "16,32"], "--batch")
    (['8', '2x4', 'data=2,tensor=4'], ['8', '16', '32'])
    """
    found: list[str] = []
    for value in values:
        parts = [value] if "=" in value else value.split(",")
        if not all(part.strip() for part in parts):
            raise InputError(f"{what} {value!r} has an empty part: separate values by single commas")
        found += [part.strip() for part in parts]
    return found
