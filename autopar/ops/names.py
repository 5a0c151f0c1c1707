"""Ops by the names that people give them: "aten.linear", "aten.linear.default", "linear", a function, an overload."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import torch

from autopar.errors import InputError
from autopar.ops import tables
from autopar.ops.user_rules import overload_of
from autopar.torch_private import OpOverload, OpOverloadPacket


def op_named(given: Any) -> OpOverload:
    """The op that is meant; of several overloads the first that has a row. Raises InputError, offering the closest names."""
    if not isinstance(given, str):
        found = with_row(given) if isinstance(given, OpOverloadPacket) else overload_of(given)
        if found is None:
            raise InputError(f"{given!r} is no op: give a name such as aten.linear, an overload, or a function with a rule")
        return found
    parts = given.replace("::", ".").split(".")
    for words in (parts, ["aten", *parts], ["autopar", *parts], ["autopar_user", *parts]):
        if len(words) in (2, 3) and (packet := packet_at(words)) is not None:
            if len(words) == 2:
                return with_row(packet)
            if words[2] in packet.overloads():  # type: ignore[no-untyped-call]
                return getattr(packet, words[2])  # type: ignore[no-any-return]
    raise InputError(f"there is no op {given!r}{closest(given)}")


def packet_at(words: list[str]) -> OpOverloadPacket | None:
    space = getattr(torch.ops, words[0], None)
    try:
        found = getattr(space, words[1], None)
    except RuntimeError:  # a name that no op can have
        return None
    return found if isinstance(found, OpOverloadPacket) else None


def with_row(packet: OpOverloadPacket) -> OpOverload:
    overloads = [getattr(packet, name) for name in packet.overloads()]  # type: ignore[no-untyped-call]
    rows = [op for op in overloads if op in tables.USER_RULES or op in tables.TABLE]
    named = [op for op in overloads if op._overloadname in ("default", "Tensor")]
    return next(iter([*rows, *named, *overloads]))


def known_names() -> dict[str, OpOverload]:
    """Of all rows, by their full names."""
    return {str(op): op for op in (*tables.TABLE, *tables.USER_RULES) if isinstance(op, OpOverload)}


def closest(given: str) -> str:
    short = {name.removeprefix("aten.").removesuffix(".default"): name for name in known_names()}
    asked = given.removeprefix("aten.").removesuffix(".default")
    close = get_close_matches(asked, list(short), n=3, cutoff=0.5)
    names = [short[name].removesuffix(".default") for name in close]
    return f". Did you mean {' or '.join(names)}?" if names else "; `autopar rules` lists those that have a rule"
