"""ZS3Net and recursive training: features, pseudo-features, losses, and a run that is killed."""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from helpers import CONFIGS, K4

from alignzeg.data.labels import get_vocabulary, read_labels
from alignzeg.data.mapper import build_targets
from alignzeg.engine import read_checkpoint, setup_config
from alignzeg.engine.run import evaluate, train, trainer_of
from alignzeg.engine.training.trainer import Trainer, training_records
from alignzeg.generative.feature_bank import (
    FeatureBank,
    FeatureLoader,
    Reservoir,
    count_pixels,
    labelled_cells,
)
from alignzeg.generative.generative_trainer import GenerativeTrainer, load_pixel_network
from alignzeg.generative.recursion import Phase, Schedule
from alignzeg.losses.mmd import weighted_mmd

RECURSIVE = CONFIGS / "zeroshapes" / "transductive_recursive_generated.yaml"
SMALL = [
    *("ALIGNZEG.RECURSION.GENERATOR_STEPS", "3", "ALIGNZEG.RECURSION.CLASSIFIER_STEPS", "2"),
    *("ALIGNZEG.RECURSION.ROUNDS", "2", "ALIGNZEG.RECURSION.PSEUDO", "6"),
    *("ALIGNZEG.RECURSION.CONFIDENCE", "0.0", "ALIGNZEG.GENERATOR.SAMPLES", "4"),
    *("ALIGNZEG.GENERATOR.BANK", "32", "SOLVER.MAX_ITER", "15"),
    *("SOLVER.CHECKPOINT_PERIOD", "1", "TEST.EVAL_PERIOD", "5"),
]


@pytest.fixture
def opts(zeroshapes, tiny_opts, tmp_path) -> list[str]:
    """Small rounds over an untrained pixel network."""
    cfg = setup_config(CONFIGS / "zeroshapes" / "pixel.yaml", [*tiny_opts, *K4])
    weights = tmp_path / "pixel.pth"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, weights)
    return [*tiny_opts, *SMALL, *K4, "MODEL.WEIGHTS", str(weights)]


@pytest.fixture
def cfg(opts) -> CfgNode:
    return setup_config(RECURSIVE, opts)


@pytest.fixture
def model(cfg):
    return Trainer.build_model(cfg)


def batch_of(model, step: int, samples: int = 5) -> dict:
    """Features of the first three seen classes."""
    count = len(model.names)
    return {
        "step": step,
        "phase": asdict(Schedule(2, 3, 2).at(step)),
        "classes": torch.arange(3),
        "features": torch.randn(3, samples, model.branch.channels),
        "unlabelled": torch.randn(20, model.branch.channels),
        "shares": torch.rand(count).softmax(dim=0),
    }


# ------------------------------------------------------------------------------------- the model
def test_steps_teach_the_generator_and_then_the_classifier(model):
    keys = [sorted(model.train()([batch_of(model, step)])) for step in range(10)]
    assert keys[:5] == [["loss_mmd"]] * 3 + [["loss_classifier"]] * 2
    assert keys[5:] == [["loss_mmd", "loss_zs_mmd"]] * 3 + [["loss_classifier"]] * 2


@pytest.mark.parametrize(("step", "learns"), [(0, "generator."), (3, "branch.classifier.")])
def test_each_step_reaches_its_own_part_and_never_the_pixel_network(model, step, learns):
    sum(model.train()([batch_of(model, step)]).values()).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached
    assert all(name.startswith(learns) for name in reached)


def test_the_frozen_part_stays_in_a_tests_mode(model):
    model.train()
    assert model.generator.training
    assert not any(part.training for part in model.backbone.modules())
    assert not any(part.training for part in model.branch.decoder.modules())


def test_the_generators_loss_is_the_mean_discrepancy_of_the_classes(model):
    model.generator.layers[2].p = 0.0
    batch = batch_of(model, 0)
    torch.manual_seed(3)
    loss = model.train()([batch])["loss_mmd"]
    torch.manual_seed(3)
    made = model.generator(model.semantics[:3], 5)
    each = [weighted_mmd(made[i], batch["features"][i], None, model.bandwidths) for i in range(3)]
    torch.testing.assert_close(loss, torch.stack(each).mean())


def test_the_classifiers_loss_weighs_classes_by_their_share_of_the_layout(model):
    torch.nn.init.normal_(model.branch.classifier.weight)
    model.generator.layers[2].p = 0.0
    batch = batch_of(model, 3)
    torch.manual_seed(3)
    loss = model.train()([batch])["loss_classifier"]
    torch.manual_seed(3)
    seen = len(model.seen)
    made = model.generator(model.semantics[seen:], 5)
    total = weights = 0.0
    groups = [*enumerate(batch["features"]), *enumerate(made, start=seen)]
    for label, features in groups:
        logits = model.branch.classifier(features)
        share = batch["shares"][label]
        total += share * F.cross_entropy(logits, torch.full((5,), label))
        weights += share
    torch.testing.assert_close(loss, total / weights)


