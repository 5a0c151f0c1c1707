"""Files that this tool writes and reads: versioned JSON, written in one step, refused in words."""

from __future__ import annotations

import json
import os
import secrets
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from autopar.errors import ConstraintError, InputError, MeshError, PlanError


class Document(BaseModel):
    """What a whole file holds: fields `format` and `version`, with these values, among those of the subclass."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    WHAT: ClassVar[str]
    FORMAT: ClassVar[str]
    VERSION: ClassVar[int]
    AGAIN: ClassVar[str]
    """How to make it again."""

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it; the file is replaced in one step, so an interrupted write leaves the old one."""
        write_atomically(Path(path), self.to_json())

    @classmethod
    def from_json(cls, text: str, where: str | None = None) -> Self:
        """Raises PlanError naming what is wrong, and `where`."""
        where = where or cls.WHAT
        try:
            data: Any = json.loads(text, object_pairs_hook=without_repeats, parse_constant=refuse_constant)
        except json.JSONDecodeError as error:
            raise PlanError(f"{where} is no JSON (line {error.lineno}: {error.msg}): {cls.AGAIN}") from error
        except (ValueError, RecursionError) as error:
            raise PlanError(f"{where} cannot be read: {error}: {cls.AGAIN}") from error
        if not isinstance(data, dict) or data.get("format") != cls.FORMAT:
            raise PlanError(f"{where} is no autopar {cls.WHAT}: it lacks format '{cls.FORMAT}'")
        if data.get("version") != cls.VERSION:
            version = data.get("version")
            newer = isinstance(version, int) and version > cls.VERSION
            mend = "it was made by a newer autopar: update this one" if newer else cls.AGAIN
            raise PlanError(f"{where} has {cls.WHAT} version {version}, this autopar reads version {cls.VERSION}: {mend}")
        try:
            found = cls.model_validate(data)
        except ConstraintError as error:
            raise PlanError(f"{where}: field constraints: {error}: {cls.AGAIN}") from error
        except MeshError as error:
            raise PlanError(f"{where}: field mesh: {error}: {cls.AGAIN}") from error
        except InputError as error:
            raise PlanError(f"{where}: field {error}: {cls.AGAIN}") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or first["type"]
            raise PlanError(f"{where}: field {field}: {first['msg']} ({error.error_count()} such): {cls.AGAIN}") from error
        found.require_consistent(where)
        return found

    def require_consistent(self, where: str) -> None:
        """Raise PlanError, naming the field, where the document contradicts itself."""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read and validate; raises PlanError naming the field that is wrong."""
        where = f"{cls.WHAT} {os.fspath(path)}"
        try:
            text = Path(path).read_text()
        except OSError as error:
            raise PlanError(f"cannot read {where}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise PlanError(f"{where} is not text") from error
        return cls.from_json(text, where)


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two equal names in a JSON object one would silently win; raises ValueError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"field {twice} stands there twice")
    return found


def refuse_constant(text: str) -> Any:
    """NaN and Infinity are no JSON; raises ValueError."""
    raise ValueError(f"{text} is no number of JSON")


def write_atomically(path: Path, text: str) -> None:
    """As others may read files that this user makes; the file is there whole, or not at all."""
    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
