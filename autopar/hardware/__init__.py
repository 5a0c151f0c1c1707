"""Hardware as data: what an op or a collective costs on a device and on the links between devices.

One JSON file per kind of device, each figure beside its source. Roofline for ops, latency and bandwidth for collectives:

    op          max(FLOPs / rate(dtype), bytes / bandwidth) + launch
    collective  rounds(n) * latency + factor(n) * bytes / bandwidth      over n devices, by the link's algorithm

>>> h100 = load("h100-sxm")
>>> h100.matmul_s(2 * 4096**3, "bfloat16") < h100.matmul_s(2 * 4096**3, "float32")
True
"""

from autopar.hardware.device import COST_MODEL_VERSION, FitQuality, Hardware
from autopar.hardware.files import known, load, to_json
from autopar.hardware.link import ALGORITHMS, INTER_NODE, INTRA_NODE, Link, LinkFigures
from autopar.hardware.named import shipped_links

__all__ = [
    "ALGORITHMS",
    "COST_MODEL_VERSION",
    "INTER_NODE",
    "INTRA_NODE",
    "FitQuality",
    "Hardware",
    "Link",
    "LinkFigures",
    "known",
    "load",
    "shipped_links",
    "to_json",
]
