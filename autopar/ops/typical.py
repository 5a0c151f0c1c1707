"""Typical arguments of an op, to show its rule on: tensors without data, of sizes that most meshes divide."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from autopar.ops import tables
from autopar.ops.rule import parse
from autopar.torch_private import OpOverload

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
SIZES = (16, 32, 64, 48, 96, 80, 24, 40)
"""Of a row's factors, in their order: multiples of 8 that differ, so that they can be told apart."""

SHAPES: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "addmm": ((64,), (16, 32), (32, 64)),
    "baddbmm": ((16, 32, 64), (16, 32, 48), (16, 48, 64)),
    "matmul": ((8, 16, 32), (8, 32, 64)),
    "scaled_dot_product_attention": ((8, 16, 32, 64),) * 3,
    "experts": ((16, 32), (16, 2), (16, 2), (8, 48, 32), (8, 32, 48)),
    "embedding": ((64, 32), (8, 16)),
    "cross_entropy_loss": ((16, 64), (16,)),
    "nll_loss_nd": ((16, 64), (16,)),
    "conv1d": ((8, 16, 32), (64, 16, 3)),
    "conv2d": ((8, 16, 32, 32), (64, 16, 3, 3)),
    "conv3d": ((8, 16, 32, 32, 32), (64, 16, 3, 3, 3)),
    "layer_norm": ((8, 16, 32), (32,), (32,)),
    "rms_norm": ((8, 16, 32), (32,)),
    "group_norm": ((8, 16, 32),),
    "index_select": ((16, 32), (16,)),
    "gather": ((16, 32), (16, 32)),
}
"""Where the operands' shapes are not one shape for all."""

VALUES: Mapping[str, Any] = {
    "dim": -1,
    "dims": [0],
    "normalized_shape": [32],
    "num_groups": 4,
    "kernel_size": [3, 3],
    "activation": "silu",
    "index": 0,
    "dim0": 0,
    "dim1": 1,
    "split_size": 8,
    "chunks": 2,
    "pad": [1, 1],
    "k": 2,
    "size": [8, 16, 32],
    "value": 1.0,
    "shape": [8, 16, 8, 4],
    "split_sizes": [16, 16],
    "p": 0.5,
    "train": True,
    "half_to_float": False,
    "low": 0,
    "high": 10,
    "mean": 0.0,
    "std": 1.0,
    "exponent": 2,
}
"""Arguments that have no default, by name."""
INTEGERS = ("indices", "ids", "index", "target")


def typical(op: OpOverload) -> Arguments | None:
    """None where none are known."""
    for args, kwargs in candidates(op):
        try:
            op(*args, **kwargs)
        except Exception:  # not a call of this op: the next
            continue
        return args, kwargs
    return None


def candidates(op: OpOverload) -> Iterator[Arguments]:
    """Calls that might be right: of known shapes, of the row's own factors, or all tensors of one shape."""
    rule = tables.rule_for(op)
    tensors = [a for a in op._schema.arguments if "Tensor" in str(a.type)]
    needed = [a for a in tensors if not a.has_default_value() and not str(a.type).startswith("Optional")]
    name = op.overloadpacket.__name__
    if name in SHAPES:
        yield call(op, SHAPES[name])
    if rule is not None and rule.text:
        yield call(op, shapes_of_row(rule.text))
    for shape, count in itertools.product(((8, 16, 32), (8, 16), (8, 16, 32, 64), (32,)), (len(needed), len(tensors))):
        yield call(op, (shape,) * count)


def shapes_of_row(text: str) -> tuple[tuple[int, ...], ...]:
    """Sizes for the factors of a row; `b*` stands for one dim."""
    operands = parse(text)[0]
    names = list(dict.fromkeys(word for words in operands for word in words if word != "1"))
    sizes = {name: SIZES[i % len(SIZES)] for i, name in enumerate(names)} | {"1": 1}
    return tuple(tuple(sizes[word] for word in words) for words in operands)


def call(op: OpOverload, shapes: tuple[tuple[int, ...], ...]) -> Arguments:
    """The op's arguments by its schema: tensors of the shapes, as long as there are any, and values by name."""
    left = list(shapes)
    args: list[Any] = []
    for argument in op._schema.arguments:
        kind = str(argument.type)
        if argument.kwarg_only:
            break
        if kind == "List[Tensor]":
            args.append([tensor_for(argument.name, shape) for shape in left])
            left = []
        elif kind == "List[Optional[Tensor]]":
            args.append([tensor_for(argument.name, left.pop(0))] if left else [])
        elif "Tensor" in kind:
            args.append(tensor_for(argument.name, left.pop(0)) if left else None)
        elif argument.has_default_value():
            args.append(argument.default_value)
        else:
            value = VALUES.get(argument.name, 2)
            args.append([value] if kind == "List[int]" and isinstance(value, int) else value)
    return tuple(args), {}


def tensor_for(name: str, shape: tuple[int, ...]) -> Tensor:
    if name in INTEGERS:
        return torch.empty(shape, dtype=torch.int64, device="meta")
    return torch.empty(shape, device="meta", requires_grad=True)
