"""Mixed precision: in which dtypes parameters rest, the model computes, gradients are added up, and outputs leave."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch

from autopar.errors import InputError

PrecisionLike: TypeAlias = "Precision | str | Any"
"""A Precision, its text, or torch's own `MixedPrecisionPolicy`."""

DTYPES = ("parameters", "compute", "reduce", "output", "autocast")
SPELLED = DTYPES[:-1]
"""What users say; autocast is found out."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Names of dtypes ("bfloat16"); None leaves what the model has.

    parameters   how they rest and are stepped; default: as the model has them
    compute      the model runs in it; default: the dtypes that it has
    reduce       gradients of parameters are added up over devices (in a profile: over micro-batches) in it; default: they stay
                 as backward makes them
    output       floating outputs are cast to it; default: they stay as the model makes them
    cast_inputs  whether floating inputs are cast to `compute`
    autocast     `torch.autocast` was on, in this dtype, when the model was captured
    """

    parameters: str | None = None
    compute: str | None = None
    reduce: str | None = None
    output: str | None = None
    cast_inputs: bool = True
    autocast: str | None = None

    def __post_init__(self) -> None:
        for what in DTYPES:
            self.dtype(what)
        if not isinstance(self.cast_inputs, bool):
            raise InputError(f"precision: cast_inputs={self.cast_inputs!r} is neither true nor false")

    @staticmethod
    def parse(text: str) -> Precision:
        """From "parameters=float32,compute=bfloat16,reduce=float32", any part left out, or one dtype to compute in."""
        parts = [part.strip() for part in text.split(",") if part.strip()]
        split = [part.partition("=") for part in parts]
        pairs = dict(((head, tail) if equals else ("compute", head) for head, equals, tail in split))
        if unknown := sorted(set(pairs) - set(SPELLED)):
            raise InputError(f"precision {text!r}: {unknown[0]!r} is none of {', '.join(SPELLED)}")
        return Precision(**pairs)  # type: ignore[arg-type]

    @staticmethod
    def of(given: PrecisionLike | None) -> Precision | None:
        """None where nothing is asked for. Raises InputError for what is no precision.

        >>> from torch.distributed.fsdp import MixedPrecisionPolicy
        >>> print(Precision.of(MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)))
        compute=bfloat16, reduce=float32
        """
        if given is None or isinstance(given, Precision):
            found = given or Precision()
        elif isinstance(given, str):
            found = Precision.parse(given)
        elif all(hasattr(given, name) for name in ("param_dtype", "reduce_dtype", "output_dtype", "cast_forward_inputs")):
            found = Precision(
                compute=name_of(given.param_dtype),
                reduce=name_of(given.reduce_dtype),
                output=name_of(given.output_dtype),
                cast_inputs=given.cast_forward_inputs or given.param_dtype is None,
            )
        else:
            raise InputError(
                f"precision {given!r} is no precision: give a torch.distributed.fsdp.MixedPrecisionPolicy, or text as "
                '"compute=bfloat16,reduce=float32"'
            )
        return None if found == Precision() else found

    def dtype(self, what: str) -> torch.dtype | None:
        name = getattr(self, what)
        found = getattr(torch, name, None) if isinstance(name, str) else None
        if name is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
            raise InputError(f"precision: {what}={name!r} is no floating-point dtype of torch, as float32 or bfloat16")
        return found

    def __str__(self) -> str:
        return ", ".join(self._said())

    def _said(self) -> Iterator[str]:
        for one in fields(self):
            if (value := getattr(self, one.name)) != one.default:
                yield f"{one.name}={str(value).lower() if isinstance(value, bool) else value}"


def name_of(dtype: torch.dtype | None) -> str | None:
    """As plans write it: "bfloat16"."""
    return None if dtype is None else str(dtype).removeprefix("torch.")


def said(precision: Precision | None) -> str:
    """For messages."""
    return f"precision {precision}" if precision else "the model's own precision"
