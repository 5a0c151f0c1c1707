"""Convolutions, pooling, resampling: ops on sequences, images and volumes of channels.

Batch and channels are alike for all of them. Of space an op sees neighbours, so that it stays whole; but where the windows
lie side by side (a convolution of size 1, patches, a pool of 2 every 2), a dim is (window, place in it), and may be cut
between windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch

from autopar.ir.program import Size
from autopar.ops import fits
from autopar.ops.factors import Dims, Factor
from autopar.ops.fits import argument
from autopar.ops.rule import Fit, OpRule, Rows, Shape, Signature, fit_text

aten = torch.ops.aten

Factors = tuple[Factor, ...]


def overloads(*names: str) -> list[str]:
    return [f"{name}.{overload}" for name in names for overload in ("default", "vec")]


RESAMPLED_1D = overloads("upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_linear1d")
RESAMPLED_2D = overloads(
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
)
RESAMPLED_3D = overloads("upsample_nearest3d", "_upsample_nearest_exact3d", "upsample_trilinear3d")


@dataclass(frozen=True, kw_only=True)
class Windows:
    """One dim of space, with windows on the long side and one element for each window on the short side."""

    long: Factors
    short: Factors
    kernel: Factors
    sizes: dict[Factor, Size]
    whole: Factors


def windows(i: int, long: Size, short: Size, kernel: int, *, side_by_side: bool) -> Windows:
    """Factors of dim `i` of space; `side_by_side` if each window begins where the one before ends, the first at 0."""
    y, k, x = f"y{i}", f"k{i}", f"x{i}"
    if side_by_side and long == short * kernel:
        return Windows(long=(y, k), short=(y,), kernel=(k,), sizes={y: short, k: kernel}, whole=(k,))
    return Windows(long=(x,), short=(y,), kernel=(k,), sizes={x: long, y: short, k: kernel}, whole=(x, y, k))


def spread(value: Any, rank: int) -> list[Any]:
    """One value per dim of space; aten takes a single one for all."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * rank if len(values) == 1 else values


def fitted(operands: Sequence[Dims | None], results: Sequence[Dims], sizes: dict[Factor, Size], **more: Any) -> Signature:
    """`fits.signature` of the factors that occur, without those of size one."""

    def real(dims: Dims) -> Dims:
        return tuple(tuple(f for f in dim if sizes[f] != 1) for dim in dims)

    ins, outs = [None if d is None else real(d) for d in operands], [real(d) for d in results]
    there = {f for dims in (*ins, *outs) for dim in dims or () for f in dim}
    return fits.signature(ins, outs, {f: n for f, n in sizes.items() if f in there}, **more)


