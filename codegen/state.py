"""A model's parameters and buffers at rest on the mesh: under the original names, in the original order.

Parameters are DTensors as the plan places them, buffers are whole on every device. What is on the meta device in the original
becomes blank: memory for this device's piece alone, which waits for its values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import distribute_tensor

from autopar.codegen.shards import as_dtensor, as_global, held, local_part, with_padding, without_padding
from autopar.errors import InputError
from autopar.ir.placement import Placement
from autopar.ir.plan import Plan
from autopar.ir.program import Program


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all of their names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def take(model: nn.Module, program: Program, plan: Plan, mesh: DeviceMesh) -> dict[str, Tensor]:
    """What rests on this device, by the first name of each tensor; rank 0's values count. Collective."""
    given = named_tensors(model)
    return {
        name: resting(
            in_dtype(given[name], state.spec.dtype), plan.state[name].placement, mesh, is_parameter=state.kind == "parameter"
        )
        for name, state in program.state.items()
        if state.kind != "constant"
    }


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor, or its values as a leaf of this dtype."""
    return tensor if tensor.dtype == dtype else tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)


def resting(tensor: Tensor, placement: Placement, mesh: DeviceMesh, *, is_parameter: bool) -> Tensor:
    """A DTensor parameter, or a whole plain buffer; blank if the tensor is on the meta device. A piece that is shorter than
    others has room behind it for the padding that graphs read."""
    if tensor.is_meta:
        placed = as_global(blank(tensor, placement, mesh), placement, tuple(tensor.shape), mesh)
    else:
        placed = distribute_tensor(tensor.detach(), mesh, as_dtensor(placement))
        shape, local = placement.local_shape(tensor.shape, tuple(mesh.shape)), placed.to_local()
        if tuple(local.shape) != shape:
            roomy = without_padding(with_padding(local, shape), local.shape)
            placed = as_global(roomy, placement, tuple(tensor.shape), mesh)
    if is_parameter:
        return nn.Parameter(placed, requires_grad=tensor.requires_grad)
    assert not placement.sharded_dims(), "a buffer is whole on every device"
    return placed.to_local() if tensor.is_meta else placed.to_local().clone()


def blank(tensor: Tensor, placement: Placement, mesh: DeviceMesh) -> Tensor:
    """Memory for this device's piece, NaN where the dtype has it: what is forgotten must not look like numbers."""
    sizes, place = tuple(mesh.shape), mesh.get_coordinate()
    assert place is not None, "this process is no part of the mesh"
    padded = torch.zeros(placement.local_shape(tensor.shape, sizes), dtype=tensor.dtype, device=mesh.device_type)
    local = without_padding(padded, [end - start for start, end in held(tensor.shape, placement, place, sizes)])
    return local.fill_(torch.nan) if tensor.dtype.is_floating_point else local


def attach(owner: nn.Module, model: nn.Module, program: Program, tensors: Mapping[str, Tensor]) -> None:
    """Register the resting tensors under every name that they have in the model, in its order; `owner` has its submodules."""
    first = {alias: name for name, state in program.state.items() for alias in (name, *state.aliases)}
    persistent = set(model.state_dict(keep_vars=True))
    for path, module in model.named_modules(remove_duplicate=False):
        place, prefix = owner.get_submodule(path), f"{path}." if path else ""
        for name, _ in module.named_parameters(recurse=False, remove_duplicate=False):
            parameter = tensors[first[prefix + name]]
            assert isinstance(parameter, nn.Parameter)
            place.register_parameter(name, parameter)
        for name, _ in module.named_buffers(recurse=False, remove_duplicate=False):
            place.register_buffer(name, tensors[first[prefix + name]], persistent=prefix + name in persistent)


class Blanks:
    """The tensors that have been given no values yet, by name: still all NaN, or of integers and never written into."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._waiting = {name: (tensor, local_part(tensor.detach())._version) for name, tensor in tensors.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def look(self, now: Callable[[str], Tensor]) -> None:
        """Forget those that have values; `now` gives the tensor that is in the module under a name."""
        self._waiting = {
            name: (tensor, version)
            for name, (tensor, version) in self._waiting.items()
            if now(name) is tensor and _is_untouched(local_part(tensor.detach()), version)
        }

    def require_none(self, now: Callable[[str], Tensor]) -> None:
        """Raise InputError, naming the tensors, if some have no values."""
        self.look(now)
        if self._waiting:
            first, more = next(iter(self._waiting)), len(self._waiting) - 1
            raise InputError(
                f"{first}{f' and {more} more' * (more > 0)} of the model have no values: they were on the meta device when it "
                "was compiled. Call parallel.init_weights() or load a checkpoint; what neither sets has to be set by hand"
            )


def _is_untouched(local: Tensor, version: int) -> bool:
    if local.dtype.is_floating_point and local.numel():
        return bool(local.isnan().all())
    return local._version == version
