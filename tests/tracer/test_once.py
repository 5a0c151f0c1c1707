"""Tracing each block once gives the program of a full trace, and leaves the model alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from autopar.errors import TraceError
from autopar.tracer import capture, sealed, trace
from autopar.tracer.dynamic import Dynamic
from autopar.tracer.expand import expand
from autopar.tracer.once import Once
from tests.models import MODELS
from tests.tracer.repeats import CASES, SIZE, Block, Stack, reset_counters, stack
from tests.tracer.same import differences, snapshot
from tests.zoo import ZOO

X = torch.randn(4, SIZE)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[Once]:
    """The traces in which blocks were traced once and copied in the end, the last one last."""
    done: list[Once] = []

    def noted(captured: Any, once: Once, *args: Any) -> None:
        expand(captured, once, *args)
        done.append(once)

    monkeypatch.setattr(capture, "expand", noted)
    return done


def copies(traces: list[Once]) -> int:
    return len(traces[-1].calls) if traces else 0


def both(model: nn.Module, args: Any = (), kwargs: Any = None, dynamic: Any = None) -> list[tuple[str, str]]:
    """In what a program of blocks traced once differs from that of a full trace."""
    programs = []
    for blocks_once in (True, False):
        reset_counters()
        programs.append(trace(model, args, kwargs, dynamic=dynamic, blocks_once=blocks_once))
    return differences(*programs)


@pytest.mark.parametrize("name", CASES)
def test_the_program_is_that_of_a_full_trace(name: str, traces: list[Once], monkeypatch: pytest.MonkeyPatch) -> None:
    """With parameters left out and without; and the model is left as it was, but where its code changes what closures keep."""
    case = CASES[name]
    model = case.make()
    before = snapshot(model)
    programs = []
    for few in (sealed.FEW,) if case.counts else (0, sealed.FEW):
        monkeypatch.setattr(sealed, "FEW", few)
        reset_counters()
        programs.append(trace(model, (X,)))
        assert copies(traces) >= case.repeats if case.repeats else copies(traces) == 0
        assert name == "closure over a tensor" or snapshot(model) == before
    reset_counters()
    full = trace(model, (X,), blocks_once=False)
    assert [differences(program, full) for program in programs] == [[]] * len(programs)


def test_the_model_is_left_as_it_was_when_it_cannot_be_traced() -> None:
    model = stack(lambda block, x: x * float(x.sum()))
    before = snapshot(model)
    with pytest.raises(TraceError):
        trace(model, (X,))
    assert snapshot(model) == before
    assert model(X).shape == ()


@pytest.mark.parametrize("name", ["llama", "bert", "mlp"])
def test_dynamic_dims(name: str, traces: list[Once]) -> None:
    model, kwargs = MODELS[name](device="meta", layers=3)
    dynamic = {"batch": 0, "seq": 1} if name == "llama" else {"batch": 0}
    assert both(model, (), kwargs, dynamic) == []
    assert copies(traces) >= 1


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("gemma2", 2),
        ("t5", 6),
        ("whisper", 4),
        ("vit", 3),
        ("unet", 6),
        ("resnet", 0),
        ("mixtral", 0),
        ("mamba", 3),
        ("clip", 6),
    ],
)
def test_families(name: str, calls: int, traces: list[Once]) -> None:
    model, kwargs = ZOO[name].build(layers=4, device="meta")
    assert both(model, (), kwargs) == []
    assert copies(traces) >= calls if calls else copies(traces) == 0


def test_two_sizes_that_a_block_finds_to_be_equal(traces: list[Once]) -> None:
    class Added(Stack):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            for block in self.blocks:
                x = block(x, y)
            return x.mean()

    class Adding(Block):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x + y)  # type: ignore[no-any-return]

    model = Added([Adding(i) for i in range(4)])
    dynamic = {"n": 0}
    assert both(model, (X, X), None, dynamic) == []
    assert copies(traces) >= 2


def test_depth_adds_no_parameters_and_no_nodes_to_decompose(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    decomposed = torch.export.ExportedProgram.run_decompositions

    def counting(exported: Any, table: Any) -> Any:
        sizes.append((len(exported.graph.nodes), len(exported.state_dict)))
        return decomposed(exported, table)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", counting)
    monkeypatch.setattr(sealed, "FEW", 0)
    for layers in (4, 12):
        model, kwargs = MODELS["llama"](device="meta", layers=layers)
        trace(model, (), kwargs, dynamic={"batch": 0})
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", ["in place inside", "no_grad and detach inside", "two kinds", "nested"])
def test_graphs_that_are_not_decomposed_are_the_same_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", lambda exported, table: exported)
    graphs = []
    for blocks_once in (True, False):
        captured = capture.capture(CASES[name].make(), (X,), {}, Dynamic({}), blocks_once=blocks_once)
        numbers = {node: i for i, node in enumerate(n for n in captured.graph.nodes if n.op != "placeholder")}
        state = captured.state_of

        def named(node: torch.fx.Node, numbers: Any = numbers, state: Any = state) -> str:
            return state.get(node.name, str(numbers.get(node, node.name)))

        nodes = [node for node in captured.graph.nodes if node.op != "placeholder"]
        graphs.append([(str(n.target), str(torch.fx.map_arg((n.args, n.kwargs), named))) for n in nodes])
    assert graphs[0] == graphs[1]


def test_progress_names_the_blocks_that_are_traced() -> None:
    said: list[str] = []
    trace(stack(), (X,), progress=said.append)
    assert said == ["tracing blocks.0"]


def test_differences_can_find_some() -> None:
    programs = [trace(stack(count=count), (X,)) for count in (2, 3)]
    assert differences(*programs)
    assert differences(programs[0], programs[0]) == []
