"""The mesh as a picture with its links, and what each axis is used for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autopar.bytes import human
from autopar.hardware import Link
from autopar.ir.plan import Plan
from autopar.planning.compare import sent_bytes
from autopar.render import by_key, traffic
from autopar.report.evidence import Evidence
from autopar.report.html import Content, Markup, html, panel, table, tag
from autopar.report.legend import axis_chip, axis_class
from autopar.report.scale import share
from autopar.report.verdict import COMMUNICATION
from autopar.seconds import human_s

MOST, MOST_OF_THREE = 8, 4
"""So many devices are drawn along an axis, of one or two and of three; of longer ones the first and the last."""
CELL, GAP, BLOCK = 22, 12, 30


def mesh_panel(evidence: Evidence) -> Markup:
    plan = evidence.plan
    sizes = " × ".join(f"{name} {size}" for name, size in zip(plan.mesh.names, plan.mesh.sizes, strict=True))
    lead = f"{plan.mesh.devices} devices as {sizes}: lines are the links that collectives of an axis run on."
    picture = tag("figure", draw(plan), class_="mesh")
    return panel("mesh", "Mesh", tag("div", picture, axis_table(evidence), class_="beside"), all_collectives(plan), lead=lead)


def moved(plan: Plan, links: Sequence[Link] | None) -> Mapping[str, float]:
    """By axis, in a step: the bytes that each device sends, or without links those that collectives carry."""
    if links is not None:
        return sent_bytes(plan, links)
    found: Counter[str] = Counter()
    for c in plan.figures.collectives:
        found[c.axis] += plan.micro_batches * c.bytes
    return found


def shown(size: int, most: int = MOST) -> list[int | None]:
    """Which of so many are drawn; None is the gap of those that are not.

    >>> shown(4), shown(64)
    ([0, 1, 2, 3], [0, 1, 2, 3, 4, 5, None, 63])
    """
    return list(range(size)) if size <= most else [*range(most - 2), None, size - 1]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Up to three axes as columns, rows and blocks of rows and columns; axes further out are said in words."""

    columns: list[int | None]
    rows: list[int | None]
    blocks: list[int | None]

    @property
    def width(self) -> int:
        return len(self.columns) * (CELL + GAP) - GAP

    @property
    def height(self) -> int:
        return len(self.rows) * (CELL + GAP) - GAP


def draw(plan: Plan) -> Markup:
    """An SVG with a viewBox; it is never wider than its natural size."""
    sizes, axes = list(plan.mesh.sizes), list(range(len(plan.mesh)))
    inner = sizes[-3:]
    padded = [1] * (3 - len(inner)) + inner
    numbers = [None] * (3 - len(inner)) + axes[-3:]
    most = MOST if padded[0] == 1 else MOST_OF_THREE
    grid = Grid(columns=shown(padded[2], most), rows=shown(padded[1], most), blocks=shown(padded[0], most))
    parts: list[Markup] = []
    step = grid.width + BLOCK
    for place, block in enumerate(grid.blocks):
        if block is None:
            parts.append(dots(place * step + grid.width / 2, grid.height / 2))
            continue
        parts += lines(grid, place * step, numbers)
        parts += cells(grid, place * step, padded, block)
    if numbers[0] is not None:
        parts.insert(0, line(0, -12, step * len(grid.blocks) - BLOCK, -12, numbers[0]))
        stubs = [place * step + grid.width / 2 for place, b in enumerate(grid.blocks) if b is not None]
        parts[1:1] = [line(x, -12, x, 0, numbers[0]) for x in stubs]
    width, top = step * len(grid.blocks) - BLOCK, -18 if numbers[0] is not None else -4
    height = grid.height + 8 - top
    names = " by ".join(f"{size} {name}" for name, size in zip(plan.mesh.names, sizes, strict=True))
    outer = f" (one of {' × '.join(map(str, sizes[:-3]))})" if len(sizes) > 3 else ""
    return html(
        [
            tag(
                "svg",
                parts,
                viewBox=f"-4 {top} {width + 8} {height}",
                width=width + 8,
                height=height,
                role="img",
                aria_label=f"mesh of {names} devices{outer}",
            ),
            tag("figcaption", f"{plan.mesh.names[len(sizes) - 4]} and further out are not drawn") if outer else None,
        ]
    )


def at(place: int) -> int:
    return place * (CELL + GAP)


