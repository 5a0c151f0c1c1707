"""Hardware files: by the name of one that ships with the package, or by path; and writing one."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path

from autopar.errors import HardwareError
from autopar.hardware.device import Hardware
from autopar.hardware.named import LINKS_FILE


def known() -> tuple[str, ...]:
    """Names of the descriptions that ship with the package."""
    files = resources.files("autopar.hardware").iterdir()
    return tuple(sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json") and f.name != LINKS_FILE))


def load(name_or_path: str | Path) -> Hardware:
    """The description of that name, or in that JSON file; raises HardwareError with what to do instead."""
    name = str(name_or_path)
    if name in known():
        return _parse(resources.files("autopar.hardware").joinpath(f"{name}.json").read_text(encoding="utf-8"), name)
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HardwareError(
            f"no hardware {name!r} ({type(error).__name__}): give one of {', '.join(known())}, or the path of a JSON file"
        ) from error
    return _parse(text, name)


def to_json(hardware: Hardware) -> str:
    """The text of a file that `load` reads; what is empty is left out."""
    data = {key: value for key, value in asdict(hardware).items() if value not in ({}, None)}
    data["links"] = {
        key: {name: value for name, value in link.items() if value not in ({}, None)} for key, link in data["links"].items()
    }
    return json.dumps({"version": data.pop("version"), **data}, indent=2) + "\n"


def _parse(text: str, origin: str) -> Hardware:
    import pydantic

    try:
        return pydantic.TypeAdapter(Hardware).validate_json(text)
    except pydantic.ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise HardwareError(
            f"hardware file {origin!r} is malformed: {wrong}; compare it with one that ships with autopar"
        ) from error
