"""Many more classes of transformers than `zoo`, a line each (`zoo_table`): tiny, random, a training step with a loss.

Sizes come from one table: whatever field of a config has a name in `SMALL` is set to what stands there; dropout is off. `-name`
in a line leaves it as it is, `name=value` sets it, `+group` several; `@name` is a config of `NESTED`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo import Setup
from tests.zoo_parts import HEADS, HIDDEN, IMAGE, LABELS, VOCAB, Inputs, captions, padded_tokens, pixels, tokens
from tests.zoo_table import GROUPS, SQUARED, TABLE

SMALL: dict[str, Any] = (
    dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "attention_hidden_size"), HIDDEN)
    | dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "d_inner"), 2 * HIDDEN)
    | dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), HEADS)
    | dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS)
    | dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), HEADS)
    | dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "moe_topk", "top_k_experts"), 2)
    | dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4)
    | dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), HIDDEN // 2)
    | dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "d_kv"), HIDDEN // HEADS)
    | dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCAB)
    | dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"), 64)
    | {"image_size": IMAGE, "patch_size": 8, "num_labels": LABELS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    | {"decoder_start_token_id": 1, "forced_eos_token_id": None, "use_cache": False, "apply_spec_augment": False}
)
LAYERS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"),
    *("num_encoder_layers", "num_decoder_layers"),
)
RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1] * 4, "layer_type": "basic"}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
WORDS = TOWER | {"vocab_size": VOCAB, "max_position_embeddings": 64, "projection_size": 32, "projection_dim": 32}
NESTED: dict[str, Callable[[], Any]] = {
    "resnet": lambda: tiny("ResNetConfig", **RESNET, out_features=["stage4"]),
    "resnet3": lambda: tiny("ResNetConfig", **RESNET, out_features=["stage2", "stage3", "stage4"]),
    "rt_resnet": lambda: tiny("RTDetrResNetConfig", **RESNET, out_features=["stage2", "stage3", "stage4"]),
    "words": lambda: WORDS | {"encoder_hidden_size": 32, "bos_token_id": 1, "sep_token_id": 2},
    "image": lambda: TOWER | {"image_size": IMAGE, "patch_size": 8},
    "llama": lambda: tiny("LlamaConfig"),
    "clip": lambda: tiny("CLIPVisionConfig"),
}


def tiny(config: str, layers: int = 2, untouched: tuple[str, ...] = (), **fields: Any) -> Any:
    """A config of transformers with small sizes, these fields, and no dropout of any kind."""
    import transformers

    kind = getattr(transformers, config)
    plain = kind()

    def is_set(name: str) -> bool:
        owned = getattr(kind, name, None)
        return getattr(plain, name, None) is not None and not (isinstance(owned, property) and owned.fset is None)

    sizes = {name: size for name, size in SMALL.items() if is_set(name) or name.endswith("_id")}
    sizes |= {name: layers for name in LAYERS if is_set(name)}
    sizes |= {name: 0.0 for name, value in vars(plain).items() if "drop" in name and isinstance(value, float)}
    sizes = {name: size for name, size in sizes.items() if name not in untouched}
    return kind(**(sizes | {"use_cache": False} | fields))


class Squared(nn.Module):
    """A model without a loss of its own, or with one that is matched on the host: mean squares of what it returns."""

    def __init__(self, body: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.body, self.outputs = body, outputs

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        found = self.body(**inputs)
        return {"loss": torch.stack([found[name].square().mean() for name in self.outputs]).sum()}


def drawn(batch: int, shapes: dict[str, tuple[int, ...]]) -> Inputs:
    return {name: torch.randn(batch, *shape) for name, shape in shapes.items()}


def labelled(**shapes: tuple[int, ...]) -> Callable[[int, int], Inputs]:
    """Random inputs of these shapes, batch left out, and a label for each sample."""
    return lambda batch, seq: drawn(batch, shapes) | {"labels": torch.randint(LABELS, (batch,))}


def spoken(**shapes: tuple[int, ...]) -> Callable[[int, int], Inputs]:
    """Random inputs of these shapes, and a text to each."""
    return lambda batch, seq: drawn(batch, shapes) | {"labels": torch.randint(3, 90, (batch, 6))}


def spelled(batch: int, seq: int) -> Inputs:
    """Waves and their texts for a CTC loss: of different lengths, with blanks in between."""
    inputs = spoken(input_values=(2000,))(batch, seq)
    inputs["labels"][1::2, 4:], inputs["labels"][::2, 2] = -100, 0
    return inputs


def series(batch: int, seq: int) -> Inputs:
    past = {"past_values": torch.randn(batch, 15), "past_time_features": torch.randn(batch, 15, 1)}
    future = {"future_values": torch.randn(batch, 4), "future_time_features": torch.randn(batch, 4, 1)}
    return past | future | {"past_observed_mask": torch.ones(batch, 15)}


def decisions(batch: int, seq: int) -> Inputs:
    widths = {"states": 3, "actions": 2, "rewards": 1, "returns_to_go": 1}
    found = {name: torch.randn(batch, 4, n) for name, n in widths.items()}
    return found | {"timesteps": torch.arange(4).repeat(batch, 1), "attention_mask": torch.ones(batch, 4, dtype=torch.long)}


def seen_and_said(batch: int, seq: int) -> Inputs:
    """An image of 16 tokens in front of a text."""
    ids = torch.cat([torch.full((batch, 16), 95), torch.randint(3, 90, (batch, 8))], 1)
    return {"input_ids": ids, "labels": ids.clamp(max=89), "pixel_values": torch.randn(batch, 3, IMAGE, IMAGE)}


INPUTS: dict[str, Callable[[int, int], Inputs]] = {
    "tokens": tokens,
    "long": lambda batch, seq: tokens(batch, 64),
    "padded": padded_tokens,
    "text": lambda batch, seq: {"input_ids": torch.randint(3, VOCAB, (batch, seq)), "labels": torch.randint(LABELS, (batch,))},
    "pixels": pixels,
    "large": labelled(pixel_values=(3, 2 * IMAGE, 2 * IMAGE)),
    "image": lambda batch, seq: {"pixel_values": torch.randn(batch, 3, IMAGE, IMAGE)},
    "picture": lambda batch, seq: {"pixel_values": torch.randn(batch, 3, 2 * IMAGE, 2 * IMAGE)},
    "map": lambda batch, seq: pixels(batch, seq) | {"labels": torch.randint(LABELS, (batch, IMAGE, IMAGE))},
    "video": labelled(pixel_values=(4, 3, IMAGE, IMAGE)),
    "wave": labelled(input_values=(640,)),
    "spoken": spoken(input_values=(2000,)),
    "spelled": spelled,
    "heard": spoken(input_features=(32, 16)),
    "features": labelled(input_features=(16, 8)),
    "spectrum": labelled(input_values=(32, 16)),
    "series": series,
    "channels": lambda batch, seq: {"past_values": torch.randn(batch, 16, 2), "future_values": torch.randn(batch, 4, 2)},
    "decisions": decisions,
    "bytes": lambda batch, seq: {"inputs": torch.randint(3, VOCAB, (batch, 16)), "labels": torch.randint(VOCAB, (batch, 16))},
    "captions": captions,
    "seen": seen_and_said,
}


def setup(line: str) -> tuple[str, Setup]:
    """From "Class[/variant] inputs field=value -field ...": its name, and how to build it."""
    name, inputs, *rest = line.split()
    model = name.partition("/")[0]
    untouched = tuple(word[1:] for word in rest if word.startswith("-"))
    fields = dict(word.split("=", 1) for word in rest if word[0] not in "+-")
    groups = {field: value for word in rest if word.startswith("+") for field, value in GROUPS[word[1:]].items()}

    def make(layers: int, attention: str) -> nn.Module:
        import transformers

        kind = getattr(transformers, model)
        read = {n: NESTED[v[1:]]() if v.startswith("@") else ast.literal_eval(v) for n, v in fields.items()}
        made = kind(tiny(kind.config_class.__name__, layers, untouched, **(groups | read)))
        return Squared(made, SQUARED[model]) if model in SQUARED else made  # type: ignore[no-any-return]

    return name, Setup(module=make, inputs=INPUTS[inputs], dynamic={}, seq=16)


MORE: dict[str, Setup] = dict(map(setup, TABLE.strip().replace("\n    ", " ").splitlines()))
