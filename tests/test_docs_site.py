"""Links of pages that work on disk lead to the same things on the site (docs/hooks/repository.py); `make docs` builds it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    found = importlib.util.spec_from_file_location("docs_repository_hook", ROOT / "docs" / "hooks" / "repository.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A page that links to a script and to the README, which links to both and to a license."""
    for name, text in {
        "docs/page.md": "[a](../examples/a.py) [r](../README.md#top) `[no](../examples/b.py)` [web](https://x.y) [p](#here)",
        "docs/other.md": "# Other",
        "examples/a.py": "x = '```'\n",
        "examples/b.py": "",
        "README.md": "[page](docs/page.md#here) [a](examples/a.py) [l](LICENSE)",
        "LICENSE": "do as you like\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def moved(hook: ModuleType, checkout: Path, place: str, text: str) -> str:
    page: Any = SimpleNamespace(file=SimpleNamespace(src_uri=place))
    config: Any = SimpleNamespace(config_file_path=str(checkout / "mkdocs.yml"), docs_dir=str(checkout / "docs"))
    result: str = hook.on_page_markdown(text, page, config, files=None)
    return result


@pytest.mark.parametrize(
    ("place", "text", "wanted"),
    [
        ("page.md", "[a](../examples/a.py)", "[a](repository/examples/a.py.md)"),
        ("page.md", "[r](../README.md#top)", "[r](repository/README.md#top)"),
        ("page.md", "[o](other.md#x)", "[o](other.md#x)"),
        ("page.md", "[web](https://x.y) [p](#here)", "[web](https://x.y) [p](#here)"),
        ("repository/README.md", "[page](docs/page.md#here)", "[page](../page.md#here)"),
        ("repository/README.md", "[a](examples/a.py)", "[a](examples/a.py.md)"),
        ("page.md", "[gone](../gone.py)", "[gone](../gone.py)"),
        ("page.md", "see `[a](../examples/a.py)`", "see `[a](../examples/a.py)`"),
        ("page.md", "```\n[a](../examples/a.py)\n```\n", "```\n[a](../examples/a.py)\n```\n"),
    ],
)
def test_links_lead_to_where_things_lie_on_the_site(
    hook: ModuleType, checkout: Path, place: str, text: str, wanted: str
) -> None:
    assert moved(hook, checkout, place, text) == wanted


def test_what_is_linked_becomes_a_page_and_what_is_in_code_does_not(hook: ModuleType, checkout: Path) -> None:
    assert set(hook.linked(checkout / "docs/page.md", checkout)) == {checkout / "examples/a.py", checkout / "README.md"}


def test_a_script_is_shown_as_it_is(hook: ModuleType, checkout: Path) -> None:
    assert hook.as_page(checkout / "examples/a.py", checkout) == "# examples/a.py\n\n````python\nx = '```'\n````\n"
