"""Tiny random training setups of many families: what the profiler is held against.

Float32, dropout off, with a loss. `dynamic` says which dims `torch.export` can leave open: per input, dim -> name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.zoo_parts import (
    HEADS,
    HIDDEN,
    IMAGE,
    LABELS,
    VOCAB,
    Clip,
    Inputs,
    Net,
    UNet,
    batchnorm,
    captions,
    encoder,
    features,
    mlp,
    padded_tokens,
    pair,
    pixels,
    segments,
    tokens,
    waveform,
)

Dims = Mapping[str, Mapping[int, str]]

TOKENS: Dims = {"input_ids": {0: "batch", 1: "seq"}, "labels": {0: "batch", 1: "seq"}}
PIXELS: Dims = {"pixel_values": {0: "batch"}, "labels": {0: "batch"}}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A model family: `module(layers, attention)`, `inputs(batch, seq)`; `batch` and `seq` are good sizes to start from."""

    module: Callable[[int, str], nn.Module]
    inputs: Callable[[int, int], Inputs]
    dynamic: Dims
    batch: int = 2
    seq: int = 12
    attention: tuple[str, ...] = ("default",)
    note: str = ""

    def build(
        self, *, batch: int = 0, seq: int = 0, layers: int = 2, attention: str = "", device: str = "cpu"
    ) -> tuple[nn.Module, Inputs]:
        """(module in train mode, keyword inputs); the same weights and inputs in every process."""
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            module = self.module(layers, attention or self.attention[0]).train()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            inputs = self.inputs(batch or self.batch, seq or self.seq)
        return module, {name: value.to(device) for name, value in inputs.items()}


def hf(model: str, config: str = "", /, *, layers: tuple[str, ...] = ("num_hidden_layers",), **sizes: Any) -> Any:
    """`Setup.module` of a transformers class; every config field named in `layers` is set to the number of layers."""

    def make(count: int, attention: str) -> nn.Module:
        import transformers

        fields = sizes | dict.fromkeys(layers, count)
        made = getattr(transformers, config)(**fields)
        made.use_cache = False
        if attention != "default":
            made._attn_implementation = attention
        return getattr(transformers, model)(made)  # type: ignore[no-any-return]

    return make


DECODER: dict[str, Any] = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "vocab_size": VOCAB, "pad_token_id": 0}
GROUPED = DECODER | {"intermediate_size": 3 * HIDDEN, "num_key_value_heads": HEADS // 2}
ENCODER: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 4 * HIDDEN,
    "num_attention_heads": HEADS,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "output_router_logits": True}
NO_DROPOUT: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
SEQ2SEQ: dict[str, Any] = NO_DROPOUT | {
    "d_model": HIDDEN,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 2 * HIDDEN,
    "decoder_ffn_dim": 2 * HIDDEN,
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}
BOTH_STACKS = ("encoder_layers", "decoder_layers")


def clip(layers: int, attention: str) -> nn.Module:
    towers = {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": layers,
    }
    text = towers | {"vocab_size": VOCAB, "max_position_embeddings": 32, "eos_token_id": VOCAB - 1, "bos_token_id": 0}
    vision = towers | {"image_size": IMAGE, "patch_size": 8}
    make = hf("CLIPModel", "CLIPConfig", layers=(), text_config=text, vision_config=vision, projection_dim=HIDDEN)
    return Clip(make(layers, attention))


