#!/usr/bin/env bash
# torch.optim.Muon moves float32 and float64 weights by a direction of eight bits, on any device.
#
# Versions: torch 2.11.0, numpy 2.2.6, Python 3.11.
# What one would guess: an optimizer computes in the type of its parameters, as PyTorch's others do,
# so that float64 parameters get float64 updates and float32 is exact to about 1e-7.
# What happens: the orthogonalisation is done in bfloat16 whatever the type, on the CPU too, and no
# argument changes that. The direction of the first step has eight significant bits in float64
# parameters, and lies about 1e-2 away from the same five Newton-Schulz steps in float64.
# Output seen:
#   torch.float32: the step is a bfloat16 direction: True, relative distance 0.0149
#   torch.float64: the step is a bfloat16 direction: True, relative distance 0.0149
#   AdamW, float64: 1.5e-16
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uv
"$folder/venv/bin/uv" pip install --quiet --python "$folder/venv/bin/python" torch==2.11.0 numpy==2.2.6
"$folder/venv/bin/python" - <<'PY'
import torch

torch.manual_seed(0)
gradient = torch.randn(48, 96, dtype=torch.float64)


def exact(matrix):
    """The published iteration, in float64."""
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


for dtype in (torch.float32, torch.float64):
    weight = torch.nn.Parameter(torch.zeros(48, 96, dtype=dtype))
    weight.grad = gradient.to(dtype)
    # "original" has a factor of 1 for a matrix that is wider than tall, so the step is lr * direction;
    # a power of two as lr keeps the bits.
    torch.optim.Muon([weight], lr=2.0**-6, adjust_lr_fn="original").step()
    step = -weight.detach().double() * 2.0**6
    coarse = torch.equal(step, step.to(torch.bfloat16).double())
    distance = ((step - exact(gradient)).norm() / exact(gradient).norm()).item()
    print(f"{dtype}: the step is a bfloat16 direction: {coarse}, relative distance {distance:.4f}")
    assert coarse and 1e-3 < distance < 0.1
weight = torch.nn.Parameter(torch.zeros(48, 96, dtype=torch.float64))
weight.grad = gradient
torch.optim.AdamW([weight], lr=1.0, eps=0.0).step()
distance = (weight + gradient.sign()).norm() / gradient.sign().norm()
print(f"AdamW, float64: {distance.item():.1e}")
assert distance < 1e-12
print("as described")
PY
