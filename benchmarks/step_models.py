"""The models and batches of `step_time.py`: classes of transformers without dropout, a step of each 0.2 to 2 s on two cores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Case:
    """`batch` is global; `blocks` the path of the list of layers. For torch's tensor parallel: `colwise`, `rowwise`, `norms`
    and `gathered` (modules that read the whole sequence) are names in a block, `head` that of the classifier over a vocabulary;
    none where the linear layers are not `nn.Linear`.
    """

    model: nn.Module
    batch: dict[str, Tensor]
    blocks: str
    colwise: tuple[str, ...] = ()
    rowwise: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    gathered: tuple[str, ...] = ()
    head: str = ""


def tokens(batch: int, seq: int, vocabulary: int) -> dict[str, Tensor]:
    drawn = torch.randint(vocabulary, (batch, seq), generator=torch.Generator().manual_seed(0))
    return {"input_ids": drawn, "labels": drawn}


def gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 4, "n_embd": 384, "n_head": 6, "n_positions": 256, "vocab_size": 8192}
    config = GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False, bos_token_id=0, eos_token_id=0)
    return Case(model=GPT2LMHeadModel(config), batch=tokens(8, 256, 8192), blocks="transformer.h")


def llama() -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=8192,
        max_position_embeddings=256,
        use_cache=False,
    )
    return Case(
        model=LlamaForCausalLM(config),
        batch=tokens(8, 256, 8192),
        blocks="model.layers",
        colwise=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"),
        rowwise=("self_attn.o_proj", "mlp.down_proj"),
        norms=("input_layernorm", "post_attention_layernorm"),
        gathered=("self_attn", "mlp"),
        head="lm_head",
    )


def bert() -> Case:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        vocab_size=8192,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Case(
        model=BertForMaskedLM(config),
        batch=tokens(16, 128, 8192),
        blocks="bert.encoder.layer",
        colwise=("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense"),
        rowwise=("attention.output.dense", "output.dense"),
        head="cls.predictions.decoder",
    )


def vit() -> Case:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        image_size=112,
        patch_size=8,
        num_labels=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    drawn = torch.Generator().manual_seed(0)
    batch = {"pixel_values": torch.randn(8, 3, 112, 112, generator=drawn), "labels": torch.randint(16, (8,), generator=drawn)}
    return Case(
        model=ViTForImageClassification(config),
        batch=batch,
        blocks="vit.layers",
        colwise=("attention.q_proj", "attention.k_proj", "attention.v_proj", "mlp.fc1"),
        rowwise=("attention.o_proj", "mlp.fc2"),
    )


CASES: dict[str, Callable[[], Case]] = {"gpt2": gpt2, "llama": llama, "bert": bert, "vit": vit}


def case(name: str, small: bool = False) -> Case:
    """The same weights in every process and for every way."""
    torch.manual_seed(0)
    made = CASES[name]()
    if small:
        return Case(**{**made.__dict__, "batch": {k: v[:4] for k, v in made.batch.items()}})
    return made


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    result: Any = model(**batch).loss
    return result
