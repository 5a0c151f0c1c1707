"""What autopar asks of torch's private names: if a torch release changes one of them, it shows here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
import torch.distributed as dist

from autopar.ir.local_ranks import local_ranks
from autopar.torch_private import by_rank, coordinates, fake_process_group, rank_map


@pytest.mark.parametrize("mesh", ["a=1", "a=3", "a=2,b=3", "a=2,b=1,c=2"])
def test_coordinates_are_the_places_on_the_mesh_in_row_major_order(mesh: str) -> None:
    with local_ranks(mesh) as devices:
        sizes = tuple(devices.shape)
        places = [by_rank(c) for c in coordinates(devices)]
        grid = torch.arange(devices.size()).view(sizes)
    for rank in range(grid.numel()):
        assert grid[tuple(place[rank] for place in places)] == rank


def test_tensors_made_before_are_shared_by_all_ranks() -> None:
    before = torch.ones(2)
    with local_ranks("2") as devices:
        assert devices.mesh_dim_names == ("gpu",)
        total = by_rank(before + rank_map(lambda rank: torch.full((2,), float(rank))))
    assert [value.tolist() for value in total.values()] == [[1, 1], [2, 2]]


@pytest.mark.parametrize("enter", [fake_process_group, local_ranks])
def test_an_error_inside_leaves_no_process_group_behind(enter: Callable[[int], AbstractContextManager[object]]) -> None:
    def fail() -> None:
        with enter(2):
            assert dist.is_initialized()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not dist.is_initialized()
