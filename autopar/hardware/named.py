"""Links by the names that people give them: `nvlink` or `nvlink-4`, `infiniband-ndr`, `intra_node`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import ClassVar

from autopar.errors import HardwareError
from autopar.hardware.link import Link

LINKS_FILE = "links.json"


@dataclass(frozen=True, kw_only=True)
class NamedLinks:
    """The links that ship with the package; `sources` as in a hardware file."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    links: Mapping[str, Link]
    sources: Mapping[str, str]


@cache
def shipped_links() -> NamedLinks:
    """The contents of links.json."""
    import pydantic

    text = resources.files("autopar.hardware").joinpath(LINKS_FILE).read_text(encoding="utf-8")
    return pydantic.TypeAdapter(NamedLinks).validate_json(text)


def slug(name: str) -> str:
    """
    >>> slug("NVLink 4"), slug("intra_node")
    ('nvlink-4', 'intra-node')
    """
    return "-".join(name.lower().replace("_", " ").replace("-", " ").split())


def find_link(name: str, own: Mapping[str, Link], hardware: str) -> Link:
    """The link called `name`: among the hardware's own by key or name, else among the shipped ones.

    What follows the first words of a name may be left out where only one link begins with them. Raises HardwareError.
    """
    for links in (own, shipped_links().links):
        found = matches(slug(name), links)
        if len(found) == 1:
            return links[found[0]]
        if found:
            raise HardwareError(f"link {name!r} on {hardware} may be {' or '.join(found)}: name one of them")
    others = ", ".join(shipped_links().links)
    raise HardwareError(
        f"no link {name!r}: {hardware} has {', '.join(f'{key} ({link.name})' for key, link in own.items())}; "
        f"on any hardware there are {others}"
    )


def matches(wanted: str, links: Mapping[str, Link]) -> list[str]:
    """Keys of the links that `wanted` names exactly, or else of those that begin with its words; equal links once."""
    names = {key: {slug(key), slug(link.name)} for key, link in links.items()}
    exact = [key for key, own in names.items() if wanted in own]
    begun = [key for key, own in names.items() if any(name.startswith(f"{wanted}-") for name in own)]
    found = exact or begun
    return [key for i, key in enumerate(found) if links[key] not in [links[before] for before in found[:i]]]
