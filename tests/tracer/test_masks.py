"""Masks that are causal by construction leave traced programs; others stay, and what is held to be known is true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autopar.ir.program import Program
from autopar.ir.run import run_program
from autopar.tracer import known, pipeline, trace
from autopar.tracer.affine import Affine, Known
from autopar.tracer.known import Knowledge
from autopar.tracer.masks import SDPA
from tests.models import MODELS

SEQ = 6


def positions(dim: int) -> Tensor:
    return torch.arange(SEQ).reshape([SEQ if d == dim else 1 for d in range(4)])


def packed() -> Tensor:
    """One document per row, found as transformers finds several packed into one: by where positions jump."""
    ids = (torch.arange(SEQ) + 0).unsqueeze(0).expand(2, -1)
    jumps = torch.cat([ids[:, :1] - 1, ids], -1).diff(dim=-1) != 1
    document = jumps.cumsum(-1)
    row = torch.arange(2).reshape(2, 1, 1, 1)
    return (document[row, positions(2)] == document[row, positions(3)]) & (ids[row, positions(3)] <= ids[row, positions(2)])


MASKS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "causal": (lambda keep: positions(3) <= positions(2), "causal"),
    "causal, compared the other way": (lambda keep: ~(positions(3) > positions(2)), "causal"),
    "causal and packed": (lambda keep: packed(), "causal"),
    "all": (lambda keep: positions(3) >= 0, "nothing"),
    "a window that is wide enough": (
        lambda keep: (positions(3) <= positions(2)) & (positions(3) > positions(2) - SEQ),
        "causal",
    ),
    "a window": (lambda keep: (positions(3) <= positions(2)) & (positions(3) > positions(2) - 2), "mask"),
    "without the diagonal": (lambda keep: (positions(3) < positions(2)) | (positions(3) == 0), "mask"),
    "anticausal": (lambda keep: positions(3) >= positions(2), "mask"),
    "shifted": (lambda keep: positions(3) <= positions(2) + 1, "mask"),
    "padding": (lambda keep: keep[:, None, None, :].expand(2, 1, SEQ, SEQ), "mask"),
    "causal and padding": (lambda keep: (positions(3) <= positions(2)) & keep[:, None, None, :], "mask"),
    "causal or padding": (lambda keep: (positions(3) <= positions(2)) | keep[:, None, None, :], "mask"),
    "one row": (lambda keep: positions(3) <= positions(2)[:, :, 2:3], "mask"),
}


class Attention(nn.Module):
    """The mask is made of which tokens to keep, and maybe of a trained bias [1, 4, SEQ, SEQ]."""

    def __init__(self, mask: Callable[..., Tensor]) -> None:
        super().__init__()
        self.project, self.mask = nn.Linear(8, 8), mask
        self.bias = nn.Parameter(torch.randn(1, 4, SEQ, SEQ))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        heads = self.project(x).view(2, SEQ, 4, 2).transpose(1, 2)
        given = (keep, self.bias)[: self.mask.__code__.co_argcount]
        return F.scaled_dot_product_attention(heads, heads, heads, self.mask(*given)).square().mean()


def attentions(program: Program) -> list[torch.fx.Node]:
    return [n for r in program.regions.values() for n in r.graph.find_nodes(op="call_function", target=SDPA)]


def kind(node: torch.fx.Node) -> str:
    return "causal" if node.kwargs.get("is_causal") else "mask" if len(node.args) > 3 else "nothing"


@pytest.mark.parametrize("name", MASKS)
def test_which_masks_go(name: str) -> None:
    mask, expected = MASKS[name]
    torch.manual_seed(0)
    model, x, keep = Attention(mask), torch.randn(2, SEQ, 8), torch.rand(2, SEQ) > 0.3
    keep[:, 0] = True
    program = trace(model, (x, keep))
    assert [kind(node) for node in attentions(program)] == [expected]
    state = dict(model.named_parameters())
    torch.testing.assert_close(run_program(program, state, (x, keep)), model(x, keep))


WIDTHS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[int]]] = {
    "padding": (lambda keep, bias: keep[:, None, None, :].expand(2, 1, SEQ, SEQ), [2, 1, 1, SEQ]),
    "padding and all": (lambda keep, bias: (positions(2) >= 0) & keep[:, None, None, :], [2, 1, 1, SEQ]),
    "a window for each row": (lambda keep, bias: (positions(3) == positions(2)).expand(2, 1, SEQ, SEQ), [1, 1, SEQ, SEQ]),
    "a bias, causal for each row": (
        lambda keep, bias: torch.where((positions(3) <= positions(2)).expand(2, 1, SEQ, SEQ), bias, -1e9).contiguous(),
        [1, 4, SEQ, SEQ],
    ),
    "a bias for all": (
        lambda keep, bias: torch.where((positions(3) >= 0).expand(2, 1, SEQ, SEQ), bias, -1e9).contiguous(),
        [1, 4, SEQ, SEQ],
    ),
    "a bias and padding": (lambda keep, bias: torch.where(keep[:, None, None, :], bias, -1e9), [2, 4, SEQ, SEQ]),
    "nothing": (lambda keep, bias: torch.zeros(2, 1, SEQ, SEQ).masked_fill(keep[:, None, None, :], 0.0), [2, 1, 1, SEQ]),
    "zeros": (
        lambda keep, bias: torch.where((positions(3) >= 0).expand(2, 1, SEQ, SEQ), torch.zeros(2, 4, SEQ, SEQ), -1e9),
        [],
    ),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_masks_are_as_large_as_they_differ(name: str) -> None:
    mask, shape = WIDTHS[name]
    torch.manual_seed(0)
    model, x, keep = Attention(mask), torch.randn(2, SEQ, 8), torch.rand(2, SEQ) > 0.3
    keep[:, 0] = True
    program = trace(model, (x, keep))
    (node,) = attentions(program)
    assert [list(a.meta["val"].shape) for a in node.args[3:]] == ([shape] if shape else [])
    state = dict(model.named_parameters())
    mine, theirs = run_program(program, state, (x, keep)), model(x, keep)
    torch.testing.assert_close(mine, theirs)
    for a, b in zip(*(torch.autograd.grad(y, [*state.values()], allow_unused=True) for y in (mine, theirs)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("name", "expected"), [("llama", "causal"), ("gpt2", "causal"), ("vit", "nothing"), ("bert", "mask")])
def test_models(name: str, expected: str) -> None:
    """BERT's tests give a padding mask. What is left of Llama's keys and values has as many heads as the model has."""
    model, kwargs = MODELS[name]()
    found = attentions(trace(model, (), kwargs))
    assert {kind(node) for node in found} == {expected}
    if name == "llama":
        assert all(n.kwargs["enable_gqa"] and n.args[1].meta["val"].shape[1] == model.config.num_key_value_heads for n in found)


def test_dynamic_sizes_do_not_matter() -> None:
    model, kwargs = MODELS["llama"]()
    program = trace(model, (), kwargs, dynamic={"batch": 0, "seq": 1})
    assert {kind(node) for node in attentions(program)} == {"causal"}


def values_of(found: Known, shape: tuple[int, ...]) -> Tensor:
    """The tensor that the knowledge describes."""
    index = torch.meshgrid(*map(torch.arange, shape), indexing="ij") if shape else ()

    def at(form: Affine) -> Tensor:
        return sum((s * i for s, i in zip(form.slopes, index, strict=True)), torch.full(shape, form.constant))

    if isinstance(found, Affine):
        return at(found)
    return torch.stack([torch.ones(shape, dtype=torch.bool), *(at(form) >= 0 for form in found.forms)]).all(0)


def check(graph: torch.fx.Graph, knowledge: Knowledge) -> int:
    """Run all of the graph that needs no input, and compare what is known of it; how many nodes that were."""
    done: dict[torch.fx.Node, Any] = {}
    count = 0
    for node in graph.nodes:
        if node.op == "call_function" and all(n in done for n in node.all_input_nodes):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), done.__getitem__)
            done[node] = node.target(*args, **kwargs)
            found = knowledge.of(node) if isinstance(done[node], Tensor) else None
            if found is not None:
                torch.testing.assert_close(
                    values_of(found, tuple(done[node].shape)), done[node].long() if isinstance(found, Affine) else done[node]
                )
                count += 1
    return count


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", *MASKS])
def test_what_is_known_is_true(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    monkeypatch.setattr(pipeline, "fold_masks", lambda graph: checked.append(check(graph, Knowledge())))
    if name in MODELS:
        model, kwargs = MODELS[name]()
        trace(model, (), kwargs)
    else:
        trace(Attention(MASKS[name][0]), (torch.randn(2, SEQ, 8), torch.ones(2, SEQ, dtype=torch.bool)))
    assert sum(checked) > 0 or name == "padding"


def test_a_wrong_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known.RULES, torch.ops.aten.le.Tensor, known.compared(known.less))  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="not equal"):
        test_what_is_known_is_true("causal", monkeypatch)
