"""The ops of a plan: those of torch's own table of decompositions, and some that are wanted whole."""

from __future__ import annotations

from typing import Any

import torch

KEEP = frozenset(
    [
        "linear",
        "addmm",
        "baddbmm",
        "bmm",
        "mm",
        "matmul",
        "scaled_dot_product_attention",
        "layer_norm",
        "native_layer_norm",
        "group_norm",
        "native_group_norm",
        "rms_norm",
        "softmax",
        "_softmax",
        "log_softmax",
        "_log_softmax",
        "cross_entropy_loss",
        "nll_loss",
        "nll_loss_nd",
        "nll_loss_forward",
        "embedding",
        "conv1d",
        "conv2d",
        "conv3d",
        "convolution",
        "dropout",
        "gelu",
        "silu",
        "relu",
        "relu6",
        "elu",
        "leaky_relu",
        "mish",
        "softplus",
        "hardswish",
        "hardsigmoid",
        "hardtanh",
        "log_sigmoid",
        "log_sigmoid_forward",
        "sigmoid",
        "tanh",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "kl_div",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "max_pool2d",
        "max_pool3d",
        "max_unpool2d",
        "max_unpool3d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
        "upsample_nearest1d",
        "upsample_nearest2d",
        "upsample_nearest3d",
        "_upsample_nearest_exact1d",
        "_upsample_nearest_exact2d",
        "_upsample_nearest_exact3d",
        "upsample_linear1d",
        "upsample_bilinear2d",
        "upsample_bicubic2d",
        "upsample_trilinear3d",
        "_upsample_bilinear2d_aa",
        "_upsample_bicubic2d_aa",
        "reflection_pad1d",
        "reflection_pad2d",
        "reflection_pad3d",
        "replication_pad1d",
        "replication_pad2d",
        "replication_pad3d",
        "im2col",
        "col2im",
        "index_add",
        "roll",
    ]
)


def decompositions() -> dict[Any, Any]:
    """torch's own table without the ops to keep whole."""
    table = torch.export.default_decompositions()
    for op in [op for op in table if op.name().split("::")[1].split(".")[0] in KEEP]:
        del table[op]
    return table
