"""How long a plan takes, stage by stage: from a model's config to the plan whose emitted graphs were counted.

    python benchmarks/plan_time.py --config benchmarks/configs/llama3-8b.json --layers 1,8,32,126 --meshes 64,8x8,4x4x4

Prints a JSON line per depth and mesh, each from a process of its own. Seconds are wall time: `seconds` of each stage, and their
sum, `total_s`; the imports of torch, transformers and autopar come before and are told apart (`imports_s`). `ilp` is the
program with every choice and, under a budget, memory: most plans are proven best on a part of it. Sizes are those of region
types, which do not grow with depth. `--batch` is per data-parallel rank: all axes but the innermost of several.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parent / "configs"
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
"""What configs call their depth."""

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 128,
}
SMOKE = {"layers": "2", "meshes": "2,2x2", "seq": 16, "memory": "1GiB", "hardware": "cpu", "gap": 0.2, "limit": 5.0}


class Stopwatch:
    """A progress callback: seconds since each stage was announced, by its first word."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.stage, self.since = "", time.perf_counter()

    def __call__(self, announced: str) -> None:
        now = time.perf_counter()
        if self.stage:
            self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.since
        self.stage, self.since = announced.partition(" ")[0], now


def measure(config: dict[str, Any], layers: int, mesh: str, options: argparse.Namespace) -> dict[str, Any]:
    """The line of one plan."""
    imports_s = imported(config)
    from autopar.bytes import parse_bytes
    from autopar.cli_options import load_model
    from autopar.hardware import load
    from autopar.ir.mesh import MeshSpec
    from autopar.planning.planner import Aims, Planner
    from autopar.tracer import trace

    spec, watch = MeshSpec.of(mesh), Stopwatch()
    batch = options.batch * math.prod(spec.sizes[:-1] if len(spec) > 1 else spec.sizes)
    budget = None if options.memory == "none" else float(parse_bytes(options.memory))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(with_layers(config, layers)))
        loaded = load_model(str(path), options.hardware, batch, options.seq, None, watch, quiet=True)
    watch("tracing")
    program = trace(loaded.model, loaded.args, dict(loaded.kwargs), name=loaded.name, progress=watch)
    planner = Planner(
        program, Aims(hardware=load(options.hardware), gap=options.gap, time_limit_s=options.limit), progress=watch
    )
    found = planner.find(spec, budget)
    watch("")
    return {
        "batch": batch,
        "imports_s": imports_s,
        "seconds": watch.seconds,
        "total_s": sum(watch.seconds.values()),
        **sizes(planner, spec, budget),
        "status": found.solution.status,
        "gap": found.solution.gap,
        "step_time_s": found.solution.cost_s,
        "counted_peak_bytes": found.counted.peak_bytes,
        "rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def imported(config: dict[str, Any]) -> float:
    """Seconds of importing torch, autopar and the model's class; torch imports most of its exporter when it is first used."""
    start = time.perf_counter()
    torch, _ = import_module("torch"), import_module("autopar.api")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.export(torch.nn.Identity(), (torch.ones(1),)).run_decompositions()
    transformers = import_module("transformers")
    for name in config.get("architectures", ()):
        getattr(transformers, name)
    return time.perf_counter() - start


def with_layers(config: dict[str, Any], layers: int) -> dict[str, Any]:
    return config | {name: layers for name in LAYERS if name in config}


def sizes(planner: Any, mesh: Any, budget: float | None) -> dict[str, Any]:
    """Of the traced program, of the Problem, and of the integer program with all its choices."""
    from dataclasses import replace

    from autopar.solver.model import build
    from autopar.solver.space import narrow

    problem = replace(planner.priced(mesh).problem, budget_bytes=budget)
    ilp = build(narrow(problem), memory=budget is not None).ilp
    units = [unit for region in problem.regions for unit in region.units]
    return {
        "nodes": sum(len(region.graph.nodes) for region in planner.program.regions.values()),
        "units": len(units),
        "strategies": sum(len(unit.strategies) for unit in units),
        "arcs": sum(len(tensor.arcs) for region in problem.regions for tensor in region.tensors.values()),
        "ilp": {"variables": ilp.variables, "integer": sum(ilp.integer), "rows": ilp.rows, "nonzeros": len(ilp.values)},
    }


def machine() -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "highspy")},
    }


def apart(layers: int, mesh: str, options: argparse.Namespace) -> dict[str, Any]:
    """The line of one plan, measured in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--one", str(layers), mesh]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout, check=True)
    except subprocess.TimeoutExpired:
        return {"stopped_after_s": options.timeout}
    except subprocess.CalledProcessError as error:
        return {"failed": error.stderr.splitlines()[-1:]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIGS / "llama3-8b.json")
    parser.add_argument("--layers", default="1,8,32,126")
    parser.add_argument("--meshes", default="64,8x8,4x4x4")
    parser.add_argument("--batch", type=int, default=2, help="samples per data-parallel rank")
    parser.add_argument("--seq", type=int, default=8192)
    parser.add_argument("--memory", default="70GiB", help="budget per device, or none")
    parser.add_argument("--hardware", default="h100-sxm")
    parser.add_argument("--gap", type=float, default=1e-3)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for one search of the solver")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one line")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on tiny meshes, all in this process: does it run")
    parser.add_argument("--one", nargs=2, metavar=("LAYERS", "MESH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(SMOKE)
    return options


def main() -> int:
    options = arguments()
    config = TINY if options.smoke else json.loads(options.config.read_text())
    if options.one is not None:
        layers, mesh = options.one
        print(json.dumps(measure(config, int(layers), mesh, options)))
        return 0
    setting = {"model": "tiny" if options.smoke else options.config.stem, "seq": options.seq, "memory": options.memory}
    failed = False
    for mesh in options.meshes.split(","):
        for layers in map(int, options.layers.split(",")):
            line = measure(config, layers, mesh, options) if options.smoke else apart(layers, mesh, options)
            failed = failed or "total_s" not in line
            print(json.dumps({**setting, "layers": layers, "mesh": mesh, **line, "machine": machine()}), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
