"""What is said before a training: used folders, settings that cannot be meant, other classes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from alignzeg.commands.train import main, parse_args
from alignzeg.data.lint import pitfalls, validate_names
from alignzeg.engine import AlignZegCheckpointer, check_folder, read_checkpoint
from alignzeg.engine.run import clear
from alignzeg.engine.settings import advice
from alignzeg.engine.training.resume import report_other_classes
from alignzeg.structures import Vocabulary


def used(folder: Path) -> Path:
    """A folder with a training, and two files that are not of it."""
    for name in ("log.txt", "metrics.json", "model_0000009.pth", "last_checkpoint", "mine.txt"):
        (folder / name).write_text("x")
    (folder / "inference").mkdir()
    (folder / "config.yaml").write_text("SEED: 1\n")
    return folder


def test_a_used_folder_is_refused_resumed_or_overwritten(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    tiny_cfg.OUTPUT_DIR = str(tmp_path)
    check_folder(tiny_cfg, parse_args([]))
    (tmp_path / "log.txt").write_text("an evaluation, or a start that failed")
    check_folder(tiny_cfg, parse_args([]))
    (tmp_path / "log.txt").unlink()
    used(tmp_path)
    for words in (["--resume"], ["--eval-only"], ["--overwrite"]):
        check_folder(tiny_cfg, parse_args(words))
    with pytest.raises(ValueError, match=r"holds a training already .*--resume.*--overwrite"):
        check_folder(tiny_cfg, parse_args([]))
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "model_0000009.pth")
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is .*which --overwrite would delete"):
        check_folder(tiny_cfg, parse_args(["--overwrite"]))
    clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"mine.txt", "config.yaml"}
    assert not any(tmp_path.glob("model_*")) and not (tmp_path / "inference").exists()
    with pytest.raises(ValueError, match="--overwrite starts anew"):
        main(parse_args(["--overwrite", "--resume"]))


@pytest.mark.parametrize(("warm", "steps", "said"), [(100, 2, 1), (5, 5, 1), (4, 5, 0), (0, 2, 0)])
def test_a_warm_up_that_never_ends_is_mentioned(
    tiny_cfg: CfgNode, warm: int, steps: int, said: int
) -> None:
    tiny_cfg.SOLVER.WARMUP_ITERS, tiny_cfg.SOLVER.MAX_ITER = warm, steps
    lines = advice(tiny_cfg)
    assert len(lines) == said
    assert all(f"SOLVER.WARMUP_ITERS is {warm}" in line for line in lines)


class Short:
    """A text encoder that reads nine letters."""

    context_length = 9

    def token_counts(self, names: list[str]) -> list[int]:
        return [len(name) for name in names]

    def embed_text(self, names: list[str]) -> torch.Tensor:
        return torch.eye(len(names))


def test_one_class_and_names_that_are_cut_are_mentioned() -> None:
    one = Vocabulary(("grass",), (True,))
    assert pitfalls(one)[0].startswith("one class, 'grass': every pixel is named so")
    two = Vocabulary(("grass", "a very long name"), (True, False))
    (line,) = pitfalls(two, Short())
    assert line.startswith("too long: 'a very long name' takes 16 tokens")
    assert pitfalls(Vocabulary(("grass", "sky"), (True, False)), Short()) == []


def test_names_of_test_sets_are_looked_at_too(
    tiny_cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_cfg.DATASETS.TRAIN, tiny_cfg.DATASETS.TEST = (), ("voc2012_val",)
    with caplog.at_level(logging.WARNING):
        validate_names(tiny_cfg, nn.Module())
        assert caplog.text == ""
        validate_names(tiny_cfg, Short())  # type: ignore[arg-type]
    assert "classes of voc2012_val: too long: 'pottedplant'" in caplog.text


class Model(nn.Module):
    """No weight of it belongs to a class, but for `heads`."""

    def __init__(self, *names: str, heads: int = 1) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(3, 3), nn.Linear(3, heads)
        self.seen = Vocabulary(names, (True,) * len(names))


def test_weights_of_other_classes_are_taken_to_start_from(tmp_path: Path) -> None:
    old, new = Model("grass", "sky"), Model("grass", "heaven", "sea")
    AlignZegCheckpointer(old, str(tmp_path), config="SEED: 1\n").save("old")
    path = str(tmp_path / "old.pth")
    with pytest.raises(ValueError, match="trained on 2 seen classes, the config has 3"):
        AlignZegCheckpointer(new).load(path)
    checkpointer = AlignZegCheckpointer(new)
    checkpointer.other_classes = True
    checkpointer.load(path)
    torch.testing.assert_close(new.body.weight, old.body.weight)
    wider = AlignZegCheckpointer(Model("grass", "heaven", heads=2))
    wider.other_classes = True
    with pytest.raises(ValueError, match=r"on other classes, and 2 weights \(heads"):
        wider.load(path)


def test_masks_of_classes_that_are_unseen_now_are_mentioned(
    tiny_cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model("grass", "Red Star", "brick")
    AlignZegCheckpointer(model, str(tmp_path), config="SEED: 1\n").save("old")
    with caplog.at_level(logging.INFO):
        report_other_classes(tiny_cfg, read_checkpoint(str(tmp_path / "old.pth")))
    assert "trained on 3 classes" in caplog.text
    assert "was trained with masks of ['red star'], unseen here" in caplog.text
