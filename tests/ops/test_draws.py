"""Random ops on pieces: those of a serial run where keys are states of torch's generator, else a function of key and place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from autopar.ops import draws
from autopar.ops.counters import keys_of_step
from autopar.ops.draws import Draw, draw_whole

CPU = torch.device("cpu")
KEY = keys_of_step(3, 5, 2)


def tensor(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()


def state_of(seed: int) -> Tensor:
    return torch.stack([torch.Generator().manual_seed(seed).get_state()])


@pytest.fixture(autouse=True)
def generator_is_left_alone() -> Any:
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("key", [KEY[:1], state_of(0)], ids=["counters", "serial"])
def test_backward_drops_what_forward_dropped(key: Tensor) -> None:
    """And again the same, each time."""
    x = tensor(32, 48)
    y = draws.dropout(x, key, 0, 0.25, (32, 48), (), ())
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(grad * x, y)
    assert 0.1 < float((y == 0).double().mean()) < 0.4
    assert torch.equal(y, draws.dropout(x, key, 0, 0.25, (32, 48), (), ()))


def test_rows_of_the_key_are_draws_of_their_own() -> None:
    x = tensor(32, 48)
    one, two = (draws.dropout(x, KEY, site, 0.5, (32, 48), (), ()) for site in range(2))
    assert 0.4 < float(((one == 0) == (two == 0)).double().mean()) < 0.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_serial_dropout_is_that_of_torch_bit_for_bit(dtype: torch.dtype) -> None:
    x = tensor(32, 48, dtype=dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        expected = torch.nn.functional.dropout(x, 0.1)
    states = torch.cat([state_of(0), state_of(4)])
    assert torch.equal(draws.dropout(x, states, 1, 0.1, (32, 48), (), ()), expected)
    halves = [draws.dropout(x[:, 24 * i :][:, :24], states, 1, 0.1, (32, 48), (1, 2), (torch.tensor(i),)) for i in range(2)]
    assert torch.equal(torch.cat(halves, 1), expected)


def test_serial_dropout_fills_memory_in_its_order() -> None:
    """Of a tensor with channels last, whose rows are cut; also in backward."""
    x = tensor(2, 4, 3, 5).detach().to(memory_format=torch.channels_last).requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        expected = torch.nn.functional.dropout(x, 0.4)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    for i, (part, wanted) in enumerate(zip(expected.chunk(2, 1), gradient.chunk(2, 1), strict=True)):
        piece = x[:, 2 * i : 2 * i + 2].detach().requires_grad_()
        found = draws.dropout(piece, state_of(4), 0, 0.4, (2, 4, 3, 5), (1, 2), (torch.tensor(i),), (0, 2, 3, 1))
        assert torch.equal(found, part)
        assert torch.equal(torch.autograd.grad(found.sum(), piece)[0], wanted)


MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"is_causal": True},
    "kept": {"attn_mask": torch.ones(12, 16, dtype=torch.bool).tril(-1)},
    "added": {"attn_mask": torch.zeros(12, 16, dtype=torch.float64)},
}


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("mask", MASKS)
def test_serial_attention_is_that_of_torch(mask: str, heads: int) -> None:
    """Forward and gradients, also for a row in which everything is masked, and for shared key heads."""
    q, k, v = tensor(2, 4, 12, 8), tensor(2, heads, 16, 8), tensor(2, heads, 16, 6)
    options = {"scale": 0.3, "enable_gqa": heads != 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        expected = scaled_dot_product_attention(q, k, v, dropout_p=0.2, **MASKS[mask], **options)
    loops = (2, 3) if mask == "causal" else None
    given = MASKS[mask].get("attn_mask")
    found = draws.attention(q, k, v, given, state_of(4), 0, 0.2, (2, 4, 12, 16), (), (), causal_loops=loops, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in draws.SERIAL if kind != "dropout"])
def test_kinds_draw_the_same_from_the_same(kind: str) -> None:
    """By keys of either sort; another key gives other numbers. By states of the generator, those that torch draws."""
    numbers = {"bernoulli": [0.5], "exponential": [2.0], "integers": [0.0, 100.0], "permutation": []}.get(kind, [0.0, 1.0])
    dtype = torch.int64 if kind in ("integers", "permutation") else torch.float32
    for one, two in ((KEY[:1], KEY[1:]), (state_of(0), state_of(1))):
        first, again, other = (draws.DRAW(key, 0, kind, numbers, [64], [64], [], [], dtype) for key in (one, one, two))
        assert first.dtype == dtype
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert torch.equal(draw_whole(Draw(kind=kind, numbers=tuple(numbers), shape=(64,), dtype=dtype), CPU), other)
