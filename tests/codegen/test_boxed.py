"""The boxed calling convention: what a graph is given dies at its last use, not when the graph ends."""

import weakref
from collections.abc import Callable
from typing import Any

import torch

from autopar.codegen.boxed import boxed_module


def graph_that_calls(probe: Callable[[torch.Tensor], torch.Tensor]) -> torch.fx.Graph:
    """probe(probe(saved + 1) * other): `saved` is last used before the first probe, `other` before the second."""
    graph = torch.fx.Graph()
    saved, other = graph.placeholder("saved"), graph.placeholder("other")
    first = graph.call_function(probe, (graph.call_function(torch.add, (saved, 1)),))
    graph.output((graph.call_function(probe, (graph.call_function(torch.mul, (first, other)),)),))
    return graph


def alive_at_probes(run: Callable[[torch.fx.Graph, list[torch.Tensor]], Any]) -> tuple[list[list[bool]], Any]:
    given = [torch.ones(3), torch.full((3,), 2.0)]
    references = [weakref.ref(tensor) for tensor in given]
    seen: list[list[bool]] = []

    def probe(x: torch.Tensor) -> torch.Tensor:
        seen.append([reference() is not None for reference in references])
        return x + 0

    result = run(graph_that_calls(probe), given)
    return seen, result


def test_saved_tensors_die_at_their_last_use() -> None:
    def boxed(graph: torch.fx.Graph, given: list[torch.Tensor]) -> Any:
        result = boxed_module(graph, "Boxed")(given)
        assert given == []
        return result

    seen, (result,) = alive_at_probes(boxed)
    assert seen == [[False, True], [False, False]]
    assert torch.equal(result, torch.full((3,), 4.0))


def test_a_plain_call_keeps_them_to_the_end() -> None:
    def plain(graph: torch.fx.Graph, given: list[torch.Tensor]) -> Any:
        return torch.fx.GraphModule(torch.nn.Module(), graph)(*given)

    seen, _ = alive_at_probes(plain)
    assert seen == [[True, True], [True, True]]


def test_a_graph_without_inputs_takes_an_empty_list() -> None:
    graph = torch.fx.Graph()
    graph.output((graph.call_function(torch.zeros, (2,)),))
    (result,) = boxed_module(graph, "Empty")([])
    assert torch.equal(result, torch.zeros(2))
