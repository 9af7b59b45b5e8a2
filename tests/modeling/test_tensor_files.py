"""Weights of CLIP as people have them on disk: all layouts load, and no code stored there runs."""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from alignzeg.modeling.tensor_files import is_torchscript, read_tensors, under_prefix
from alignzeg.modeling.vlm.weights import load_clip

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1},
}
NUMBERS = {"input_resolution": 32, "context_length": 16, "vocab_size": 100}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    folder = tmp_path_factory.mktemp("clip")
    for name, quick in (("layouts", False), ("layouts-quickgelu", True)):
        (folder / f"{name}.json").write_text(json.dumps({**CONFIG, "quick_gelu": quick}))
        open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(3)
    return open_clip.create_model("layouts").eval().requires_grad_(False)


def archive(model: nn.Module, path: Path) -> None:
    """A traced model, as OpenAI published its CLIP."""
    example = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.long))
    torch.jit.save(torch.jit.trace_module(model, {"forward": example}, strict=False), path)


def prefixed(state: dict[str, Tensor], head: str) -> dict[str, Tensor]:
    return {head + name: value for name, value in state.items()}


LAYOUTS: dict[str, Callable[[dict[str, Tensor], Path], Any]] = {
    "state_dict": torch.save,
    "module": lambda state, path: torch.save(prefixed(state, "module."), path),
    "open_clip": lambda state, path: torch.save(
        {
            "epoch": 32,
            "name": "run",
            "state_dict": prefixed(state, "module."),
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        },
        path,
    ),
    "compiled": lambda state, path: torch.save(
        {"model": prefixed(state, "module._orig_mod.")}, path
    ),
    "with its arguments": lambda state, path: torch.save(
        {"state_dict": state, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)}, path
    ),
    "with a number of OpenAI's": lambda state, path: torch.save(
        {**state, "input_resolution": torch.tensor(32)}, path
    ),
    "old format": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "safetensors": lambda state, path: save_file(state, path),
    "parameters": lambda state, path: torch.save(
        {name: nn.Parameter(value, False) for name, value in state.items()}, path
    ),
}


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_whatever_its_name(clip, tmp_path, layout: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    want = {name: value.contiguous() for name, value in clip.state_dict().items()}
    LAYOUTS[layout](want, path)
    loaded, _ = load_clip("layouts", str(path))
    got = loaded.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], value) for name, value in want.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_becomes_single(clip, tmp_path, dtype: torch.dtype) -> None:
    want = {name: value.to(dtype) for name, value in clip.state_dict().items()}
    torch.save(want, tmp_path / "half.pt")
    got = load_clip("layouts", str(tmp_path / "half.pt"))[0].state_dict()
    assert all(torch.equal(got[name], value.float()) for name, value in want.items())


def test_a_torchscript_archive_gives_what_torch_reads_from_it(clip, tmp_path) -> None:
    path = tmp_path / "jit.pt"
    archive(clip, path)
    assert is_torchscript(path)
    theirs, ours = torch.jit.load(path).state_dict(), read_tensors(path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    loaded, _ = load_clip("layouts", str(path))
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(image), clip.encode_image(image))


def test_an_archive_in_half_precision_with_shared_storage(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).half().eval()
    model[0].bias = nn.Parameter(model[0].weight[:, 1], requires_grad=False)  # strided, shared
    path = tmp_path / "half.pt"
    torch.jit.save(torch.jit.script(model), path)
    ours, want = read_tensors(path), model.state_dict()
    assert ours.keys() == want.keys()
    assert all(torch.equal(ours[name], value) for name, value in want.items())


def test_openais_numbers_tell_the_activation(clip, tmp_path) -> None:
    state = {**clip.state_dict(), **{name: torch.tensor(v) for name, v in NUMBERS.items()}}
    torch.save(state, tmp_path / "ViT.pt")
    with pytest.raises(ValueError, match="QuickGELU: set .* to 'layouts-quickgelu'"):
        load_clip("layouts", str(tmp_path / "ViT.pt"))
    load_clip("layouts-quickgelu", str(tmp_path / "ViT.pt"))


