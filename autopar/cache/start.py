"""A start that was made before: the traced program, and the joint graphs of its regions, without tracing.

An entry of a program is found by the model and its inputs as they are (`Values`), and holds for as long as all code that ran
when it was traced, and all that this code read, is the same (`Ran`). Where any of it cannot be read, there is no entry.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.fx import Graph

from autopar.cache.joints import joint_key, joint_of, joint_text
from autopar.cache.programs import program_of, program_text
from autopar.cache.ran import Classes, Ran, Watch
from autopar.cache.store import Store, cache_folder
from autopar.cache.tables import NotStorable
from autopar.cache.values import Unclear
from autopar.ir.assumed import ASSUMED
from autopar.ir.autocast import autocast_dtypes
from autopar.ir.opaque import opaque_of
from autopar.ir.precision import Precision, PrecisionLike
from autopar.ir.program import Program
from autopar.ops.joint import Joint, TensorLike, trace_joint
from autopar.planning.key import code, versions
from autopar.torch_private import active_modes, global_module_hooks

logger = logging.getLogger("autopar")
Around = Callable[[], AbstractContextManager[object]]
PREFIXES = ("TORCHDYNAMO_", "TORCH_COMPILE", "PYTORCH_", "ATEN_")
"""Environment variables that torch reads when it is imported, and that a trace may depend on."""


def remembered_program(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    precision: PrecisionLike | None,
    trace: Callable[[Around], Program],
    *,
    use: bool = True,
    keep: bool = True,
) -> Program:
    """The program that was traced before of just this, or else what `trace` makes, which is kept if `keep` says so.

    `trace` is given what it has to enter around the model's code.
    """
    folder = cache_folder() if use else None
    if folder is None:
        return trace(nullcontext)
    store = Store(folder=folder, suffix=".program", what="the traced program")
    name = type(model).__name__
    try:
        key, classes = start_key(model, args, kwargs, precision)
        found = store.get(key, lambda text: valid_program(text, classes))
    except Unclear as error:
        logger.info("%s is traced at each start: %s", name, error)
        return trace(nullcontext)
    if found is not None:
        logger.info("the program of %s was traced before: %s", name, store.path(key))
        return found
    if not keep:
        return trace(nullcontext)
    watch, drawn = Watch(), random_state()
    program = trace(watch.on)
    try:
        if drawn != random_state():
            raise Unclear("its code draws random numbers while it is traced")
        store.put(key, entry(program, watch, classes))
    except (Unclear, NotStorable) as error:
        logger.info("%s is traced at each start: %s", name, error)
    return program


def start_key(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], precision: PrecisionLike | None
) -> tuple[str, Classes]:
    """A hex digest of the model, its inputs and the state of torch; and the classes of all objects. Raises Unclear."""
    if ruled := [opaque.kind.__name__ for opaque in map(opaque_of, model.modules()) if opaque is not None]:
        raise Unclear(f"{ruled[0]} has a rule, and is not looked into")
    classes = Classes()
    asked = None if precision is None else str(Precision.of(precision))
    parts = [surroundings(), asked, classes.digest((model, args, dict(kwargs)))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest(), classes


def surroundings() -> dict[str, Any]:
    """What a trace depends on besides the model's code and values: versions, and the state of torch. Raises Unclear."""
    if active_modes():
        raise Unclear(f"a mode of torch is on: {active_modes()[-1]!r}")
    if global_module_hooks():
        raise Unclear("hooks on all modules are set")
    kernels = [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ("flash", "mem_efficient", "math")]
    return {
        "code": code(),
        "versions": versions() | {"python": platform.python_version(), "git": torch.version.git_version},
        "dtype": str(torch.get_default_dtype()),
        "deterministic": [torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()],
        "autocast": {device: str(dtype) for device, dtype in autocast_dtypes().items()},
        "gradients": [torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
        "kernels": [*kernels, torch.get_float32_matmul_precision()],
        "environment": {n: v for n, v in sorted(os.environ.items()) if n.startswith(PREFIXES)},
        "optimized": sys.flags.optimize,
        "assumed": [repr(said) for said in ASSUMED],
    }


def entry(program: Program, watch: Watch, classes: Classes) -> str:
    """The content of an entry; raises Unclear or NotStorable."""
    ran = watch.finish()
    if ran.unclear:
        raise Unclear(ran.unclear)
    classes.found.update(watch.classes.found)
    facts = facts_digest(classes, ran)
    text = program_text(program)
    if program_text(program_of(text)) != text:
        raise NotStorable("the program does not read as it was written")
    noted = dataclasses.asdict(ran) | {"names": sorted(ran.names)}
    return json.dumps({"ran": noted, "facts": facts, "program": text})


def facts_digest(classes: Classes, ran: Ran) -> str:
    return hashlib.sha256("\n".join(sorted(classes.facts(ran.names))).encode("utf-8", "surrogatepass")).hexdigest()


def valid_program(text: str, classes: Classes) -> Program | None:
    """The program of an entry; None if what it was traced with has changed. Raises Unclear, and ValueError if malformed."""
    content = json.loads(text)
    ran = Ran(**(content["ran"] | {"names": set(content["ran"]["names"])}))
    if (differs := ran.differs(classes)) is not None:
        logger.info("traced again: %s is not as it was", differs)
        return None
    if facts_digest(classes, ran) != content["facts"]:
        logger.info("traced again: a class is not as it was")
        return None
    return program_of(content["program"])


def is_first_here() -> bool:
    """Whether this is the process of its machine that keeps programs for all: watching what runs takes time, once is enough."""
    return os.environ.get("LOCAL_RANK", str(torch.distributed.get_rank())) == "0"


def random_state() -> tuple[Any, ...]:
    """Of the generators that code may draw from."""
    numpy = sys.modules.get("numpy")
    state = None if numpy is None else numpy.random.get_state(legacy=False)["state"]
    return random.getstate(), str(state), torch.get_rng_state().numpy().tobytes()


def remembered_joint(graph: Graph, inputs: Sequence[TensorLike], differentiated: Sequence[bool], device: str = "cpu") -> Joint:
    """As `trace_joint`, without tracing what was traced before."""
    folder = cache_folder()
    if folder is None:
        return trace_joint(graph, inputs, differentiated, device)
    store = Store(folder=folder, suffix=".joint", what="the joint graph")
    try:
        key = joint_key(graph, inputs, differentiated, device, json.dumps(surroundings()))
        if (found := store.get(key, joint_of)) is not None:
            return found
    except (Unclear, NotStorable) as error:
        logger.info("a graph is traced with its backward at each start: %s", error)
        return trace_joint(graph, inputs, differentiated, device)
    joint = trace_joint(graph, inputs, differentiated, device)
    try:
        text = joint_text(joint)
        if joint_text(joint_of(text)) == text and not store.path(key).exists():
            store.put(key, text)
    except NotStorable as error:
        logger.info("a graph is traced with its backward at each start: %s", error)
    return joint
