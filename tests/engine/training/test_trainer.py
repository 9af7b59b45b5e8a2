"""A run of the trainer: it logs, saves, resumes, and refuses what is not its own."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from helpers import CONFIGS, plain
from torch import nn

from alignzeg.commands.train import parse_args
from alignzeg.engine import (
    AlignZegCheckpointer,
    Trainer,
    evaluate,
    read_checkpoint,
    start_run,
    validate,
)
from alignzeg.engine.processes.errors import NonFiniteError
from alignzeg.structures import Vocabulary

ALIGNZEG = CONFIGS / "zeroshapes" / "alignzeg.yaml"


def test_toy_trains_logs_saves_and_resumes(toy_cfg: CfgNode) -> None:
    toy_cfg.SEED = -1
    toy_cfg.SOLVER.MAX_ITER = 21
    validate(toy_cfg)
    cfg = start_run(toy_cfg, parse_args(["--config-file", str(ALIGNZEG)]))
    assert cfg.SEED >= 0
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    output = Path(cfg.OUTPUT_DIR)
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    metrics = {key: value for line in lines for key, value in line.items()}
    expected = {"loss_pixel", "loss_size", "total_loss", "lr", "eta_seconds", "[metric]grad_norm"}
    assert {*expected, "[metric]images_per_second"} <= metrics.keys()
    assert list(output.glob("events.out.tfevents.*"))
    assert f"SEED: {cfg.SEED}" in (output / "config.yaml").read_text()
    log = (output / "log.txt").read_text()
    assert "total batch 2 = 1 processes x 2 images x 1 accumulated" in log.splitlines()[0]
    assert f"seed {cfg.SEED}" in log.splitlines()[0]

    saved = read_checkpoint(str(output / "model_final.pth"))
    assert saved["alignzeg"]["vlm_id"] == "toy" and saved["alignzeg"]["vlm_hash"] == "0123"
    assert saved["alignzeg"]["seen"] == list(trainer.model.seen.names)
    assert yaml.safe_load(saved["alignzeg"]["config"]) == plain(cfg)

    longer = cfg.clone()
    longer.defrost()
    longer.SOLVER.MAX_ITER = 22
    resumed = Trainer(longer)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 21
    torch.testing.assert_close(resumed.model.state_dict(), saved["model"])
    resumed.train()
    assert resumed.iter == 22

    longer.MODEL.WEIGHTS = str(output / "model_final.pth")
    results = evaluate(longer)
    assert 0 <= results["sem_seg"]["mIoU"] <= 100


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(toy_cfg: CfgNode) -> None:
    toy_cfg.TOY.FAIL_AT = 2
    trainer = Trainer(toy_cfg)
    weights = {}

    class Remember(HookBase):
        def after_step(self) -> None:
            weights.update({k: v.clone() for k, v in trainer.model.state_dict().items()})

    trainer.register_hooks([Remember()])
    with pytest.raises(
        NonFiniteError,
        match=r"loss_pixel: not finite, in a batch of .*\.png.*; iteration 1, learning rate",
    ):
        trainer.train()
    torch.testing.assert_close(dict(trainer.model.state_dict()), weights)


def test_a_checkpoint_of_something_else_is_refused(toy_cfg: CfgNode, tmp_path: Path) -> None:
    model = Trainer.build_model(toy_cfg)
    AlignZegCheckpointer(model, str(tmp_path), config=toy_cfg.dump()).save("good")
    good = str(tmp_path / "good.pth")
    checkpointer = AlignZegCheckpointer(model, strict=True)
    checkpointer.load(good)

    seen = model.seen
    for attribute, value, message in (
        ("id", "ViT-B-16", "trained with the VLM 'toy', the config asks for 'ViT-B-16'"),
        ("hash", "4567", "their hash was 0123, here it is 4567"),
    ):
        model.vlm = type("OtherVLM", (type(model.vlm),), {attribute: value})()
        with pytest.raises(ValueError, match=message):
            checkpointer.load(good)
        model.vlm = type(model.vlm).__base__()
    names = ("violet whale", *seen.names[1:])
    model.seen = Vocabulary(names, seen.seen)
    with pytest.raises(
        ValueError, match=rf"only there: \['{seen.names[0]}'\], only here: \['violet whale'\]"
    ):
        checkpointer.load(good)
    model.seen = Vocabulary(seen.names[::-1], seen.seen)
    with pytest.raises(ValueError, match="the order differs"):
        checkpointer.load(good)
    model.seen = seen
    checkpointer.load(good)

    model.conv = nn.Conv2d(3, len(seen) + 1, 1)
    with pytest.raises(ValueError, match=r"do not fit the model .*2 of another shape \(conv"):
        checkpointer.load(good)
    with pytest.raises(ValueError, match=r"nothing of .* it holds conv\.weight"):
        AlignZegCheckpointer(model).load(good)


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch bombed",))


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "alignzeg": Bomb()}, "bomb.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Bomb()))
    checkpointer = AlignZegCheckpointer(nn.Linear(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("bomb.pth", "text.pth", "pickle.pth"):
            with pytest.raises(ValueError, match=f"checkpoint '{name}'"):
                checkpointer.load(name)
    assert not (tmp_path / "bombed").exists()
    with pytest.raises(ValueError, match="does not exist"):
        read_checkpoint("gone.pth")
