"""Every method with mask proposals can be exported, with either frozen VLM."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from helpers import CONFIGS, TINY_OPTS
from timm.layers import Conv2dSame
from tiny_imagenet import tiny_imagenet
from torch import nn

from alignzeg.engine import AlignZegCheckpointer, setup_config
from alignzeg.exporting import export_graph
from alignzeg.exporting.files import TOLERANCE
from alignzeg.exporting.padding import fixed_padding

pytest.importorskip("onnxruntime")
OPTS = [*TINY_OPTS, "ALIGNZEG.EXTRACTOR.LAYERS", "1", "INPUT.MIN_SIZE_TEST", "72"]
AFFINITY = ["ALIGNZEG.EXTRACTOR.NAME", "VLMAffinityExtractor"]


@pytest.mark.parametrize(
    ("config", "opts", "suffix"),
    [
        ("zeroshapes/baseline.yaml", [], ".pt2"),
        ("zeroshapes/cel.yaml", ["ALIGNZEG.TEST.ENSEMBLE_UNSEEN", "0.4"], ".onnx"),
        ("zeroshapes/mrpe.yaml", AFFINITY, ".pt2"),
        ("msrc21/alignzeg.yaml", ["imagenet"], ".onnx"),
    ],
)
def test_a_method_is_exported(config: str, opts: list[str], suffix: str, tmp_path: Path) -> None:
    if opts == ["imagenet"]:
        opts = [*tiny_imagenet(tmp_path), "ALIGNZEG.VLM.CACHE_DIR", str(tmp_path / "text")]
    seed_all_rng(0)
    cfg = setup_config(CONFIGS / config, [*OPTS, *opts])
    AlignZegCheckpointer(build_model(cfg), str(tmp_path), config=cfg.dump()).save("model")
    file = tmp_path / f"graph{suffix}"
    made = export_graph(tmp_path / "model.pth", file, ["red star", "cat", "brick"])
    assert set(made.differences) == {"masks", "embeds", "scores", "weights"}
    assert max(made.differences.values()) <= TOLERANCE


def same_network() -> nn.Sequential:
    """Kernels, strides and dilations as in timm's networks with TensorFlow's padding."""
    kinds = [(3, 2, 1), (5, 2, 1), (3, 2, 1), ((3, 5), (2, 1), 1), (3, 2, 2), (2, 2, 1)]
    return nn.Sequential(*(Conv2dSame(3, 3, k, stride=s, dilation=d) for k, s, d in kinds))


def test_fixed_padding_is_that_of_timm_where_strides_divide_the_image() -> None:
    network = same_network().double()
    for rows, columns in ((1, 1), (2, 3), (3, 1)):
        x = torch.randn(1, 3, 64 * rows, 32 * columns, dtype=torch.float64)
        wanted = network(x)
        with fixed_padding(network):
            assert torch.equal(network(x), wanted)


def test_the_padding_of_a_network_depends_on_its_image_again_afterwards() -> None:
    layer = Conv2dSame(1, 1, 3, stride=2)
    x = torch.randn(1, 1, 7, 7)
    wanted = F.conv2d(F.pad(x, (1, 1, 1, 1)), layer.weight, layer.bias, 2)
    with fixed_padding(layer):
        assert layer(x).shape == (1, 1, 3, 3)
    assert torch.equal(layer(x), wanted)
    assert "forward" not in vars(layer) and torch.equal(copy.deepcopy(layer)(x), wanted)


def test_a_deep_network_with_timms_padding_is_traced_with_free_sizes() -> None:
    """Without fixed numbers the formula of its output's size grew until nothing came of it."""
    network = nn.Sequential(*(Conv2dSame(2, 2, 3, stride=2) for _ in range(5))).eval()
    free = {2: 32 * torch.export.Dim("h", max=64), 3: 32 * torch.export.Dim("w", max=64)}
    with fixed_padding(network), torch.no_grad():
        program = torch.export.export(
            network, (torch.zeros(1, 2, 128, 160),), dynamic_shapes=(free,), strict=False
        )
    x = torch.randn(1, 2, 64, 224)
    torch.testing.assert_close(program.module()(x), network(x))
