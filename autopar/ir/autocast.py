"""`torch.autocast` around what we do: read once when a model is captured, off wherever its graphs are traced or run.

The casts that it makes are nodes of the captured program; made a second time they would be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from autopar.errors import InputError
from autopar.ir.precision import name_of
from autopar.ir.program import Program

DEVICES = ("cpu", "cuda", "xpu")


def autocast_dtypes() -> dict[str, torch.dtype]:
    """Device type -> dtype, where autocast is on."""
    return {device: torch.get_autocast_dtype(device) for device in DEVICES if torch.is_autocast_enabled(device)}


@contextmanager
def no_autocast() -> Iterator[None]:
    """Ops run as they are written."""
    with ExitStack() as stack:
        for device in autocast_dtypes():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def autocast_on(device: str) -> str | None:
    """The dtype of autocast for the device type, as plans write it; None where it is off."""
    return name_of(autocast_dtypes().get(device))


def require_autocast(program: Program, now: str | None) -> None:
    """Raise InputError unless autocast is, or is not, on as it was when the program was captured."""
    if now != program.autocast:
        raise InputError(
            f"{program.name} was captured {_state(program.autocast)} and is called {_state(now)}: another program. Call "
            "it under the same autocast, or compile it with replan=True"
        )


def _state(autocast: str | None) -> str:
    return "without torch.autocast" if autocast is None else f"under torch.autocast in {autocast}"
