"""Tiny random training setups of many families: what the profiler is held against.

Float32, dropout off, with a loss. `dynamic` says which dims `torch.export` can leave open: per input, dim -> name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]
Dims = Mapping[str, Mapping[int, str]]

HIDDEN, HEADS, VOCAB, LABELS, IMAGE = 32, 4, 96, 10, 32

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


def tokens(batch: int, seq: int) -> Inputs:
    ids = torch.randint(2, VOCAB, (batch, seq))
    return {"input_ids": ids, "labels": ids.clone()}


def padded_tokens(batch: int, seq: int) -> Inputs:
    mask = torch.ones(batch, seq, dtype=torch.long)
    mask[::2, -3:] = 0
    return {**tokens(batch, seq), "attention_mask": mask}


def pixels(batch: int, seq: int) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, IMAGE, IMAGE), "labels": torch.randint(LABELS, (batch,))}


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


class Net(nn.Module):
    """A body, and the mean squared error of what it returns."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.mse_loss(self.body(x), y)}


class UNet(nn.Module):
    """Two scales with a skip connection; GroupNorm and SiLU, as in diffusion models."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.Sequential(*(self.block(channels, channels) for _ in range(layers)))
        self.shrink = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.middle = nn.Sequential(*(self.block(2 * channels, 2 * channels) for _ in range(layers)))
        self.grow = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.up = self.block(2 * channels, channels)
        self.leave = nn.Conv2d(channels, 3, 1)

    @staticmethod
    def block(inward: int, outward: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inward, outward, 3, padding=1), nn.GroupNorm(4, outward), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(self.enter(x))
        x = self.grow(self.middle(self.shrink(skip)))
        return self.leave(self.up(torch.cat([x, skip], dim=1)))  # type: ignore[no-any-return]


def mlp(layers: int, attention: str) -> nn.Module:
    blocks = (nn.Sequential(nn.Linear(HIDDEN, 2 * HIDDEN), nn.GELU(), nn.Linear(2 * HIDDEN, HIDDEN)) for _ in range(layers))
    return Net(nn.Sequential(*blocks))


def encoder(layers: int, attention: str) -> nn.Module:
    layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, 4 * HIDDEN, dropout=0.0, batch_first=True)
    return Net(nn.TransformerEncoder(layer, layers, enable_nested_tensor=False))


def batchnorm(layers: int, attention: str) -> nn.Module:
    conv = (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(layers))
    return Net(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *conv, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 8 * 8, LABELS)))


def pair(x: tuple[int, ...], y: tuple[int, ...]) -> Callable[[int, int], Inputs]:
    """Random x and y of these shapes, batch first; -1 stands for seq."""

    def make(batch: int, seq: int) -> Inputs:
        sized = [[batch, *(seq if n == -1 else n for n in shape)] for shape in (x, y)]
        return {"x": torch.randn(sized[0]), "y": torch.randn(sized[1])}

    return make


def features(batch: int, seq: int) -> Inputs:
    """Two audio frames per position of the encoder, and half as many tokens to say."""
    return {"input_features": torch.randn(batch, 16, 2 * seq), "labels": torch.randint(2, VOCAB, (batch, seq // 2))}


def waveform(batch: int, seq: int) -> Inputs:
    return {"input_values": torch.randn(batch, 40 * seq), "labels": torch.randint(LABELS, (batch,))}


def segments(batch: int, seq: int) -> Inputs:
    images = torch.randn(batch, 3, 2 * IMAGE, 2 * IMAGE)
    return {"pixel_values": images, "labels": torch.randint(LABELS, (batch, 2 * IMAGE, 2 * IMAGE))}


def captions(batch: int, seq: int) -> Inputs:
    ids = torch.randint(3, VOCAB - 1, (batch, seq))
    ids[:, -1] = VOCAB - 1
    return {"input_ids": ids, "pixel_values": torch.randn(batch, 3, IMAGE, IMAGE)}


class Clip(nn.Module):
    """CLIP, asked for its contrastive loss."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        out = self.clip(input_ids=input_ids, pixel_values=pixel_values, return_loss=True)
        return {"loss": out.loss}


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
