"""What compiled graphs do not save: fewer bytes, the same FLOPs and collectives, the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.fx import Graph

from autopar.codegen.backend import eager
from autopar.codegen.emit import Emitted
from autopar.codegen.lean import lean, lean_halves, needed
from autopar.codegen.measure import measure
from autopar.codegen.split import Halves, placeholders
from autopar.ops.joint import bytes_of
from tests.planned import planned

aten = torch.ops.aten


def saved_bytes(emitted: Emitted) -> int:
    names = {id(h): (h, {n.name: n for n in h.forward.nodes}) for r in emitted.regions.values() for h in r.classes}
    return sum(bytes_of(nodes[name]) for halves, nodes in names.values() for name in halves.saved)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_less_is_saved_and_all_else_is_as_planned(name: str) -> None:
    _, emitted, counted = planned(name, "2")
    found = measure(lean(emitted))
    assert saved_bytes(lean(emitted)) < 0.9 * saved_bytes(emitted)
    assert found.peak_bytes <= counted.peak_bytes
    assert (found.forward_flops, found.backward_flops, found.redone_flops, found.collectives) == (
        counted.forward_flops,
        counted.backward_flops,
        counted.redone_flops,
        counted.collectives,
    )


def test_gradients_are_the_same_bit_for_bit() -> None:
    """Of each region by itself, on one device: what is made again is made of the same numbers."""
    _, emitted, _ = planned("gpt2", "1")
    changed = 0
    for region in emitted.regions.values():
        for halves in region.classes:
            less = lean_halves(halves)
            changed += less is not halves
            for mine, others in zip(both(less), both(halves), strict=True):
                assert torch.equal(mine, others)
    assert changed


def both(halves: Halves) -> list[Tensor]:
    """Outputs and gradients for random inputs, small ones: elsewhere activation functions are flat."""
    torch.manual_seed(0)
    given = [drawn(n.meta["val"]) for n in placeholders(halves.forward)]
    results = list(eager(halves.forward, "Forward").forward(list(given)))
    count = len(results) - len(halves.saved)
    tangents = [drawn(n.meta["val"]) for n in placeholders(halves.backward)[len(halves.backward_inputs) + len(halves.saved) :]]
    again = [given[k] for k in halves.backward_inputs]
    return [*results[:count], *eager(halves.backward, "Backward").forward([*again, *results[count:], *tangents])]


def drawn(like: Tensor) -> Tensor:
    if like.dtype.is_floating_point:
        return torch.randn(like.shape, dtype=like.dtype) * 0.2
    return torch.zeros(like.shape, dtype=like.dtype)


def test_what_a_value_is_made_of() -> None:
    graph = Graph()
    x, w = graph.placeholder("x"), graph.placeholder("w")
    product = graph.call_function(aten.mm.default, (x, w))
    squared = graph.call_function(aten.pow.Tensor_Scalar, (product, 2))
    flat = graph.call_function(aten.view.default, (squared, [-1]))
    curved = graph.call_function(aten.tanh.default, (flat,))
    summed = graph.call_function(aten.sum.default, (curved,))
    square = torch.ones(2, 2)
    for node, value in zip((x, w, product, squared, flat, curved), (square,) * 4 + (torch.ones(4),) * 2, strict=True):
        node.meta["val"] = value
    summed.meta["val"] = torch.ones(())
    assert needed(curved, {product.name}) == {product.name}
    assert needed(curved, {"x", "w"}) is None, "a matrix product is not made again"
    assert needed(summed, {curved.name}) is None, "nor a sum"
