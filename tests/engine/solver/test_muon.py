"""Muon: PyTorch's up to rounding, in float32, over kernels and with schedulers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from alignzeg.engine.solver.muon import Muon
from alignzeg.engine.solver.optim import (
    MuonWithAdamW,
)


def _muon_groups(kernel: nn.Parameter, bias: nn.Parameter) -> list[dict]:
    return [
        {"params": [kernel], "lr": 0.1, "weight_decay": 0.5, "matrix": True},
        {"params": [bias], "lr": 0.01, "weight_decay": 0.0, "matrix": False},
    ]


def test_muon_moves_a_kernel_along_all_its_directions_alike() -> None:
    torch.manual_seed(0)
    kernel, bias = nn.Parameter(torch.zeros(4, 2, 1, 3)), nn.Parameter(torch.zeros(4))
    u, _ = torch.linalg.qr(torch.randn(4, 4))
    v, _ = torch.linalg.qr(torch.randn(6, 6))
    # The gradient's directions differ a thousandfold in size; the step's must not.
    sizes = torch.tensor([1.0, 0.1, 0.01, 0.001])
    kernel.grad = (u * sizes @ v[:, :4].T).reshape(kernel.shape)
    bias.grad = torch.tensor([1.0, -2.0, 3.0, -4.0])
    MuonWithAdamW(_muon_groups(kernel, bias)).step()
    moved = -kernel.detach().reshape(4, 6)
    # Brought to AdamW's scale: 0.2 * sqrt(longer side) times the learning rate. Five Newton-Schulz
    # steps bring singular values near 1, not to it (Muon's published range is about 0.7 to 1.2),
    # and those of a thousandth not quite so far.
    singular = torch.linalg.svdvals(moved) / (0.1 * 0.2 * 6**0.5)
    assert (singular[:3] > 0.6).all() and (singular < 1.3).all() and singular[3] > 0.2
    assert torch.linalg.svdvals(kernel.grad.reshape(4, 6))[3] < 0.002
    alignment = (u.T @ moved @ v[:, :4]).diag()
    assert (alignment > 0).all()
    # AdamW's first step is the learning rate, against the sign.
    torch.testing.assert_close(bias.detach(), torch.tensor([-0.01, 0.01, -0.01, 0.01]))


def test_muon_is_that_of_pytorch_up_to_rounding() -> None:
    torch.manual_seed(0)
    for shape in ((6, 4), (4, 6), (5, 5)):
        ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
        optimizers = [
            Muon([{"params": [ours], "lr": 0.01, "weight_decay": 0.1}]),
            torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        ]
        for _ in range(3):
            ours.grad = torch.randn(shape)
            theirs.grad = ours.grad.clone()
            for optimizer in optimizers:
                optimizer.step()
        # bfloat16 has eight bits: singular values of theirs move by percents.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-4)
        assert (ours - 1).abs().max() > 5e-3
        states = [next(iter(o.state_dict()["state"].values())) for o in optimizers]
        torch.testing.assert_close(states[0], states[1])


def test_a_step_of_muon_multiplies_in_float32_on_a_processor() -> None:
    """A processor without instructions for bfloat16 emulates it, many times slower."""
    seen: set[torch.dtype] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            seen.update(value.dtype for value in (*args, result) if isinstance(value, torch.Tensor))
            return result

    kernel, bias = nn.Parameter(torch.ones(4, 2, 3, 3)), nn.Parameter(torch.ones(4))
    kernel.grad, bias.grad = torch.randn(4, 2, 3, 3), torch.randn(4)
    optimizer = MuonWithAdamW(_muon_groups(kernel, bias))
    with Watch():
        optimizer.step()
    assert seen == {torch.float32}


def test_muon_obeys_schedulers_and_resumes_bit_for_bit() -> None:
    def make(state: dict | None = None) -> tuple[list[nn.Parameter], MuonWithAdamW]:
        torch.manual_seed(1)
        parameters = [nn.Parameter(torch.randn(4, 2, 3, 3)), nn.Parameter(torch.randn(4))]
        optimizer = MuonWithAdamW(_muon_groups(*parameters))
        if state is not None:
            for parameter, value in zip(parameters, state["parameters"], strict=True):
                parameter.data.copy_(value)
            optimizer.load_state_dict(state["optimizer"])
        return parameters, optimizer

    def steps(parameters: list[nn.Parameter], optimizer: MuonWithAdamW, which: range) -> None:
        for index in which:
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (index + 1)
            torch.manual_seed(index)
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape)
            optimizer.step()

    whole, optimizer = make()
    steps(whole, optimizer, range(6))
    first, optimizer = make()
    steps(first, optimizer, range(3))
    state = {"parameters": [p.detach().clone() for p in first], "optimizer": optimizer.state_dict()}
    second, optimizer = make(state)
    steps(second, optimizer, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))

    still, optimizer = make()
    before = [p.detach().clone() for p in still]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in still:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, still, strict=True))


def test_muon_refuses_vectors_and_the_state_of_another_optimizer() -> None:
    kernel, bias = nn.Parameter(torch.zeros(4, 2)), nn.Parameter(torch.zeros(4))
    with pytest.raises(ValueError, match=r"two or more dimensions; got \[\(4,\)\]"):
        MuonWithAdamW([{"params": [bias], "lr": 0.1, "weight_decay": 0.0, "matrix": True}])
    other = torch.optim.AdamW([kernel, bias]).state_dict()
    with pytest.raises(ValueError, match="ALIGNZEG.SOLVER.OPTIMIZER"):
        MuonWithAdamW(_muon_groups(kernel, bias)).load_state_dict(other)


def test_muon_takes_kernels_with_their_channels_last():
    """The same steps as with the usual order of memory, on the parameter itself."""
    convolutions = []
    for memory in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        convolution = nn.Conv2d(3, 8, 3).to(memory_format=memory)
        optimizer = MuonWithAdamW(
            [{"params": [convolution.weight], "lr": 0.1, "weight_decay": 0.0, "matrix": True}]
        )
        for _ in range(2):
            optimizer.zero_grad()
            convolution(torch.ones(1, 3, 8, 8).cumsum(-1)).square().sum().backward()
            optimizer.step()
        convolutions.append(convolution.weight.detach().contiguous())
    usual, last = convolutions
    torch.manual_seed(0)
    assert not torch.allclose(usual, nn.Conv2d(3, 8, 3).weight, atol=1e-3)
    torch.testing.assert_close(usual, last, rtol=1e-2, atol=1e-3)
