"""Networks of plain torch: tables of features, graphs, biases by position, windows, Fourier mixing.

Each function gives a module and its inputs; the module returns {"loss": ...}.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Case = tuple[nn.Module, dict[str, Tensor]]


def ids(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(sum(shape)))


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def mlp(*sizes: int) -> nn.Sequential:
    pairs = pairwise(sizes)
    return nn.Sequential(*(layer for i, o in pairs for layer in (nn.Linear(i, o), nn.ReLU())))


class Recommender(nn.Module):
    """As DLRM: bags of ids in tables, dense features, products of all pairs, and a click to predict."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(rows, width, mode=mode) for mode in ("sum", "mean", "max"))
        self.ragged = nn.EmbeddingBag(rows, width, mode="sum")
        self.bottom, self.top = mlp(8, 32, width), mlp(width + 10, 32, 16)
        self.click = nn.Linear(16, 1)

    def forward(self, dense: Tensor, sparse: Tensor, values: Tensor, offsets: Tensor, clicked: Tensor) -> dict[str, Tensor]:
        features = [self.bottom(dense), self.ragged(values, offsets)]
        features += [bag(sparse[:, i]) for i, bag in enumerate(self.bags)]
        stacked = torch.stack(features, 1)
        pairs = stacked @ stacked.transpose(1, 2)
        left, right = torch.tril_indices(5, 5, offset=-1)
        top = self.top(torch.cat([features[0], pairs[:, left, right]], 1))
        return {"loss": F.binary_cross_entropy_with_logits(self.click(top).squeeze(1), clicked)}


def recommender(batch: int = 8) -> Case:
    """Three ids per bag and table; the ragged table's bags are of 0 to 4."""
    offsets = ids(2 * batch, batch - 1).sort().values
    inputs = {"dense": numbers(batch, 8), "sparse": ids(24, batch, 3, 3), "values": ids(24, 2 * batch)}
    return Recommender(24, 16), {
        **inputs,
        "offsets": torch.cat([offsets.new_zeros(1), offsets]),
        "clicked": ids(2, batch).float(),
    }


