"""From an unmodified `nn.Module` to a `Program`."""

from autopar.tracer.pipeline import trace

__all__ = ["trace"]
