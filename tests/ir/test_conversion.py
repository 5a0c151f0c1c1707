"""Conversions: the table against the gradients of its placements, scrambling refused, and the list of ways onward."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.ir.conversion import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    REDUCE_SCATTER,
    TABLE,
    Conversion,
    ConversionKind,
    conversions,
    conversions_from,
)
from autopar.ir.placement import DUAL, Placement, placements

BY_HAND = {
    ("S", "R"): ALL_GATHER,
    ("S", "I"): ALL_GATHER,
    ("P", "I"): ALL_REDUCE,
    ("P", "R"): ALL_REDUCE,
    ("P", "S"): REDUCE_SCATTER,
    ("S", "S"): ALL_TO_ALL,
    ("I", "R"): None,
    ("I", "S"): None,
    ("R", "S"): None,
    ("R", "I"): None,
    ("I", "I"): None,
    ("R", "P"): None,
    ("S", "P"): None,
    ("I", "P"): None,
}
"""What a value needs to get from one state to another; the last four only gradients do (all but one device may zero)."""


@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.name)
def test_backward_is_the_conversion_between_the_dual_placements(kind: ConversionKind) -> None:
    assert kind.forward == BY_HAND[kind.before, kind.after]
    gradient_before, gradient_after = DUAL.get(kind.after, "S"), DUAL.get(kind.before, "S")
    assert kind.backward == BY_HAND[gradient_before, gradient_after]


def test_every_ordered_pair_is_in_the_table_or_has_no_use() -> None:
    missing = {(a, b) for a in "SRIP" for b in "SRIP" if a != b} - {(k.before, k.after) for k in TABLE}
    assert missing == {("S", "P"), ("R", "P"), ("I", "P")}


def p(text: str) -> Placement:
    return Placement.parse(text)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("S(0), S(0)", "R, S(0)"),  # pops the outer axis
        ("S(0), S(0)", "S(1), S(0)"),
        ("R, S(0)", "S(0), S(0)"),  # would have to cut outside the inner one
    ],
)
def test_scrambling_is_refused(before: str, after: str) -> None:
    with pytest.raises(ValueError, match="scramble"):
        Conversion(p(before), p(after))


@pytest.mark.parametrize(("before", "after"), [("R, R", "R, R"), ("R, I", "S(0), S(0)"), ("P, R", "R, I")])
def test_one_axis_changes(before: str, after: str) -> None:
    with pytest.raises(ValueError, match="one axis"):
        Conversion(p(before), p(after))


@pytest.mark.parametrize(("before", "after"), [("R", "P"), ("S(0)", "P"), ("I", "P")])
def test_nothing_becomes_partial(before: str, after: str) -> None:
    with pytest.raises(ValueError, match="no conversion"):
        Conversion(p(before), p(after))


def test_a_new_shard_may_nest_against_mesh_order() -> None:
    inward = Conversion(p("I, S(0)"), p("I, S(0)").replace(0, 0))
    assert (inward.axis, inward.kind.name, inward.dims) == (0, "slice", (None, 0))
    assert str(inward.after) == "S(0), S(0) nested 1 0"


def ways(text: str, shape: tuple[int, ...] = (4, 6), sizes: tuple[int, ...] = (2, 2), **options: bool) -> set[str]:
    return {str(c.after) for c in conversions_from(p(text), shape, sizes, **options)}


def test_ways_onward_by_hand() -> None:
    assert ways("I", sizes=(2,)) == {"R", "S(0)", "S(1)"}
    assert ways("S(0)", sizes=(2,)) == {"R", "I", "S(1)"}
    assert ways("P", sizes=(2,)) == {"I", "S(0)", "S(1)"}
    assert ways("R", sizes=(2,)) == set()
    assert ways("I", sizes=(2,), differentiable=False) == {"S(0)", "S(1)"}
    # dim 1 has 6 elements: not cut by both axes; the outer axis of dim 0 is not popped; axis 0 nests in no inner one
    assert ways("S(0), S(0)") == {"S(0), R", "S(0), I", "S(0), S(1)"}
    assert ways("S(1), I") == {"R, I", "I, I", "S(0), I", "S(1), R", "S(1), S(0)"}
    assert ways("I, S(0)") == {"R, S(0)", "S(1), S(0)", "I, R", "I, I", "I, S(1)"}


def test_every_way_onward_is_a_placement_of_the_tensor() -> None:
    everywhere = set(placements((4, 8), (2, 2)))
    for before in everywhere:
        for conversion in conversions_from(before, (4, 8), (2, 2)):
            assert conversion.before == before
            assert conversion.after in everywhere


SIZES = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 8, 12, 24, 36]), max_size=3)
LETTERS = st.sampled_from([("R", "I"), ("R", "I", "P"), ("I",)])


@given(SHAPES, SIZES, LETTERS, st.booleans())
def test_all_conversions_of_a_shape_are_the_ways_onward_from_each_placement(
    shape: list[int], sizes: list[int], letters: tuple[str, ...], differentiable: bool
) -> None:
    everywhere = placements(shape, sizes, letters)
    one_by_one = [c for before in everywhere for c in conversions_from(before, shape, sizes, differentiable=differentiable)]
    wanted = [c for c in one_by_one if c.after in set(everywhere)]
    assert list(conversions(shape, sizes, letters, differentiable=differentiable)) == wanted


def test_uneven_pieces_are_sent_with_their_padding() -> None:
    """[97, 6] over 2x4 devices, the first axis cutting dim 1: 25 rows each of 3 columns, 100 rows on their way."""
    shape, sizes = (97, 6), (2, 4)
    gather = Conversion(p("S(1), S(0)"), p("S(1), R"))
    assert gather.lengths(shape, sizes) == (97, None)
    assert [gather.sent(kind, shape, sizes) for kind in (ALL_GATHER, REDUCE_SCATTER)] == [300, 300]
    inner = Conversion(p("I, S(0)"), p("I, S(1)"))
    assert inner.lengths(shape, sizes) == (97, 6)
    assert inner.sent(ALL_TO_ALL, shape, sizes) == 25 * 8
    even = Conversion(p("S(1), S(0)"), p("I, S(0)"))
    assert even.lengths(shape, sizes) == (None, None)
    assert even.sent(ALL_GATHER, shape, sizes) == 25 * 6
    nested = Conversion(p("S(0), S(0)"), p("S(0), R"))
    assert nested.lengths((14, 3), sizes) == (7, None)
    assert nested.sent(ALL_GATHER, (14, 3), sizes) == 8 * 3


def test_uneven_placements_are_reached_by_the_same_rows_of_the_table() -> None:
    found = conversions((97, 6), (4,), ("R", "I", "P"), ragged=(0,))
    assert {f"{c.before} {c.after}" for c in found} == {"S(0) R", "S(0) I", "I R", "I S(0)", "P I", "P S(0)"}
    assert {f"{c.before} {c.after}" for c in conversions((97, 6), (4,), ("R", "I", "P"))} == {"I R", "P I"}