def test_sure_features_of_unseen_classes_become_pseudo_features(model):
    """A classifier that looks at one channel is sure of a class where that channel is large."""
    seen, channel = len(model.seen), 0
    with torch.no_grad():
        model.branch.classifier.weight.zero_()
        model.branch.classifier.weight[seen, channel] = 10.0
    model.feedback = copy.copy(model.feedback)
    object.__setattr__(model.feedback, "source", "pixels")
    object.__setattr__(model.feedback, "confidence", 0.7)
    unlabelled = torch.zeros(20, model.branch.channels)
    unlabelled[:3, channel] = torch.tensor([1.0, 2.0, 0.5])
    model.collect(unlabelled, seed=0)
    weights = model.pseudo_weights
    assert torch.equal(weights.sum(dim=1) > 0, torch.tensor([True, False, False, False]))
    assert weights[0].sum().item() == pytest.approx(1)
    probs = torch.tensor([10.0, 20.0, 5.0]).exp()
    probs = probs / (probs + len(model.names) - 1)
    kept = weights[0] > 0
    assert sorted(model.pseudo[0, kept, channel].tolist()) == [0.5, 1.0, 2.0]
    order = model.pseudo[0, :, channel].argsort(descending=True)[:3]
    torch.testing.assert_close(weights[0, order], probs[[1, 0, 2]] / probs.sum())


def test_the_zs_mmd_is_over_the_classes_that_have_pseudo_features(model):
    model.generator.layers[2].p = 0.0
    model.pseudo.normal_()
    model.pseudo_weights[1] = torch.tensor([0.5, 0.25, 0.25, 0.0, 0.0, 0.0])
    torch.manual_seed(3)
    found = model.zs_mmd(5)
    torch.manual_seed(3)
    made = model.generator(model.semantics[len(model.seen) :], 5)[1]
    real, weights = model.pseudo[1, :3], torch.tensor([0.5, 0.25, 0.25])
    torch.testing.assert_close(found, weighted_mmd(made, real, weights, model.bandwidths))


def test_without_a_sure_feature_there_is_no_zs_mmd(model):
    loss = model.zs_mmd(5)
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("use", ["zs_mmd", "self_training", "both"])
def test_pseudo_features_teach_what_they_are_used_for(cfg, use):
    """Pseudo-features of one class lie far from all others: who learns of them moves there."""
    cfg.merge_from_list(["ALIGNZEG.RECURSION.USE", use, "ALIGNZEG.RECURSION.CONFIDENCE", 1.0])
    model = Trainer.build_model(cfg).train()
    first, far = len(model.seen) + 1, torch.full((model.branch.channels,), 9.0)

    def losses(step: int) -> dict:
        batch = batch_of(model, step)
        torch.manual_seed(0)
        return model([batch])

    torch.manual_seed(1)
    known = [losses(step) for step in (5, 8)]
    model.pseudo[1] = far
    model.pseudo_weights[1, :2] = 0.5
    torch.manual_seed(1)
    taught = [losses(step) for step in (6, 8)]
    assert ("loss_zs_mmd" in taught[0]) == (use != "self_training")
    model.zero_grad()
    taught[1]["loss_classifier"].backward()
    # The row of the class is drawn towards its features: the gradient points away from them.
    pull = -(model.branch.classifier.weight.grad[first] @ far)
    model.zero_grad()
    known[1]["loss_classifier"].backward()
    alone = -(model.branch.classifier.weight.grad[first] @ far)
    assert (pull > alone + 1) == (use != "zs_mmd")


def test_half_of_a_sure_class_is_pseudo_features_and_the_rest_is_made(model):
    model.pseudo[1, :2] = torch.tensor([1.0, 2.0])[:, None]
    model.pseudo_weights[1, :2] = torch.tensor([0.25, 0.75])
    made = -torch.rand(4, 4000, model.branch.channels)
    mixed = model.self_trained(made)
    assert torch.equal(mixed[[0, 2, 3]], made[[0, 2, 3]])
    assert torch.equal(mixed[1, 1::2], made[1, 1::2])
    assert mixed[1, ::2].mean().item() == pytest.approx(0.25 * 1 + 0.75 * 2, abs=0.05)


def test_every_process_collects_the_same_generated_features(model):
    model.train().collect(torch.zeros(0, model.branch.channels), seed=7)
    first = model.pseudo.clone()
    torch.rand(5)
    model.collect(torch.zeros(0, model.branch.channels), seed=7)
    assert torch.equal(model.pseudo, first)
    assert model.generator.training
    model.collect(torch.zeros(0, model.branch.channels), seed=8)
    assert not torch.equal(model.pseudo, first)