def convolution(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Input channels (g c), output channels (g o): a group of them may be cut, or, within one group, either.

    The summands of input channels that are cut add up, so a bias is added by the first device only. A transposed convolution
    is the gradient of one: it makes the long side of the short one.
    """
    x, weight, *_ = operands
    assert x is not None
    assert weight is not None
    rank, groups = len(weight) - 2, argument(node, "groups", 1)
    back = "transpose" in str(node.target) or bool(argument(node, "transposed"))
    given = [argument(node, name) for name in ("stride", "padding", "dilation", "output_padding")]
    stride, padding, dilation, extra = (spread(0 if v in (None, "valid") else v, rank) for v in given)
    out, sizes = results[0], {"g": groups, "c": x[-rank - 1] // groups, "o": results[0][-rank - 1] // groups}
    space = []
    for i, kernel in enumerate(weight[2:]):
        dense = kernel == 1 or (dilation[i] == 1 and padding[i] != "same")
        tiles = stride[i] == kernel and dense and padding[i] in (0, "same") and extra[i] == 0
        sides = (out[i - rank], x[i - rank]) if back else (x[i - rank], out[i - rank])
        space.append(windows(i, *sides, int(kernel), side_by_side=tiles))
        sizes |= space[-1].sizes
    batch: Dims = (("b",),) if len(x) > rank + 1 else ()
    sizes |= {"b": x[0]} if batch else {}
    long, short = tuple(s.long for s in space), tuple(s.short for s in space)
    channels: Dims = (("g", "c"), ("o",)) if back else (("g", "o"), ("c",))
    ins: list[Dims | None] = [
        (*batch, ("g", "c"), *(short if back else long)),
        (*channels, *(s.kernel for s in space)),
        *([(("g", "o"),)] if len(operands) > 2 else []),
    ]
    sharded = {"c": "convolution"} if len(operands) > 2 else {}
    made = (*batch, ("g", "o"), *(long if back else short))
    return fitted(ins, [made], sizes, whole=[f for s in space for f in s.whole], sharded=sharded)


def pool(rank: int) -> Fit:
    """Of (x, kernel, stride, padding, ...) over the last dims. Indices say where in all of space the maximum was."""

    def fit(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
        kernel, stride, padding = (spread(argument(node, name), rank) for name in ("kernel_size", "stride", "padding"))
        dilation = spread(argument(node, "dilation", 1), rank)
        shape, out = operands[0] or (), results[0]
        batch, sizes = fits.named(out[:-rank])
        space = []
        for i in range(rank):
            dense = kernel[i] == 1 or dilation[i] == 1
            tiles = (stride or kernel)[i] == kernel[i] and dense and padding[i] == 0 and len(results) == 1
            space.append(windows(i, shape[i - rank], out[i - rank], kernel[i], side_by_side=tiles))
            sizes |= space[-1].sizes
        made = (*batch, *(s.short for s in space))
        whole = [f for s in space for f in s.whole]
        return fitted([(*batch, *(s.long for s in space))], [made] * len(results), sizes, whole=whole)

    return fit


def leading(rank: int) -> Fit:
    """All dims but the last `rank` correspond; those stay whole."""

    def fit(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
        dims, sizes = fits.named(results[0][:-rank])

        def space(shape: Shape, tag: str) -> Dims:
            found, more = fits.named(shape[len(shape) - rank :], tag)
            sizes.update(more)
            return found

        ins = [None if s is None else (*dims, *space(s, f"i{j}_")) for j, s in enumerate(operands)]
        outs = [(*dims, *space(s, f"o{j}_")) for j, s in enumerate(results)]
        return fits.signature(ins, outs, sizes, whole=[f for f in sizes if not f.startswith("d")])

    return fit


def adaptive_average(rank: int) -> Fit:
    """Where a dim shrinks to one element, this is the mean over it, which may be cut."""

    def fit(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
        shape, out = operands[0] or (), results[0]
        ins, sizes = fits.named(shape, "i")
        batch, outs = ins[: len(shape) - rank], fits.named(out)[0][-rank:]
        sizes |= {f: n for dim, n in zip(outs, out[-rank:], strict=True) for f in dim}
        averaged = {f for i, n in enumerate(out[-rank:]) if n == 1 for f in ins[i - rank]}
        whole = {f for dim in (*ins[-rank:], *outs) for f in dim} - averaged
        return fits.signature([ins], [(*batch, *outs)], sizes, whole=whole, sharded=dict.fromkeys(averaged, "mean"))

    return fit


def columns(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """im2col and back: a column has (channel, place in the window)."""
    shape, out = operands[0] or (), results[0]
    image, table = (shape, out) if node.target is aten.im2col.default else (out, shape)
    batch: Dims = (("b",),) if len(image) == 4 else ()
    sizes = dict(zip("bcxykl", (image[0], *image[-3:], table[-2] // image[-3], table[-1]), strict=True))
    sides: list[Dims] = [(*batch, ("c",), ("x",), ("y",)), (*batch, ("c", "k"), ("l",))]
    if not batch:
        del sizes["b"]
    ins, outs = sides if image is shape else reversed(sides)
    return fitted([ins], [outs], sizes, whole="xykl")


def grid_sample(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Each place of the grid looks anywhere in the image."""
    text = {4: "b c x! y!, b p q n! -> b c p q", 5: "b c x! y! z!, b p q r n! -> b c p q r"}[len(results[0])]
    return fit_text(text, operands, results)


def rows(rule: OpRule, *names: str) -> Rows:
    """The same row for all overloads so named."""
    return {attrgetter(name)(aten): rule for name in names}


def of_space(fit: Callable[[int], Fit], rank: int, *names: str, linear: bool = True) -> Rows:
    return rows(OpRule(kind="reduction", fit=fit(rank), linear=linear), *names)


ROWS: Rows = {
    **rows(
        OpRule(kind="matmul", fit=convolution, counts={"groups": "g"}),
        *(f"conv{n}d.{overload}" for n in (1, 2, 3) for overload in ("default", "padding")),
        "conv_transpose1d.default",
        "conv_transpose2d.input",
        "conv_transpose3d.input",
        "convolution.default",
    ),
    **of_space(pool, 2, "max_pool2d.default", "max_pool2d_with_indices.default", linear=False),
    **of_space(pool, 3, "max_pool3d.default", "max_pool3d_with_indices.default", linear=False),
    **of_space(pool, 2, "avg_pool2d.default"),
    **of_space(pool, 3, "avg_pool3d.default"),
    **of_space(adaptive_average, 2, "adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default"),
    **of_space(adaptive_average, 3, "adaptive_avg_pool3d.default", "_adaptive_avg_pool3d.default"),
    **of_space(leading, 2, "adaptive_max_pool2d.default", "max_unpool2d.default", linear=False),
    **of_space(leading, 3, "adaptive_max_pool3d.default", "max_unpool3d.default", linear=False),
    **rows(OpRule(kind="reduction", text="b c x! y!, b c s! -> b c p! q!, b c p! q!"), "fractional_max_pool2d.default"),
    **rows(
        OpRule(kind="reduction", text="b c x! y! z!, b c s! -> b c p! q! r!, b c p! q! r!"), "fractional_max_pool3d.default"
    ),
    **of_space(leading, 1, *RESAMPLED_1D, "reflection_pad1d.default", "replication_pad1d.default"),
    **of_space(leading, 2, *RESAMPLED_2D, "reflection_pad2d.default", "replication_pad2d.default"),
    **of_space(leading, 3, *RESAMPLED_3D, "reflection_pad3d.default", "replication_pad3d.default"),
    **rows(OpRule(kind="reduction", fit=columns, linear=True), "im2col.default", "col2im.default"),
    **rows(OpRule(kind="reduction", fit=grid_sample), "grid_sampler_2d.default", "grid_sampler_3d.default"),
}
