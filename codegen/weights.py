"""The part of ParallelModule that gives parameters and buffers their values: from the model, its initialization, or files."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from autopar.codegen.initialize import Initializer
from autopar.codegen.safetensors import Loaded, load_folder
from autopar.codegen.state import Blanks, attach, named_tensors, take
from autopar.errors import InputError
from autopar.ir.placement import Placement
from autopar.ir.plan import Plan
from autopar.ir.program import Program

if TYPE_CHECKING:
    from typing import Self


class Weights(nn.Module):
    """Mixed into ParallelModule, which has the plan, the program and the mesh."""

    _mesh: DeviceMesh

    @property
    def plan(self) -> Plan:
        raise NotImplementedError

    @property
    def program(self) -> Program:
        raise NotImplementedError

    def _take_weights(self, model: nn.Module) -> None:
        """Distribute the model's parameters as planned (rank 0's values count); buffers are whole everywhere."""
        tensors = take(model, self.program, self.plan, self._mesh)
        attach(self, model, self.program, tensors)
        given = named_tensors(model)
        self._blanks = Blanks({name: tensor for name, tensor in tensors.items() if given[name].is_meta})
        self._initializer = Initializer(model, tuple(self._blanks), self._mesh) if self._blanks else None

    def init_weights(self, seed: int | None = None) -> Self:
        """Give values to what was on the meta device, by the model's own initialization; collective, returns itself.

        That is its `init_weights()`, its `_init_weights(module)`, or each module's `reset_parameters()`. Values are the serial
        model's for the same seed (without one: those of rank 0's generators); at most one tensor is whole at a time. Raises
        InputError for tensors that the initialization leaves out, or if no tensor was on the meta device.
        """
        self._require_plan("init_weights")
        if self._initializer is None:
            raise InputError("the model had weights when it was compiled: build it on the meta device to do this")
        self._initializer.run(*self._at_rest(), self._initializer.names, seed)
        self._require_values()
        return self

    def load_safetensors(
        self, folder: str | PathLike[str], *, strict: bool = True, rename: Callable[[str], str] = str
    ) -> Loaded:
        """Fill parameters and buffers from a Hugging Face folder, reading only this device's pieces; collective.

        `rename` turns names in the files into the model's. Buffers on the meta device that no file has (a table of positions,
        say) get the values of the model's own initialization. Names that are missing or unexpected raise CheckpointError; with
        `strict=False` they are returned, and missing parameters that were on the meta device are initialized.
        """
        self._require_plan("load_safetensors")
        resting, placements = self._at_rest()
        names = {name: (name, *self.program.state[name].aliases) for name in resting}
        place = self._mesh.get_coordinate()
        assert place is not None, "this process is no part of the mesh"
        loaded = load_folder(Path(folder), resting, names, placements, place, self.plan.mesh.sizes, rename=rename)
        loaded = loaded.only(self.state_dict(keep_vars=True))
        if strict:
            loaded.require_all(Path(folder))
        self._blanks.look(self._tensor)
        if self._blanks and self._initializer is not None:
            self._initializer.run(resting, placements, tuple(self._blanks), None)
        self._require_values()
        return loaded

    def _require_plan(self, what: str) -> None:
        """Raise InputError where there is no plan yet."""

    def _require_values(self) -> None:
        if self._blanks:
            self._blanks.require_none(self._tensor)

    def _at_rest(self) -> tuple[dict[str, Tensor], dict[str, Placement]]:
        """Parameters and buffers, and where they are, by first name."""
        placements = {n: self.plan.state[n].placement for n, s in self.program.state.items() if s.kind != "constant"}
        return {name: self._tensor(name) for name in placements}, placements

    def _tensor(self, name: str) -> Tensor:
        """The parameter or buffer of a name as it is now."""
        return self.get_parameter(name) if self.program.state[name].kind == "parameter" else self.get_buffer(name)
