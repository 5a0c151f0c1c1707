"""A folder of entries, each a file under its digest: what does not read as it was written is ignored, with a notice.

Entries are text (JSON, made by their owners), so reading one runs no code. Files are replaced in one step, so processes that
start at the same time do not disturb each other. The folder is bounded: what was not used for the longest time goes first.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from autopar.errors import PlanError
from autopar.ir.document import write_atomically

logger = logging.getLogger("autopar")
T = TypeVar("T")

LIMIT_BYTES = 128 * 2**20
HEADER = "autopar-cache 1 sha256 "
FOLDER_VARIABLE = "AUTOPAR_CACHE_DIR"
SUFFIXES = (".plan", ".program", ".joint")
UNREADABLE = (
    PlanError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    RuntimeError,
    RecursionError,
)
"""What reading content that nobody wrote so may end in."""


def cache_folder() -> Path | None:
    """`AUTOPAR_CACHE_DIR`, or `autopar` in the user's cache folder; None if the variable is set to nothing."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given is not None:
        return Path(given).expanduser() if given else None
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "autopar"


@dataclass(frozen=True, kw_only=True)
class Store:
    """Entries of one kind (a suffix, `what` in words), in a folder that others use too; at most `limit_bytes` together."""

    folder: Path
    suffix: str
    what: str
    limit_bytes: int = LIMIT_BYTES

    def path(self, key: str) -> Path:
        return self.folder / f"{key}{self.suffix}"

    def get(self, key: str, read: Callable[[str], T]) -> T | None:
        """What `read` makes of an entry, which counts as used now; None if there is none, or it is damaged."""
        path = self.path(key)
        try:
            header, _, text = path.read_text(encoding="utf-8").partition("\n")
            if header != HEADER + digest(text):
                raise PlanError("its content is not what was written")
            found = read(text)
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, *UNREADABLE) as error:
            logger.warning("ignored the cache entry %s, it is damaged (%s): %s is made again", path, error, self.what)
            return None
        with suppress(OSError):
            os.utime(path)
        return found

    def put(self, key: str, text: str) -> None:
        """Keep it; where that is not possible (no room, no permission) there is a notice, and nothing else."""
        try:
            write_atomically(self.path(key), f"{HEADER}{digest(text)}\n{text}")
            self.evict()
        except OSError as error:
            logger.warning("cannot keep %s in %s: %s", self.what, self.folder, error.strerror or error)

    def evict(self) -> None:
        """Remove what was not used for the longest time until the rest is within the limit. Others may do so as well."""
        entries = []
        for path in (p for suffix in SUFFIXES for p in self.folder.glob(f"*{suffix}")):
            with suppress(FileNotFoundError):
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries)[:-1]:
            if total <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