def lines(grid: Grid, left: int, numbers: Sequence[int | None]) -> Iterable[Markup]:
    """Along each row the link of the innermost axis, along each column that of the next."""
    half = CELL / 2
    if numbers[2] is not None and len(grid.columns) > 1:
        for row, number in enumerate(grid.rows):
            if number is not None:
                yield line(left + half, at(row) + half, left + grid.width - half, at(row) + half, numbers[2])
    if numbers[1] is not None and len(grid.rows) > 1:
        for column, number in enumerate(grid.columns):
            if number is not None:
                x = left + at(column) + half
                yield line(x, half, x, grid.height - half, numbers[1])


def cells(grid: Grid, left: int, sizes: Sequence[int], block: int) -> Iterable[Markup]:
    for i, row in enumerate(grid.rows):
        for j, column in enumerate(grid.columns):
            x, y = left + at(j), at(i)
            if row is None or column is None:
                yield dots(x + CELL / 2, y + CELL / 2, "⋮" if column is not None else "⋯")
                continue
            rank = (block * sizes[1] + row) * sizes[2] + column
            yield tag(
                "g",
                tag("rect", x=x, y=y, width=CELL, height=CELL, rx=5),
                tag("text", rank, x=x + CELL / 2, y=y + CELL / 2 + 3, text_anchor="middle"),
                class_="device",
            )


def line(x1: float, y1: float, x2: float, y2: float, axis: int) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=f"link {axis_class(axis)}")


def dots(x: float, y: float, text: str = "⋯") -> Markup:
    return tag("text", text, x=x, y=y + 5, text_anchor="middle", class_="dots")


def axis_table(evidence: Evidence) -> Markup:
    plan = evidence.plan
    links = evidence.hardware.axis_links(plan.mesh) if evidence.hardware else None
    uses, carried = purposes(evidence), moved(plan, links)
    rows: list[list[Content]] = []
    for axis, (name, size) in enumerate(zip(plan.mesh.names, plan.mesh.sizes, strict=True)):
        link = links[axis] if links else None
        busy_s = plan.figures.time_s.get(f"{COMMUNICATION}{name}", 0.0)
        rows.append(
            [
                axis_chip(axis, name),
                size,
                [link.name, tag("small", f"{link.bytes_per_s / 1e9:g} GB/s, {human_s(link.latency_s)}")] if link else "?",
                words(uses[axis]) or "nothing",
                human(carried.get(name, 0.0)),
                [human_s(busy_s), tag("small", share(busy_s, plan.step_time_s) + " of the step")],
            ]
        )
    sends = "each device sends" if evidence.hardware else "collectives carry"
    return table(["axis", "devices", "link", "cuts", sends, "link busy"], rows)


def purposes(evidence: Evidence) -> list[Counter[str]]:
    """Per axis the roles of what it cuts, weighed by the time of the units where that is known, else by their number."""
    weights: list[Counter[str]] = [Counter() for _ in evidence.plan.mesh.names]
    for region, planned in evidence.plan.regions.items():
        facts = evidence.inside.anatomy[region].units if evidence.inside else {}
        calls = sum(c.calls for c in planned.classes)
        for name, unit in planned.units.items():
            weight = facts[name].seconds if name in facts else float(calls)
            for axis, (factor, role) in enumerate(zip(unit.factors, unit.roles, strict=True)):
                if factor is not None:
                    weights[axis][role or "other"] += weight  # type: ignore[assignment]
    return weights


def words(weights: Mapping[str, float]) -> str:
    """The largest three, with their shares.

    >>> words({"batch": 3.0, "tensor": 1.0}), words({"batch": 1.0}), words({})
    ('batch 75 %, tensor 25 %', 'batch', '')
    """
    largest = main(weights)
    if len(largest) == 1:
        return largest[0]
    return ", ".join(f"{role} {share(weights[role], sum(weights.values()))}" for role in largest)


def main(weights: Mapping[str, float]) -> list[str]:
    """Up to three roles with more than a hundredth, the largest first."""
    total = sum(weights.values())
    return sorted((role for role, weight in weights.items() if weight > 0.01 * total), key=lambda role: -weights[role])[:3]


def all_collectives(plan: Plan) -> Markup | None:
    times = plan.micro_batches
    found = {key: (times * count, times * total) for key, (count, total) in by_key(plan.figures.collectives).items()}
    if not found:
        return tag("p", "No collectives: every device works alone.")
    order = list(plan.mesh.names)
    keys = sorted({key[:2] for key in found}, key=lambda key: (order.index(key[0]), key[1]))
    rows = [
        [
            axis_chip(order.index(axis), axis),
            kind,
            *(traffic(*found.get((axis, kind, phase), (0, 0))) for phase in ("forward", "backward")),
        ]
        for axis, kind in keys
    ]
    body = table(["axis", "collective", "forward", "backward"], rows)
    return tag("details", tag("summary", "All collectives of a step"), body)
