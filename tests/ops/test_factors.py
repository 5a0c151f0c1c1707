"""Unification of factor lists: merged where equal, split where larger, refused where loops do not nest."""

from __future__ import annotations

import itertools
import math

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.ops.factors import CannotUnify, Space, local_shape, quotient


def space_of(**sizes: int | sympy.Expr) -> Space:
    space = Space()
    for name, size in sizes.items():
        space.new(name, size, marks=[name])
    return space


def test_equal_factors_merge_with_their_marks() -> None:
    space = space_of(a=4, b=4)
    space.unify(["a"], ["b"])
    (left,) = space.leaves(["a"])
    assert space.leaves(["b"]) == [left]
    assert space.sizes == {left: 4}
    assert space.marks[left] == {"a", "b"}


def test_larger_factor_splits_outermost_first() -> None:
    """(batch seq) against batch, seq: the coarse loop is outside."""
    space = space_of(t=24, b=4, s=6)
    space.unify(["t"], ["b", "s"])
    assert space.leaves(["t"]) == space.leaves(["b", "s"])
    assert [space.sizes[f] for f in space.leaves(["t"])] == [4, 6]
    assert all("t" in space.marks[f] for f in space.leaves(["t"]))


def test_split_reaches_earlier_users() -> None:
    space = space_of(a=24, b=4, c=6, d=2, e=3)
    space.unify(["a"], ["b", "c"])
    space.unify(["c"], ["d", "e"])
    assert [space.sizes[f] for f in space.leaves(["a"])] == [4, 2, 3]
    assert space.resolve((("a",), ("d", "e"))) == (tuple(space.leaves(["a"])), tuple(space.leaves(["a"])[1:]))


def test_dynamic_sizes() -> None:
    n, m = sympy.symbols("n m", positive=True, integer=True)
    space = space_of(t=n * m, b=n, s=m)
    space.unify(["t"], ["b", "s"])
    assert [space.sizes[f] for f in space.leaves(["t"])] == [n, m]
    assert quotient(n * m, m) == n
    assert quotient(n, m) is None


@pytest.mark.parametrize(("left", "right"), [((4, 6), (3, 8)), ((4, 9), (6, 6)), ((4,), (2,))], ids=str)
def test_loops_that_do_not_nest(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    space = Space()
    a, b = ([space.new("f", n) for n in sizes] for sizes in (left, right))
    with pytest.raises(CannotUnify):
        space.unify(a, b)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([2, 3, 4, 5]), min_size=1, max_size=5), st.data())
def test_any_two_groupings_of_the_same_loops_unify(sizes: list[int], data: st.DataObject) -> None:
    """Both sides become the same list, whose sizes multiply to what they were, dim by dim."""

    def grouped() -> list[int]:
        cuts = sorted(data.draw(st.sets(st.integers(1, len(sizes) - 1)))) if len(sizes) > 1 else []
        return [math.prod(sizes[a:b]) for a, b in itertools.pairwise([0, *cuts, len(sizes)])]

    left, right = grouped(), grouped()
    space = Space()
    a, b = ([space.new(letter, n) for n in of] for letter, of in (("l", left), ("r", right)))
    space.unify(a, b)
    assert space.leaves(a) == space.leaves(b)
    assert local_shape(space.resolve(tuple((f,) for f in a)), space.sizes) == tuple(left)
    assert local_shape(space.resolve(tuple((f,) for f in b)), space.sizes) == tuple(right)
