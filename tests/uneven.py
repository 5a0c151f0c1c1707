"""Models whose vocabulary divides by no mesh, and plans that cut it all the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from autopar.ir.constraints import Constraints
from tests.training import HIDDEN, Tied

VOCAB, BATCH, SEQ = 97, 12, 8
CUT = Constraints(
    pins=(
        "transformer.wte: factor=v on gpu",
        "transformer.wte.weight: rest=S(0) on gpu",
        "kind=loss: tensor=gpu",
        "lm_head: tensor=gpu",
    )
)
"""Rows of the table, logits and classes of the loss, all cut along the last axis."""
TIED_CUT = Constraints(
    pins=("embed: factor=v on gpu", "embed.weight: rest=S(0) on gpu", "kind=loss: tensor=gpu", "head: tensor=gpu")
)
TIED_GATHERED = Constraints(pins=("embed.weight: rest=S(0) on gpu", "**: batch=gpu"))
TIED_WHOLE = Constraints(pins=("embed.weight: rest=whole on gpu", "**: batch=gpu"))
BERT_CUT = Constraints(
    pins=(
        "bert.embeddings.word_embeddings: factor=v on gpu",
        "cls.predictions.decoder: tensor=gpu",
        "cls.predictions.bias: rest=S(0) on gpu",
        "kind=loss: tensor=gpu",
    )
)


def gpt2(*, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float64) -> nn.Module:
    """One layer, tied embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"n_layer": 1, "n_embd": HIDDEN, "n_head": 2, "vocab_size": VOCAB, "n_positions": SEQ}
    rest: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(GPT2Config(**sizes, **rest, use_cache=False)).to(dtype).train()


def bert() -> nn.Module:
    """One layer; the head has a bias."""
    from transformers import BertConfig, BertForMaskedLM

    sizes: dict[str, Any] = {"hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "max_position_embeddings": SEQ}
    rest: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": VOCAB}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(**sizes, **rest, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        return BertForMaskedLM(config).train()


class MaybeLabelled(Tied):
    """Without labels only logits."""

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:  # type: ignore[override]
        found = super().forward(tokens, tokens if labels is None else labels)
        return found if labels is not None else {"logits": found["logits"]}


def tied(seed: int = 0, device: str = "cpu") -> nn.Module:
    """As in `tests.training`, with another vocabulary; float64 throughout."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = MaybeLabelled()
        model.embed, model.head = nn.Embedding(VOCAB, HIDDEN), nn.Linear(HIDDEN, VOCAB, bias=False)
        model.head.weight = model.embed.weight
        return model.double()


def tokens(step: int = 0) -> dict[str, torch.Tensor]:
    """The last token of the vocabulary among them."""
    ids = torch.randint(VOCAB, (BATCH, SEQ), generator=torch.Generator().manual_seed(step))
    ids[0, :2] = torch.tensor([VOCAB - 1, 0])
    return {"input_ids": ids, "labels": ids.clone()}


def batch(step: int = 0) -> dict[str, Any]:
    """For `tied`."""
    ids = tokens(step)["input_ids"]
    return {"tokens": ids, "labels": ids.roll(1, 1)}
