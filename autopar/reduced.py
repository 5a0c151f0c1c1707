"""A smaller model of the same structure, of a Hugging Face config: fewer layers, narrower, with the same divisibility.

Numbers of heads and experts stay. A size becomes the smallest that every product of mesh axes divides, or does not divide, as
it does the original, so that every cut of a plan is possible, and even or uneven as before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from autopar.configs import make_config, read

LAYERS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
HIDDEN = ("hidden_size", "d_model", "word_embed_proj_dim")
HEADS = ("num_attention_heads", "num_heads")
HEAD_DIMS = ("head_dim", "d_kv")
WIDTHS = (
    *("intermediate_size", "n_inner", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"),
    *("moe_intermediate_size", "shared_expert_intermediate_size"),
)
VOCABULARIES = ("vocab_size",)
ROTARY_SHARES = ("partial_rotary_factor", "rotary_pct")
ROTARY_TABLES = ("rope_scaling", "rope_parameters")
WINDOWS = ("sliding_window", "attention_chunk_size")
"""Names of fields of configs, or of what a config maps to them."""

LEAST, LEAST_HEAD = 16, 4


def products(axes: Sequence[int]) -> tuple[int, ...]:
    """Into how many pieces any of the mesh axes together cut.

    >>> products((2, 4))
    (2, 4, 8)
    """
    found = {math.prod(some) for n in range(1, len(axes) + 1) for some in itertools.combinations(axes, n)}
    return tuple(sorted(found - {1}))


def shrunk(size: int, parts: Iterable[int], least: int = LEAST, step: int = 1) -> int:
    """The smallest size, a multiple of `step` and at least `least`, that can be cut into so many parts as `size` can.

    >>> shrunk(4096, (8, 64)), shrunk(50257, (2, 4, 8)), shrunk(128, (8,), step=6), shrunk(10, (2,))
    (64, 23, 24, 10)
    """
    parts = tuple(parts)
    return next((n for n in range(step, size, step) if n >= least and alike(n, size, parts)), size)


def alike(n: int, size: int, parts: Iterable[int]) -> bool:
    """Whether both divide evenly, or both unevenly, without an empty piece."""
    return all((n % p == 0) if size % p == 0 else (n % p != 0 and (p - 1) * -(-n // p) < n) for p in parts)


def reduced_config(path: Path, axes: Sequence[int], layers: int) -> dict[str, Any]:
    """The content of the config with the sizes that it reduces to; raises InputError for what is no config."""
    path = path / "config.json" if path.is_dir() else path
    config, _ = make_config(path)
    whole = layers_of(config)
    found = {name: cut(value, whole, layers) for name, value in read(path).items()}
    for name, size in sizes(config, axes, layers):
        found[getattr(config, "attribute_map", {}).get(name, name)] = size
    ids = [name for name in found if name.endswith("_token_id") and isinstance(found[name], int)]
    return found | {name: min(found[name], found.get("vocab_size", found[name] + 1) - 1) for name in ids}


def depth(path: Path) -> int:
    """The layers of a config, as `layers_of`."""
    return layers_of(make_config(path / "config.json" if path.is_dir() else path)[0])


def layers_of(config: Any) -> int:
    """How many layers it has, of the longer of two stacks; 0 if it names no number of them."""
    return max((size for _, size in present(config, LAYERS)), default=0)


def cut(value: Any, whole: int, layers: int) -> Any:
    """A list of what each layer is, of the first layers; anything else as it is."""
    return value[:layers] if isinstance(value, list) and len(value) == whole else value


def sizes(config: Any, axes: Sequence[int], layers: int) -> Iterator[tuple[str, int]]:
    """Fields and their reduced sizes."""
    yield from ((name, min(layers, size)) for name, size in present(config, LAYERS))
    yield from ((name, shrunk(size, products(axes))) for name, size in present(config, (*WIDTHS, *VOCABULARIES)))
    heads = next((size for _, size in present(config, HEADS)), 1)
    hidden = next((size for _, size in present(config, HIDDEN)), heads)
    head = head_size(config, hidden // heads, axes)
    if head is None:
        return
    while not alike(head * heads, hidden, products(axes)) and head * heads < hidden:
        head *= 2
    yield from ((name, head * heads) for name, size in present(config, HIDDEN) if size == hidden)
    yield from ((name, head) for name, _ in present(config, HEAD_DIMS))


def head_size(config: Any, whole: int, axes: Sequence[int]) -> int | None:
    """What a head of `whole` reduces to, so that the part that rotates stays even; None if tables fix it."""
    rotary = list(rotary_fields(config))
    if any(isinstance(value, list | tuple) for _, value in rotary):
        return None
    shares = [value for name, value in rotary if name in ROTARY_SHARES and isinstance(value, int | float)]
    least = max([LEAST_HEAD, *(size + 1 for _, size in present(config, ("rotary_dim",)))])
    even = (n for n in range(2, whole, 2) if all(n * share >= 2 and n * share % 2 == 0 for share in shares))
    return shrunk(whole, axes, least=least, step=next(even, whole))


def rotary_fields(config: Any) -> Iterator[tuple[str, Any]]:
    """What it says about rotary positions, also within tables, one for each type of layer or one for all."""
    yield from ((name, getattr(config, name, None)) for name in ROTARY_SHARES)
    tables = [getattr(config, name, None) for name in ROTARY_TABLES]
    for table in [t for t in tables if isinstance(t, dict)]:
        for name, value in table.items():
            yield from value.items() if isinstance(value, dict) else [(name, value)]


def present(config: Any, names: Iterable[str]) -> Iterator[tuple[str, int]]:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield name, value
