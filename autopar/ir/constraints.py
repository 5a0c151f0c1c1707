"""Constraints: what the user wants of a plan. A pin says what must be so, a ban what must not.

A rule is text, `SELECTOR: STATEMENT, STATEMENT`, as in "model.layers.*.mlp: tensor=gpu". The selector says which units (or
parameters) are meant, each statement what holds for them, mostly on one mesh axis. docs/constraints.md has the language.
Here it is read and checked as far as that needs no model; `autopar.solver.constraints` applies it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from autopar.errors import ConstraintError, InputError
from autopar.ir.placement import INVARIANT, PARTIAL, REPLICATE, State

ROLES = ("batch", "sequence", "tensor", "hidden", "expert", "partial", "none")
ALL_AXES = "*"
CUT, WHOLE = "S", "whole"
SUBJECTS = ("in", "out", "rest", "factor", "zero3")
WORDS = ("keep", "recompute")
STATEMENTS = (
    f"a role on an axis ({', '.join(f'{role}=AXIS' for role in ROLES)}), factor=NAME on AXIS, "
    "a placement (in=STATE on AXIS, out=STATE on AXIS, rest=STATE on AXIS, zero3=AXIS), keep, or recompute"
)
STATES = "S(0), S(1), ... (that dim is cut), S (some dim is cut), R, I, P, or whole (R or I)"

Parameters = Literal["free", "whole"]
Recompute = Literal["free", "never"]
Checkpoints = Literal["honour", "free"]


def suggest(word: str, known: Iterable[str]) -> str:
    """ ". Did you mean X?" if something is close, else "."."""
    close = get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f". Did you mean {' or '.join(close)}?" if close else "."


@lru_cache(maxsize=1024)
def glob_pattern(glob: str) -> re.Pattern[str]:
    """`*` within one part of a dotted name, `**` over any number of parts, `?` and `[0-3]` as in a shell."""
    tokens = re.findall(r"\*\*|\*|\?|\[[^\]]*\]|.", glob)
    known = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return re.compile("".join(known.get(t, t if len(t) > 1 and t[0] == "[" else re.escape(t)) for t in tokens))


@dataclass(frozen=True, kw_only=True)
class Selector:
    """All that is given must hold: a glob over module paths (or names of parameters), the kind of a unit, an op of it."""

    path: str | None = None
    kind: str | None = None
    op: str | None = None

    @classmethod
    def parse(cls, text: str, rule: str) -> Selector:
        found: dict[str, str] = {}
        for word in text.split():
            key, equals, value = word.partition("=")
            key, value = (key, value) if equals else ("path", word)
            if key not in ("path", "kind", "op"):
                raise ConstraintError(f"{rule}: {word!r} selects nothing: give a module path, kind=NAME or op=NAME")
            if key in found:
                raise ConstraintError(f"{rule} gives two of {key}, {found[key]!r} and {value!r}: write a rule for each")
            found[key] = value
        if not found:
            raise ConstraintError(f"{rule} selects nothing: give a module path, kind=NAME or op=NAME before the colon")
        return cls(**found)

    def __str__(self) -> str:
        kinds = (("kind", self.kind), ("op", self.op))
        return " ".join([*([self.path] if self.path else []), *(f"{name}={value}" for name, value in kinds if value)])

    def has_path(self, path: str) -> bool:
        """Whether the path, or that of a module around it, is meant; "" is the model itself."""
        if self.path is None:
            return True
        pattern, parts = glob_pattern(self.path), path.split(".")
        return any(pattern.fullmatch(".".join(parts[:n])) for n in range(1, len(parts) + 1))

    def is_path(self, path: str) -> bool:
        """Whether just this is meant, not only something around it."""
        return self.path is not None and glob_pattern(self.path).fullmatch(path) is not None

    def has_op(self, target: str) -> bool:
        """Whether `aten.linear.default` is meant, by that name, `aten.linear` or `linear`."""
        namespace, _, rest = target.partition(".")
        names = {target, f"{namespace}.{rest.partition('.')[0]}", rest, rest.partition(".")[0]}
        return self.op is None or any(glob_pattern(self.op).fullmatch(name) for name in names)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """`subject`: role, factor, in, out, rest, keep or recompute; `position`: which operand or result; no `axis`: every one."""

    text: str
    subject: str
    value: str = ""
    position: int | None = None
    axis: str | None = None

    def axes(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """Indices of the mesh axes that it speaks of."""
        return tuple(i for i, name in enumerate(names) if self.axis in (None, ALL_AXES, name))

    def has_state(self, state: State) -> bool:
        """Whether a placement's state on an axis is the one that is meant; parameters at rest are I where people say R."""
        if self.value == CUT:
            return isinstance(state, int)
        if self.value == WHOLE or (self.subject == "rest" and self.value in (REPLICATE, INVARIANT)):
            return state in (REPLICATE, INVARIANT)
        return self.value == (f"S({state})" if isinstance(state, int) else state)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A pin, or a ban; `text` is as it was given."""

    ban: bool
    text: str
    selector: Selector
    statements: tuple[Statement, ...]

    def __str__(self) -> str:
        return f"{'ban' if self.ban else 'pin'} {self.text!r}"

    @classmethod
    def parse(cls, text: str, *, ban: bool = False) -> Rule:
        """Raises ConstraintError, naming the part that is wrong and what is known."""
        rule = f"{'ban' if ban else 'pin'} {text!r}"
        selected, colon, said = text.partition(":")
        if not colon or not said.strip():
            raise ConstraintError(f'{rule} is not of the form SELECTOR: STATEMENT, as "model.layers.*.mlp: tensor=gpu"')
        statements = tuple(parse_statements(said, rule))
        return cls(ban=ban, text=text, selector=Selector.parse(selected, rule), statements=statements)


def parse_statements(text: str, rule: str) -> Iterator[Statement]:
    """Statements between commas; "R on gpu" after "rest=S(0) on node" speaks of the same subject."""
    subject = ""
    for part in (part.strip() for part in text.split(",")):
        bare = part.partition(" on ")[0].strip()
        if subject and "=" not in part and bare not in WORDS:
            part = f"{subject}={part}"
        subject = part.partition("=")[0].strip() if "=" in part else ""
        yield parse_statement(part, rule)


def parse_statement(text: str, rule: str) -> Statement:
    if text in WORDS:
        return Statement(text=text, subject=text)
    subject, equals, value = (word.strip() for word in text.partition("="))
    name, bracket, position = subject.partition("[")
    if not equals or name not in (*ROLES, *SUBJECTS):
        close = suggest(name, (*ROLES, *SUBJECTS, *WORDS))
        raise ConstraintError(f"{rule}: {text!r} says nothing that a plan can hold{close} Say {STATEMENTS}")
    if bracket and (name not in ("in", "out") or not re.fullmatch(r"\d+\]", position)):
        raise ConstraintError(f"{rule}: {subject!r} is none of in, out, in[0], out[1], ...")
    if name in ROLES:
        return Statement(text=text, subject="role", value=name, axis=_axis(value, text, rule))
    if name == "zero3":
        return Statement(text=text, subject="rest", value=CUT, axis=_axis(value, text, rule))
    value, on, axis = (word.strip() for word in value.partition(" on "))
    if name != "factor" and not re.fullmatch(rf"S(\(\d+\))?|{REPLICATE}|{INVARIANT}|{PARTIAL}|{WHOLE}", value):
        raise ConstraintError(f"{rule}: {value!r} in {text!r} is no placement on an axis: use {STATES}")
    if name == "rest" and value == PARTIAL:
        raise ConstraintError(f"{rule}: a parameter cannot rest as partial sums: use S(dim), S or whole")
    return Statement(
        text=text,
        subject=name,
        value=value,
        position=int(position[:-1]) if bracket else None,
        axis=_axis(axis, text, rule) if on else None,
    )


def _axis(text: str, statement: str, rule: str) -> str:
    if text == ALL_AXES or re.fullmatch(r"[A-Za-z_]\w*", text):
        return text
    raise ConstraintError(f"{rule}: {statement!r} names no mesh axis: give the name of one, or * for all")


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What every plan that is searched has to obey.

    `pins` and `bans` are rules. `parameters` are "free", "whole" (all rest whole on every device and are never gathered), or
    {glob over names: "S(0) on gpu, whole on node"}. With `recompute` "never" no op runs again in backward. No device gets
    fewer than `min_micro_batch` rows of the batch. `checkpoints`: "honour" makes what the model runs under
    `torch.utils.checkpoint` be redone from its input, "free" leaves it to the solver.

    Raises ConstraintError for what is wrong in itself; what does not fit the model, when a plan is searched.

    >>> Constraints(pins=["model.layers.*.mlp: tensor=gpu"], min_micro_batch=2).pins
    ('model.layers.*.mlp: tensor=gpu',)
    """

    pins: tuple[str, ...] = ()
    bans: tuple[str, ...] = ()
    parameters: Parameters | dict[str, str] = "free"
    recompute: Recompute = "free"
    min_micro_batch: int = 1
    checkpoints: Checkpoints = "honour"

    def __post_init__(self) -> None:
        for name in ("pins", "bans"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        for name, known in (("recompute", Recompute), ("checkpoints", Checkpoints)):
            _one_of(name, getattr(self, name), get_args(known))
        if not isinstance(self.parameters, dict):
            _one_of("parameters", self.parameters, (*get_args(Parameters), "a mapping from names to placements"))
        rows = self.min_micro_batch
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise ConstraintError(f"min_micro_batch {rows!r} is no number of rows per device: give 1 or more")
        assert self.rules is not None

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """All pins and bans, placements of parameters among the pins; raises ConstraintError."""
        named = self.parameters if isinstance(self.parameters, dict) else {}
        pins = [*self.pins, *(f"{name}: rest={placement}" for name, placement in named.items())]
        return (*(Rule.parse(p) for p in pins), *(Rule.parse(b, ban=True) for b in self.bans))

    def __bool__(self) -> bool:
        """Whether they ask for anything at all."""
        return self != Constraints()

    def require_axes(self, names: tuple[str, ...]) -> None:
        """Raise ConstraintError for a rule that speaks of an axis which the mesh does not have."""
        for rule in self.rules:
            for said in rule.statements:
                if said.axis not in (None, ALL_AXES, *names):
                    known = ", ".join(names)
                    raise ConstraintError(
                        f"{rule}: {said.text!r} names no axis of the mesh, which has {known}{suggest(str(said.axis), names)}"
                    )

    def lines(self) -> Iterator[str]:
        """One line per rule and per switch that is not at its default, for people."""
        yield from map(str, self.rules)
        for one in fields(self):
            value = getattr(self, one.name)
            if value != one.default and one.name not in ("pins", "bans") and not isinstance(value, dict):
                yield f"{one.name} {value}"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Constraints:
        """From a YAML file; raises InputError if it cannot be read, ConstraintError naming what is wrong in it."""
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot read constraints {os.fspath(path)}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"constraints {os.fspath(path)} are not text") from error
        return cls.from_yaml(text, os.fspath(path))

    @classmethod
    def from_yaml(cls, text: str, where: str = "constraints") -> Constraints:
        import yaml

        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            raise ConstraintError(
                f"{where}{line} is no YAML: {getattr(error, 'problem', None) or error}. Put rules that begin with * in quotes"
            ) from error
        known = {one.name for one in fields(cls)}
        if data is not None and not isinstance(data, Mapping):
            raise ConstraintError(f"{where} holds no mapping: begin with one of {', '.join(sorted(known))}")
        given = dict(data or {})
        for key in given:
            if key not in known:
                raise ConstraintError(
                    f"{where}: unknown key {key!r}{suggest(str(key), known)} It may have {', '.join(sorted(known))}"
                )
        try:
            return cls(**{key: _plain(key, value) for key, value in given.items()})
        except ConstraintError as error:
            raise ConstraintError(f"{where}: {error}") from error


def _one_of(name: str, value: Any, known: Iterable[str]) -> None:
    if value not in tuple(known):
        raise ConstraintError(f"{name} {value!r} is none of {', '.join(known)}")


def _plain(key: str, value: Any) -> Any:
    """What YAML made of a field: `- a.b: tensor=gpu` without quotes is a mapping, and so may all rules be together."""
    if key == "parameters" and isinstance(value, Mapping):
        return {str(name): str(placement) for name, placement in value.items()}
    if key not in ("pins", "bans"):
        return value
    items = value if isinstance(value, list) else [] if value is None else [value]
    rules = []
    for item in items:
        if isinstance(item, Mapping):
            rules += [f"{name}: {said}" for name, said in item.items()]
        elif isinstance(item, str):
            rules.append(item)
        else:
            raise ConstraintError(f"{key}: {item!r} is no rule of the form SELECTOR: STATEMENT")
    return tuple(rules)


NO_CONSTRAINTS = Constraints()
