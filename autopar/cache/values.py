"""Values as text: equal text, equal behaviour. For what code may read of a model, of its inputs, and of globals.

Objects are their class and attributes; what occurs twice in a value is named by where it came first, so ties show. Functions,
classes and modules are told to whoever follows what code they lead to. What has a state that cannot be seen is Unclear.
"""

from __future__ import annotations

import contextvars
import enum
import functools
import hashlib
import io
import logging
import re
import threading
import types
import typing
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autopar.torch_private import OpOverload, OpOverloadPacket, is_fake, storage_key, unwatched, without_modes

ATOMS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented), range)
TORCH_ATOMS = (torch.dtype, torch.device, torch.layout, torch.memory_format)
SEQUENCES = (list, tuple, deque, set, frozenset)
MAPPINGS = (dict, OrderedDict, defaultdict, types.MappingProxyType)
STATELESS = (
    *(logging.Logger, logging.Handler, io.IOBase, contextvars.ContextVar),
    *(type(threading.Lock()), type(threading.RLock()), threading.local, threading.Thread),
)
"""Known by their class: what is in them does not change what a model computes."""
BUILTIN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType)
DESCRIPTORS = (property, classmethod, staticmethod, functools.cached_property, functools.partial, functools.partialmethod)
TYPING = ("typing", "types", "typing_extensions", "annotationlib")
PLAIN_TENSORS = (Tensor, nn.Parameter, nn.Buffer)
OTHER_EACH_TIME = frozenset({"_original_object_hash"})
"""Attributes that are Python's `hash` of the others, in generation configs of transformers."""
MOST_VALUES = 2_000_000
EMPTY = types.CellType()


class Unclear(Exception):
    """Something that may matter cannot be read."""


class Follower(Protocol):
    """Is told what code a value leads to."""

    def function(self, found: types.FunctionType) -> str:
        """A digest of its code."""

    def kind(self, found: type, *, called: bool) -> None:
        """A class; `called`: code may make instances of it."""

    def module(self, found: types.ModuleType) -> None: ...

    def is_foreign(self, found: types.FunctionType) -> bool:
        """Whether it is code of torch or Python, which go by their versions."""


