"""Ops that refuse shapes alone, or sizes that are symbols, where the real op takes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.functional import einsum
from torch.nn.functional import interpolate, linear
from torch.overrides import TorchFunctionMode

from autopar.ir.ctc import ctc_loss_by
from autopar.profiler.indexing import getitem
from autopar.torch_private import in_python_dispatcher

aten = torch.ops.aten

CTC_LOSS = frozenset({torch.ctc_loss, torch.nn.functional.ctc_loss})
PRODUCTS = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__, linear, einsum})


def grouped_mm(a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: Any = None) -> Tensor:
    """In any dtype; the fake kernel wants bfloat16, as the first GPU kernels did (torch 2.11 to 2.13)."""
    groups = len(offs) if offs is not None else b.shape[0]
    shape: tuple[Any, ...]
    if a.ndim == 2 and b.ndim == 2:
        shape = (groups, a.shape[0], b.shape[1])
    elif a.ndim == 2:
        shape = (a.shape[0], b.shape[-1])
    elif b.ndim == 2:
        shape = (a.shape[1], b.shape[1])
    else:
        shape = (a.shape[0], a.shape[1], b.shape[-1])
    return a.new_empty(shape, dtype=out_dtype or a.dtype)


class OpenSizes(TorchFunctionMode):
    """While on, functions whose C++ would fix the symbolic sizes that it reads are done in Python.

    `interpolate` always, `ctc_loss`, which reads lengths, and `x[...]`, which in C++ runs other ops on symbolic sizes; with
    `products` also `PRODUCTS` (torch 2.11 reads the sizes of operands that are not contiguous).
    """

    def __init__(self, products: bool = False) -> None:
        super().__init__()
        self.products = products
        self.stand_ins: Mapping[int, Tensor] = {}
        """By id of a parameter or buffer of the user's model what runs in its place, where a closure leads to it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(id(argument) in self.stand_ins for argument in (*args, *(kwargs or {}).values())):
            args = tuple(self.stand_ins.get(id(argument), argument) for argument in args)
            kwargs = {key: self.stand_ins.get(id(value), value) for key, value in (kwargs or {}).items()}
        if func is interpolate and (result := upsample(*args, **(kwargs or {}))) is not None:
            return result
        if func is Tensor.__getitem__ and (result := getitem(*args)) is not None:
            return result
        if func in CTC_LOSS:
            return ctc_loss_by(ctc_losses, *args, **(kwargs or {}))
        with in_python_dispatcher() if self.products and func in PRODUCTS else nullcontext():
            return func(*args, **(kwargs or {}))


def upsample(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor | None:
    """What `torch.nn.functional.interpolate` does, by the op that it ends in; None for modes that it does otherwise."""
    dims = input.ndim - 2
    op = None if antialias else UPSAMPLING.get((mode, dims))
    if op is None:
        return None

    def spread(value: Any) -> list[Any]:
        return list(value) if isinstance(value, list | tuple) else [value] * dims

    factors: list[Any] = [None] * dims if scale_factor is None else spread(scale_factor)
    sizes = spread(size) if scale_factor is None else [scaled(n, f) for n, f in zip(input.shape[2:], factors, strict=True)]
    scales: list[Any] = [None] * dims if recompute_scale_factor else factors
    aligned = [] if mode == "nearest" else [bool(align_corners)]
    return cast(Tensor, op(input, sizes, *aligned, *scales))


def scaled(size: Any, factor: float) -> Any:
    """floor(size * factor), in whole numbers where the factor is one."""
    return size * int(factor) if factor == int(factor) else math.floor(size * factor)


UPSAMPLING: Mapping[tuple[str, int], Any] = {
    ("nearest", 1): aten.upsample_nearest1d.default,
    ("nearest", 2): aten.upsample_nearest2d.default,
    ("nearest", 3): aten.upsample_nearest3d.default,
    ("linear", 1): aten.upsample_linear1d.default,
    ("bilinear", 2): aten.upsample_bilinear2d.default,
    ("bicubic", 2): aten.upsample_bicubic2d.default,
    ("trilinear", 3): aten.upsample_trilinear3d.default,
}


def upsample_backward(gradient: Tensor, output_size: Any, input_size: Any, *_: Any) -> Tensor:
    return gradient.new_empty(list(input_size))


def ctc_losses(*given: Any) -> Tensor:
    """As torch's `ctc_loss` calls it, but without reading lengths."""
    found = cast(Tensor, aten._ctc_loss.Tensor(*given)[0])
    zero_infinity = given[-1]
    return torch.where(found == math.inf, 0.0, found) if zero_infinity else found


def ctc_loss(log_probs: Tensor, targets: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Losses, and what is kept for backward; as if the longest target were as long as there is room for."""
    steps, batch, _classes = log_probs.shape
    return log_probs.new_empty([batch]), log_probs.new_empty([batch, steps, 2 * targets.shape[-1] + 1])


def ctc_loss_backward(gradient: Tensor, log_probs: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(log_probs)


SHAPES: Mapping[Any, Callable[..., Any]] = {
    aten._grouped_mm.default: grouped_mm,
    aten._ctc_loss.Tensor: ctc_loss,
    aten._ctc_loss_backward.Tensor: ctc_loss_backward,
    **{getattr(aten, f"{op.overloadpacket.__name__}_backward").default: upsample_backward for op in UPSAMPLING.values()},
}
