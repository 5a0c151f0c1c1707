"""Cutting whole tensors into pieces and back, over every placement; replicas that differ are seen."""

import pytest
import torch

from autopar.codegen.shards import (
    as_dtensor,
    coordinate_of,
    held,
    in_its_room,
    piece,
    replicas_differ,
    whole,
    with_padding,
    without_padding,
)
from autopar.ir.placement import Placement, placements

SIZES = (2, 2)
TENSOR = torch.arange(32.0).reshape(4, 8)
AGAINST_MESH_ORDER = Placement((0, 0), order=(1, 0))
ALL = [*placements((4, 8), SIZES, letters=("R", "I")), AGAINST_MESH_ORDER]


def pieces_of(placement: Placement) -> dict[int, torch.Tensor]:
    return {rank: piece(TENSOR, placement, coordinate_of(rank, SIZES), SIZES).clone() for rank in range(4)}


@pytest.mark.parametrize("placement", ALL, ids=str)
def test_pieces_make_the_whole_again(placement: Placement) -> None:
    pieces = pieces_of(placement)
    assert {tuple(p.shape) for p in pieces.values()} == {placement.local_shape((4, 8), SIZES)}
    assert torch.equal(whole(pieces, placement, SIZES), TENSOR)
    assert replicas_differ(pieces, placement, SIZES) == 0.0


def test_two_axes_on_one_dim_nest_in_their_order() -> None:
    assert {str(p) for p in ALL} >= {"S(0), S(0)", "S(1), S(1)", "S(0), S(0) nested 1 0"}
    rows = {rank: int(p[0, 0]) // 8 for rank, p in pieces_of(Placement((0, 0))).items()}
    assert rows == {0: 0, 1: 1, 2: 2, 3: 3}
    rows = {rank: int(p[0, 0]) // 8 for rank, p in pieces_of(AGAINST_MESH_ORDER).items()}
    assert rows == {0: 0, 1: 2, 2: 1, 3: 3}
    assert not torch.equal(whole(pieces_of(AGAINST_MESH_ORDER), Placement((0, 0)), SIZES), TENSOR)


@pytest.mark.parametrize(
    ("placement", "rank"), [(p, rank) for p in ALL for rank in (1, 2, 3) if set(p.states) & {"R", "I"}], ids=str
)
def test_a_replica_that_differs_is_seen(placement: Placement, rank: int) -> None:
    pieces = pieces_of(placement)
    pieces[rank][-1, -1] += 0.5
    assert replicas_differ(pieces, placement, SIZES) == 0.5


def test_coordinates_are_row_major() -> None:
    assert [coordinate_of(rank, (2, 3)) for rank in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_dtensor_speaks_only_of_mesh_order() -> None:
    assert [str(p) for p in as_dtensor(Placement((0, "I")))] == ["S(0)", "R"]
    with pytest.raises(AssertionError):
        as_dtensor(AGAINST_MESH_ORDER)


@pytest.mark.parametrize("placement", [Placement((0, "I")), Placement((0, 0)), Placement((1, 0)), Placement((1, "I"))], ids=str)
def test_pieces_of_different_sizes(placement: Placement) -> None:
    """[6, 7] on 2x2: each device knows which part it has, with padding all are alike."""
    tensor = torch.arange(42.0).reshape(6, 7) + 1
    pieces = {rank: piece(tensor, placement, coordinate_of(rank, SIZES), SIZES) for rank in range(4)}
    assert torch.equal(whole(pieces, placement, SIZES), tensor)
    local = placement.local_shape(tensor.shape, SIZES)
    for rank, part in pieces.items():
        ranges = held(tensor.shape, placement, coordinate_of(rank, SIZES), SIZES)
        assert torch.equal(tensor[tuple(slice(*r) for r in ranges)], part)
        padded = with_padding(part, local)
        assert padded.shape == local
        assert torch.equal(without_padding(padded, part.shape), part)
        assert padded.count_nonzero() == part.numel()


def test_a_piece_with_room_behind_it_is_not_copied() -> None:
    part = torch.ones(3, 2)
    roomy = without_padding(with_padding(part, (4, 2)), (3, 2))
    assert in_its_room(roomy, (4, 2)).data_ptr() == roomy.data_ptr()
    for other in (part, torch.ones(9, 2)[:3], torch.ones(4, 2)[1:], torch.ones(2, 3).t()):
        padded = in_its_room(other, (4, 2))
        assert padded.data_ptr() != other.data_ptr()
        assert padded.tolist() == [[1.0, 1.0]] * 3 + [[0.0, 0.0]]
    assert in_its_room(part, (3, 2)) is part
