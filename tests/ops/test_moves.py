"""The copies that conversions are priced with are those that they make."""

import pytest
import torch

from autopar.ir.conversion import SEARCHED, Conversion, Moves, moves
from autopar.ir.placement import Placement, State
from autopar.ops.collectives import FUNCTIONS, arguments
from autopar.ops.joint import Joint, TensorLike, bytes_of, owner, trace_joint

SHAPE, SIZE = (4, 6, 8), 2
UNEVEN = (201, 203, 205)


def joint_of(conversion: Conversion, whole: tuple[int, ...]) -> Joint:
    """One conversion alone, with its backward, on the pieces of a whole tensor of float32."""
    graph = torch.fx.Graph()
    x, coordinate = graph.placeholder("x"), graph.placeholder("coordinate")
    length, _ = conversion.lengths(whole, (SIZE,))
    given = arguments(conversion.kind, conversion.dims, "gpu", SIZE, coordinate, length)
    graph.output((graph.call_function(FUNCTIONS[conversion.kind.name], (x, *given)),))
    local = TensorLike(shape=conversion.before.local_shape(whole, (SIZE,)), dtype=torch.float32, needs_grad=True)
    return trace_joint(graph, [local, TensorLike(shape=(), dtype=torch.int64, needs_grad=False)], [True])


def copied_bytes(nodes: list[torch.fx.Node]) -> int:
    """Of all memory that is filled by no collective."""
    made = [n for n in nodes if owner(n) is n and n.target.namespace != "_c10d_functional"]
    return sum(bytes_of(n) for n in made if n.meta["val"].numel() > SIZE)


def priced_bytes(copies: Moves, source: int, target: int) -> int:
    return copies.source * source + copies.target * target + copies.smaller * min(source, target)


def states(letter: str) -> list[State]:
    return [0, 1, 2] if letter == "S" else [letter]


CASES = [
    Conversion(Placement((old,)), Placement((new,)))
    for kind in SEARCHED
    for old in states(kind.before)
    for new in states(kind.after)
    if old != new
]


@pytest.mark.parametrize("whole", [SHAPE, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("conversion", CASES, ids=lambda c: f"{c.kind.name} {c.before} {c.after}")
def test_copies_are_priced(conversion: Conversion, whole: tuple[int, ...]) -> None:
    """What is padded, but for the padding."""
    joint, kind, lengths = joint_of(conversion, whole), conversion.kind, conversion.lengths(whole, (SIZE,))
    source, target = (4 * torch.Size(p.local_shape(whole, (SIZE,))).numel() for p in (conversion.before, conversion.after))
    forward, backward = (
        moves(conversion, kind.forward, lengths=lengths),
        moves(conversion, kind.backward, back=True, lengths=lengths),
    )
    exact = 0 if whole == SHAPE else 0.02
    assert copied_bytes(joint.forward) == pytest.approx(priced_bytes(forward, source, target), rel=exact, abs=0)
    assert copied_bytes(joint.backward) == pytest.approx(priced_bytes(backward, target, source), rel=exact, abs=0)
