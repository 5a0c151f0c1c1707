"""What the page says, with a model at hand and without, and that it asks for nothing."""

from __future__ import annotations

import math
import re

import pytest

from autopar.bytes import human
from autopar.hardware import load
from autopar.ir.mesh import MeshSpec
from autopar.planning.simulate import simulate
from autopar.report.evidence import Evidence, known_hardware
from autopar.report.mesh import draw
from autopar.report.page import asset, page
from autopar.report.verdict import bound_words, loads
from autopar.seconds import human_s
from tests.models import MODELS
from tests.report.pages import REMEDY, alone, by_known_way, evidence_of, front, read, whole
from tests.small_plan import FIGURES, small_plan

PANELS = ["mesh", "memory", "time", "model", "ways", "assumptions"]


@pytest.fixture(scope="module")
def complete() -> str:
    return page(whole())


def sections(text: str) -> list[str]:
    return [value for tag, name, value in read(text).attributes if tag == "section" and name == "id"]


def test_a_whole_page_has_all_panels_and_misses_nothing(complete: str) -> None:
    assert sections(complete) == PANELS
    assert 'class="absent"' not in complete
    assert read(complete).of("href") == [f"#{name}" for name in PANELS]


def test_the_verdict_says_the_plan_s_figures(complete: str) -> None:
    plan = whole().plan
    text = read(complete).text
    assert f"{human(plan.peak_bytes)} per device" in text
    assert f"({int(plan.peak_bytes):,} bytes)" in text
    assert "1.50× as fast as fsdp" in text, "ddp is faster, and does not fit"
    assert "No place here: ep" in text


def test_every_unit_is_there_with_its_line_of_code(complete: str) -> None:
    plan, text = whole().plan, read(complete).text
    assert complete.count('class="op"') == sum(len(region.units) for region in plan.regions.values())
    assert "modeling_gpt2.py:" in text
    assert "cpu" in text
    assert "autopar 1.2.3" in text


def test_without_a_model_the_page_is_of_the_plan_and_says_what_to_do() -> None:
    text = page(alone())
    assert sections(text) == PANELS
    assert text.count('class="absent"') == 4, "memory, time, known ways, and hardware that was not given"
    words = read(text).text
    assert words.count(REMEDY) == 3
    assert words.count("The plan does not say how its model is built.") == 3
    assert "What the solver counted at its worst point" in words
    assert "memory-plot" not in text.partition("<script>")[0]


def test_why_there_is_no_comparison() -> None:
    evidence = whole()
    without = Evidence(
        plan=evidence.plan, inside=evidence.inside, uncompared="--no-compare was given.", remedy="autopar report x"
    )
    text = read(page(without)).text
    assert "--no-compare was given. autopar report x" in text
    assert "as fast" not in text


def test_hardware_that_is_not_here_or_lacks_a_link_is_not_known() -> None:
    assert known_hardware("h100-sxm", MeshSpec.of("2x4")) is not None
    assert known_hardware("h100-sxm", MeshSpec.of("a=2@no-such-link,b=4")) is None
    assert known_hardware("no-such-device", MeshSpec.of("2x4")) is None


def test_a_front_is_drawn_and_its_point_marked() -> None:
    text = page(alone(front()[1], front=front(), point=1, front_complete=True))
    assert sections(text) == [*PANELS[:5], "front", "assumptions"]
    assert text.count("dot chosen") - asset("style.css").count("dot chosen") == 1
    words = read(text).text
    assert "point 2 of 3" in words
    assert "2 (this report)" in words
    assert "nothing smaller exists" in words
    assert sections(page(alone(front()[0], front=front()[:1]))) == PANELS, "one plan is no curve"


def test_what_bounds_the_step_is_what_is_busy_for_longest() -> None:
    plan = small_plan()
    assert [(load.name, round(load.seconds, 5)) for load in loads(plan)] == [("computation", 0.01234), ("gpu", 0.00086)]
    assert bound_words(plan) == "computation"
    sending = {"compute": 0.001, "communication on gpu": 0.02, "overlapped": -0.0078}
    assert bound_words(small_plan(figures=FIGURES | {"time_s": sending})) == "communication on gpu"


