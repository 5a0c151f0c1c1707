"""What the user says about values that a model's code asks of its tensors, which only data could tell.

`assume("modeling_led.py:193", False)` is for the code of libraries as well, which stays as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePath
from types import TracebackType

from autopar.errors import InputError

Value = bool | int | float
PLACE = re.compile(r"(?P<file>.+\.py):(?P<line>\d+)")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A line of code: its file with the folders that are known, its number from 1, and what stands there; `call` is the name
    of the function of torch that was called there, if that matters."""

    file: str
    line: int
    code: str
    call: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{PurePath(self.file).name}:{self.line}"

    @property
    def quoted(self) -> str:
        return f"{self} (`{self.code}`)"

    def is_meant(self, where: str) -> bool:
        """Whether `where` is this line, as "file.py:12" or "folder/file.py:12", or code that stands on it."""
        if found := PLACE.fullmatch(where):
            file = PurePath(found["file"])
            return int(found["line"]) == self.line and PurePath(self.file).parts[-len(file.parts) :] == file.parts
        return where in self.code


class assume:
    """Say which value the code at `where` gets when it asks a tensor for one, in every later trace of any model.

    `where` is a line, "file.py:12" (as errors name it; with folders, if the name alone is ambiguous), or a piece of its code.
    `value` is what `if`, `bool`, `int`, `float` or `item()` of a tensor gives there. The data is not looked at when the model
    runs: say what always holds. Plans list in their notes what was assumed. In a `with` statement it holds up to its end.
    Raises InputError if `where` is empty or `value` is neither number nor flag.

    >>> with assume("modeling_led.py:193", False):
    ...     pass
    """

    def __init__(self, where: str, value: Value) -> None:
        if not where.strip():
            raise InputError('assume() needs a line, as "file.py:12", or a piece of its code')
        if not isinstance(value, bool | int | float):
            raise InputError(f"assume({where!r}, ...): {value!r} is neither number nor flag")
        self.where, self.value = where.strip(), value
        ASSUMED.append(self)

    def __enter__(self) -> assume:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        ASSUMED.remove(self)

    def __repr__(self) -> str:
        return f"assume({self.where!r}, {self.value!r})"


ASSUMED: list[assume] = []
"""In the order in which they were said; later ones count first."""


def assumed_at(place: Place) -> assume | None:
    """What was said about a line, if anything."""
    return next((said for said in reversed(ASSUMED) if place.is_meant(said.where)), None)
