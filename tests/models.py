"""Tiny models of each supported family, with example inputs; dropout off unless `drop` is given, labels given so that each
returns a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Built = tuple[nn.Module, dict[str, torch.Tensor]]

BATCH, SEQ, HIDDEN, HEADS, VOCAB = 8, 16, 64, 4, 128


def gpt2(
    *,
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    device: str = "cpu",
    batch: int = BATCH,
    seq: int = SEQ,
    drop: float = 0.0,
) -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"n_layer": layers, "n_embd": HIDDEN, "n_head": HEADS, "vocab_size": VOCAB, "n_positions": 64}
    config = GPT2Config(
        **sizes, use_cache=False, resid_pdrop=drop, embd_pdrop=drop, attn_pdrop=drop, bos_token_id=0, eos_token_id=0
    )
    return _build(lambda: GPT2LMHeadModel(config), dtype, device), _tokens(batch, seq, device)


def llama(
    *, dtype: torch.dtype = torch.float32, layers: int = 2, device: str = "cpu", batch: int = BATCH, seq: int = SEQ
) -> Built:
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2}
    sizes: dict[str, Any] = dict(
        hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=layers, vocab_size=VOCAB, **heads
    )
    config = LlamaConfig(**sizes, use_cache=False)
    return _build(lambda: LlamaForCausalLM(config), dtype, device), _tokens(batch, seq, device)


def bert(
    *,
    dtype: torch.dtype = torch.float32,
    layers: int = 2,
    device: str = "cpu",
    batch: int = BATCH,
    seq: int = SEQ,
    drop: float = 0.0,
) -> Built:
    from transformers import BertConfig, BertForMaskedLM

    sizes: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
    }
    config = BertConfig(**sizes, vocab_size=VOCAB, hidden_dropout_prob=drop, attention_probs_dropout_prob=drop)
    tokens = _tokens(batch, seq, device)
    mask = torch.ones(batch, seq, dtype=torch.long, device=device)
    mask[::2, -3:] = 0
    return _build(lambda: BertForMaskedLM(config), dtype, device), {**tokens, "attention_mask": mask}


def vit(*, dtype: torch.dtype = torch.float32, layers: int = 2, device: str = "cpu", batch: int = BATCH) -> Built:
    from transformers import ViTConfig, ViTForImageClassification

    sizes: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
    }
    drop: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = ViTConfig(**sizes, **drop, image_size=32, patch_size=8, num_labels=16)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(batch, 3, 32, 32, generator=generator, dtype=torch.float64).to(dtype).to(device)
    labels = torch.randint(16, (batch,), generator=generator).to(device)
    return _build(lambda: ViTForImageClassification(config), dtype, device), {"pixel_values": pixels, "labels": labels}


class MLP(nn.Module):
    """`layers` equal residual blocks and a mean squared error."""

    def __init__(self, layers: int, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden)) for _ in range(layers)
        )
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        for block in self.blocks:
            x = x + block(x)
        out = self.head(x)
        return {"loss": nn.functional.mse_loss(out, y), "out": out}


def mlp(*, dtype: torch.dtype = torch.float32, layers: int = 2, device: str = "cpu", batch: int = BATCH) -> Built:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).to(device)
    y = torch.randn(batch, 1, generator=generator, dtype=torch.float64).to(dtype).to(device)
    return _build(lambda: MLP(layers, HIDDEN), dtype, device), {"x": x, "y": y}


class ConvNet(nn.Module):
    """Convolutions (also in groups), batch norm, softmax over channels, and a mean over space."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.norm(self.first(x)).relu()).softmax(1)
        return nn.functional.adaptive_avg_pool2d(self.last(x), 1).square().sum()


def convnet(*, dtype: torch.dtype = torch.float32, device: str = "cpu", batch: int = BATCH) -> Built:
    return _build(ConvNet, dtype, device), {"x": torch.zeros(batch, 4, 8, 8, dtype=dtype, device=device)}


MODELS: dict[str, Callable[..., Built]] = {"gpt2": gpt2, "llama": llama, "bert": bert, "vit": vit, "mlp": mlp}


def _build(make: Callable[[], nn.Module], dtype: torch.dtype, device: str) -> nn.Module:
    """The module in train mode, with the same weights in every process; initialised in float32, so dtypes agree too."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        return make().to(dtype).train()


def _tokens(batch: int, seq: int, device: str) -> dict[str, Any]:
    tokens = torch.randint(VOCAB, (batch, seq), generator=torch.Generator().manual_seed(1)).to(device)
    return {"input_ids": tokens, "labels": tokens.clone()}
