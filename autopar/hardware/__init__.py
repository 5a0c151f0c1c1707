"""Hardware as data: what an op or a collective costs on a device and on the links between devices.

One JSON file per kind of device, each figure beside its source. Roofline for ops, latency and bandwidth for collectives:

    op          max(FLOPs / rate(dtype), bytes / bandwidth) + launch
    collective  rounds * ((n - 1) * latency + (n - 1) / n * bytes / bandwidth)      over n devices, ring algorithm

>>> h100 = load("h100-sxm")
>>> h100.matmul_s(2 * 4096**3, "bfloat16") < h100.matmul_s(2 * 4096**3, "float32")
True
"""

from autopar.hardware.device import COST_MODEL_VERSION, Hardware
from autopar.hardware.files import known, load
from autopar.hardware.link import INTER_NODE, INTRA_NODE, Link

__all__ = ["COST_MODEL_VERSION", "INTER_NODE", "INTRA_NODE", "Hardware", "Link", "known", "load"]
