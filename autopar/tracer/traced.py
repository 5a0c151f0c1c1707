"""What the trace that is being made knows of a tensor (`torch.fx.experimental.proxy_tensor`: torch 2.11 to 2.13)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot, set_proxy_slot

from autopar.torch_private import is_fake, without_modes


def node_if_traced(tensor: Tensor) -> Node | None:
    """The node that stands for a tensor in the graph that is being written."""
    mode = get_proxy_mode()
    slot: Any = None if mode is None else get_proxy_slot(tensor, mode.tracer, None)
    return None if slot is None else slot.proxy.node


def take_the_place(of: Tensor, tensor: Tensor) -> None:
    """From here on, the graph that is being written means `tensor` where the code has `of`, which looks the same."""
    mode = get_proxy_mode()
    assert mode is not None, "nothing is being traced"
    slot: Any = get_proxy_slot(tensor, mode.tracer)
    set_proxy_slot(of, mode.tracer, slot)


def traced_constant(name: str) -> Tensor | None:
    """A copy of the data of a tensor that this graph holds under a name, if it has any."""
    mode = get_proxy_mode()
    tracer: Any = None if mode is None else mode.tracer
    value: Any = getattr(tracer.root, name, None) if tracer else None
    if isinstance(value, Tensor) and is_fake(value):
        value = vars(value).get("constant")
    if not isinstance(value, Tensor) or value.is_meta:
        return None
    with without_modes(), torch.no_grad():
        return value.cpu().clone()
