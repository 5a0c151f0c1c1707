"""How good plans are: ours beside every known way to parallelize, and beside sharding first and saving memory afterwards.

    python benchmarks/plan_quality.py --models llama3-8b,bert-large --meshes 8,8x8 --budgets loose,tight -o quality.jsonl
    python benchmarks/plan_quality.py -o quality.jsonl --table          # only print what the file holds

Every line of the file is one measurement; what is there is not measured again, so that a run can be stopped and continued.
Lines are of four kinds (`what`): a *frame* has the peaks that budgets are chosen from (see `quality_rows.BUDGETS`), a *row*
all ways on one mesh under one budget, a *probe* which ways fit one batch size, a *batch* the largest batch size of each way
under `--memory`. Costs are modelled seconds of a training step, by the independent checker. Each is measured in a process of
its own, forked from one that has traced the model, and stopped after `--timeout` seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import quality_table
from quality_rows import (
    BUDGETS,
    TOKENS,
    Search,
    budget_bytes,
    by_devices,
    devices,
    frame,
    largest,
    measured,
    priced,
    probe,
    row,
    tokens_of,
)

MESHES = "8,64,8x8,4x4x4"
WAYS = ("ours", "two_stage", "two_stage_best_share", "baseline")
KEYS = ("what", "model", "mesh", "batch", "budget")


class Book:
    """The file of measurements, and what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.lines: dict[tuple[Any, ...], dict[str, Any]] = {}
        for line in map(json.loads, lines):
            self.lines[self.key(line)] = line

    @staticmethod
    def key(line: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(line.get(k) for k in KEYS)

    def get(self, **keys: Any) -> dict[str, Any] | None:
        """A measurement that succeeded."""
        found = self.lines.get(self.key(keys))
        return found if found is not None and "failure" not in found else None

    def add(self, line: dict[str, Any]) -> None:
        self.lines[self.key(line)] = line
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(quality_table.line(line), flush=True)


class Bench:
    """Measures what the book lacks."""

    def __init__(self, book: Book, search: Search, timeout_s: float) -> None:
        self.book, self.search, self.timeout_s = book, search, timeout_s
        self.traced: tuple[tuple[str, int], Any] | None = None

    def model(self, name: str, batch: int) -> Any:
        """The last traced program is kept: rows come in an order that shares it."""
        if self.traced is None or self.traced[0] != (name, batch):
            self.traced = ((name, batch), measured(name, batch, self.search))
        return self.traced[1]

    def ensure(self, measure: Callable[[], dict[str, Any]], **keys: Any) -> dict[str, Any] | None:
        """The measurement, from the book or made now; None if it fails."""
        if (known := self.book.get(**keys)) is not None:
            return known
        began = time.monotonic()
        found = apart(measure, self.timeout_s)
        self.book.add({**keys, **found, "all_seconds": time.monotonic() - began})
        return self.book.get(**keys)

    def rows(self, model: str, meshes: list[str], budgets: Iterable[str]) -> None:
        batch = max(1, round(tokens_of(model, self.search)[0] * devices(meshes[0])))
        for mesh in meshes:
            keys = {"model": model, "mesh": mesh, "batch": batch}
            todo = [b for b in budgets if self.book.get(what="row", budget=b, **keys) is None]
            if not todo:
                continue
            problem = priced(self.model(model, batch), mesh, self.search)
            limits = self.ensure(lambda p=problem: frame(p, self.search), what="frame", **keys)  # type: ignore[misc]
            for kind in todo if limits is not None else ():
                assert limits is not None
                bounded = replace(problem, budget_bytes=budget_bytes(kind, limits))
                self.ensure(lambda p=bounded: row(p, self.search), what="row", budget=kind, **keys)  # type: ignore[misc]

    def batches(self, model: str, mesh: str, memory: float) -> None:
        keys = {"model": model, "mesh": mesh, "budget": memory}
        if self.book.get(what="batch", **keys) is not None:
            return
        began = time.monotonic()

        def try_batch(batch: int) -> dict[str, Any]:
            def measure() -> dict[str, Any]:
                problem = priced(self.model(model, batch), mesh, self.search)
                return probe(replace(problem, budget_bytes=memory), self.search)

            return self.ensure(measure, what="probe", batch=batch, **keys) or {}

        found = {way: largest(lambda b, w=way: bool(try_batch(b).get(w)), devices(mesh)) for way in WAYS}  # type: ignore[misc]
        self.book.add({"what": "batch", **keys, "largest": found, "all_seconds": time.monotonic() - began})


def apart(measure: Callable[[], dict[str, Any]], timeout_s: float) -> dict[str, Any]:
    """What `measure` returns in a process of its own; its failure in words, or that it was stopped."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def run() -> None:
        try:
            theirs.send(measure())
        except Exception as error:
            theirs.send({"failure": f"{type(error).__name__}: {str(error)[:300]}"})

    process = context.Process(target=run)
    process.start()
    theirs.close()
    try:
        found: dict[str, Any] = ours.recv() if ours.poll(timeout_s) else {"failure": f"stopped after {timeout_s:g} s"}
    except EOFError:
        found = {"failure": "the process died: out of memory?"}
    process.kill()
    process.join()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(TOKENS), help="names of benchmarks/configs, or paths of a config.json")
    parser.add_argument("--meshes", default=MESHES)
    parser.add_argument("--budgets", default=",".join(BUDGETS))
    parser.add_argument("--what", default="rows", help="rows, batches, or both: rows,batches")
    parser.add_argument("--memory", type=float, default=72.0, help="GiB for the largest batch: 80 less a reserve")
    parser.add_argument("--hardware", default=Search().hardware)
    parser.add_argument("--samples", type=float, help="per device, such as 2 or 0.25; a file is of one such setting")
    parser.add_argument("--seq", type=int, help="tokens per sample")
    parser.add_argument("--gap", type=float, default=Search().gap)
    parser.add_argument("--time-limit", type=float, default=Search().time_limit_s, help="seconds for one search")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one measurement")
    parser.add_argument("-o", "--output", type=Path, default=Path("plan_quality.jsonl"))
    parser.add_argument("--table", action="store_true", help="measure nothing, print the file as tables")
    options = parser.parse_args()
    book = Book(options.output)
    if not options.table:
        fill(book, options)
    print(quality_table.tables(list(book.lines.values())))
    return 0


def fill(book: Book, options: argparse.Namespace) -> None:
    began = time.monotonic()
    search = Search(
        hardware=options.hardware,
        samples=options.samples,
        seq=options.seq,
        gap=options.gap,
        time_limit_s=options.time_limit,
    )
    bench = Bench(book, search, options.timeout)
    meshes = options.meshes.split(",")
    for model in options.models.split(","):
        try:
            for group in by_devices(meshes).values() if "rows" in options.what else ():
                bench.rows(model, group, options.budgets.split(","))
            for mesh in meshes if "batches" in options.what else ():
                bench.batches(model, mesh, options.memory * 2**30)
        except Exception as error:  # the next model may do better
            print(f"{model}: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"measured in {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
