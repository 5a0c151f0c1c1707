"""Hardware on which cutting always pays: slow devices, links that cost next to nothing.

Tiny models on real hardware are best left whole (latency is all there is); here the unconstrained optimum shards everything,
so that plans of tiny models use every kind of conversion.
"""

from __future__ import annotations

from autopar.hardware import INTER_NODE, INTRA_NODE, Hardware, Link


def toy_hardware(*, flops_per_s: float = 1e8, bytes_per_s: float = 1e9, link_bytes_per_s: float = 1e13) -> Hardware:
    """A device that is bound by arithmetic, on links 10,000 times faster than its memory."""
    links = {name: Link(name="toy", bytes_per_s=link_bytes_per_s, latency_s=1e-9) for name in (INTRA_NODE, INTER_NODE)}
    return Hardware(
        name="toy",
        device_type="cpu",
        peak_flops_per_s={"float32": flops_per_s},
        peak_bytes_per_s=bytes_per_s,
        efficiency={"matmul": 1.0, "memory": 1.0},
        launch_s=0.0,
        memory_bytes=2**34,
        devices_per_node=8,
        links=links,
        sources={"*": "made up for tests"},
    )
