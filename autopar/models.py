"""Models by name, as the command line takes them: a function that builds one, or a local Hugging Face `config.json`.

Nothing is downloaded, and on the meta device (the default) nothing is allocated: planning needs shapes only.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from autopar.errors import InputError

if TYPE_CHECKING:
    from torch import nn

FORMS = "name it as package.module:function, path/to/file.py:function, or the path of a Hugging Face config.json"
RETURNS = "it must return (model, kwargs) or (model, args, kwargs)"
DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may say about the example inputs; None leaves it to the model.

    `device` is where all tensors are made, but for the inputs of a `config.json` if they shall have `values`: code may look
    at a mask.
    """

    batch: int | None = None
    seq: int | None = None
    dtype: str | None = None
    device: str = "meta"
    values: bool = False

    def __post_init__(self) -> None:
        for name, value in (("batch", self.batch), ("seq", self.seq)):
            if value is not None and value < 1:
                raise InputError(f"{name} {value}: must be at least 1")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise InputError(f"unknown dtype {self.dtype!r}: give one of {', '.join(DTYPES)}")

    @property
    def given(self) -> dict[str, Any]:
        return {k: v for k, v in (("batch", self.batch), ("seq", self.seq), ("dtype", self.dtype)) if v is not None}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model in train mode with example inputs; `notices` say what was chosen or changed on the way.

    `limits` has the largest size of a dim of the inputs ("seq") that the model can take, where its shapes do not tell.
    """

    name: str
    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any]
    notices: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)


def load(spec: str, options: Options | None = None) -> Loaded:
    """The model that `spec` names; raises InputError with what to do instead.

    A function is called with those of `batch`, `seq` and `dtype` that are given (it is an error if it does not take one).
    """
    options = options or Options()
    head, colon, function = spec.rpartition(":")
    if spec.endswith(".json") or Path(spec).is_dir():
        from autopar.configs import load_config

        return load_config(Path(spec), options)
    if not colon or not head or not function:
        raise InputError(f"{spec!r} names no model: {FORMS}")
    module = _from_file(Path(head)) if head.endswith(".py") else _from_package(head)
    return _call(spec, _function(module, function, head), options)


def _from_file(path: Path) -> ModuleType:
    """The module in a file, imported under a name of its own: its folder is not put on the path."""
    if not path.is_file():
        raise InputError(f"no file {str(path)!r}: {FORMS}")
    found = importlib.util.spec_from_file_location(f"autopar_model_{path.stem}", path)
    assert found is not None, path
    assert found.loader is not None, path
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses and pickling look their module up
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[found.name]
        raise InputError(f"importing {path} raised {_named(error)}") from error
    return module


def _from_package(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise InputError(f"no module {missing!r} here or among the installed ones: {FORMS}") from error
        raise InputError(f"importing {name} raised {_named(error)}: install it into this environment") from error
    except Exception as error:
        raise InputError(f"importing {name} raised {_named(error)}") from error


def _function(module: ModuleType, name: str, where: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    own = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__ and n[0] != "_"]
    raise InputError(f"{where} has no function {name!r}; it has {', '.join(own) or 'none'}")


def _call(spec: str, function: Callable[..., Any], options: Options) -> Loaded:
    """Call under the device of the options; what cannot be built on the meta device is built for real."""
    import torch

    _check_parameters(spec, function, options.given)
    devices = dict.fromkeys((options.device, "cpu"))
    for device in devices:
        try:
            with torch.device(device):
                result = function(**options.given)
        except InputError:
            raise
        except RuntimeError as error:  # what torch raises where values of meta tensors are read
            if device == list(devices)[-1]:
                raise InputError(f"{spec} raised {_named(error)}") from error
        except Exception as error:
            raise InputError(f"{spec} raised {_named(error)}") from error
        else:
            return _checked(spec, result)
    raise AssertionError("one of the devices returned or raised")


def _check_parameters(spec: str, function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    takes = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if unknown := [name for name in given if name not in takes]:
        raise InputError(f"{spec} takes no {unknown[0]!r}: leave out --{unknown[0]}, or add that parameter to the function")
    if needed := [
        p.name for p in parameters if p.default is p.empty and p.name not in given and p.kind is not p.VAR_POSITIONAL
    ]:
        raise InputError(f"{spec} needs {', '.join(needed)}, which have no default: give each a default or its option")


def _checked(spec: str, result: Any) -> Loaded:
    from torch import nn

    parts = result if isinstance(result, tuple) else (result,)
    model, args, kwargs = parts if len(parts) == 3 else (parts[0], (), parts[1]) if len(parts) == 2 else (None, (), {})
    if not isinstance(model, nn.Module) or not isinstance(args, tuple | list) or not isinstance(kwargs, Mapping):
        got = ", ".join(type(part).__name__ for part in parts)
        raise InputError(f"{spec} returned ({got}): {RETURNS}, with a torch.nn.Module, a tuple and a dict of inputs by name")
    return Loaded(name=type(model).__name__, model=model.train(), args=tuple(args), kwargs=dict(kwargs))


def _named(error: Exception) -> str:
    """The exception with the last line of the user's own code that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and f.filename != __file__ and not f.filename.startswith("<")]
    where = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {error}{where}"
