"""What nodes of emitted graphs are, in the words of the model: ops, conversions, casts."""

from __future__ import annotations

from torch.fx import Node

from autopar.codegen.emit import EmittedRegion
from autopar.ops.joint import owner


class Told:
    """What the nodes of a region's graphs are."""

    def __init__(self, region: EmittedRegion) -> None:
        self.region = region
        self.local = {node.name: node for node in region.local.graph.nodes}
        self.joint = {node.name: node for node in region.joint.graph.nodes}

    def step(self, node: Node) -> Node | None:
        """The node of the region's local program that it is part of."""
        return self.local.get(node.meta.get("step") or "")

    def is_gathered(self, node: Node) -> bool:
        """Whether a conversion or a cast of a parameter made it, not the gradient of one."""
        local = self.step(node)
        if local is None or node.name.startswith("grad_"):
            return False
        return "cast" in local.meta or local.meta.get("conversion", ("",))[0] in self.region.local.region.state

    def saved_purpose(self, name: str) -> str:
        return "gathered" if self.is_gathered(owner(self.joint[name])) else "kept"

    def said(self, name: str) -> str:
        """A node of the joint graph, or of one that was made of it, in words."""
        local = self.step(self.joint[name]) if name in self.joint else None
        if local is None:
            return name
        gradient = name.startswith("grad_")
        if "cast" in local.meta:
            what = f"{local.meta['cast']}, cast"
        elif "conversion" in local.meta:
            tensor, before, after = local.meta["conversion"]
            what = f"{tensor} at [{before if gradient else after}]"
        else:
            what = str(local.meta["origin"])
        return f"gradient of {what}" if gradient else what
