"""Placements: text, canonical order, local shapes, and the list of all that fit a shape."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopar.ir.placement import Placement, State, piece_size, placements

STATES: st.SearchStrategy[State] = st.one_of(st.integers(0, 2), st.sampled_from("RIP"))


@st.composite
def any_placement(draw: st.DrawFn) -> Placement:
    states = tuple(draw(st.lists(STATES, min_size=1, max_size=4)))
    sharding = [axis for axis, state in enumerate(states) if isinstance(state, int)]
    return Placement(states, tuple(draw(st.permutations(sharding))))


def canonical(placement: Placement) -> bool:
    """Read off the definition: the order lists the axes by the dims of the sharding axes in mesh order."""
    sharding = [axis for axis, state in enumerate(placement.states) if isinstance(state, int)]
    return [placement.states[a] for a in placement.order] == [placement.states[a] for a in sharding]


@given(any_placement())
def test_text_reads_back(placement: Placement) -> None:
    assert Placement.parse(str(placement)) == placement
    assert hash(Placement.parse(str(placement))) == hash(placement)


@given(any_placement(), st.data())
def test_replace_keeps_the_canonical_form_and_nests_innermost(placement: Placement, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(placement.states) - 1))
    state = data.draw(STATES)
    replaced = placement.replace(axis, state)
    assert canonical(replaced)
    assert replaced.states == (*placement.states[:axis], state, *placement.states[axis + 1 :])
    assert Placement(replaced.states, replaced.order) == replaced
    if isinstance(state, int):
        assert replaced.axes_of(state) == (*(a for a in placement.axes_of(state) if a != axis), axis)
    for dim in set(placement.sharded_dims()) - {state}:
        assert replaced.axes_of(dim) == tuple(a for a in placement.axes_of(dim) if a != axis)


@given(any_placement())
def test_the_gradient_of_the_gradient_is_the_placement(placement: Placement) -> None:
    assert placement.gradient().gradient() == placement
    assert placement.gradient().order == placement.order


def test_gradients_are_those_of_the_four_letters() -> None:
    assert Placement((0, "R", "I", "P")).gradient() == Placement((0, "P", "I", "R"))


def test_order_between_different_dims_means_nothing() -> None:
    assert Placement((0, 1), order=(1, 0)) == Placement((0, 1))
    assert Placement((0, 0), order=(1, 0)) != Placement((0, 0))


def test_order_must_name_the_sharding_axes() -> None:
    with pytest.raises(ValueError, match=r"order \(0,\) must name exactly the sharding axes \[1\]"):
        Placement(("I", 0), order=(0,))


@pytest.mark.parametrize("text", ["S", "S(-1)", "S(x)", "Q", "R,I", "R "])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is none of"):
        Placement.parse(text)


def test_local_shapes() -> None:
    twice = Placement((0, 0, "R"))
    assert twice.parts(0, (2, 3, 5)) == 6
    assert twice.local_shape((12, 8), (2, 3, 5)) == (2, 8)
    assert twice.local_fraction((2, 3, 5)) == pytest.approx(1 / 6)
    assert Placement((0, 1, "I")).local_shape((12, 9), (2, 3, 5)) == (6, 3)
    assert not twice.divides((8, 8), (2, 3, 5))
    assert not Placement((2,)).divides((8, 8), (2,))


def test_all_placements_of_a_small_tensor() -> None:
    found = {str(p) for p in placements((2, 6), (2, 3), letters=("I",))}
    assert found == {"S(0), S(1)", "S(0), I", "S(1), S(1)", "S(1), I", "I, S(1)", "I, I"}
    assert len(list(placements((4, 8), (2, 2)))) == 25
    assert "S(0), S(0)" not in {str(p) for p in placements((2, 8), (2, 2))}


@given(
    st.lists(st.integers(0, 40), max_size=3),
    st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3),
    st.sampled_from([("I",), ("R", "I", "P")]),
)
def test_placements_are_all_combinations_that_cut_evenly(shape: list[int], sizes: list[int], letters: tuple[str, ...]) -> None:
    combinations = itertools.product([*range(len(shape)), *letters], repeat=len(sizes))
    even = {
        states
        for states in combinations
        if all(
            (n and n % math.prod(size for size, s in zip(sizes, states, strict=True) if s == d) == 0) or d not in states
            for d, n in enumerate(shape)
        )
    }
    assert {placement.states for placement in placements(shape, sizes, letters)} == even


@given(st.integers(1, 60), st.integers(1, 9))
def test_uneven_pieces_are_those_of_torch(n: int, count: int) -> None:
    pieces = [len(piece) for piece in torch.arange(n).chunk(count)]
    empty = len(pieces) < count
    assert piece_size(n, (count,)) == (None if empty else pieces[0])
    assert piece_size(n, (count,), ragged=False) == (pieces[0] if n % count == 0 else None)


def test_only_the_innermost_cut_may_be_uneven() -> None:
    assert piece_size(14, (2, 4)) == 2
    assert piece_size(14, (4, 2)) is None
    assert Placement((0, 0)).fits((14, 3), (2, 4))
    assert not Placement((0, 0)).fits((14, 3), (2, 4), ragged=(1,))
    assert not Placement((0, 0)).divides((14, 3), (2, 4))
    assert Placement((0, 0)).local_shape((14, 3), (2, 4)) == (2, 3)
    assert Placement((0, 0)).local_share((14, 3), (2, 4)) == pytest.approx(2 / 14)
    assert not Placement((2,)).fits((14, 3), (2,))


def test_ragged_dims_are_cut_unevenly_if_that_pads_little() -> None:
    def found(shape: tuple[int, ...], sizes: tuple[int, ...], *ragged: int) -> set[str]:
        return {str(p) for p in placements(shape, sizes, ("I",), ragged)}

    assert found((97, 6), (4,)) == {"I"}
    assert found((97, 6), (4,), 0) == {"I", "S(0)"}
    assert found((97, 6), (2,), 0) == {"I", "S(0)", "S(1)"}
    assert found((10, 6), (4,), 0) == {"I"}  # two rows of padding in ten
    assert found((98, 6), (2, 4), 0) == found((98, 6), (2, 4)) | {"I, S(0)", "S(0), S(0)", "S(1), S(0)"}
    assert found((96, 6), (2, 4), 0) == found((96, 6), (2, 4))
