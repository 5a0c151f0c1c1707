"""Cutting and joining tensors, as `autopar.ops.proof` does it."""

from __future__ import annotations

from autopar.ops.pieces import ANYTHING, collect, coordinates_of_ranks, cut, distribute, join

__all__ = ["ANYTHING", "collect", "coordinates_of_ranks", "cut", "distribute", "join"]
