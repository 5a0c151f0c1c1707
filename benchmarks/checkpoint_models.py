"""The models of `gpu_checkpointing.py`: stacks of blocks of the sizes of GPT-2 medium and Llama 1B, in plain torch.

Nothing but torch is needed. The vocabulary is small, so that memory is that of the blocks and not of the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

RunBlock = Callable[..., Tensor]
"""(number of the block, the block, *what it is given) -> the hidden states after it."""


@dataclass(frozen=True, kw_only=True)
class Size:
    layers: int
    dim: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    batch: int
    seq: int


def call(number: int, block: nn.Module, *given: Tensor) -> Tensor:
    result: Tensor = block(*given)
    return result


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal; `[batch, heads, seq, head_dim]` each, to `[batch, seq, heads * head_dim]`."""
    found = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] != q.shape[1])
    return found.transpose(1, 2).flatten(2)


class Gpt2Block(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm_1, self.norm_2 = nn.LayerNorm(size.dim), nn.LayerNorm(size.dim)
        self.qkv, self.out = nn.Linear(size.dim, 3 * size.dim), nn.Linear(size.dim, size.dim)
        self.up, self.down = nn.Linear(size.dim, size.mlp), nn.Linear(size.mlp, size.dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, seq, dim]` to the same."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm_1(x)).chunk(3, -1))
        x = x + self.out(attention(q, k, v))
        return x + self.down(functional.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class LlamaBlock(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.head_dim = size.dim // size.heads
        self.norm_1, self.norm_2 = nn.RMSNorm(size.dim, 1e-5), nn.RMSNorm(size.dim, 1e-5)
        kv_dim = size.kv_heads * self.head_dim
        self.q, self.k, self.v = (nn.Linear(size.dim, to, bias=False) for to in (size.dim, kv_dim, kv_dim))
        self.out = nn.Linear(size.dim, size.dim, bias=False)
        self.gate, self.up = (nn.Linear(size.dim, size.mlp, bias=False) for _ in range(2))
        self.down = nn.Linear(size.mlp, size.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`[batch, seq, dim]` to the same; `cos` and `sin` are `[seq, head_dim]`."""
        h = self.norm_1(x)
        q, k, v = (part(h).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.out(attention(rotated(q, cos, sin), rotated(k, cos, sin), v))
        h = self.norm_2(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Stack(nn.Module):
    """Embeddings, blocks, a norm, and the mean loss over the vocabulary."""

    def __init__(self, size: Size, block: Callable[[Size], nn.Module]) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.dim)
        self.blocks = nn.ModuleList(block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.dim) if block is Gpt2Block else nn.RMSNorm(size.dim, 1e-5)
        self.head = nn.Linear(size.dim, size.vocabulary, bias=False)
        if block is Gpt2Block:
            self.positions = nn.Parameter(torch.randn(size.seq, size.dim) * 0.02)
        else:
            head_dim = size.dim // size.heads
            angles = torch.outer(torch.arange(size.seq), 1e4 ** (-torch.arange(0, head_dim, 2) / head_dim)).repeat(1, 2)
            self.register_buffer("cos", angles.cos())
            self.register_buffer("sin", angles.sin())
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Both `[batch, seq]`; the loss as a scalar."""
        return self.through(call, tokens, labels)

    def through(self, run: RunBlock, tokens: Tensor, labels: Tensor) -> Tensor:
        """As `forward`, each block by `run`."""
        x, given = self.tokens(tokens), self.positional()
        if hasattr(self, "positions"):
            x = x + self.positions
        for number, block in enumerate(self.blocks):
            x = run(number, block, x, *given)
        return functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), labels.flatten())

    def positional(self) -> tuple[Any, ...]:
        return (self.cos, self.sin) if hasattr(self, "cos") else ()


KINDS: dict[str, Callable[[Size], nn.Module]] = {"gpt2-medium": Gpt2Block, "llama-1b": LlamaBlock}
SIZES: dict[str, dict[str, Size]] = {
    "full": {
        "gpt2-medium": Size(layers=8, dim=1024, heads=16, kv_heads=16, mlp=4096, vocabulary=8192, batch=16, seq=1024),
        "llama-1b": Size(layers=6, dim=2048, heads=32, kv_heads=8, mlp=8192, vocabulary=8192, batch=8, seq=2048),
    },
    "small": {
        "gpt2-medium": Size(layers=4, dim=256, heads=4, kv_heads=4, mlp=1024, vocabulary=1024, batch=4, seq=256),
        "llama-1b": Size(layers=4, dim=256, heads=4, kv_heads=1, mlp=1024, vocabulary=1024, batch=4, seq=256),
    },
    "tiny": {
        "gpt2-medium": Size(layers=2, dim=32, heads=2, kv_heads=2, mlp=128, vocabulary=64, batch=2, seq=64),
        "llama-1b": Size(layers=2, dim=32, heads=2, kv_heads=1, mlp=128, vocabulary=64, batch=2, seq=64),
    },
}


def build(name: str, size: Size, device: str, dtype: torch.dtype) -> tuple[Stack, dict[str, Tensor]]:
    """The model with its batch."""
    torch.manual_seed(0)
    model = Stack(size, KINDS[name]).to(device, dtype)
    drawn = torch.randint(size.vocabulary, (size.batch, size.seq + 1), device=device)
    return model, {"tokens": drawn[:, :-1].contiguous(), "labels": drawn[:, 1:].contiguous()}
