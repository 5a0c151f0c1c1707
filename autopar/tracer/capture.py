"""From a module and example inputs to one flat functional ATen graph, through `torch.export`.

Ops that a plan wants whole (attention, linear, norms, losses) are kept from being decomposed. Nothing is computed: the
graph holds shapes only, and the user's model is neither moved nor changed.
"""

from __future__ import annotations

import inspect
import io
import logging
import math
import sys
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from autopar.errors import InputError, TraceError
from autopar.ir.assumed import Place
from autopar.ir.precision import Precision
from autopar.ir.program import State, TensorSpec
from autopar.torch_private import LOGGERS_OF_TRACES, pytree
from autopar.tracer.answers import Answers
from autopar.tracer.backwards import OwnBackwards
from autopar.tracer.branches import inline_branches
from autopar.tracer.checkpoints import CheckpointMarks
from autopar.tracer.decompositions import decompositions
from autopar.tracer.dice import assumed_of, dice
from autopar.tracer.dynamic import Dynamic
from autopar.tracer.effects import checks_that_torch_drops, drop_checks_of_data
from autopar.tracer.expand import check_writes, expand
from autopar.tracer.failures import explain
from autopar.tracer.gradients import mark_gradient_stops
from autopar.tracer.once import Once, Unrepeatable
from autopar.tracer.opaque import with_ops
from autopar.tracer.runs import contract
from autopar.tracer.sealed import Unsealed

logger = logging.getLogger("autopar")
Around = Callable[[], AbstractContextManager[object]]
RETRIES = 3
"""How often a trace begins again with a block that had been taken for a repetition of another; the last time with all."""


@dataclass(kw_only=True)
class Captured:
    """A flat graph whose placeholders are state or user inputs; passes edit it in place.

    `state_of` maps a placeholder's name to the model's canonical name of that tensor. The output node holds the new
    content of `mutated` buffers first, then the flattened outputs. `assumptions`: what of the data was taken for granted;
    `made`: symbols that stand for data, and the code that they are from. `inputs` are the names of the placeholders of the
    flattened user inputs, None (with its constant) for a leaf that is no tensor.
    """

    graph: torch.fx.Graph
    state: dict[str, State]
    state_of: dict[str, str]
    inputs: list[str | None]
    input_constants: list[Any]
    in_spec: pytree.TreeSpec
    mutated: list[str]
    out_spec: pytree.TreeSpec
    precision: Precision | None = None
    assumptions: tuple[str, ...] = ()
    made: dict[str, Place] = field(default_factory=dict)

    @property
    def results(self) -> tuple[list[Any], list[Any]]:
        """What the graph returns: new contents of the mutated buffers, and the flattened outputs (nodes or constants)."""
        returned = list(self.graph.output_node().args[0])  # type: ignore[arg-type]
        return returned[: len(self.mutated)], returned[len(self.mutated) :]


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    dynamic: Dynamic,
    *,
    blocks_once: bool = True,
    progress: Callable[[str], None] = lambda stage: None,
    around: Around = nullcontext,
) -> Captured:
    """Export the model; raises TraceError with the source line of what cannot be traced.

    With `blocks_once`, of blocks that are the same the first call is traced and copied for the others; the graph is that of
    a full trace, which remains the way for models where this is in doubt. `progress` is told which block is being traced;
    what `around` gives is entered each time the model's code runs.
    """
    check_signature(model, args, kwargs)
    args, kwargs = on_device_of(model, args, kwargs)
    shapes = dynamic.shapes(model, args, kwargs)
    model = with_ops(model)
    with _quiet():
        if blocks_once and (captured := _captured_once(model, args, kwargs, shapes, progress, around)):
            return captured
        answers = Answers()
        try:
            exported = _export(model, args, kwargs, shapes, around, answers)
            exported = decomposed(exported, answers)
        except Exception as error:
            raise explain(error, dynamic, answers) from error
        captured = read(model, exported, pytree.tree_leaves((args, kwargs)))
        take(captured, answers)
    return captured


def take(captured: Captured, answers: Answers) -> None:
    """Keep what was assumed, and say it once."""
    captured.assumptions, captured.made = tuple(answers.assumptions), answers.sizes | answers.reads
    for text in captured.assumptions:
        warn_assumed(text)


