"""The phases of a generative training, a run that is killed, and the pixel network it needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from generative_cases import RECURSIVE

from alignzeg.engine import read_checkpoint, setup_config
from alignzeg.engine.run import evaluate, train, trainer_of
from alignzeg.generative.generative_trainer import GenerativeTrainer, load_pixel_network
from alignzeg.generative.recursion import Phase


def test_the_trainer_knows_the_phase_of_every_step(cfg, opts, tmp_path, caplog):
    """With two batches a step, both are for the same phase, which is the trainer's."""
    cfg = setup_config(
        RECURSIVE,
        [*opts, "OUTPUT_DIR", str(tmp_path), "ALIGNZEG.SOLVER.ACCUMULATE", "2"],
    )
    assert trainer_of(cfg) is GenerativeTrainer
    trainer = GenerativeTrainer(cfg)
    seen = []
    batches = iter(trainer.data_loader)
    for step in range(15):
        trainer.iter = step
        for _ in range(2):
            (batch,) = next(batches)
            seen.append(Phase(**batch["phase"]) == trainer.phase and batch["step"] == step)
    assert all(seen)
    trainer.iter = 5
    assert trainer.phase == Phase(1, True, True)


class Kill(HookBase):
    """Ends a run as a kill does: nothing is saved or closed afterwards."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.steps:
            raise KeyboardInterrupt


def run(cfg: CfgNode, steps: int | None = None) -> None:
    seed_all_rng(cfg.SEED)
    trainer = GenerativeTrainer(cfg)
    trainer.resume_or_load(resume=True)
    if steps is not None:
        trainer.register_hooks([Kill(steps)])
        trainer._hooks = [h for h in trainer._hooks if not hasattr(h, "_period")] + [
            h for h in trainer._hooks if isinstance(h, Kill)
        ]
    trainer.train()


def test_a_run_killed_in_any_phase_ends_as_one_that_was_not(opts, tmp_path):
    finals = {}
    # In the generator's and the classifier's part of rounds 0, 1 and 2, and between them.
    for stops in ((), (2, 4, 5, 7, 14)):
        folder = tmp_path / f"stopped_{len(stops)}"
        folder.mkdir()
        cfg = setup_config(RECURSIVE, [*opts, "OUTPUT_DIR", str(folder), "DATASETS.TEST", "()"])
        for stop in stops:
            with pytest.raises(KeyboardInterrupt):
                run(cfg, stop)
        run(cfg)
        finals[stops] = read_checkpoint(str(folder / "model_final.pth"))["model"]
    first, second = finals.values()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_every_round_is_saved_and_evaluated(opts, tmp_path, monkeypatch):
    figures, test = [], GenerativeTrainer.test
    noting = staticmethod(lambda *given: figures.append(test(*given)) or figures[-1])
    monkeypatch.setattr(GenerativeTrainer, "test", noting)
    opts = [*opts, "SOLVER.CHECKPOINT_PERIOD", "5", "OUTPUT_DIR", str(tmp_path / "run")]
    cfg = setup_config(RECURSIVE, opts)
    Path(cfg.OUTPUT_DIR).mkdir()
    train(cfg)
    files = {path.name for path in Path(cfg.OUTPUT_DIR).glob("*.pth")}
    assert files >= {"model_0000004.pth", "model_0000009.pth", "model_final.pth"}
    assert len(figures) == 3
    weights = ["MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/model_final.pth"]
    again = evaluate(setup_config(RECURSIVE, [*opts, *weights]))
    assert again["sem_seg"] == figures[-1]["sem_seg"]


def test_without_a_pixel_network_there_is_nothing_to_imitate(cfg):
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ValueError, match=r"give MODEL\.WEIGHTS the checkpoint of a PixelSegmenter"):
        train(cfg)


def test_a_pixel_network_that_has_seen_an_unseen_class_is_refused(model, tmp_path):
    weights = {key: value for key, value in model.state_dict().items() if "generator" not in key}
    path = str(tmp_path / "other.pth")
    torch.save({"model": weights, "alignzeg": {"seen": ["grass", "wood"]}}, path)
    with pytest.raises(ValueError, match=r"was trained on \['wood'\], which are unseen here"):
        load_pixel_network(model, path)


def test_a_pixel_network_with_fewer_classes_gives_its_features(model, tmp_path):
    weights = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    weights["branch.classifier.weight"] = torch.zeros(3, 64)
    path = str(tmp_path / "other.pth")
    torch.save({"model": weights, "alignzeg": {"seen": ["grass", "sand", "brick"]}}, path)
    load_pixel_network(model, path)
    for name, value in model.state_dict().items():
        taken = name.startswith(("backbone.", "branch.decoder."))
        assert torch.equal(value, weights[name]) == taken, name
    del weights["backbone.fpn_lateral2.weight"]
    torch.save({"model": weights}, path)
    with pytest.raises(ValueError, match=r"does not hold the backbone of this config.*lateral2"):
        load_pixel_network(model, path)