def test_what_lacks_and_what_is_too_much_is_named(clip, tmp_path) -> None:
    state = dict(clip.state_dict())
    state["visual.conv2.weight"] = state.pop("visual.conv1.weight")
    state["ln_final.bias"] = torch.zeros(5)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError) as failure:
        load_clip("layouts", str(tmp_path / "w.pt"))
    said = str(failure.value)
    assert "lacking: visual.conv1.weight; too many: visual.conv2.weight" in said
    assert "of another shape: ln_final.bias (5,) instead of (16,)" in said
    assert "\n" not in said


class Trap:
    """A pickle that would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_pickled_code_runs_in_any_layout(clip, tmp_path) -> None:
    mark = tmp_path / "mark"
    torch.save({"state_dict": dict(clip.state_dict()), "more": Trap(mark)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a.pt.*holds the Python object .*: save its state_dict"):
        load_clip("layouts", str(tmp_path / "a.pt"))
    archive(clip, tmp_path / "good.pt")
    with (
        zipfile.ZipFile(tmp_path / "good.pt") as good,
        zipfile.ZipFile(tmp_path / "b.pt", "w") as bad,
    ):
        for name in good.namelist():
            evil = pickle.dumps(Trap(mark), 2) if name.endswith("/data.pkl") else good.read(name)
            bad.writestr(name, evil)
    with pytest.raises(ValueError, match="b.pt.*is not read"):
        load_clip("layouts", str(tmp_path / "b.pt"))
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x" * 100, b"\x80\x02K\x01."])
def test_damaged_files_are_one_line(clip, tmp_path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be loaded into 'layouts'") as failure:
        load_clip("layouts", str(tmp_path / "w.pt"))
    assert "\n" not in str(failure.value)


def test_a_prefix_is_only_taken_off_where_names_do_not_fit() -> None:
    state = {"model.a": torch.zeros(1), "model.b": torch.ones(1)}
    assert under_prefix(state, {"model.a", "model.b"}).keys() == state.keys()
    assert under_prefix(state, {"a", "b"}).keys() == {"a", "b"}
    beside = under_prefix({**state, "loss.c": torch.zeros(1)}, {"a", "b"})
    assert beside.keys() == {"a", "b", "loss.c"}
    pair = {f"{who}.{name}": torch.zeros(1) for who in ("teacher", "student") for name in "ab"}
    assert under_prefix(pair, {"a", "b"}).keys() == pair.keys()


def test_what_stands_beside_the_network_is_too_much(clip, tmp_path) -> None:
    state = prefixed(dict(clip.state_dict()), "model.")
    torch.save({"state_dict": {**state, "loss.scale": torch.ones(1)}}, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match=r"\(too many: loss\.scale\)"):
        load_clip("layouts", str(tmp_path / "w.ckpt"))


def test_weights_of_another_width_and_broken_numbers_are_named(clip, tmp_path) -> None:
    state = dict(clip.state_dict())
    torch.save({**state, "positional_embedding": torch.zeros(16, 24)}, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"positional_embedding \(16, 24\) instead of \(16, 16\)"):
        load_clip("layouts", str(tmp_path / "wide.pt"))
    tower = {n.removeprefix("visual."): v for n, v in state.items() if n.startswith("visual.")}
    torch.save(tower, tmp_path / "tower.pt")
    with pytest.raises(ValueError, match="lacking: .* too many: "):
        load_clip("layouts", str(tmp_path / "tower.pt"))
    bad = state["ln_final.bias"].clone()
    bad[2] = float("nan")
    torch.save({**state, "ln_final.bias": bad}, tmp_path / "nan.pt")
    with pytest.raises(ValueError, match="ln_final.bias holds values that are NaN"):
        load_clip("layouts", str(tmp_path / "nan.pt"))


def test_a_pointer_of_git_lfs_is_called_so(clip, tmp_path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    (tmp_path / "w.safetensors").write_text(text)
    with pytest.raises(ValueError, match="git lfs pull"):
        load_clip("layouts", str(tmp_path / "w.safetensors"))


class Masked(nn.Module):
    """Has a tensor that is neither parameter nor buffer, as CLIP's attention has its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.mask = torch.ones(3, 3)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale + self.mask[0]


def test_of_an_archive_only_parameters_and_buffers_are_read(tmp_path) -> None:
    path = tmp_path / "masked.pt"
    torch.jit.save(torch.jit.script(nn.Sequential(Masked(), Masked())), path)
    theirs, ours = torch.jit.load(path).state_dict(), read_tensors(path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