ROTARY = hf("LlamaForCausalLM", "LlamaConfig", **GROUPED)
ZOO: dict[str, Setup] = {
    "gpt2": Setup(
        module=hf(
            "GPT2LMHeadModel",
            "GPT2Config",
            layers=("n_layer",),
            n_embd=HIDDEN,
            n_head=HEADS,
            vocab_size=VOCAB,
            n_positions=64,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        ),
        inputs=tokens,
        dynamic=TOKENS,
        attention=("default", "eager"),
    ),
    "llama": Setup(module=ROTARY, inputs=tokens, dynamic=TOKENS, attention=("default", "eager")),
    "qwen2": Setup(module=hf("Qwen2ForCausalLM", "Qwen2Config", **GROUPED), inputs=tokens, dynamic=TOKENS),
    "gemma2": Setup(
        module=hf("Gemma2ForCausalLM", "Gemma2Config", head_dim=8, sliding_window=8, **GROUPED),
        inputs=tokens,
        dynamic=TOKENS,
        note="attention is always eager here: scaled_dot_product_attention has no soft cap",
    ),
    "phi3": Setup(module=hf("Phi3ForCausalLM", "Phi3Config", **GROUPED), inputs=tokens, dynamic=TOKENS),
    "opt": Setup(
        module=hf(
            "OPTForCausalLM",
            "OPTConfig",
            ffn_dim=4 * HIDDEN,
            word_embed_proj_dim=HIDDEN,
            max_position_embeddings=64,
            dropout=0.0,
            **DECODER,
        ),
        inputs=tokens,
        dynamic=TOKENS,
    ),
    "bert": Setup(
        module=hf("BertForMaskedLM", "BertConfig", vocab_size=VOCAB, **ENCODER),
        inputs=padded_tokens,
        dynamic={**TOKENS, "attention_mask": {0: "batch", 1: "seq"}},
        attention=("default", "eager"),
    ),
    "distilbert": Setup(
        module=hf(
            "DistilBertForMaskedLM",
            "DistilBertConfig",
            layers=("n_layers",),
            dim=HIDDEN,
            hidden_dim=4 * HIDDEN,
            n_heads=HEADS,
            vocab_size=VOCAB,
            max_position_embeddings=64,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        inputs=tokens,
        dynamic=TOKENS,
    ),
    "t5": Setup(
        module=hf(
            "T5ForConditionalGeneration",
            "T5Config",
            layers=("num_layers", "num_decoder_layers"),
            d_model=HIDDEN,
            d_kv=HIDDEN // HEADS,
            d_ff=2 * HIDDEN,
            num_heads=HEADS,
            vocab_size=VOCAB,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        ),
        inputs=tokens,
        dynamic=TOKENS,
    ),
    "bart": Setup(
        module=hf("BartForConditionalGeneration", "BartConfig", layers=BOTH_STACKS, max_position_embeddings=64, **SEQ2SEQ),
        inputs=tokens,
        dynamic=TOKENS,
    ),
    "whisper": Setup(
        module=hf(
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            layers=BOTH_STACKS,
            num_mel_bins=16,
            max_source_positions=12,
            max_target_positions=32,
            **SEQ2SEQ,
        ),
        inputs=features,
        dynamic={"input_features": {0: "batch"}, "labels": {0: "batch", 1: "target"}},
        note="seq is fixed by the learned positions of the encoder (12); only the target's length is free",
    ),
    "vit": Setup(
        module=hf("ViTForImageClassification", "ViTConfig", image_size=IMAGE, patch_size=8, num_labels=LABELS, **ENCODER),
        inputs=pixels,
        dynamic=PIXELS,
    ),
    "convnext": Setup(
        module=hf(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            layers=(),
            depths=[1, 2],
            hidden_sizes=[8, 16],
            num_stages=2,
            patch_size=4,
            num_labels=LABELS,
        ),
        inputs=pixels,
        dynamic=PIXELS,
        note="its depths are fixed: `layers` changes nothing",
    ),
    "resnet": Setup(
        module=hf(
            "ResNetForImageClassification",
            "ResNetConfig",
            layers=(),
            embedding_size=8,
            hidden_sizes=[16, 32],
            depths=[2, 2],
            layer_type="basic",
            num_labels=LABELS,
        ),
        inputs=pixels,
        dynamic=PIXELS,
        note="its depths are fixed: `layers` changes nothing",
    ),
    "wav2vec2": Setup(
        module=hf(
            "Wav2Vec2ForSequenceClassification",
            "Wav2Vec2Config",
            conv_dim=(16, 16),
            conv_stride=(5, 4),
            conv_kernel=(10, 4),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            classifier_proj_size=16,
            num_labels=LABELS,
            hidden_dropout=0.0,
            feat_proj_dropout=0.0,
            final_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            layerdrop=0.0,
            apply_spec_augment=False,
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_attention_heads=HEADS,
        ),
        inputs=waveform,
        dynamic={"input_values": {0: "batch"}, "labels": {0: "batch"}},
    ),
    "segformer": Setup(
        module=hf(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            layers=(),
            num_encoder_blocks=2,
            depths=[2, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[16, 32],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
            num_labels=LABELS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            classifier_dropout_prob=0.0,
            drop_path_rate=0.0,
        ),
        inputs=segments,
        dynamic=PIXELS,
        note="its depths are fixed: `layers` changes nothing",
    ),
    "mixtral": Setup(
        module=hf("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, **GROUPED, **EXPERTS),
        inputs=tokens,
        dynamic=TOKENS,
    ),
    "qwen3_moe": Setup(
        module=hf(
            "Qwen3MoeForCausalLM",
            "Qwen3MoeConfig",
            num_experts=4,
            moe_intermediate_size=HIDDEN,
            head_dim=8,
            decoder_sparse_step=1,
            **GROUPED,
            **EXPERTS,
        ),
        inputs=tokens,
        dynamic=TOKENS,
    ),
    "mamba": Setup(
        module=hf(
            "MambaForCausalLM",
            "MambaConfig",
            hidden_size=HIDDEN,
            state_size=4,
            vocab_size=VOCAB,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        ),
        inputs=tokens,
        dynamic={"input_ids": {0: "batch"}, "labels": {0: "batch"}},
    ),
    "clip": Setup(
        module=clip,
        inputs=captions,
        dynamic={"input_ids": {1: "seq"}},
        batch=3,
        note="batch is fixed: the loss takes `len(logits)`, which makes a number of it",
    ),
    "mlp": Setup(module=mlp, inputs=pair((HIDDEN,), (HIDDEN,)), dynamic={"x": {0: "batch"}, "y": {0: "batch"}}, batch=8),
    "encoder": Setup(
        module=encoder,
        inputs=pair((-1, HIDDEN), (-1, HIDDEN)),
        dynamic={"x": {0: "batch", 1: "seq"}, "y": {0: "batch", 1: "seq"}},
    ),
    "unet": Setup(
        module=lambda layers, attention: Net(UNet(8, layers)),
        inputs=pair((3, 16, 16), (3, 16, 16)),
        dynamic={"x": {0: "batch"}, "y": {0: "batch"}},
    ),
    "batchnorm": Setup(
        module=batchnorm, inputs=pair((3, 16, 16), (LABELS,)), dynamic={"x": {0: "batch"}, "y": {0: "batch"}}, batch=4
    ),
}