@cache
def warn_assumed(text: str) -> None:
    logger.warning("assumed: %s (docs/errors.md)", text)


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any, around: Around, answers: Answers
) -> ExportedProgram:
    before = dice()
    with CheckpointMarks(), OwnBackwards(), answers, around():
        exported = torch.export.export(model, args, kwargs, strict=False, dynamic_shapes=shapes)
    answers.assumptions |= assumed_of(model, before)
    inline_branches(exported.graph_module)
    mark_gradient_stops(exported.graph_module)
    return exported


def _captured_once(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: Any,
    progress: Callable[[str], None],
    around: Around,
) -> Captured | None:
    """The same as a full trace, or None if tracing each kind of block once does not work for this model, for any reason."""
    opened: set[str] = set()
    refused: set[Hashable] = set()
    for attempt in range(RETRIES):
        answers = Answers()
        try:
            once = Once(model, progress, opened, refused, sealing=attempt < RETRIES - 1 and "" not in opened)
            exported = _export(once.model, args, kwargs, shapes, around, answers)
            if once.seal.broken:
                raise once.seal.broken
            check_writes(exported.graph, once)
            steps = contract(exported.graph)
            drop_unused_state(exported)
            exported = decomposed(exported, answers)
            captured = read(model, exported, pytree.tree_leaves((args, kwargs)))
            check_constants(exported, model)
            expand(captured, once, steps, state_of(model)[1])
            take(captured, answers)
        except Unsealed as missing:
            logger.debug("%s: %s", type(model).__name__, missing)
            opened.add(missing.path)
        except Exception as error:
            logger.debug("%s is traced in full: %s", type(model).__name__, error, exc_info=True)
            return None
        else:
            return captured
    return None


def drop_unused_state(exported: ExportedProgram) -> None:
    """Leave out parameters and buffers that no node uses: torch spends a millisecond on each in every later step."""
    from torch.export.graph_signature import InputKind

    unused = {node.name: node for node in exported.graph.find_nodes(op="placeholder") if not node.users}
    specs = exported.graph_signature.input_specs
    for spec in list(specs):
        kept = spec.kind is InputKind.BUFFER and not spec.persistent
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.arg.name in unused and not kept:
            specs.remove(spec)
            exported.state_dict.pop(str(spec.target))
            exported.graph.erase_node(unused[spec.arg.name])
    exported.graph_module.recompile()


def check_constants(exported: ExportedProgram, model: nn.Module) -> None:
    """Raise Unrepeatable if code reached the original's tensors past the replica that was traced."""
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    names = [spec.target for spec in exported.graph_signature.input_specs if spec.kind.name == "CONSTANT_TENSOR"]
    if any(id(exported.constants[str(name)]) in own for name in names):
        raise Unrepeatable("the model's code holds on to the model's tensors in a way of its own")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own remarks on the way: what matters of them is in the errors."""
    logs = [logging.getLogger(name) for name in LOGGERS_OF_TRACES]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(WithoutGraphs(sys.stderr)):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


class WithoutGraphs(io.TextIOBase):
    """Passes text on, but for the graph that torch prints where it fails."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.dropped = stream, False

    def write(self, text: str) -> int:
        end_of_it = self.dropped and text == "\n"
        self.dropped = "torch.ops." in text and "def forward(" in text
        return len(text) if self.dropped or end_of_it else int(self.stream.write(text))

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return bool(self.stream.isatty())


def decomposed(exported: ExportedProgram, answers: Answers) -> ExportedProgram:
    """In the ops of a plan, without checks of data; what that takes for granted is added to the answers."""
    called = frozenset(node.target for node in exported.graph.nodes)
    exported = exported.run_decompositions(decompositions())
    assumed = drop_checks_of_data(exported) or checks_that_torch_drops(exported, called)
    answers.assumptions |= dict.fromkeys(assumed)
    return exported


