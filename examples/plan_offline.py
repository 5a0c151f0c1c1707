"""Plan on a laptop for a cluster: no devices, no weights. Prints the plan beside what one device would need, and saves it.

python examples/plan_offline.py            # writes runs/plan.json
autopar show runs/plan.json
"""

import argparse

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import autopar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mesh", default="2x4", help="devices per axis, slowest link first")
    parser.add_argument("--hardware", default="a100-80gb", help="see `autopar hardware list`")
    parser.add_argument("--memory", default="4GiB", help="budget per device")
    parser.add_argument("--out", default="runs/plan.json")
    options = parser.parse_args()

    with torch.device("meta"):  # shapes only: nothing is allocated
        config = GPT2Config(n_layer=12, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
        model = GPT2LMHeadModel(config)
        tokens = torch.empty(16, 512, dtype=torch.int64)
    batch = {"input_ids": tokens, "labels": tokens}

    alone = autopar.profile(model, kwargs=batch, dynamic={"batch": 0})
    print(f"on one device: {alone.at(batch=16).peak_bytes / 2**30:.2f} GiB; kept for backward: {alone.saved_bytes} bytes")

    try:
        plan = autopar.plan(model, options.mesh, kwargs=batch, memory=options.memory, hardware=options.hardware, gap=0.01)
    except autopar.errors.BudgetError as error:
        raise SystemExit(f"{error}\nsmallest budget: {error.smallest_bytes / 2**30:.2f} GiB per device") from error
    print(f"on {plan.mesh}: {plan.step_time_s * 1e3:.1f} ms (at least {plan.lower_bound_s * 1e3:.1f} ms), {plan.status}")
    print(f"peak {plan.peak_bytes / 2**30:.2f} GiB of {options.memory} per device, in {plan.peak_where}")
    for name, tensor in list(plan.state.items())[:6]:
        print(f"  {name:40} {list(tensor.shape)!s:14} {tensor.placement}")
    plan.save(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
