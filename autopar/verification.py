"""verify: all ranks of a mesh in one process, in float64, against the serial model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autopar.api import plan_program, require_known_draws
from autopar.codegen.all_ranks import Trajectory, run_all_ranks
from autopar.codegen.emit import emit
from autopar.codegen.hold import hold
from autopar.codegen.randomness import Randomness
from autopar.errors import InputError
from autopar.hardware import Hardware
from autopar.ir.constraints import NO_CONSTRAINTS, Constraints
from autopar.ir.mesh import MeshLike, MeshSpec
from autopar.ir.plan import Plan
from autopar.ir.precision import PrecisionLike
from autopar.ir.program import Program
from autopar.ir.run import run_values, zip_inputs
from autopar.ir.shown import Shown
from autopar.ir.widen import wide, widen, widened
from autopar.tracer import trace

TOLERANCE = 1e-9
LEARNING_RATE = 1e-3
EPS = 1e-3
"""Of AdamW. Gradients that are zero but for rounding (of attention's key bias, of a bias before a batch norm) must not become
steps: with torch's own 1e-8 they do, and weights of equal runs differ by more than the tolerance."""
SEED = 2
"""Of the random numbers in the model, in both runs."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`relative_error`: largest absolute difference over the largest absolute value of the serial tensor.

    `kind` is loss, output, gradient, weight or replicas (copies on different devices that must be equal).
    """

    name: str
    kind: str
    relative_error: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Report(Shown):
    """What `verify` found after `steps` steps; `tensors` has every compared tensor, worst first."""

    plan: Plan
    steps: int
    tensors: tuple[Difference, ...]
    tolerance: float = TOLERANCE

    def __repr__(self) -> str:
        """In short; `rich.print(report)` shows the differences."""
        verdict = "equal" if self.ok else "NOT equal"
        return f"<Report of {self.plan.model} on {self.plan.mesh}: {verdict}, largest error {self.max_relative_error:.2e}>"

    @property
    def max_relative_error(self) -> float:
        return max((t.relative_error for t in self.tensors), default=float("inf"))

    @property
    def ok(self) -> bool:
        return self.max_relative_error <= self.tolerance


def verify(
    model: nn.Module,
    mesh: MeshLike,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    plan: Plan | None = None,
    memory: int | str | None = None,
    steps: int = 3,
    hardware: str | Hardware = "cpu",
    time_limit_s: float = 30.0,
    gap: float = 1e-3,
    constraints: Constraints = NO_CONSTRAINTS,
    precision: PrecisionLike | None = None,
) -> Report:
    """Run a plan on every rank of the mesh in this process and compare with the serial run.

    Without `plan` one is searched, under `memory` and `constraints`. Compared in float64, casts included (`precision` too):
    losses of all steps, outputs, every gradient of the first step, and parameters and buffers after `steps` AdamW steps. A
    model on the meta device gets random weights, inputs on it random values. Dropout and other random numbers are those of the
    serial run, bit for bit (`random="serial"` of `compile`).
    """
    spec = MeshSpec.of(mesh)
    constraints.require_axes(spec.names)
    program = trace(model, args, dict(kwargs or {}), precision=precision)
    require_known_draws(program)
    if plan is None:
        search: dict[str, Any] = {"hardware": hardware, "time_limit_s": time_limit_s, "gap": gap, "constraints": constraints}
        plan = plan_program(program, spec, memory=memory, **search)[0]
    plan.require(program, spec)
    hold(emit(program, plan))
    if program.loss is None:
        raise InputError(f"{program.name} returns no scalar loss to train on: pass labels, or wrap it so that it returns one")
    wide = widened(program)
    state = initial_state(model, program)
    inputs = {name: widen(given(model, name, t)) for name, t in zip_inputs(program, args, dict(kwargs or {}))}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        parallel = run_all_ranks(emit(wide, plan), state, inputs, steps, optimizer, serial_randomness())
        torch.manual_seed(SEED)
        serial = run_serial(wide, state, inputs, steps)
    return Report(plan=plan, steps=steps, tensors=compare(parallel, serial, program))


def serial_randomness() -> Randomness:
    """Random numbers as the serial run draws them, from torch's generator."""
    return Randomness(torch.device("cpu"), random="serial")


def optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, eps=EPS, foreach=False)


