"""The model as a tree: from the plan alone, and with what its graphs say."""

from __future__ import annotations

from autopar.hardware import load
from autopar.planning.simulate import simulate
from autopar.report.anatomy import anatomy
from autopar.report.tree import Module, Op, marks, tree
from tests.planned import planned
from tests.small_plan import small_plan


def outline(module: Module) -> list[str]:
    """Names with their depth, in order."""
    found = [module.name]
    for part in module.parts:
        found += [f"  {line}" for line in (outline(part) if isinstance(part, Module) else [f"- {part.name}"])]
    return found


def ops(module: Module) -> dict[str, Op]:
    """By module and name."""
    found: dict[str, Op] = {}
    for part in module.parts:
        if isinstance(part, Module):
            found |= {f"{part.name}.{name}": op for name, op in ops(part).items()}
        else:
            found[part.name] = part
    return found


def test_a_plan_alone() -> None:
    plan = small_plan()
    assert outline(tree(plan)) == [
        "TinyModel",
        "  - arange",
        "  - mask",
        "  - index",
        "  wte",
        "    - embedding",
        "  h.*",
        "    ln",
        "      - layer_norm",
        "    fc",
        "      - addmm",
        "    - add",
        "  - cross_entropy_loss",
    ]


def test_what_a_plan_alone_says_of_an_op() -> None:
    found = ops(tree(small_plan()))
    fc = found["h.*.fc.addmm"]
    (weight,) = [edge for edge in fc.before if edge.parameter]
    assert [str(weight.start), *(str(step.after) for step, _ in weight.steps)] == ["S(1), S(0)", "S(1), R", "R, R"]
    assert weight.marks == (("calls 0–1", "again"), ("calls 2–3", "keep R,R"))
    (result,) = fc.after
    assert [str(result.start), str(result.end)] == ["S(0), P", "S(0), S(1)"]
    assert fc.marks == (("calls 0–1", "redo"),)
    assert found["h.*.ln.layer_norm"].marks == (("calls 0–1", "redo"), ("calls 2–3", "inside"))
    assert [edge.tensor for edge in found["h.*.ln.layer_norm"].before] == ["weight", "wte"], (
        "a parameter, and the region's input"
    )
    assert str(found["cross_entropy_loss"].result) == "P, I"
    assert [op.minor for name, op in found.items() if name in ("arange", "mask", "index")] == [True] * 3


def test_neighbours_with_the_same_mark_are_said_once() -> None:
    one, other, third = small_plan().regions["h.*"].classes
    assert marks([(one, "keep"), (other, "keep"), (third, "redo")]) == (("calls 0–1", "keep"), ("calls 2–3", "redo"))
    assert marks([(one, "keep"), (other, "keep")]) == (("", "keep"),)
    assert marks([(one, "")]) == ()


def test_with_graphs_every_op_has_a_result_and_times_add_up() -> None:
    plan, emitted, _ = planned("gpt2", "2x2")
    timeline = simulate(emitted, load("cpu"))
    root = tree(plan, anatomy(emitted, timeline))
    found = ops(root)
    assert len(found) == sum(len(region.units) for region in plan.regions.values()) == root.ops
    assert all(op.result is not None for op in found.values())
    (layer,) = [part for part in root.child("transformer").parts if isinstance(part, Module) and part.name == "h.*"]
    assert (layer.calls, layer.name) == (2, "h.*")
    names = [part.name for part in layer.parts if isinstance(part, Module)]
    assert names == ["ln_1", "attn", "ln_2", "mlp"]
    computed_s = sum(e.end_s - e.start_s for e in timeline.events if e.track == "compute")
    assert 0.9 * computed_s < root.seconds <= computed_s * (1 + 1e-9), "conversions copy, and units do the rest"


def test_plan_and_graphs_say_the_same_of_modules_and_readers() -> None:
    plan, emitted, _ = planned("gpt2", "2x2")
    alone, inside = tree(plan), tree(plan, anatomy(emitted, simulate(emitted, load("cpu"))))
    assert outline(alone) == outline(inside)
    before = {name: [edge.tensor for edge in op.before] for name, op in ops(alone).items()}
    assert before == {name: [edge.tensor for edge in op.before] for name, op in ops(inside).items()}
