"""Weights of a Hugging Face folder, read for the mesh: of each tensor only the piece that this device holds.

`model.safetensors`, or the parts that `model.safetensors.index.json` names. Files are mapped into memory, and a slice is copied
from the mapping: pages that it does not lie in are not read, but for what the kernel reads ahead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from autopar.codegen.shards import held, local_part
from autopar.errors import CheckpointError
from autopar.ir.placement import Placement

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What did not match: `missing` names of the model that no file has, `unexpected` names of the files; `read_bytes` is what
    was read on this device."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    read_bytes: int

    def only(self, expected: Collection[str]) -> Loaded:
        """Without missing names that no file should have."""
        return replace(self, missing=tuple(name for name in self.missing if name in expected))

    def require_all(self, folder: Path) -> None:
        """Raise CheckpointError if names did not match."""
        kinds = (("has no", self.missing), ("has, and the model has not,", self.unexpected))
        if said := [f"{verb} {', '.join(names[:3])}{' …' * (len(names) > 3)} ({len(names)})" for verb, names in kinds if names]:
            raise CheckpointError(
                f"{folder} {' and '.join(said)}: it is of another model, or its names differ, which rename= can mend; "
                "strict=False initializes what is missing and leaves out the rest"
            )


def load_folder(
    folder: Path,
    resting: Mapping[str, Tensor],
    names: Mapping[str, Sequence[str]],
    placements: Mapping[str, Placement],
    place: Sequence[int],
    sizes: Sequence[int],
    *,
    rename: Callable[[str], str] = str,
) -> Loaded:
    """Fill resting tensors; `names` are all names of each, any of which a file may use, and `rename` turns a file's names into
    these. Dtypes are converted. Raises CheckpointError for a shape that differs and for files that cannot be read."""
    first = {alias: name for name, aliases in names.items() for alias in aliases}
    filled: set[str] = set()
    unexpected: list[str] = []
    read_bytes = 0
    for path, keys in files_of(folder).items():
        with opened(path) as file:
            for key in keys if keys is not None else file.keys():
                name = first.get(rename(key))
                if name is None:
                    unexpected.append(key)
                elif name not in filled:
                    part = read_piece(file, path, key, resting[name], placements[name], place, sizes)
                    read_bytes += part.nbytes
                    local_part(resting[name].detach()).copy_(part)
                    filled.add(name)
    missing = tuple(name for name in names if name not in filled)
    return Loaded(missing=missing, unexpected=tuple(unexpected), read_bytes=read_bytes)


def files_of(folder: Path) -> dict[Path, list[str] | None]:
    """Each file with the names in it; None where there is one file, which knows its own."""
    index = folder / INDEX
    if not index.exists():
        if not (folder / SINGLE).exists():
            raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}: name the folder that a model was saved in")
        return {folder / SINGLE: None}
    try:
        found: dict[Path, list[str] | None] = {}
        for name, file in json.loads(index.read_text())["weight_map"].items():
            found.setdefault(folder / file, []).append(name)  # type: ignore[union-attr]
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of safetensors files: {type(error).__name__}: {error}") from error


def opened(path: Path) -> Any:
    """A mapped file, as a context manager."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError("reading safetensors files takes the package safetensors: pip install safetensors") from error
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_piece(
    file: Any, path: Path, key: str, resting: Tensor, placement: Placement, place: Sequence[int], sizes: Sequence[int]
) -> Tensor:
    """This device's piece of a tensor in an open file."""
    saved = file.get_slice(key)
    if (shape := tuple(saved.get_shape())) != tuple(resting.shape):
        raise CheckpointError(f"{path}: {key} is {list(shape)} there, {list(resting.shape)} in the model")
    slices = piece_slices(shape, placement, place, sizes)
    part: Tensor = saved[slices] if slices else file.get_tensor(key)
    return part


def piece_slices(shape: Sequence[int], placement: Placement, place: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    """Where in the whole tensor the piece of the device at `place` is, per dim."""
    return tuple(slice(start, end) for start, end in held(shape, placement, place, sizes))
