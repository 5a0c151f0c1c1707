"""Models from a local Hugging Face `config.json`, with random weights and example inputs of the kind that they train on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopar.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from autopar.models import Loaded, Options

BATCH, SEQ = 8, 512
"""Of the example inputs where nothing is said."""

AUTO = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "AutoModelForImageClassification")
"""Tried in this order for a config that names no architecture."""

TASKS = {
    "ForCausalLM": "tokens",
    "LMHeadModel": "tokens",
    "ForMaskedLM": "masked",
    "ForConditionalGeneration": "tokens",
    "ForImageClassification": "pixels",
}
"""Ending of a model class -> kind of example inputs. Each of these returns a loss when it is given labels."""


def load_config(path: Path, options: Options) -> Loaded:
    """The model of a `config.json` (or of the folder that holds one), dropout off and the cache of generation off."""
    import torch

    from autopar.models import Loaded

    path = path / "config.json" if path.is_dir() else path
    config, dropped = make_config(path)
    dtype = getattr(torch, options.dtype or "float32")
    with torch.device(options.device), default_dtype(dtype):
        try:
            model, task = build(config, path)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{path}: the model cannot be built: {type(error).__name__}: {error}") from error
    kwargs = example_inputs(config, task, options, dtype, path)
    longest = positions(config) if "input_ids" in kwargs else None
    return Loaded(
        name=type(model).__name__,
        model=model.train(),
        kwargs=kwargs,
        notices=notices(dropped, options, kwargs),
        limits={} if longest is None else {"seq": longest},
    )


def make_config(path: Path) -> tuple[Any, dict[str, float]]:
    """The config object and the dropout rates that were set to zero."""
    data = read(path)
    transformers = import_transformers()
    kind = data.pop("model_type", None)
    if not isinstance(kind, str):
        raise InputError(f"{path} has no model_type: it is no config of a Hugging Face model")
    dropped = {k: v for k, v in data.items() if "drop" in k and isinstance(v, float) and v > 0}
    try:
        config = transformers.AutoConfig.for_model(kind, **(data | dict.fromkeys(dropped, 0.0) | {"use_cache": False}))
    except Exception as error:
        raise InputError(f"{path}: transformers {transformers.__version__} makes no config of it: {error}") from error
    defaults = {k: v for k, v in vars(config).items() if k not in data and "drop" in k and isinstance(v, float) and v > 0}
    for name in defaults:
        setattr(config, name, 0.0)
    return config, dropped | defaults


def read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} holds a {type(data).__name__}, not the object of a config.json")
    return data


def import_transformers() -> Any:
    """The package, told not to warn about settings that a config leaves out."""
    try:
        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise InputError(
            f"a config.json needs the transformers package ({error}): pip install 'autopar[examples]', "
            "or name a function that builds the model, as package.module:function"
        ) from error
    transformers.logging.set_verbosity_error()
    return transformers


def build(config: Any, path: Path) -> tuple[nn.Module, str]:
    """The model, of the class that `architectures` names or else of the first auto class that knows the config; its task."""
    transformers = import_transformers()
    named = list(config.architectures or ())
    for name in named:
        if task_of(name) and hasattr(transformers, name):
            return getattr(transformers, name)(config), task_of(name)
    if named:
        raise InputError(
            f"{path}: no example inputs are known for {', '.join(named)} (known are {', '.join(f'*{e}' for e in TASKS)}): "
            "change architectures, or name a function that builds the model and its inputs, as package.module:function"
        )
    for auto in AUTO:
        with suppress(ValueError):  # "unrecognized configuration class"
            model = getattr(transformers, auto).from_config(config)
            return model, task_of(type(model).__name__) or "tokens"
    raise InputError(
        f"{path} names no architectures, and none of {', '.join(AUTO)} knows {type(config).__name__}: add architectures"
    )


def task_of(name: str) -> str:
    """The task of a model class by its name; "" if it is none of `TASKS`."""
    return next((task for ending, task in TASKS.items() if name.endswith(ending)), "")


def example_inputs(config: Any, task: str, options: Options, dtype: torch.dtype, path: Path) -> dict[str, torch.Tensor]:
    """Inputs of the task: tokens `[batch, seq]` or pixels `[batch, channels, height, width]`, and labels."""
    import torch

    batch, device = options.batch or BATCH, "cpu" if options.values else options.device

    def integers(below: int, *shape: int) -> torch.Tensor:
        if device == "meta":
            return torch.empty(shape, dtype=torch.int64, device="meta")
        return torch.randint(below, shape, generator=torch.Generator().manual_seed(1)).to(device)

    if task == "pixels":
        if options.seq is not None:
            raise InputError(f"{path} is a model of images: leave out --seq")
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (batch, getattr(config, "num_channels", 3), height, width)
        pixels = torch.empty(shape, dtype=dtype, device=device)
        if device != "meta":
            pixels.normal_(generator=torch.Generator().manual_seed(2))
        return {"pixel_values": pixels, "labels": integers(config.num_labels, batch)}
    limit = positions(config)
    seq = options.seq or min(SEQ, limit or SEQ)
    if limit is not None and seq > limit:
        raise InputError(f"{path} has positions for {limit} tokens: --seq {seq} is too long")
    tokens = integers(config.vocab_size, batch, seq)
    mask = {"attention_mask": torch.ones_like(tokens)} if task == "masked" else {}
    return {"input_ids": tokens, "labels": tokens.clone(), **mask}


def positions(config: Any) -> int | None:
    """The length of a learned table of positions; None where positions are computed."""
    if getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None) or config.model_type == "t5":
        return None
    return getattr(config, "max_position_embeddings", None)


def notices(dropped: dict[str, float], options: Options, kwargs: dict[str, torch.Tensor]) -> tuple[str, ...]:
    found = []
    if dropped:
        found.append(f"dropout is off: {', '.join(f'{k} {v:g}' for k, v in sorted(dropped.items()))} set to 0")
    if options.batch is None or (options.seq is None and "input_ids" in kwargs):
        shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in kwargs.items())
        found.append(f"example inputs: {shapes} (--batch, --seq)")
    return tuple(found)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Layers made inside get this dtype; what a model computes in float32 on purpose stays so."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
