"""Union-find: which things must share one decision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class UnionFind:
    """Groups named after their first member in the order given."""

    def __init__(self, members: Iterable[str]) -> None:
        self.parent = {member: member for member in members}
        self.rank = {member: i for i, member in enumerate(self.parent)}

    def find(self, member: str) -> str:
        while self.parent[member] != member:
            self.parent[member] = self.parent[self.parent[member]]
            member = self.parent[member]
        return member

    def join(self, members: Sequence[str]) -> None:
        for other in members[1:]:
            a, b = sorted((self.find(members[0]), self.find(other)), key=self.rank.__getitem__)
            self.parent[b] = a

    def names(self) -> dict[str, str]:
        return {member: self.find(member) for member in self.parent}
