"""ZS3Net and recursive training: what each step learns, and from which features."""

from __future__ import annotations

import copy
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

from alignzeg.data.labels import get_vocabulary
from alignzeg.engine.training.trainer import Trainer
from alignzeg.generative.generative_trainer import GenerativeTrainer
from alignzeg.generative.recursion import Schedule
from alignzeg.losses.mmd import weighted_mmd


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
