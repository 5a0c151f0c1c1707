"""Pages opened in a browser, as people do: nothing fails, nothing is fetched, what should answer answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from autopar.bytes import human
from autopar.report.evidence import Evidence
from autopar.report.page import page
from tests.report.browser import browser
from tests.report.pages import alone, deep, front, whole

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.slow
DESKTOP, PHONE = 1280, 380
PAINTED_S = 2.0
"""What opening a page with 126 layers may take: people wait for it."""

PAINTED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"
"""Milliseconds since the page was asked for, when it has been painted."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    evidence = {"whole": whole(), "alone": alone(), "front": alone(front()[2], front=front(), point=2)}
    return {name: written(found, tmp_path_factory.mktemp("pages") / f"{name}.html") for name, found in evidence.items()}


def written(evidence: Evidence, path: Path) -> Path:
    path.write_text(page(evidence), encoding="utf-8")
    return path


@dataclass
class Opened:
    """A page, and what happened in it that should not."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def tip(self) -> Locator:
        return self.page.locator("#tip")


@pytest.fixture
def opened(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """Without a file yet; parameters: (width, scheme)."""
    width, scheme = getattr(request, "param", (DESKTOP, "light"))
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    found = Opened(page=context.new_page())
    found.page.on("console", lambda message: found.complaints.append(message.text))
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    found.page.on("request", lambda asked: found.asked.append(asked.url))
    yield found
    context.close()


VIEWS = [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")]


@pytest.mark.parametrize("opened", VIEWS, indirect=True, ids=lambda view: f"{view[0]} {view[1]}")
@pytest.mark.parametrize("name", ["whole", "alone", "front"])
def test_nothing_fails_nothing_is_fetched_and_nothing_is_too_wide(opened: Opened, files: dict[str, Path], name: str) -> None:
    address = files[name].as_uri()
    opened.page.goto(address)
    assert opened.complaints == []
    assert opened.asked == [address]
    width = opened.page.viewport_size["width"] if opened.page.viewport_size else 0
    for state in ("open", "shut"):
        opened.page.locator(f"[data-fold={state}]").click()
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


def test_errors_requests_and_wide_pages_are_noticed(opened: Opened, tmp_path: Path) -> None:
    """What the test above holds is seen where it is broken."""
    path = tmp_path / "broken.html"
    path.write_text("<script>console.error('one'); nowhere()</script><img src='missing.png'><p style='width:3000px'>wide")
    opened.page.goto(path.as_uri())
    assert len(opened.complaints) >= 2
    assert len(opened.asked) == 2
    assert opened.page.evaluate("document.documentElement.scrollWidth") > DESKTOP


def test_modules_fold_and_unfold(opened: Opened, files: dict[str, Path]) -> None:
    opened.page.goto(files["whole"].as_uri())
    attention = opened.page.locator("#model details.module", has=opened.page.locator("> summary b", has_text="attn")).last
    op = attention.locator(".op").first
    assert op.is_visible()
    attention.locator("> summary").click()
    assert not op.is_visible()
    attention.locator("> summary").click()
    assert op.is_visible()
    opened.page.locator("[data-fold=shut]").click()
    assert opened.page.locator("#model .op").first.is_visible() is False
    opened.page.locator("[data-fold=open]").click()
    assert all(row.is_visible() for row in opened.page.locator("#model .op").all())


def test_folding_needs_no_script(chromium: Browser, files: dict[str, Path]) -> None:
    context = chromium.new_context(java_script_enabled=False)
    shown = context.new_page()
    shown.goto(files["whole"].as_uri())
    assert not shown.locator("#memory table").first.is_visible()
    shown.locator("#memory summary").click()
    assert shown.locator("#memory table").first.is_visible()
    assert not shown.locator(".tools").is_visible(), "buttons that would do nothing"
    context.close()


def test_the_peak_says_what_lives_there(opened: Opened, files: dict[str, Path]) -> None:
    opened.page.goto(files["whole"].as_uri())
    inside = whole().inside
    assert inside is not None
    assert not opened.tip.is_visible()
    opened.page.locator("[data-peak]").hover()
    told = opened.tip.inner_text()
    assert human(inside.memory.peak.total) in told
    assert inside.memory.peak.where in told
    listed = told.partition("the largest that live at the peak")[2]
    assert inside.memory.living[0].what in listed
    assert human(inside.memory.living[0].bytes) in listed
    opened.page.locator("h1").hover()
    assert not opened.tip.is_visible()


def test_other_moments_say_their_own_bytes_by_pointer_and_by_key(opened: Opened, files: dict[str, Path]) -> None:
    opened.page.goto(files["whole"].as_uri())
    canvas = opened.page.locator("#memory-plot .canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    opened.page.mouse.move(box["x"] + 0.05 * box["width"], box["y"] + 0.5 * box["height"])
    early = opened.tip.inner_text()
    opened.page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"])
    late = opened.tip.inner_text()
    assert "forward" in early
    assert "backward" in late
    assert "parameters and buffers" in late
    opened.page.locator("#memory-plot").focus()
    opened.page.keyboard.press("ArrowLeft")
    assert opened.tip.inner_text() not in (early, late)
    opened.page.keyboard.press("Escape")
    assert not opened.tip.is_visible()


def test_ops_on_the_timeline_and_placements_say_what_they_are(opened: Opened, files: dict[str, Path]) -> None:
    opened.page.goto(files["whole"].as_uri())
    opened.page.locator("#time .timeline").last.locator("rect").first.hover()
    assert "backward" in opened.tip.inner_text()
    opened.page.locator("#model .op .placement").first.hover()
    assert opened.tip.inner_text().startswith("[")


@pytest.mark.parametrize("opened", [(PHONE, "light")], indirect=True)
def test_words_are_large_enough_on_a_phone(opened: Opened, files: dict[str, Path]) -> None:
    opened.page.goto(files["whole"].as_uri())
    sizes = opened.page.evaluate(
        """[...document.querySelectorAll("main *")]
           .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.getClientRects().length)
           .filter(e => !e.closest(".mesh svg"))
           .map(e => parseFloat(getComputedStyle(e).fontSize))"""
    )
    assert len(sizes) > 100
    assert min(sizes) >= 11


def test_everything_is_open_on_paper(opened: Opened, files: dict[str, Path]) -> None:
    opened.page.goto(files["whole"].as_uri())
    opened.page.locator("[data-fold=shut]").click()
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.page.locator("details:not([open])").count() == 0
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.page.locator("#model details[open]").count() == 0


@pytest.mark.parametrize("opened", [(DESKTOP, "dark")], indirect=True)
def test_paper_is_white_also_where_the_screen_is_dark(opened: Opened, files: dict[str, Path]) -> None:
    opened.page.goto(files["whole"].as_uri())
    ground = "getComputedStyle(document.body).backgroundColor"
    assert opened.page.evaluate(ground) != "rgb(255, 255, 255)"
    opened.page.emulate_media(media="print")
    assert opened.page.evaluate(ground) == "rgb(255, 255, 255)"
    assert opened.page.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor") == "rgb(255, 255, 255)"


def test_126_layers_are_drawn_in_two_seconds(opened: Opened, tmp_path: Path) -> None:
    path = written(deep(), tmp_path / "deep.html")
    opened.page.goto(path.as_uri())
    painted_s = opened.page.evaluate(PAINTED) / 1000
    assert opened.page.locator("#model .calls").inner_text() == "× 126"
    assert opened.complaints == []
    assert 0 < painted_s < PAINTED_S
    assert path.stat().st_size < 2**20, "pages are mailed"
