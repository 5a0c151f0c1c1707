"""Models by name: what is accepted, what comes back, and what each mistake is answered with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from autopar.errors import InputError
from autopar.models import Options, load

CONFIGS = Path(__file__).parent.parent / "examples" / "configs"

MODULE = """
import torch
from torch import nn

def mlp(batch=4, seq=None):
    return nn.Linear(8, 2), {"input": torch.zeros(batch, 8)}

def positional():
    return nn.Linear(8, 2), (torch.zeros(4, 8),), {}

def reads_values():
    model = nn.Linear(8, 2)
    assert model.weight.sum().item() != 1e9
    return model, {"input": torch.zeros(4, 8)}

def broken():
    raise KeyError("no such thing")

def model_only():
    return nn.Linear(8, 2)

def needs(width):
    return nn.Linear(width, 2), {}

def anything(**options):
    return nn.Linear(8, 2), {"input": torch.zeros(options["batch"], 8)}

number = 3
"""

TINY = {
    "gpt2": {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 64, "n_positions": 32},
    "llama3-8b": {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    | {"head_dim": 8, "intermediate_size": 32, "vocab_size": 64},
    "bert-large": {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32},
    "t5-large": {"num_layers": 1, "num_decoder_layers": 1, "d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32},
    "vit-huge": {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    | {"image_size": 28, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}},
    "opt-30b": {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "ffn_dim": 32, "vocab_size": 64}
    | {"word_embed_proj_dim": 16},
}


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "some_models.py"
    path.write_text(MODULE)
    return path


@pytest.fixture
def config(tmp_path: Path) -> Any:
    def write(name: str = "gpt2", drop: str = "", **changes: Any) -> str:
        data = json.loads((CONFIGS / f"{name}.json").read_text()) | TINY[name] | changes
        data.pop(drop, None)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(data))
        return str(path)

    return write


def test_a_function_in_a_file_is_built_on_meta(module: Path) -> None:
    loaded = load(f"{module}:mlp", Options(batch=6))
    assert loaded.name == "Linear"
    assert loaded.model.weight.is_meta
    assert loaded.kwargs["input"].shape == (6, 8)
    assert loaded.model.training


def test_positional_inputs(module: Path) -> None:
    loaded = load(f"{module}:positional")
    assert [tuple(a.shape) for a in loaded.args] == [(4, 8)]
    assert loaded.kwargs == {}


def test_a_function_that_reads_values_is_built_for_real(module: Path) -> None:
    assert load(f"{module}:reads_values").model.weight.device.type == "cpu"


def test_options_go_to_a_function_that_takes_any(module: Path) -> None:
    assert load(f"{module}:anything", Options(batch=3)).kwargs["input"].shape == (3, 8)


def test_a_function_in_a_package(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(module.parent))
    assert load("some_models:mlp").name == "Linear"
    del sys.modules["some_models"]


def test_a_file_does_not_put_its_folder_on_the_path(module: Path) -> None:
    before = list(sys.path)
    load(f"{module}:mlp")
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "names no model: name it as package.module:function"),
        (":mlp", "names no model"),
        ("no_such_package.models:mlp", "no module 'no_such_package'"),
        ("no_such_file.py:mlp", "no file 'no_such_file.py'"),
        ("no_such_file.json", "cannot read 'no_such_file.json': No such file"),
        ("{file}:nope", "has no function 'nope'; it has mlp, positional"),
        ("{file}:number", "has no function 'number'"),
        ("{file}:broken", r"broken raised KeyError: 'no such thing' at some_models.py:\d+"),
        ("{file}:model_only", r"returned \(Linear\): it must return \(model, kwargs\)"),
        ("{file}:needs", "needs width, which have no default"),
    ],
)
def test_mistakes_in_the_name(module: Path, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(spec.format(file=module))


def test_an_option_that_the_function_does_not_take(module: Path) -> None:
    with pytest.raises(InputError, match="takes no 'batch': leave out --batch"):
        load(f"{module}:positional", Options(batch=2))


def test_a_file_that_does_not_import(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import torch\nimport no_such_thing_at_all\n")
    with pytest.raises(InputError, match=r"ModuleNotFoundError: No module named 'no_such_thing_at_all' at bad\.py:2"):
        load(f"{tmp_path / 'bad.py'}:f")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "int8"}, "float64, float32, bfloat16"), ({"batch": 0}, "batch 0"), ({"seq": -1}, "seq -1")],
)
def test_mistakes_in_the_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Options(**options)


@pytest.mark.parametrize("name", TINY)
def test_a_config_of_each_family_gives_a_loss(config: Any, name: str) -> None:
    seq = None if name == "vit-huge" else 8
    loaded = load(config(name), Options(batch=2, seq=seq, device="cpu"))
    loss = loaded.model(**loaded.kwargs).loss
    assert torch.isfinite(loss)
    assert all(t.shape[0] == 2 for t in loaded.kwargs.values())
    loss.backward()


def test_a_config_is_on_meta_with_the_dtype_that_is_asked_for(config: Any) -> None:
    loaded = load(config("llama3-8b"), Options(batch=2, seq=8, dtype="bfloat16"))
    assert {(p.device.type, p.dtype) for p in loaded.model.parameters()} == {("meta", torch.bfloat16)}
    assert {b.dtype for b in loaded.model.buffers()} == {torch.float32}, "rotary frequencies stay in float32"
    assert torch.get_default_dtype() is torch.float32


def test_the_folder_of_a_config_and_the_shapes_of_the_defaults(config: Any) -> None:
    loaded = load(str(Path(config()).parent))
    assert loaded.kwargs["input_ids"].shape == (8, 32)
    assert any("input_ids [8, 32]" in notice for notice in loaded.notices)


def test_dropout_is_off_and_that_is_said(config: Any) -> None:
    loaded = load(config(attn_pdrop=0.25), Options(batch=1, seq=4))
    assert {m.p for m in loaded.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert "attn_pdrop 0.25" in loaded.notices[0]


def test_dropout_that_the_file_leaves_to_the_default_is_off_too(config: Any) -> None:
    loaded = load(config(drop="attn_pdrop"), Options(batch=1, seq=4))
    assert {m.p for m in loaded.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert "attn_pdrop 0.1" in loaded.notices[0]


def test_a_config_without_architectures(config: Any) -> None:
    assert load(config(drop="architectures"), Options(batch=1, seq=4)).name == "GPT2LMHeadModel"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": "model_type"}, "has no model_type"),
        ({"model_type": "no_such_family"}, "makes no config of it"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, "no example inputs are known for GPT2ForSequenceClassification"),
        ({"n_head": 3}, "the model cannot be built: ValueError"),
    ],
)
def test_mistakes_in_a_config(config: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(config(**changes), Options(batch=1, seq=4))


def test_more_tokens_than_positions(config: Any) -> None:
    with pytest.raises(InputError, match="positions for 32 tokens: --seq 33 is too long"):
        load(config(), Options(seq=33))


def test_a_sequence_of_an_image_model(config: Any) -> None:
    with pytest.raises(InputError, match="leave out --seq"):
        load(config("vit-huge"), Options(seq=8))


@pytest.mark.parametrize(("text", "message"), [("{", "is no JSON"), ("[1]", "holds a list")])
def test_a_damaged_config(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load(str(tmp_path / "config.json"))


def test_without_transformers(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs the transformers package .*pip install 'autopar\[examples\]'"):
        load(config())


def test_every_shipped_config_names_a_known_task() -> None:
    from autopar.configs import task_of

    for path in CONFIGS.glob("*.json"):
        assert task_of(json.loads(path.read_text())["architectures"][0]), path.name