class Values:
    """Writes values into one text. Of two texts by two of these, equal ones are of values that code cannot tell apart."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.parts: list[str] = []
        self.seen: dict[int, int] = {}
        self.storages: dict[int, int] = {}
        self.kept: list[Any] = []

    def digest(self, value: Any) -> str:
        """Raises Unclear."""
        try:
            with unwatched():
                self.add(value)
        except RecursionError as error:
            raise Unclear("values nested too deep") from error
        return hashlib.sha256("\n".join(self.parts).encode("utf-8", "surrogatepass")).hexdigest()

    def add(self, value: Any) -> None:
        kind = type(value)
        if kind in ATOMS or kind in TORCH_ATOMS:
            self.parts.append(f"{kind.__name__} {value!r}")
        elif kind is tuple or kind is frozenset:  # constants of code: which of them are one object is chance
            self.container(kind, value)
        elif id(value) in self.seen:
            self.parts.append(f"again {self.seen[id(value)]}")
        else:
            self.seen[id(value)] = len(self.seen)
            self.kept.append(value)
            if len(self.kept) > MOST_VALUES:
                raise Unclear("too many values")
            self.inside(value, kind)

    def all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.add(value)

    def inside(self, value: Any, kind: type) -> None:
        writer = next((write for kinds, write in WRITERS if isinstance(value, kinds)), Values.instance)
        writer(self, value)

    def container(self, kind: type, value: Any) -> None:
        self.parts.append(f"{kind.__module__}.{kind.__qualname__} of {len(value)}")
        if isinstance(value, MAPPINGS):
            for key, item in list(value.items()):
                self.add(key)
                self.add(item)
        elif isinstance(value, set | frozenset):
            apart = [Values(self.follower).digest(item) for item in value]
            self.parts.extend(sorted(apart))
        else:
            self.all(value)

    def builtin_container(self, value: Any) -> None:
        kind = type(value)
        self.container(kind, value)
        if kind not in (*SEQUENCES, *MAPPINGS, torch.Size):
            self.follower.kind(kind, called=False)
            self.attributes(value)
        if isinstance(value, defaultdict):
            self.add(value.default_factory)

    def attributes(self, value: Any) -> None:
        for name, item in own_attributes(value):
            if name in OTHER_EACH_TIME:
                continue
            self.parts.append(f".{name}")
            self.add(item)

    def instance(self, value: Any) -> None:
        """Any other object: its class and attributes, if these are all there is to it."""
        kind = type(value)
        self.parts.append(f"instance of {kind.__module__}.{kind.__qualname__}")
        self.follower.kind(kind, called=False)
        if kind.__module__ in TYPING:
            self.parts.append(repr(value))
        elif isinstance(kind.__dict__.get("__reduce__", None), types.MethodDescriptorType):
            self.add(reduced(value))
        else:
            require_visible(value)
            self.attributes(value)

    def function(self, value: types.FunctionType) -> None:
        self.parts.append(f"function {value.__module__}.{value.__qualname__} {self.follower.function(value)}")
        cells = [content(cell) for cell in value.__closure__ or ()]
        if self.follower.is_foreign(value):
            self.all(c for c in cells if isinstance(c, types.FunctionType | types.MethodType | functools.partial | type))
            return
        self.add(value.__defaults__)
        self.add(value.__kwdefaults__)
        self.all("an empty cell" if c is EMPTY else c for c in cells)
        self.add({name: v for name, v in vars(value).items() if name not in ("__doc__", "__annotations__")})

    def method(self, value: types.MethodType) -> None:
        self.parts.append("method")
        self.add(value.__func__)
        self.add(value.__self__)

    def builtin(self, value: Any) -> None:
        owner = getattr(value, "__objclass__", None) or getattr(value, "__self__", None)
        self.parts.append(f"builtin {getattr(value, '__module__', None)}.{value.__qualname__}")
        if owner is not None and not isinstance(owner, type | types.ModuleType):
            self.add(owner)

    def cls(self, value: type) -> None:
        self.parts.append(f"class {value.__module__}.{value.__qualname__}")
        self.follower.kind(value, called=True)

    def module(self, value: types.ModuleType) -> None:
        self.parts.append(f"module {value.__name__}")
        self.follower.module(value)

    def descriptor(self, value: Any) -> None:
        self.parts.append(type(value).__qualname__)
        names = ("fget", "fset", "fdel", "__func__", "func", "args", "keywords", "attrname")
        self.all(getattr(value, name, None) for name in names)

    def memo(self, value: Any) -> None:
        """`functools.lru_cache`: what is in it was computed by its function."""
        self.parts.append("remembers")
        self.add(value.__wrapped__)

    def tensor(self, value: Tensor) -> None:
        kind = type(value)
        if (kind not in PLAIN_TENSORS and not is_fake(value)) or value.layout is not torch.strided:
            raise Unclear(f"a tensor that is a {kind.__name__} ({value.layout})")
        storage = self.storages.setdefault(storage_key(value), len(self.storages))
        look = (list(value.shape), value.stride(), value.storage_offset(), value.dtype, value.device, value.requires_grad)
        self.parts.append(f"{kind.__name__} {look} leaf {value.is_leaf} in {storage}")
        if not isinstance(value, nn.Parameter) and has_data(value):
            self.parts.append(f"content {content_digest(value)}")
        if not is_fake(value):
            self.attributes(value)

    def enumerated(self, value: enum.Enum) -> None:
        kind = type(value)
        self.parts.append(f"{kind.__module__}.{kind.__qualname__}.{value.name}")
        self.follower.kind(kind, called=False)

    def said(self, value: Any) -> None:
        self.parts.append(f"{type(value).__qualname__} {value}")

    def pattern(self, value: re.Pattern[Any]) -> None:
        self.parts.append(f"pattern {value.pattern!r} {value.flags}")

    def stateless(self, value: Any) -> None:
        self.parts.append(type(value).__qualname__)

    def reference(self, value: Any) -> None:
        self.parts.append("reference")
        self.add(value())

    def span(self, value: slice) -> None:
        self.parts.append("slice")
        self.all((value.start, value.stop, value.step))


WRITERS: tuple[tuple[Any, Callable[[Values, Any], None]], ...] = (
    (Tensor, Values.tensor),
    (enum.Enum, Values.enumerated),
    (type, Values.cls),
    (types.FunctionType, Values.function),
    (types.MethodType, Values.method),
    (BUILTIN, Values.builtin),
    (types.ModuleType, Values.module),
    (DESCRIPTORS, Values.descriptor),
    (functools._lru_cache_wrapper, Values.memo),
    ((OpOverload, OpOverloadPacket, PurePath, torch.finfo, torch.iinfo), Values.said),
    (re.Pattern, Values.pattern),
    (STATELESS, Values.stateless),
    (weakref.ref, Values.reference),
    (slice, Values.span),
    ((types.GenericAlias, types.UnionType, typing.TypeVar), Values.said),
    ((*SEQUENCES, *MAPPINGS), Values.builtin_container),
)


def own_attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Of its `__dict__`, in order, and of slots."""
    yield from list(getattr(value, "__dict__", {}).items())
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            member = vars(base).get(slot)
            if isinstance(member, types.MemberDescriptorType):
                try:
                    yield slot, member.__get__(value)
                except AttributeError:
                    continue


def require_visible(value: Any) -> None:
    """Raise Unclear for an object with a state in C that is not among its attributes."""
    kind = type(value)
    if kind.__flags__ & 1 << 9 == 0 and kind is not object:
        raise Unclear(f"a {kind.__module__}.{kind.__qualname__}")
    names = ("__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__")
    if all(getattr(kind, name, None) is getattr(object, name, None) for name in names):
        try:
            object.__reduce_ex__(value, 2)
        except TypeError as error:
            raise Unclear(f"a {kind.__module__}.{kind.__qualname__}") from error


def reduced(value: Any) -> Any:
    """As `pickle` sees an object of a class written in C; raises Unclear."""
    try:
        return value.__reduce_ex__(2)
    except TypeError as error:
        raise Unclear(f"a {type(value).__qualname__}") from error


def content(cell: types.CellType) -> Any:
    """What a closure holds under a name, EMPTY if nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return EMPTY


def has_data(value: Tensor) -> bool:
    """Not those that only have a shape, nor the hollow ones of a model without weights."""
    return not is_fake(value) and not value.is_meta and value.untyped_storage().nbytes() > 0


def content_digest(value: Tensor) -> str:
    with torch.no_grad(), without_modes():
        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()