def test_missing_word_vectors_are_named(cfg):
    cfg.ALIGNZEG.SEMANTICS.SOURCE = "words"
    with pytest.raises(ValueError, match="WORD_VECTORS"):
        Trainer.build_model(cfg)


def test_a_wrong_number_of_steps_is_named(cfg):
    cfg.SOLVER.MAX_ITER = 14
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITER is 14, but .* take 15; set it to that"):
        GenerativeTrainer(cfg)


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


def test_word_vectors_in_place_of_the_text_encoder(cfg, tmp_path):
    words = {word for name in get_vocabulary("zeroshapes_k4_train").names for word in name.split()}
    lines = [f"{word} {' '.join(f'{x:.3f}' for x in torch.randn(7))}" for word in sorted(words)]
    (tmp_path / "words.txt").write_text("\n".join(lines))
    cfg.ALIGNZEG.SEMANTICS.SOURCE = "words"
    cfg.ALIGNZEG.SEMANTICS.WORD_VECTORS = str(tmp_path / "words.txt")
    model = Trainer.build_model(cfg)
    assert model.semantics.shape == (len(model.names), 7)
    (tmp_path / "words.txt").write_text("\n".join(x for x in lines if not x.startswith("wood")))
    with pytest.raises(ValueError, match=r"know no word of \['wood'\]"):
        Trainer.build_model(cfg)


# ---------------------------------------------------------------------------------- the features
def test_a_reservoir_keeps_a_uniform_sample():
    counts = torch.zeros(40)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        reservoir = Reservoir(10, generator)
        for start in range(0, 40, 4):
            reservoir.add(torch.arange(start, start + 4)[:, None])
        kept = reservoir.sample()[:, 0]
        assert len(kept.unique()) == 10
        counts[kept] += 1
    # Binomial with mean 100 and standard deviation 8.7.
    assert counts.min() > 60
    assert counts.max() < 140


def test_cells_count_where_all_their_pixels_have_one_label():
    labels = torch.full((8, 12), 255)
    labels[:4, :4] = 0
    labels[:4, 4:8] = 1
    labels[0, 4] = 0
    targets = build_targets(labels.numpy(), 2).padded((12, 12))
    cells = dict(labelled_cells(targets, (3, 3)))
    assert cells[0].nonzero().tolist() == [[0, 0]]
    assert cells[1].nonzero().tolist() == []
    # Padding is no pixel without a label.
    assert cells[-1].nonzero().tolist() == [[0, 2], [1, 0], [1, 1], [1, 2]]


def test_pixels_are_counted_with_those_of_hidden_classes(cfg):
    records = training_records(cfg)
    names = get_vocabulary("zeroshapes_train").names
    counts = count_pixels(records, names[::-1]).flip(0)
    for label in range(len(names)):
        labels = (read_labels(r["sem_seg_file_name"], r["dataset_name"]) for r in records)
        assert counts[label] == sum(int((part == label).sum()) for part in labels)


def test_a_sampled_layout_does_not_know_the_labels_of_unseen_classes(cfg, model):
    loader = GenerativeTrainer.build_train_loader(cfg)
    loader.model = model
    shares = next(iter(loader))[0]["shares"]
    seen = len(model.seen)
    assert shares.sum().item() == pytest.approx(1)
    torch.testing.assert_close(shares[seen:], shares[seen].expand(4))
    present = shares[:seen][shares[:seen] > 0]
    torch.testing.assert_close(shares[seen], present.mean())
    cfg.ALIGNZEG.GENERATOR.LAYOUT = "real"
    loader = GenerativeTrainer.build_train_loader(cfg)
    loader.model = model
    real = next(iter(loader))[0]["shares"]
    counts = count_pixels(training_records(cfg), model.names)
    torch.testing.assert_close(real, counts / counts.sum())


def test_a_batch_depends_on_its_number_alone():
    rows = torch.arange(50.0)[:, None]
    bank = FeatureBank(torch.arange(2), [rows, -rows], rows[:0], torch.ones(2) / 2)

    def loader(**changes) -> FeatureLoader:
        made = FeatureLoader(lambda _: bank, Schedule(0, 2, 2), samples=8, **{"seed": 1, **changes})
        made.model = torch.nn.Identity()
        return made

    first, again = loader(), loader()
    batches = [batch[0]["features"] for _, batch in zip(range(4), first, strict=False)]
    assert not torch.equal(batches[0], batches[1])
    # The fourth batch was handed out after it was counted.
    assert first.state_dict()["position"] == 4
    again.load_state_dict({"seed": 1, "position": 2})
    torch.rand(9)
    assert torch.equal(next(iter(again))[0]["features"], batches[2])
    assert not torch.equal(next(iter(loader(rank=1)))[0]["features"], batches[0])


# --------------------------------------------------------------------------------------- the run
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
