"""Damage to plan files, as editors, disks and people do it: seeded, and by structure, so that most mutants are still JSON.

A mutation takes the parsed plan (which it may change) or its text, and a random source; it returns what it did and the text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

Place = tuple[Any, Any]
"""A container and the key or index of something in it."""

WORDS = ("", "P", "S(0)", "S(9)", "all_gather", "~", "b", "none", "float64", "☃")
NUMBERS = (-1, 0, 1, 2, 3, 7, 10**30, 0.5, -0.0, 1e308)


def mutants(text: str, others: list[str], count: int, seed: int) -> Iterator[tuple[str, str]]:
    """`count` pairs (what was done, text); `others` are plans of other models or meshes, for swaps."""
    source = random.Random(seed)
    for _ in range(count):
        mutate = source.choice(KINDS)
        yield mutate(text, others, source)


def edited(edit: Callable[[Any, list[str], random.Random], str]) -> Callable[[str, list[str], random.Random], tuple[str, str]]:
    """A mutation of the text from one of the parsed plan."""

    def mutate(text: str, others: list[str], source: random.Random) -> tuple[str, str]:
        data = json.loads(text)
        done = edit(data, others, source)
        return f"{edit.__name__}: {done}", json.dumps(data)

    return mutate


def places(data: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Everything in the plan as (path, container, key)."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        where = f"{path}.{key}" if path else str(key)
        yield where, data, key
        yield from places(value, where)


def pick(data: Any, source: random.Random, kind: type | tuple[type, ...] = object) -> tuple[str, Any, Any]:
    """A place whose value is of the kind; first a field of the head at random, so that long tables are not all that is hit."""
    fields = [key for key in data if any(isinstance(c[k], kind) for _, c, k in places({key: data[key]}))]
    field = source.choice(fields)
    return source.choice([p for p in places({field: data[field]}) if isinstance(p[1][p[2]], kind) and p[1] is not None])


def put(data: Any, where: str, container: Any, key: Any, value: Any) -> None:
    """Into the plan itself: `pick` looks at a field of the head through a dict of its own."""
    if where.count(".") == 0 and where in data:
        data[where] = value
    else:
        container[key] = value


def take(data: Any, where: str, container: Any, key: Any) -> Any:
    return data.pop(where) if where in data and container is not data else container.pop(key)


@edited
def dropped(data: Any, others: list[str], source: random.Random) -> str:
    where, container, key = pick(data, source)
    take(data, where, container, key)
    return where


@edited
def duplicated(data: Any, others: list[str], source: random.Random) -> str:
    where, container, key = pick(data, source)
    if isinstance(container, list):
        container.insert(key, json.loads(json.dumps(container[key])))
    else:
        put(data, f"{where}_again", container if where not in data else data, f"{key}_again", container[key])
    return where


@edited
def renamed(data: Any, others: list[str], source: random.Random) -> str:
    where, container, key = pick(data, source)
    if isinstance(container, list):
        return shuffled_in(container, source, where)
    target = data if where in data else container
    names = [k for k in target if k != key]
    new = source.choice([f"{key}x", str(key).upper(), *source.sample(names, min(2, len(names)))])
    target[new] = target.pop(key)
    return f"{where} -> {new}"


@edited
def retyped(data: Any, others: list[str], source: random.Random) -> str:
    where, container, key = pick(data, source)
    value = source.choice([None, True, [], {}, "text", 3, 2.5, [[1]], {"a": 1}])
    put(data, where, container, key, value)
    return f"{where} = {value!r}"


@edited
def renumbered(data: Any, others: list[str], source: random.Random) -> str:
    where, container, key = pick(data, source, (int, float))
    old = container[key]
    value = source.choice([*NUMBERS, old + 1, old * 2, old / 2 if isinstance(old, float) else old // 2, -old])
    put(data, where, container, key, value)
    return f"{where}: {old} -> {value}"


@edited
def reworded(data: Any, others: list[str], source: random.Random) -> str:
    """A word of the plan in the place of another, or a strange one."""
    where, container, key = pick(data, source, str)
    _, other, there = pick(data, source, str)
    value = source.choice([other[there], source.choice(WORDS), container[key][:-1], container[key] + " "])
    put(data, where, container, key, value)
    return f"{where} = {value!r}"


@edited
def replaced_placement(data: Any, others: list[str], source: random.Random) -> str:
    """Another placement at a place that has one."""
    found = [p for p in places(data) if isinstance(p[1][p[2]], str) and p[2] in ("placement", "before", "after")]
    found += [(f"boundaries.{n}", data["boundaries"], n) for n in data["boundaries"]]
    where, container, key = source.choice(found)
    states = [source.choice(["S(0)", "S(1)", "S(2)", "R", "I", "P"]) for _ in data["mesh"]["sizes"]]
    container[key] = ", ".join(states) + source.choice(["", "", "", " nested 1 0", ", I"])
    return f"{where} = {container[key]!r}"


@edited
def other_factor(data: Any, others: list[str], source: random.Random) -> str:
    """Another factor for a unit, from its own region mostly."""
    region = data["regions"][source.choice(list(data["regions"]))]
    name = source.choice(list(region["units"]))
    unit = region["units"][name]
    known = [f for u in region["units"].values() for f in u["factors"]] + [None, "~", "zz"]
    axis = source.randrange(len(unit["factors"]))
    unit["factors"][axis] = source.choice(known)
    unit["roles"][axis] = None if unit["factors"][axis] is None else "tensor"
    return f"{name}.factors = {unit['factors']}"


@edited
def other_state(data: Any, others: list[str], source: random.Random) -> str:
    """A parameter, an input or a value rests elsewhere; where all calls share it, maybe everywhere."""
    table = data[source.choice(["state", "inputs", "boundaries"])]
    name = source.choice(list(table))
    new = ", ".join(source.choice(["S(0)", "S(1)", "I"]) for _ in data["mesh"]["sizes"])
    for other in table if source.random() < 0.3 else [name]:
        if other.split(".")[-1] == name.split(".")[-1]:
            if isinstance(table[other], dict):
                table[other]["placement"] = new
            else:
                table[other] = new
    return f"{name} at {new}"


@edited
def moved_in_class(data: Any, others: list[str], source: random.Random) -> str:
    """What a class keeps and redoes: something more, something less, or moved from the one to the other."""
    region = data["regions"][source.choice(list(data["regions"]))]
    keep = source.choice(region["classes"])
    what = source.choice(["kept", "kept_internals", "redone", "reconverted"])
    if keep[what] and source.random() < 0.6:
        gone = keep[what].pop(source.randrange(len(keep[what])))
        if isinstance(gone, str) and source.random() < 0.5:
            keep["redone" if what == "kept_internals" else "kept_internals"].append(gone)
        return f"{what} without {gone}"
    pool: list[Any] = list(region["units"]) if what in ("kept_internals", "redone") else list(region["converted"])
    if what == "kept":
        pool = [{"tensor": c["tensor"], "placement": c["after"]} for c in region["converted"]]
    if pool:
        keep[what].append(source.choice(pool))
    return f"{what} with {keep[what][-1:]}"


@edited
def swapped(data: Any, others: list[str], source: random.Random) -> str:
    """A part of the plan of another model or mesh."""
    other = json.loads(source.choice(others))
    field = source.choice(list(data))
    data[field] = other.get(field)
    if field == "regions" and source.random() < 0.5:
        data["state"], data["inputs"], data["boundaries"] = other["state"], other["inputs"], other["boundaries"]
    return field


@edited
def shuffled(data: Any, others: list[str], source: random.Random) -> str:
    where, container, key = pick(data, source, list)
    return shuffled_in(container[key], source, where)


def shuffled_in(things: list[Any], source: random.Random, where: str) -> str:
    source.shuffle(things)
    return f"{where} in another order"


def truncated(text: str, others: list[str], source: random.Random) -> tuple[str, str]:
    return "truncated", text[: source.randrange(len(text))]


def flipped(text: str, others: list[str], source: random.Random) -> tuple[str, str]:
    """One bit of one character."""
    at = source.randrange(len(text))
    new = chr(ord(text[at]) ^ (1 << source.randrange(7)))
    return f"bit of {text[max(0, at - 15) : at + 15]!r}", text[:at] + new + text[at + 1 :]


def spliced(text: str, others: list[str], source: random.Random) -> tuple[str, str]:
    """A run of lines is lost, repeated, or moved."""
    lines = text.splitlines(keepends=True)
    start = source.randrange(len(lines))
    run = lines[start : start + source.randrange(1, 6)]
    rest = lines[:start] + lines[start + len(run) :]
    at = source.choice([start, source.randrange(len(rest) + 1)])
    return f"lines from {start}", "".join(source.choice([rest, rest[:at] + run + run + rest[at:], rest[:at] + run + rest[at:]]))


KINDS = (
    dropped,
    duplicated,
    renamed,
    retyped,
    renumbered,
    renumbered,
    reworded,
    replaced_placement,
    replaced_placement,
    other_factor,
    other_factor,
    other_state,
    moved_in_class,
    moved_in_class,
    swapped,
    shuffled,
    truncated,
    flipped,
    spliced,
)