class GraphLayer(nn.Module):
    """Messages along edges, summed at their targets, and attention weights that are a softmax over each target's edges."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.message, self.own, self.score = nn.Linear(2 * width, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, nodes: Tensor, source: Tensor, target: Tensor) -> Tensor:
        sent = F.gelu(self.message(torch.cat([nodes[source], nodes.index_select(0, target)], 1)))
        score = self.score(sent)
        at = target.unsqueeze(1)
        highest = torch.zeros_like(nodes[:, :1]).scatter_reduce(0, at, score, "amax")
        weight = (score - highest[target]).exp()
        total = torch.zeros_like(nodes[:, :1]).scatter_add(0, at, weight)
        received = torch.zeros_like(nodes).index_add(0, target, sent * (weight / total[target]))
        return self.norm(nodes + self.own(received))  # type: ignore[no-any-return]


class Graph(nn.Module):
    def __init__(self, features: int, width: int, layers: int, classes: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(features, width), nn.Linear(width, classes)
        self.layers = nn.ModuleList(GraphLayer(width) for _ in range(layers))

    def forward(self, nodes: Tensor, edges: Tensor, labels: Tensor) -> dict[str, Tensor]:
        nodes = self.enter(nodes)
        for layer in self.layers:
            nodes = layer(nodes, edges[0], edges[1])
        return {"loss": F.nll_loss(self.leave(nodes).log_softmax(1), labels, ignore_index=0)}


def graph(nodes: int = 16, edges: int = 64) -> Case:
    return Graph(8, 32, 2, 6), {"nodes": numbers(nodes, 8), "edges": ids(nodes, 2, edges), "labels": ids(6, nodes)}


class BiasedAttention(nn.Module):
    """T5's: a learnt bias for each head and each range of distances between query and key."""

    def __init__(self, width: int, heads: int, ranges: int) -> None:
        super().__init__()
        self.heads, self.ranges = heads, ranges
        self.project, self.leave = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.bias = nn.Embedding(ranges, heads)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, width = x.shape
        q, k, v = self.project(x).view(batch, seq, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        places = torch.arange(seq, device=x.device)
        distance = (places[None] - places[:, None]).abs()
        far = 1 + (distance.clamp(min=1).float().log() * 2).long()
        bias = self.bias(torch.where(distance < 2, distance, far).clamp(max=self.ranges - 1)).permute(2, 0, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return self.leave(mixed.transpose(1, 2).reshape(batch, seq, width))  # type: ignore[no-any-return]


class Windows(nn.Module):
    """Swin's: attention within windows of an image, every second time rolled by half a window."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.project, self.leave = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        apart = places[:, None] - places[None] + window - 1
        self.register_buffer("apart", apart[..., 0] * (2 * window - 1) + apart[..., 1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        w, rows, columns = self.window, height // self.window, width // self.window
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        x = x.view(batch, rows, w, columns, w, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, channels)
        q, k, v = self.project(x).view(-1, w * w, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.bias[self.apart.flatten()].view(w * w, w * w, self.heads).permute(2, 0, 1)
        x = ((q @ k.transpose(-2, -1)) * (channels // self.heads) ** -0.5 + bias).softmax(-1) @ v
        x = self.leave(x.transpose(1, 2).reshape(-1, w * w, channels))
        x = x.view(batch, rows, columns, w, w, channels).permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class Fourier(nn.Module):
    """FNet's: the real part of a transform over hidden dim and sequence."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real


class Filter(nn.Module):
    """A global filter over the sequence: products with learnt complex numbers between transforms."""

    def __init__(self, seq: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(seq // 2 + 1, width, 2) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=1, norm="ortho") * torch.view_as_complex(self.weight)
        return torch.fft.irfft(spectrum, n=x.shape[1], dim=1, norm="ortho")


class Mixer(nn.Module):
    """Blocks of one way to mix and an MLP, each beside a residual, and a loss of some kind."""

    def __init__(self, width: int, mixing: list[nn.Module], loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.mixing = nn.ModuleList(mixing)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in mixing)
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in mixing
        )
        self.leave, self.loss = nn.Linear(width, 6), loss

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        for mix, norm, feed in zip(self.mixing, self.norms, self.feed, strict=True):
            x = x + mix(norm(x))
            x = x + feed(x)
        return {"loss": self.loss(self.leave(x), y)}


def per_position(logits: Tensor, labels: Tensor) -> Tensor:
    """Class weights, smoothing, and logits [batch, classes, ...] as for images."""
    weight = torch.linspace(0.5, 2.0, 6)
    return F.cross_entropy(logits.movedim(-1, 1), labels, weight=weight, label_smoothing=0.1, ignore_index=1)


def by_maximum(logits: Tensor, goal: Tensor) -> Tensor:
    """Maxima and norms over the sequence, against numbers."""
    best = F.normalize(logits.amax(1), dim=-1) + torch.logsumexp(logits, 1) + logits.std(1)
    return F.smooth_l1_loss(best, goal)


def biased(batch: int = 4, seq: int = 8) -> Case:
    return Mixer(32, [BiasedAttention(32, 4, 6) for _ in range(2)], per_position), {
        "x": numbers(batch, seq, 32),
        "y": ids(6, batch, seq),
    }


def windows(batch: int = 4) -> Case:
    layers: list[nn.Module] = [Windows(16, 2, 2, shift) for shift in (0, 1)]
    return Mixer(16, layers, per_position), {"x": numbers(batch, 4, 4, 16), "y": ids(6, batch, 4, 4)}


def fourier(batch: int = 4, seq: int = 8) -> Case:
    layers: list[nn.Module] = [Fourier(), Filter(seq, 32)]
    return Mixer(32, layers, by_maximum), {"x": numbers(batch, seq, 32), "y": numbers(batch, 6)}


PLAIN: dict[str, Callable[..., Any]] = {
    "recommender": recommender,
    "graph": graph,
    "biased": biased,
    "windows": windows,
    "fourier": fourier,
}