def test_figures_of_a_step_are_of_all_its_micro_batches() -> None:
    """The clock runs one of them; what the plan says of a step is the solver's, and of collectives it says one's."""
    emitted = by_known_way(*MODELS["gpt2"](layers=1), "2x2", "fsdp", micro_batches=4)
    plan, evidence = emitted.plan, evidence_of(emitted.plan, emitted)
    assert plan.micro_batches == 4
    assert evidence.inside is not None
    facts = evidence.inside.anatomy.values()
    compute_s = sum(unit.seconds for region in facts for unit in region.units.values())
    assert compute_s == pytest.approx(plan.figures.time_s["compute"], rel=0.05)
    carried = sum(edge.bytes for region in facts for edge in region.edges.values())
    assert carried == pytest.approx(4 * sum(c.bytes for c in plan.figures.collectives), rel=0.01)
    on_links = sum(edge.seconds for region in facts for edge in region.edges.values())
    once = [e for e in simulate(emitted, load("cpu")).events if e.track in plan.mesh.names and "tensor" in e.about]
    assert on_links == pytest.approx(4 * sum(event.end_s - event.start_s for event in once))
    found = read(page(evidence))
    assert f"{human_s(compute_s)} of computation in a step, all calls together" in found.of("title")
    for c in plan.figures.collectives:
        assert f"{human(4 * c.bytes)} in {4 * c.count}" in found.text.partition("All collectives of a step")[2]


def test_work_of_a_step_is_that_of_all_its_micro_batches() -> None:
    words = [read(page(alone(small_plan(micro_batches=n, figures=FIGURES | {"redone_flops": 3 * 10**9})))).text for n in (1, 4)]
    assert ["3 GFLOP again" in text for text in words] == [True, False]
    assert ["12 GFLOP again" in text for text in words] == [False, True]


def test_a_plan_without_budget_bound_or_collectives() -> None:
    plan = small_plan(budget_bytes=None, lower_bound_s=0.0, gap=0.0, figures=FIGURES | {"collectives": []})
    text = read(page(alone(plan))).text
    assert "no budget was given" in text
    assert "no bound is known" in text
    assert "every device works alone" in text


@pytest.mark.parametrize("sizes", [[1], [4], [64], [3, 2], [16, 8], [2, 2, 2], [2, 2, 2, 2], [9, 2, 12]])
def test_meshes_of_any_number_of_axes_are_drawn(sizes: list[int]) -> None:
    names = tuple("abcd"[: len(sizes)])
    plan = small_plan().model_copy(update={"mesh": MeshSpec(tuple(sizes), names)})
    text = draw(plan)
    drawn = read(text).tags
    most = 4 if len(sizes) > 2 else 8
    inner = [size if size <= most else most - 1 for size in sizes[-3:]]
    assert drawn.count("rect") == math.prod(inner)
    for axis, size in enumerate(sizes):
        assert (f"link ax{axis % 4}" in text) == (size > 1 and axis >= len(sizes) - 3)


def test_the_page_asks_for_nothing(complete: str) -> None:
    found = read(complete)
    assert {"link", "img", "iframe", "object", "use", "image"} & set(found.tags) == set()
    assert found.of("src") == []
    assert not [value for value in found.of("href") if not value.startswith("#")]
    assert re.findall(r"url\(|@import|https?://", asset("style.css") + asset("script.js")) == []
    assert any("default-src 'none'" in value for value in found.of("content"))


def test_headings_tables_and_pictures_can_be_read_aloud(complete: str) -> None:
    found = read(complete)
    assert found.tags.count("h1") == 1
    assert found.tags.count("th") == len([value for tag, name, value in found.attributes if (tag, name) == ("th", "scope")])
    pictures = [value for tag, name, value in found.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(pictures) == found.tags.count("svg")
    assert all(pictures)


def luminance(colour: str) -> float:
    """As WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def schemes() -> list[dict[str, str]]:
    """The colours of the style sheet: light, and dark on top of it."""
    light, dark = re.findall(r":root \{(.*?)\}", asset("style.css"), re.DOTALL)[:2]
    named = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", text)) for text in (light, dark)]
    return [named[0], named[0] | named[1]]


TEXT_ON = [
    *((text, ground) for text in ("text", "quiet", "accent") for ground in ("page", "card", "soft")),
    *((f"{name}-fg", f"{name}-bg") for name in ("ax0", "ax1", "ax2", "ax3", "sum", "whole", "keep", "again")),
    ("whole-fg", "card"),
    ("keep-fg", "card"),
    ("bad", "card"),
]


@pytest.mark.parametrize("scheme", schemes(), ids=["light", "dark"])
@pytest.mark.parametrize(("text", "ground"), TEXT_ON, ids=lambda name: str(name))
def test_text_stands_out_from_its_ground(scheme: dict[str, str], text: str, ground: str) -> None:
    assert contrast(scheme[text], scheme[ground]) >= 4.5


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
