#!/usr/bin/env bash
# timm's Muon does not orthogonalise a matrix of fewer than four rows, nor one of an aspect above 128.
#
# Versions: timm 1.0.31, torch 2.11.0, torchvision 0.26.0, Python 3.11.
# What one would guess: two-dimensional weights go to Muon, vectors and scalars to AdamW, as the
# summary of the module says, and as torch.optim.Muon does.
# What happens: the weight of a head of three classes, Linear(768, 3), is trained with AdamW, and so
# is one of five, whose aspect is 154; one of six goes to Muon. Nothing is printed unless
# verbose=True, and both kinds take the same lr. With nesterov=True AdamW is NAdamW, whose first step
# is 1.9 lr for each value, where Muon's is about 0.2 lr (root mean square): ten times as far.
# Output seen, root mean square of the first step divided by lr:
#   Linear(768, 3)   timm 1.90  torch 0.14
#   Linear(768, 5)   timm 1.90  torch 0.22
#   Linear(768, 6)   timm 0.22  torch 0.22
#   Linear(512, 4)   timm 0.17  torch 0.17
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uv
"$folder/venv/bin/uv" pip install --quiet --python "$folder/venv/bin/python" \
    timm==1.0.31 torch==2.11.0 torchvision==0.26.0 numpy==2.2.6
"$folder/venv/bin/python" - <<'PY'
import timm.optim.muon
import torch

seen = {}
for inputs, classes in ((768, 3), (768, 5), (768, 6), (512, 4)):
    torch.manual_seed(0)
    gradient = torch.randn(classes, inputs)
    moved = {}
    for name, kind in (("timm", timm.optim.muon.Muon), ("torch", torch.optim.Muon)):
        weight = torch.nn.Parameter(torch.zeros(classes, inputs))
        weight.grad = gradient.clone()
        # Decay moves nothing that is zero; coefficients as PyTorch's in both.
        settings = {"lr": 0.1, "nesterov": True, "adjust_lr_fn": "match_rms_adamw"}
        if name == "timm":
            settings["ns_coefficients"] = "original"
        kind([weight], **settings).step()
        moved[name] = weight.detach().square().mean().sqrt().item() / 0.1
    seen[inputs, classes] = moved
    row = "  ".join(f"{name} {value:.2f}" for name, value in moved.items())
    print(f"{f'Linear({inputs}, {classes})':16} {row}")
for (inputs, classes), moved in seen.items():
    by_adamw = classes < 4 or inputs / classes > 128
    assert 0.1 < moved["torch"] < 0.3, (inputs, classes, moved)
    expected = 1.9 if by_adamw else moved["torch"]
    assert abs(moved["timm"] - expected) < 0.01, (inputs, classes, moved)
print("as described")
PY
