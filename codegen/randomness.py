"""Where the keys of random numbers come from: a seed and a counter, which are all the state there is.

`autopar.ops.draws` says what keys are. With `random="counters"` a forward's numbers are a function of seed, step, draw and
place in the tensor: equal on every mesh and under every plan. With `random="serial"` they are those of a serial run that
begins with torch's generator in the same state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from autopar.errors import InputError
from autopar.ir.program import Program
from autopar.ops.counters import keys_of_step
from autopar.ops.drawn import draw_of, sites_of
from autopar.ops.draws import Draw, draw_whole, generator_state, set_generator_state

Keys = Sequence[Sequence[Tensor]]
"""Per call of a program the keys of its draws: one tensor, or none for a call that draws nothing."""
Random = Literal["counters", "serial"]
LARGEST = 2**63


def draws_of(program: Program) -> list[tuple[Draw, ...]]:
    """What each call of the program draws, in order."""
    of_region = {
        name: tuple(draw for node in sites_of(region) if (draw := draw_of(node))) for name, region in program.regions.items()
    }
    return [of_region[call.region] for call in program.calls]


class Randomness:
    """State of the random numbers of a module: `seed`, and `step`, the number of forwards that have drawn.

    `state_dict` and `load_state_dict` are those of torch's `Stateful`, so a checkpoint may hold it:
    `dcp.save({"model": …, "random": parallel.randomness})`. In serial mode the state is that of torch's generator.
    """

    def __init__(self, device: torch.device, seed: int = 0, random: Random = "counters", *, shared: bool = False) -> None:
        """`shared`: other processes draw too, and in serial mode rank 0's generator counts. Raises InputError."""
        if random not in ("counters", "serial"):
            raise InputError(
                f'random is {random!r}: "counters" (numbers by place and step) or "serial" (those of a serial run)'
            )
        self.device, self.random, self.shared = device, random, shared
        self.seed, self.step = checked("seed", seed), 0

    def keys(self, draws: Sequence[Sequence[Draw]]) -> Keys:
        """Those of the next forward, for what `draws_of` a program gives; empty for one that draws nothing."""
        if not any(draws):
            return ()
        if self.random == "serial":
            return self.serial_keys(draws)
        table = keys_of_step(self.seed, self.step, sum(map(len, draws))).to(self.device, non_blocking=True)
        self.step += 1
        return [[rows] if len(rows) else [] for rows in torch.split(table, [len(drawn) for drawn in draws])]

    def serial_keys(self, draws: Sequence[Sequence[Draw]]) -> Keys:
        """The generator's states before each draw of a serial run; leaves it in the state after them all."""
        self.agree()
        return [self.states(drawn) for drawn in draws]

    def states(self, drawn: Iterable[Draw]) -> list[Tensor]:
        found = []
        for draw in drawn:
            found.append(generator_state(self.device))
            draw_whole(draw, self.device)
        return [torch.stack(found).to(self.device)] if found else []

    def agree(self) -> None:
        """In serial mode: rank 0's generator state, everywhere."""
        if self.shared:
            state = generator_state(self.device).to(self.device)
            dist.broadcast(state, src=0)
            set_generator_state(state, self.device)

    def state_dict(self) -> dict[str, Any]:
        """`seed` and `step`; in serial mode `generator`, the state of torch's generator."""
        if self.random == "serial":
            return {"generator": generator_state(self.device)}
        return {"seed": self.seed, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where the state was taken; raises InputError if it is of the other mode."""
        wanted = {"generator"} if self.random == "serial" else {"seed", "step"}
        if set(state) != wanted:
            raise InputError(f'a state with {sorted(state)} is not of random="{self.random}", which has {sorted(wanted)}')
        if self.random == "serial":
            set_generator_state(state["generator"], self.device)
        else:
            self.seed, self.step = checked("seed", state["seed"]), checked("step", state["step"])


def checked(name: str, value: Any) -> int:
    """Raises InputError unless it is an integer from 0 to 2**63 - 1."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST:
        raise InputError(f"{name} is {value!r}: an integer from 0 to 2**63 - 1 is needed")
    return value


def agreed_seed(device: torch.device) -> int:
    """What torch's generator on rank 0's CPU would draw next, everywhere; the generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        seed = torch.empty((), dtype=torch.int64).random_(LARGEST - 1).to(device)
    dist.broadcast(seed, src=0)
    return int(seed)


def shared_randomness(mesh: DeviceMesh, seed: int | None = None, random: Random = "counters") -> Randomness:
    """For a module on a mesh of processes; without `seed`, one that follows from rank 0's `torch.manual_seed`."""
    device = torch.device(mesh.device_type)
    return Randomness(device, agreed_seed(device) if seed is None else seed, random, shared=True)