def check_signature(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = type(model).__name__
        raise TraceError(f"the example inputs do not fit {name}.forward: {error}; it takes {signature}") from error


def on_device_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs where the model's tensors are; for inputs without data (meta, fake) uninitialised ones stand in."""
    tensors = [*model.parameters(), *model.buffers()]
    devices = {t.device for t in tensors}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise TraceError(f"the model's tensors are on several devices ({names}); move it to one, or build it on 'meta'")
    device = devices.pop() if devices else None

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or (device is None and not _is_fake(leaf)):
            return leaf
        target = device or torch.device("cpu")
        if target.type == "meta" or leaf.device.type == "meta" or _is_fake(leaf):
            moved = _stand_in(leaf, target)
        else:
            moved = leaf.detach().to(target)
        return moved.requires_grad_(leaf.requires_grad)

    moved: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(move, (args, kwargs))
    return moved


def _stand_in(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Without content; raises InputError if there is not even room for that."""
    try:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    except RuntimeError as error:
        size = math.prod(tensor.shape) * tensor.dtype.itemsize
        raise InputError(
            f"an input of {size} bytes, {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}, does not fit {device}: "
            "build the model on the meta device, too, or take a smaller batch"
        ) from error


def _is_fake(tensor: torch.Tensor) -> bool:
    return type(tensor).__name__ == "FakeTensor"


def read(model: nn.Module, exported: ExportedProgram, leaves: list[Any]) -> Captured:
    """Restate torch's graph signature in our words: canonical state names, inputs, outputs, mutations."""
    from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

    state, canonical = state_of(model)
    names: dict[str, str] = {}
    inputs: list[str | None] = []
    constants: list[Any] = []
    nodes = {node.name: node for node in exported.graph.nodes}
    for spec in exported.graph_signature.input_specs:
        name = getattr(spec.arg, "name", "")
        if spec.kind is InputKind.USER_INPUT:
            leaf = leaves[len(inputs)]
            inputs.append(name if isinstance(leaf, torch.Tensor) else None)
            constants.append(None if isinstance(leaf, torch.Tensor) else leaf)
            if isinstance(leaf, torch.Tensor):
                nodes[name].meta["needs_grad"] = leaf.requires_grad
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            names[name] = canonical[str(spec.target)]
            nodes[name].meta["needs_grad"] = state[names[name]].spec.needs_grad
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            value = exported.constants[str(spec.target)]
            assert isinstance(value, torch.Tensor)
            fqn = names[name] = str(spec.target)
            state[fqn] = State(name=fqn, kind="constant", spec=_spec(value), value=None if _is_fake(value) else value.detach())
            nodes[name].meta["needs_grad"] = False
        else:
            raise TraceError(f"the model takes {spec.kind.name.lower().replace('_', ' ')} {name!r}, which no plan can place")
    mutated = []
    for out in exported.graph_signature.output_specs:
        if out.kind is OutputKind.BUFFER_MUTATION:
            mutated.append(canonical[str(out.target)])
        elif out.kind is not OutputKind.USER_OUTPUT:
            what = f"{out.kind.name.lower().replace('_', ' ')} of {out.target!r}"
            raise TraceError(f"the model changes a tensor that is not its own buffer ({what}); clone it before writing into it")
        elif isinstance(out.arg, ConstantArgument) and isinstance(out.arg.value, torch.Tensor):
            raise AssertionError("tensor outputs are nodes")
    return Captured(
        graph=exported.graph,
        state=state,
        state_of=names,
        inputs=inputs,
        input_constants=constants,
        in_spec=exported.call_spec.in_spec,
        mutated=mutated,
        out_spec=exported.call_spec.out_spec,
    )


def state_of(model: nn.Module) -> tuple[dict[str, State], dict[str, str]]:
    """All parameters and buffers by canonical name (the first of a tied tensor's names), and every name's canonical one."""
    names: dict[int, list[str]] = {}
    found: dict[str, tuple[str, torch.Tensor]] = {}
    for kind, pairs in (
        ("parameter", model.named_parameters(remove_duplicate=False)),
        ("buffer", model.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in pairs:
            names.setdefault(id(tensor), []).append(name)
            found[name] = (kind, tensor)
    canonical = {name: group[0] for group in names.values() for name in group}
    state = {}
    for group in names.values():
        kind, tensor = found[group[0]]
        state[group[0]] = State(name=group[0], kind=kind, spec=_spec(tensor), aliases=tuple(group[1:]))
    return state, canonical


def _spec(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(shape=tuple(int(n) for n in tensor.shape), dtype=tensor.dtype, needs_grad=tensor.requires_grad)
