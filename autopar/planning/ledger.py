"""The file of a sweep: lines are only added to its end, by one process at a time, and each is whole or not there.

A process that is killed may leave the beginning of a line. It is taken away when the file is opened again; all other lines
stay as they are, those of other sweeps and of other programs too.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from autopar.errors import InputError
from autopar.planning.runs import Run

BEGINNING = b'{"format":"autopar-sweep"'
"""Of every line that is written here, so that no end of another kind of file is taken for a torn one."""


class Ledger:
    """The runs in an open file by the key of their setting; `notes` say what was mended."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self.handle = path, handle
        self.notes: list[str] = []
        self.runs = {run.setting.key: run for run in runs_of(self.mended(), path)}

    def mended(self) -> bytes:
        """The content, after a torn last line was taken away. Raises InputError if what is there is no line of anything."""
        content = read_all(self.handle)
        whole, torn = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
        if not torn:
            return content
        if json_of(torn) is not None:
            os.write(self.handle, b"\n")
            return content + b"\n"
        if not (torn.startswith(BEGINNING) or BEGINNING.startswith(torn)):
            raise InputError(f"{self.path} ends in what is no line of a sweep: give another file with -o")
        os.ftruncate(self.handle, len(whole))
        self.notes.append(f"{self.path} ended in a torn line, of a sweep that was killed: its setting is planned again")
        return whole

    def add(self, run: Run) -> None:
        """Write a line and wait until it is on the disk; raises InputError, and leaves no part of it, if there is no room."""
        line = run.model_dump_json().encode() + b"\n"
        end = os.lseek(self.handle, 0, os.SEEK_END)
        try:
            written = os.write(self.handle, line)
            os.fsync(self.handle)
        except OSError as error:
            os.ftruncate(self.handle, end)
            raise InputError(f"cannot write {self.path}: {error.strerror}: what is finished is in it") from error
        if written < len(line):
            os.ftruncate(self.handle, end)
            raise InputError(f"cannot write {self.path}: no room: what is finished is in it")
        self.runs[run.setting.key] = run


@contextmanager
def ledger(path: Path) -> Iterator[Ledger]:
    """The file, made if it is not there, and nobody else's until the end. Raises InputError."""
    path = path.expanduser()
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file, as {path / 'runs.jsonl'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}: give another file with -o") from error
    try:
        lock(handle, path)
        yield Ledger(path, handle)
    finally:
        os.close(handle)  # and with it the lock goes, as it does if the process is killed


def lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"another sweep is writing {path}: wait for it, or give another file with -o") from error
    except OSError as error:
        raise InputError(f"cannot lock {path}: {error.strerror}: give a file on another file system with -o") from error


def read_all(handle: int) -> bytes:
    os.lseek(handle, 0, os.SEEK_SET)
    parts = []
    while part := os.read(handle, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def runs_of(content: bytes, path: Path) -> Iterator[Run]:
    """Those that a sweep wrote; raises InputError naming the line that cannot be read."""
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        data = json_of(line)
        if data is None:
            raise InputError(f"{path}:{number} is no JSON object: give another file with -o, or take that line away")
        if data.get("format") != "autopar-sweep":
            continue
        try:
            yield Run.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise InputError(
                f"{path}:{number}: field {field}: {first['msg']}: give another file with -o, or take that line away"
            ) from error


def json_of(line: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None
