"""One model on two devices: what should be equal but for rounding."""

from __future__ import annotations

import torch
from torch import nn

from bench.models import batch, ours


def agreement(device_name: str, quick: bool) -> dict[str, float]:
    """How far a batch on the device is from the same on a CPU, in full precision.

    The largest relative difference of a loss and of a gradient's norm, and the share of pixels
    with another label.
    """
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    size, found = 64 if quick else 256, []
    data = batch(size)
    for device in ("cpu", device_name):
        # Points would be drawn by another generator.
        grid = ("ALIGNZEG.LOSS.NUM_POINTS", "0")
        model = ours("baseline", quick, vlm=True, opts=grid, device=device).train()
        losses = model(data)
        sum(losses.values()).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        with torch.no_grad():
            item = {key: data[0][key] for key in ("image", "vocabulary")}
            labels = model.eval()([item])[0]["sem_seg"]
        found.append((torch.stack(list(losses.values())).detach().cpu(), norm.cpu(), labels))
    torch.backends.cudnn.allow_tf32 = allowed
    (losses, norm, labels), (our_losses, our_norm, our_labels) = found
    return {
        "loss": float(((our_losses - losses).abs() / losses.abs().clamp(min=1e-6)).max()),
        "gradient_norm": float((our_norm - norm).abs() / norm),
        "labels": float((our_labels != labels).float().mean()),
    }
