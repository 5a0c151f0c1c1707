"""All ranks run the same code on the same model and shapes: said to each other before the first collective needs it.

A collective that only some ranks call, or call with other sizes, hangs or scrambles data. So before a program is planned, and
whenever the module changes from one program to another, each rank puts a small record into the job's store (no collective);
rank 0 compares them, and its verdict is the same error on every rank.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta
from importlib import metadata
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from autopar.errors import RankError
from autopar.hardware import Hardware
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.ir.program import Program, TensorSpec
from autopar.torch_private import default_store

Field = str | Mapping[str, str]
Record = Mapping[str, Field]
"""What one rank says: text by field, or by field and name. Fields that only some records have are not compared."""

FAILURE = "failure"
PREFIX = "autopar/agreement"
LISTED = 8
"""How many ranks an error names."""


def agree(record: Record, timeout: timedelta | None = None) -> None:
    """Return when all ranks have said the same; raises the same RankError on all of them if they have not.

    Also if some rank does not come within `timeout` (that of the process group's store, if left out).
    """
    if dist.get_world_size() == 1:
        return
    store, rank = default_store(), dist.get_rank()
    timeout = timeout or store.timeout
    place = f"{PREFIX}/{store.add(f'{PREFIX}/count/{rank}', 1)}"
    store.set(f"{place}/{rank}", zlib.compress(json.dumps(record).encode()))
    if rank == 0:
        verdict = _judged(store, place, timeout)
        store.set(f"{place}/verdict", verdict)
    else:
        try:
            store.wait([f"{place}/verdict"], timeout)
        except RuntimeError as error:
            raise RankError(
                f"rank 0 did not come within {timeout.total_seconds():.0f} s to compare what the ranks run ({_asked(record)}): "
                "see its output; if it is still training, it calls the module with other shapes than this rank"
            ) from error
        verdict = store.get(f"{place}/verdict").decode()
    if verdict:
        raise RankError(verdict)


def _judged(store: Any, place: str, timeout: timedelta) -> str:
    """What is wrong, in words; "" if nothing is."""
    ranks = range(dist.get_world_size())
    keys = [f"{place}/{rank}" for rank in ranks]
    try:
        store.wait(keys, timeout)
    except RuntimeError:
        missing = [rank for rank, key in zip(ranks, keys, strict=True) if not store.check([key])]
        own = json.loads(zlib.decompress(store.get(keys[0])))
        return (
            f"{_named(missing)} did not come within {timeout.total_seconds():.0f} s to compare what the ranks run "
            f"({_asked(own)}): see the output there; if that is still training, it calls the module with other shapes"
        )
    records = [json.loads(zlib.decompress(store.get(key))) for key in keys]
    for key in keys:
        store.delete_key(key)
    return next(differences(records), "")


def differences(records: list[dict[str, Any]]) -> Iterator[str]:
    """Sentences, each naming ranks, a field, and what is said there and elsewhere. Most ranks are right; in doubt rank 0 is.

    >>> next(differences([{"torch": "2.13"}, {"torch": "2.11"}]))
    'rank 1 differs from the others in torch: 2.11 there, 2.13 on rank 0. ...'
    """
    failed = {rank: record[FAILURE] for rank, record in enumerate(records) if FAILURE in record}
    if failed:
        failure = next(iter(failed.values()))
        yield f"{_named(list(failed))} failed, so no rank can go on: {failure}"
        return
    for field in dict.fromkeys(name for record in records for name in record):
        said = {rank: record[field] for rank, record in enumerate(records) if field in record}
        if len(said) < 2 or all(value == next(iter(said.values())) for value in said.values()):
            continue
        counts = Counter(json.dumps(value, sort_keys=True) for value in said.values())
        usual, number = counts.most_common(1)[0]
        if list(counts.values()).count(number) > 1:
            usual = json.dumps(next(iter(said.values())), sort_keys=True)
        right = next(rank for rank, value in said.items() if json.dumps(value, sort_keys=True) == usual)
        wrong = [rank for rank, value in said.items() if json.dumps(value, sort_keys=True) != usual]
        what, there, here = _first(field, said[wrong[0]], said[right])
        yield (
            f"{_named(wrong)} {'differs' if len(wrong) == 1 else 'differ'} from the others in {what}: {there} there, {here} on "
            f"rank {right}. {_advice(field)}"
        )


def _first(field: str, there: Any, here: Any) -> tuple[str, str, str]:
    """The name of what differs, and how it is."""
    if not isinstance(there, dict) or not isinstance(here, dict):
        return field, str(there), str(here)
    name = next(n for n in dict.fromkeys([*here, *there]) if here.get(n) != there.get(n))
    return f"{field}, {name}", there.get(name, "nothing"), here.get(name, "nothing")


def _advice(field: str) -> str:
    known = {
        "inputs": "Pass the global batch, the same shapes on every rank, or let autopar.shard_loader cut it",
        "program": "Their code, or that of a library, does something else for the same model: install the same on all",
    }
    return known.get(field, "Every rank has to build the same model and call autopar.compile in the same way") + "."


def _named(ranks: list[int]) -> str:
    listed = ", ".join(map(str, ranks[:LISTED])) + (f" and {len(ranks) - LISTED} more" if len(ranks) > LISTED else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {listed}"


def _asked(record: Record) -> str:
    inputs = record.get("inputs", {})
    return ", ".join(f"{n} {v}" for n, v in inputs.items()) if isinstance(inputs, Mapping) and inputs else "no inputs"


def record_of(program: Program, said: Record) -> Record:
    """Of a traced program; `said` is what else should be the same."""
    state = {name: f"{s.kind} {text(s.spec)}" for name, s in program.state.items() if s.kind != "constant"}
    return {"about": "a program", **said, "inputs": inputs_of(program), "state": state, "program": program.fingerprint}


def inputs_of(program: Program) -> dict[str, str]:
    return {name: text(program.values[name]).partition(" ")[0] for name in program.inputs if name}


def text(spec: TensorSpec) -> str:
    """As in `float32[64,64] trained`."""
    shape = ",".join(map(str, spec.shape))
    return f"{str(spec.dtype).removeprefix('torch.')}[{shape}]{' trained' if spec.needs_grad else ''}"


def commitments(model: nn.Module, mesh: DeviceMesh, options: Mapping[str, Any]) -> Record:
    """What is known before anything is traced, the options that the user gave among it."""
    spec = MeshSpec.of(mesh)
    return {
        "autopar": metadata.version("autopar"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "model": type(model).__qualname__,
        "mesh": f"{spec} ({', '.join(spec.names)}) on {mesh.device_type}, ranks {mesh.mesh.flatten().tolist()}",
        "options": {name: _option(name, value) for name, value in options.items()},
    }


def _option(name: str, value: Any) -> str:
    """A plan's or a device's content is a digest; a file of a plan may be elsewhere on every node, and only rank 0's counts."""
    if name == "plan" and isinstance(value, str | os.PathLike):
        return "a file"
    if isinstance(value, Plan | Hardware):
        text = value.to_json() if isinstance(value, Plan) else repr(value)
        name = value.model if isinstance(value, Plan) else value.name
        return f"{name} with digest {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return str(value)
