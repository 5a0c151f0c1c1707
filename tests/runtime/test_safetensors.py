"""Hugging Face folders are read piece by piece."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

import autopar
from autopar.codegen.safetensors import load_folder, piece_slices, read_piece
from autopar.codegen.shards import coordinate_of, piece
from autopar.errors import CheckpointError
from autopar.ir.placement import Placement
from tests.hardware_toy import toy_hardware
from tests.models import llama
from tests.processes import run_processes


@pytest.mark.slow
def test_a_folder_is_loaded_piece_by_piece(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, _ = llama()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "parts", max_shard_size="60KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    run_processes(2, load, str(tmp_path))


def load(rank: int, folder: str) -> None:
    """Into bfloat16, from float32; tables of positions are computed."""
    here, mesh = Path(folder), init_device_mesh("cpu", (2,), mesh_dim_names=("gpu",))
    model, _ = llama(device="meta", dtype=torch.bfloat16)
    _, inputs = llama()
    parallel = autopar.compile(model, mesh, kwargs=inputs, hardware=toy_hardware(), gap=0.02, time_limit_s=5)
    whole = sum(p.numel() * 4 for p in parallel.parameters())
    for name in ("one", "parts"):
        loaded = parallel.load_safetensors(here / name)
        assert (loaded.missing, loaded.unexpected) == ((), ())
        assert loaded.read_bytes == sum(p.to_local().numel() * 4 for p in parallel.parameters()) < 0.6 * whole
        serial = type(model).from_pretrained(here / name).to(torch.bfloat16).train()
        for key, tensor in {**dict(parallel.named_parameters()), **dict(parallel.named_buffers())}.items():
            there = {**dict(serial.named_parameters()), **dict(serial.named_buffers())}[key]
            assert torch.equal(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor, there), key
        for parameter in parallel.parameters():
            torch.nn.init.zeros_(parameter)
    theirs, ours = serial(**inputs).loss, parallel.load_safetensors(here / "one") and parallel(**inputs).loss
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=0)

    with pytest.raises(CheckpointError, match=r"has no model.embed_tokens.weight, .* \(21\) and has, .* lm_head"):
        parallel.load_safetensors(here / "one", rename=lambda name: f"prefix.{name}")


CUTS = [((0,), (2,)), ((1,), (2,)), ((0, 0), (2, 3)), ((1, 0), (3, 2)), ((0, "I"), (2, 3)), (("I", "R"), (2, 2))]


@pytest.mark.parametrize(("states", "sizes"), CUTS)
def test_slices_are_the_pieces_that_devices_hold(states: tuple[int | str, ...], sizes: tuple[int, ...]) -> None:
    tensor, placement = torch.arange(6 * 12 * 2).reshape(6, 12, 2), Placement(states)
    for rank in range(torch.Size(sizes).numel()):
        place = coordinate_of(rank, sizes)
        assert torch.equal(tensor[piece_slices(tensor.shape, placement, place, sizes)], piece(tensor, placement, place, sizes))


def test_only_the_pages_of_a_piece_are_read(tmp_path: Path) -> None:
    """Of the mapped file, a quarter of the rows takes a quarter of the pages into memory, and some ahead."""
    rows, path = 1 << 11, tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(rows, 4096)}, path)
    whole_bytes = rows * 4096 * 4
    with safe_open(path, framework="pt") as file:
        before = resident_bytes(path)
        part = read_piece(file, path, "weight", torch.empty(rows, 4096, device="meta"), Placement((0,)), (1,), (4,)).clone()
        after = resident_bytes(path)
    assert part.shape == (rows // 4, 4096)
    assert whole_bytes / 4 <= after - before < whole_bytes / 3


def resident_bytes(path: Path) -> int:
    """What of a mapped file is in this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    def read(**sizes: int) -> object:
        resting = {name: torch.empty(size) for name, size in sizes.items()}
        where = dict.fromkeys(sizes, Placement(("I",)))
        return load_folder(tmp_path, resting, {name: (name, f"{name}.tied") for name in sizes}, where, (0,), (1,))

    with pytest.raises(CheckpointError, match=r"has neither model.safetensors nor model.safetensors.index.json"):
        read(a=2)
    save_file({"a.tied": torch.ones(2), "b": torch.ones(3), "more": torch.ones(1)}, tmp_path / "model.safetensors")
    loaded = read(a=2, c=2)
    assert (loaded.missing, loaded.unexpected, loaded.read_bytes) == (("c",), ("b", "more"), 8)
    with pytest.raises(CheckpointError, match=r"has no c \(1\) and has, and the model has not, b, more \(2\)"):
        loaded.require_all(tmp_path)
    with pytest.raises(CheckpointError, match=r"b is \[3\] there, \[4\] in the model"):
        read(b=4)
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        read(a=2)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weights": {}}))
    with pytest.raises(CheckpointError, match=r"is no index of safetensors files: KeyError"):
        read(a=2)
