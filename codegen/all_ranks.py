"""Every rank of a mesh in one process: the numerical proof of a plan without devices.

The emitted graphs run on tensors that hold one value per rank, collectives included; loss, gradients and weights after
optimizer steps are put together and compared with the serial model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autopar.codegen.emit import Emitted
from autopar.codegen.executor import Executor
from autopar.codegen.randomness import Randomness, draws_of
from autopar.codegen.shards import coordinate_of, held, piece, replicas_differ, whole, with_padding, without_padding
from autopar.ir.local_ranks import local_ranks
from autopar.ir.placement import Placement
from autopar.torch_private import by_rank, coordinates, rank_map

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """`outputs` (of the first step) and `gradients` (of the first step, also those of inputs) by name, `losses` of all steps,
    `weights` after them, mutated `buffers`; whole tensors. `replica_difference`: how far copies that must be equal were apart,
    and padding of gradients and weights that must be zero from it."""

    losses: list[float]
    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    replica_difference: float = 0.0


def run_all_ranks(
    emitted: Emitted,
    state: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    steps: int,
    optimizer: OptimizerFactory,
    randomness: Randomness | None = None,
) -> Trajectory:
    """Train `steps` steps on whole `inputs` (by value name), starting from whole `state` (by name)."""
    plan, program = emitted.plan, emitted.program
    draws, source = draws_of(program), randomness or Randomness(torch.device("cpu"))
    keys = [source.keys(draws) for _ in range(steps)]
    sizes = plan.mesh.sizes
    largest = 0.0

    def scatter(tensor: Tensor, placement: Placement) -> Tensor:
        shape = placement.local_shape(tensor.shape, sizes)
        return rank_map(lambda rank: with_padding(piece(tensor, placement, coordinate_of(rank, sizes), sizes), shape))

    def gather(tensor: Tensor, placement: Placement, shape: Sequence[int], *, zeros: bool = False) -> Tensor:
        nonlocal largest
        pieces = by_rank(tensor)
        largest = max(largest, replicas_differ(pieces, placement, sizes))
        for rank, padded in pieces.items():
            ranges = held(shape, placement, coordinate_of(rank, sizes), sizes)
            pieces[rank] = without_padding(padded, [end - start for start, end in ranges])
            if zeros and padded.shape != pieces[rank].shape:
                padding = padded.clone()
                without_padding(padding, pieces[rank].shape).zero_()
                largest = max(largest, float(padding.abs().max()))
        return whole(pieces, placement, sizes)

    def at_rest(name: str, tensor: Tensor) -> Tensor:
        return gather(tensor, plan.state[name].placement, plan.state[name].shape, zeros=True)

    def shape_of(value: str) -> tuple[int, ...]:
        return tuple(int(n) for n in program.values[value].shape)

    losses: list[float] = []
    outputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    with local_ranks(plan.mesh) as mesh:
        groups = {name: mesh.get_group(name).group_name for name in plan.mesh.names}
        executor = Executor(emitted, groups, coordinates(mesh))
        local = {name: scatter(tensor.detach(), plan.state[name].placement) for name, tensor in state.items()}
        trained = [n for n, s in program.state.items() if s.kind == "parameter" and s.spec.needs_grad]
        stepper = optimizer([local[name] for name in trained])
        for step in range(steps):
            values = {name: scatter(tensor.detach(), plan.inputs[name].placement) for name, tensor in inputs.items()}
            tape = executor.forward(values, local, keys=keys[step])
            assert program.loss is not None
            losses.append(float(gather(values[program.loss], plan.boundaries[program.loss], ())))
            if step == 0:
                outputs = {v: gather(values[v], plan.boundaries[v], shape_of(v)) for v in program.outputs if v}
            tangent = torch.ones_like(values[program.loss])
            mutated = {buffer: values[v] for buffer, v in program.mutations.items()}
            del values
            into, found = executor.backward(tape, {program.loss: tangent}, local)
            if step == 0:
                gradients = {name: at_rest(name, g) for name, g in found.items()}
                gradients |= {name: gather(g, plan.inputs[name].placement, shape_of(name)) for name, g in into.items()}
            local |= mutated
            for name in trained:
                local[name].grad = found.get(name)
            stepper.step()
        weights = {name: at_rest(name, tensor) for name, tensor in local.items()}
    return Trajectory(losses=losses, outputs=outputs, gradients=gradients, weights=weights, replica_difference=largest)
