"""Search on a laptop for the best way to train a 70B on 64 devices: shape of the mesh and plan. No weights, no GPU.

    python examples/search_70b.py                 # writes runs/plan-70b.json
    autopar show runs/plan-70b.json

On the cluster: `autopar.compile(model, mesh, kwargs=batch, plan="runs/plan-70b.json")`.
"""

import argparse
import time
import warnings
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import autopar

CONFIG = Path(__file__).parent / "configs" / "llama3-70b.json"


def model_and_batch(layers: int | None, batch: int, seq: int) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """On the meta device: shapes and dtypes only, nothing is allocated."""
    config = AutoConfig.from_pretrained(CONFIG)
    config.use_cache = False
    config.num_hidden_layers = layers or config.num_hidden_layers
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        tokens = torch.empty(batch, seq, dtype=torch.int64)
    return model, {"input_ids": tokens, "labels": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=64)
    parser.add_argument("--hardware", default="h100-sxm", help="see `autopar hardware list`")
    parser.add_argument("--memory", default="70GiB", help="budget per device")
    parser.add_argument("--batch", type=int, default=64, help="sequences of a step, over all devices")
    parser.add_argument("--seq", type=int, default=8192)
    parser.add_argument("--layers", type=int, help="fewer of them, for a quick look")
    parser.add_argument("--time-limit", type=float, default=100, help="seconds for the whole search")
    parser.add_argument("--out", default="runs/plan-70b.json")
    options = parser.parse_args()

    begun = time.perf_counter()
    model, batch = model_and_batch(options.layers, options.batch, options.seq)
    plan = autopar.plan(
        model, devices=options.devices, kwargs=batch, memory=options.memory, hardware=options.hardware,
        time_limit_s=options.time_limit, gap=0.01,
    )  # fmt: skip
    for tried in plan.tried:
        step = "–" if tried.step_time_s is None else f"{tried.step_time_s:.2f} s"
        print(f"{tried.mesh!s:8} {step:>8}  {tried.outcome}{': ' if tried.reason else ''}{tried.reason}")
    tokens = options.batch * options.seq / plan.step_time_s / options.devices
    print(f"{plan.mesh}: {plan.step_time_s:.2f} s a step, {tokens:,.0f} tokens per second and device, {plan.status}")
    print(f"peak {plan.peak_bytes / 2**30:.1f} GiB of {options.memory}, in {plan.peak_where}")
    plan.save(options.out)
    print(f"wrote {options.out} after {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch|transformers")
    main()