def initial_state(model: nn.Module, program: Program) -> dict[str, Tensor]:
    """Float64 copies of the model's state by name; random where the model is on the meta device."""
    known = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, state in program.state.items():
        tensor = state.value if state.value is not None else known[name]
        if tensor.is_meta:
            shape = tuple(tensor.shape)
            floating = tensor.is_floating_point()
            tensor = (
                torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1
                if floating
                else torch.zeros(shape, dtype=tensor.dtype)
            )
        found[name] = widen(tensor.detach().clone())
    return found


def given(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The input itself; a random one for the meta device (ids below the vocabulary size, ones for masks)."""
    if not tensor.is_meta:
        return tensor
    generator = torch.Generator().manual_seed(1)
    if tensor.is_floating_point():
        return torch.randn(tuple(tensor.shape), generator=generator, dtype=torch.float64)
    if "mask" in name:
        return torch.ones(tuple(tensor.shape), dtype=tensor.dtype)
    config = getattr(model, "config", None)
    high = min(
        int(n)
        for n in (
            getattr(config, "vocab_size", None),
            getattr(config, "num_labels", None) if tensor.dim() == 1 else None,
            2**31,
        )
        if n
    )
    return torch.randint(0, high, tuple(tensor.shape), generator=generator, dtype=tensor.dtype)


def run_serial(program: Program, state: Mapping[str, Tensor], inputs: Mapping[str, Tensor], steps: int) -> Trajectory:
    """The same training on one device, through autograd."""
    local = {name: tensor.clone() for name, tensor in state.items()}
    trained = [n for n, s in program.state.items() if s.kind == "parameter" and s.spec.needs_grad]
    for name in trained:
        local[name].requires_grad_()
    given = {n: t.detach().clone().requires_grad_(program.values[n].needs_grad) for n, t in inputs.items()}
    stepper = optimizer([local[name] for name in trained])
    losses, outputs, gradients = [], {}, {}
    for step in range(steps):
        values = run_values(program, local, values=dict(given))
        assert program.loss is not None
        loss = values[program.loss]
        losses.append(float(loss.detach()))
        stepper.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if step == 0:
            outputs = {v: values[v].detach() for v in program.outputs if v}
            gradients = {n: t.grad.clone() for n, t in (local | given).items() if t.grad is not None}
        stepper.step()
        local |= {buffer: values[value].detach() for buffer, value in program.mutations.items()}
    weights = {name: tensor.detach() for name, tensor in local.items()}
    return Trajectory(losses=losses, outputs=outputs, gradients=gradients, weights=weights)


def compare(parallel: Trajectory, serial: Trajectory, program: Program) -> tuple[Difference, ...]:
    """Every tensor of both runs. Some are zero but for rounding (the gradient of attention's key bias): errors are relative
    to no less than a hundred-thousandth of the largest gradient (1e-14 of it is a sum's rounding), and weights to no less than
    one optimizer step."""
    largest = max((float(g.abs().max()) for g in serial.gradients.values() if g.numel()), default=1.0)
    losses = (torch.tensor(each.losses, dtype=torch.float64) for each in (parallel, serial))
    found = [
        Difference(name=f"step {i}", kind="loss", relative_error=relative(ours, theirs, 0.0))
        for i, (ours, theirs) in enumerate(zip(*losses, strict=True))
    ]
    for kind, ours, theirs, floor in (
        ("output", parallel.outputs, serial.outputs, 0.0),
        ("gradient", parallel.gradients, serial.gradients, 1e-5 * largest),
        ("weight", parallel.weights, serial.weights, LEARNING_RATE),
    ):
        for name in theirs:
            error = relative(ours[name], theirs[name], floor) if name in ours else float("inf")
            found.append(Difference(name=name, kind=kind, relative_error=error))
    found.append(Difference(name="copies on different devices", kind="replicas", relative_error=parallel.replica_difference))
    return tuple(sorted(found, key=lambda d: -d.relative_error))


def relative(ours: Tensor, theirs: Tensor, floor: float) -> float:
    """Largest difference over the largest entry of the serial tensor, or over `floor` if that is larger.

    What is nan has to be nan in both."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not theirs.numel():
        return 0.0
    a, b = (t.to(wide(t.dtype) if t.is_complex() else torch.float64) for t in (ours, theirs))
    if not torch.equal(a.isnan(), b.isnan()):
        return float("inf")
    a, b = a.nan_to_num(0.0), b.nan_to_num(0.0)
    difference = float((a - b).abs().max())
    return difference / max(float(b.abs().max()), floor, 1e-300) if difference else 0.0
