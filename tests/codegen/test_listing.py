"""The listing of emitted graphs, word for word: Megatron's pair of products in three layers, on two devices."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import torch

from autopar.api import plan_program
from autopar.codegen.emit import Emitted, emit
from autopar.codegen.listing import listing
from autopar.ir.constraints import Constraints
from autopar.ir.conversion import TABLE
from autopar.ir.mesh import MeshSpec
from autopar.ir.plan import Plan
from autopar.ir.program import Program
from autopar.tracer import trace
from tests.codegen.three_layers import ThreeLayers
from tests.hardware_toy import toy_hardware

GOLDEN = Path(__file__).parent.parent / "golden" / "listing.txt"
PLAN = GOLDEN.with_suffix(".json")
"""The plan of the listing, so that it does not change with prices; figures in it are nobody's concern here."""

PINS = ("layers.*.up: tensor=gpu", "layers.*.down: tensor=gpu")


@cache
def program(precision: str | None = None) -> Program:
    with torch.device("meta"):
        return trace(ThreeLayers(), (), {"x": torch.empty(4, 8)}, name="ThreeLayers", precision=precision)


def planned(precision: str | None = None) -> Emitted:
    spec, constraints = MeshSpec.of("2"), Constraints(pins=PINS)
    return plan_program(program(precision), spec, hardware=toy_hardware(), constraints=constraints)[1]


@cache
def emitted() -> Emitted:
    return emit(program(), Plan.load(PLAN).model_copy(update={"fingerprint": program().fingerprint}))


def layers(text: str) -> str:
    """The program, and the region that is called twice."""
    program, *regions = text.split("\n\n\n")
    return "\n\n\n".join([program, *(r for r in regions if r.startswith("# layers.*"))])


def test_the_listing_of_three_layers() -> None:
    """The first layer is its own region: no gradient leaves it."""
    assert layers(listing(emitted())) == GOLDEN.read_text(encoding="utf-8").removesuffix("\n")


def test_every_node_that_runs_is_listed_once_per_pair_of_graphs_with_what_it_is() -> None:
    text = listing(emitted())
    assert "# layers.*: layers.1, layers.2" in text
    assert text.count("def layers_forward(") == text.count("def layers_backward(") == 1, "both calls run one pair of graphs"
    for region in emitted().regions.values():
        for halves in region.classes:
            for node in (*halves.forward.nodes, *halves.backward.nodes):
                if node.op == "call_function":
                    assert f"    {node.name}" in text
                    assert node.meta["step"] is not None
    said = set(re.findall(r"# (?:again: )?(?:gradient of )?(\w+) \w+ on gpu: ", text))
    assert said
    assert said <= {kind.name for kind in TABLE}
    assert "# up three_layers.py:14" in text
    assert "# gradient of up three_layers.py:14" in text


def test_casts_of_parameters_are_named() -> None:
    text = listing(planned("compute=bfloat16,reduce=float32"))
    assert "# up_weight in the dtype that is computed in" in text
    assert re.search(r"up_weight_\w+: bf16\[", text)


if __name__ == "__main__":
    if not PLAN.exists():
        planned().plan.save(PLAN)
    GOLDEN.write_text(layers(listing(emitted())) + "\n", encoding="utf-8")
