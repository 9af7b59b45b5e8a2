"""SAME padding of timm's convolutions by fixed numbers, as the sizes of an exported graph allow.

From the size of its input each layer would work out its padding anew: a formula that grows with
every layer, which the exporter never gets done with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn


@contextmanager
def fixed_padding(network: nn.Module) -> Iterator[None]:
    """Inside it the convolutions of a network take inputs to be multiples of their strides.

    An image whose sides are multiples of the network's largest stride makes them so.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, Conv2dSame)]
    for layer in layers:
        layer.forward = partial(padded_conv2d, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def padded_conv2d(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What `Conv2dSame` answers to (B, C, H, W) if H and W are multiples of its strides."""
    padding = []
    for kernel, stride, dilation in zip(
        layer.kernel_size[::-1], layer.stride[::-1], layer.dilation[::-1], strict=True
    ):
        total = max((kernel - 1) * dilation + 1 - stride, 0)
        padding += [total // 2, total - total // 2]
    x = F.pad(x, padding)
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)
