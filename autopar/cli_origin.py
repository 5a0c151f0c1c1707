"""How a plan was made, written into it, and the model built again from that: to question a plan takes the plan alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopar.cli_options import load_model
from autopar.errors import HardwareError, InputError

if TYPE_CHECKING:
    from autopar import Pareto, Plan
    from autopar.hardware import Hardware
    from autopar.ir.plan import Origin
    from autopar.models import Loaded

PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN", help="A file that `autopar plan -o` wrote, as plan.json.")]
AgainOption = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="If it is elsewhere than when the plan was made, as path/file.py:function."),
]
HardwareAgainOption = Annotated[
    str | None, typer.Option("--hardware", help="If its file is elsewhere than when the plan was made, as mine.json.")
]
PACKAGES = ("torch", "transformers")
"""Whose versions decide what a model's graph is, beside ours; those that are installed are recorded."""


def origin(**told: Any) -> Origin:
    """What the command line was told, with the versions of now."""
    from autopar.ir.plan import Origin

    return Origin(**told, versions=versions())


def with_origin(found: Plan | Pareto, made_from: Origin) -> Plan | Pareto:
    """The plan, or each of several, with what it was made from."""
    known = {"origin": made_from}
    if hasattr(found, "plans"):
        return found.model_copy(update={"plans": tuple(plan.model_copy(update=known) for plan in found.plans)})
    return found.model_copy(update=known)


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    import autopar

    found = {"autopar": autopar.__version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@dataclass(frozen=True, kw_only=True)
class Again:
    """What a plan was made from: the model with the inputs of one micro-batch, and the hardware."""

    loaded: Loaded
    hardware: Hardware


def again(
    plan: Plan,
    path: Path,
    stage: Callable[[str], None],
    model: str | None = None,
    hardware: str | None = None,
    device: str = "meta",
) -> Again:
    """Build the model of a plan as `autopar plan` did; raises InputError, HardwareError.

    `model` and `hardware` replace what the plan names. On the meta `device` tensors have no values.
    """
    from autopar import hardware as devices

    told = origin_of(plan, path, model, hardware)
    with elsewhere("--hardware", hardware):
        described = devices.load(told.hardware)
    sizes = (told.batch, told.seq, told.dtype)
    with elsewhere("--model", model):
        loaded = load_model(told.model, told.hardware, *sizes, stage, quiet=True, device=device)
    if told.global_batch is not None:
        from autopar.planning.batches import with_batch

        args, kwargs = with_batch(loaded.args, loaded.kwargs, told.global_batch // plan.micro_batches)
        loaded = replace(loaded, args=args, kwargs=kwargs)
    return Again(loaded=loaded, hardware=described)


@contextmanager
def elsewhere(option: str, given: str | None) -> Iterator[None]:
    """Errors about what the plan names tell of the option that replaces it."""
    try:
        yield
    except (HardwareError, InputError) as error:
        if given is not None:
            raise
        raise type(error)(f"{error} (the plan names it: {option} says where it is now)") from error


def origin_of(plan: Plan, path: Path, model: str | None, hardware: str | None) -> Origin:
    """What the plan says, or what is said here; raises InputError where both are silent."""
    from autopar.ir.plan import Origin

    if plan.origin is None and model is None:
        raise InputError(
            f"{path} does not say how its model is built (it was made from Python, or before plans said so): name it with "
            "--model, as for `autopar plan`"
        )
    told = plan.origin or sizes_of(plan, model or "", plan.hardware)
    moved = {"model": model, "hardware": hardware}
    return Origin.model_validate(told.model_dump() | {name: said for name, said in moved.items() if said is not None})


def sizes_of(plan: Plan, model: str, hardware: str) -> Origin:
    """Batch and sequence as its inputs have them, for a plan that does not say more."""
    from autopar.ir.plan import Origin

    tokens = plan.inputs.get("input_ids")
    shape = next((tensor.shape for tensor in plan.inputs.values() if tensor.shape), ())
    return Origin(
        model=model,
        hardware=hardware,
        batch=shape[0] if shape else None,
        seq=tokens.shape[1] if tokens is not None and len(tokens.shape) > 1 else None,
    )
