"""Convolutions: ops on images, sequences and volumes of channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autopar.ops.fits import argument
from autopar.ops.rule import OpRule, Rows, Shape, Signature, fit_text

aten = torch.ops.aten


def convolution(node: torch.fx.Node, operands: Sequence[Shape | None], results: Sequence[Shape]) -> Signature:
    """Groups tie output channels to input channels: then both stay whole."""
    image, kernel, out = {3: ("x!", "i!", "y!"), 4: ("x! u!", "i! j!", "y! v!")}[len(results[0])]
    text = f"b c! {image}, o c! {kernel}, o -> b o {out}"
    if argument(node, "groups", 1) != 1:
        text = f"b c! {image}, o! g! {kernel}, o! -> b o! {out}"
    return fit_text(text, operands, results)


ROWS: Rows = {
    aten.conv1d.default: OpRule(kind="matmul", fit=convolution),
    aten.conv2d.default: OpRule(kind="matmul", fit=convolution),
}
