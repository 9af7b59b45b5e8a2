"""The sweep over cached proposals gives what running the model again would give."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from alignzeg.data.labels import get_vocabulary, label_lookup, read_labels
from alignzeg.engine import Trainer
from alignzeg.evaluation import confusion, metrics_from_confusion
from alignzeg.evaluation.cached_proposals import ProposalFile, iterate_proposals, save_proposals
from alignzeg.evaluation.calibration import Grid, Setting, best, sweep

DATASET = "zeroshapes_val"


def loader(cfg):
    return Trainer.build_test_loader(cfg, DATASET)


def inferred(model, cfg, vocabulary, setting):
    """What an evaluation of the whole model says with this setting."""
    corrector = model.head.corrector
    for name in ("gamma", "threshold"):
        if hasattr(corrector, name):
            setattr(corrector, name, getattr(setting, name))
    model.ensemble = (setting.seen_exponent, setting.unseen_exponent)
    lookup = label_lookup(DATASET, vocabulary)
    matrix = 0
    for batch in loader(cfg):
        with torch.no_grad():
            labels = np.asarray(model(batch)[0]["sem_seg"])
        truth = lookup[read_labels(batch[0]["sem_seg_file_name"], DATASET)]
        matrix = matrix + confusion(truth, labels, len(vocabulary))
    metrics = metrics_from_confusion(matrix, vocabulary.seen)
    return metrics["sIoU"], metrics["uIoU"], metrics["hIoU"]


def swept(cfg, grid):
    """Model, vocabulary and the settings of a sweep."""
    vocabulary = get_vocabulary(DATASET, "pseudo_unseen")
    model = build_model(cfg).eval()
    cached = list(iterate_proposals(model, loader(cfg), DATASET))
    return model, vocabulary, sweep(model, cached, vocabulary, grid)


def test_cached_scores_equal_running_the_model_again(held_out):
    model, vocabulary, settings = swept(held_out, Grid([0.0, 40.0], [0.2, 0.9]))
    assert [(s.threshold, s.gamma) for s in settings] == [(0.2, 0), (0.2, 40), (0.9, 0), (0.9, 40)]
    test = held_out.ALIGNZEG.TEST
    own = (test.ENSEMBLE_SEEN, test.ENSEMBLE_UNSEEN)
    assert {(s.seen_exponent, s.unseen_exponent) for s in settings} == {own} == {model.ensemble}
    assert (model.head.corrector.gamma, model.head.corrector.threshold) == (
        held_out.ALIGNZEG.CORRECTOR.GAMMA,
        held_out.ALIGNZEG.CORRECTOR.THRESHOLD,
    )
    for setting in settings:
        got = (setting.seen_iou, setting.unseen_iou, setting.harmonic_iou)
        assert got == inferred(model, held_out, vocabulary, setting)
    # An untrained indicator is near 1/2: above 0.2 it corrects everything, above 0.9 nothing.
    assert settings[1].seen_iou < settings[0].seen_iou
    assert settings[3].seen_iou == settings[2].seen_iou


@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["ALIGNZEG.CORRECTOR.MODE", "soft", "ALIGNZEG.TEST.SYNONYMS", "max"],
        ["ALIGNZEG.CORRECTOR.NAME", "ConstantShift", "ALIGNZEG.TEST.SEMANTIC_INFERENCE", "fast"],
        ["ALIGNZEG.HEAD.NAME", "MaskQualityHead", "ALIGNZEG.TEST.REJECT_BELOW", "0.2"],
        ["INPUT.MIN_SIZE_TEST", "96", "ALIGNZEG.TEST.MEMORY_MIB", "1"],
    ],
    ids=["hard", "soft", "constant", "quality", "resized"],
)
def test_every_exponent_equals_running_the_model_again(held_out, opts):
    held_out.merge_from_list(opts)
    if "ConstantShift" in opts:
        held_out.ALIGNZEG.CRITERIA = ["MaskCriterion"]
    model, vocabulary, settings = swept(
        held_out, Grid([0.0, 3.0], [0.45], [0.0, 0.3], [0.0, 0.7, 1.0])
    )
    assert [(s.gamma, s.seen_exponent, s.unseen_exponent) for s in settings] == [
        (gamma, seen, unseen)
        for gamma in (0.0, 3.0)
        for seen in (0.0, 0.3)
        for unseen in (0.0, 0.7, 1.0)
    ]
    test = held_out.ALIGNZEG.TEST
    assert model.ensemble == (test.ENSEMBLE_SEEN, test.ENSEMBLE_UNSEEN)
    found = [(s.seen_iou, s.unseen_iou, s.harmonic_iou) for s in settings]
    assert found == [inferred(model, held_out, vocabulary, setting) for setting in settings]
    assert len(set(found)) > 4


def test_without_exponents_the_config_has_its_own(held_out):
    test = held_out.ALIGNZEG.TEST
    test.ENSEMBLE_SEEN, test.ENSEMBLE_UNSEEN = 0.2, 0.6
    model, vocabulary, (one,) = swept(held_out, Grid([2.0], [0.5]))
    assert (one.seen_exponent, one.unseen_exponent) == model.ensemble == (0.2, 0.6)
    assert (one.seen_iou, one.unseen_iou, one.harmonic_iou) == inferred(
        model, held_out, vocabulary, one
    )
    *_, settings = swept(held_out, Grid([2.0], [0.5], unseen_exponents=[0.1, 0.9]))
    assert [(s.seen_exponent, s.unseen_exponent) for s in settings] == [(0.2, 0.1), (0.2, 0.9)]


def test_exponents_alone_can_be_chosen(held_out):
    held_out.ALIGNZEG.CORRECTOR.NAME = "NoCorrection"
    held_out.ALIGNZEG.CRITERIA = ["MaskCriterion"]
    model, vocabulary, settings = swept(held_out, Grid([0.0, 1.0], [0.1, 0.9], [0.5], [0.0, 1.0]))
    assert [(s.gamma, s.threshold, s.unseen_exponent) for s in settings] == [(0, 0, 0), (0, 0, 1)]
    for setting in settings:
        got = (setting.seen_iou, setting.unseen_iou, setting.harmonic_iou)
        assert got == inferred(model, held_out, vocabulary, setting)


def test_the_model_is_restored_after_an_error(held_out):
    vocabulary = get_vocabulary(DATASET, "pseudo_unseen")
    model = build_model(held_out).eval()
    before = (model.ensemble, model.head.corrector.gamma, model.head.corrector.threshold)
    (cached, *_) = iterate_proposals(model, loader(held_out), DATASET)
    cached = dataclasses.replace(cached, padded_size=(1, 1))
    with pytest.raises(ValueError, match="sizes must be positive"):
        sweep(model, [cached], vocabulary, Grid([9.0], [0.9], [0.5], [0.5]))
    assert before == (model.ensemble, model.head.corrector.gamma, model.head.corrector.threshold)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"gammas": []}, "at least one gamma"),
        ({"gammas": [1.0], "thresholds": []}, "at least one gamma and one threshold"),
        ({"gammas": [1.0], "thresholds": [1.5]}, r"lie in \[0, 1\]; got 1.5"),
        ({"gammas": [1.0], "unseen_exponents": [0.5, -0.1]}, r"lie in \[0, 1\]; got -0.1"),
        ({"gammas": [1.0], "seen_exponents": [float("nan")]}, r"lie in \[0, 1\]; got nan"),
    ],
)
def test_a_grid_that_means_nothing_is_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        Grid(**grid)


def test_several_views_are_refused(held_out):
    held_out.ALIGNZEG.TEST.WINDOW = 64
    model = build_model(held_out).eval()
    with pytest.raises(ValueError, match=r"looks at each image once; set TEST\.AUG"):
        next(iterate_proposals(model, loader(held_out), DATASET))


def test_no_truly_unseen_class_is_looked_at(held_out):
    real = get_vocabulary(DATASET)
    used = get_vocabulary(DATASET, "pseudo_unseen")
    assert not {real.names[i] for i in real.unseen_ids} & set(used.names)
    model = build_model(held_out).eval()
    for image in iterate_proposals(model, loader(held_out), DATASET):
        assert set(np.unique(image.truth)) <= {*range(len(used)), 255}
        assert image.outputs.class_logits.shape[-1] == len(used) + 1


def test_nothing_to_calibrate(held_out):
    held_out.ALIGNZEG.CORRECTOR.NAME = "NoCorrection"
    held_out.ALIGNZEG.CRITERIA = ["MaskCriterion"]
    model = build_model(held_out).eval()
    with pytest.raises(ValueError, match="NoCorrection has nothing to calibrate"):
        sweep(model, [], get_vocabulary(DATASET, "pseudo_unseen"), Grid([0.0], [0.5]))


def test_best_prefers_the_milder_of_equals():
    settings = [
        Setting(0.0, 0.5, 0, 0, 80.0, None, None),
        Setting(4.0, 0.5, 0, 0, 60.0, 60.0, 60.0),
        Setting(2.0, 0.5, 0.2, 0.4, 60.0, 60.0, 60.0),
        Setting(2.0, 0.5, 0.2, 0.3, 60.0, 60.0, 60.0),
        Setting(9.0, 0.5, 0, 0, 10.0, 90.0, 18.0),
    ]
    assert best(settings) == settings[3]
    assert best(settings).opts() == (
        "ALIGNZEG.CORRECTOR.GAMMA 2.0 ALIGNZEG.CORRECTOR.THRESHOLD 0.5 "
        "ALIGNZEG.TEST.ENSEMBLE_SEEN 0.2 ALIGNZEG.TEST.ENSEMBLE_UNSEEN 0.3"
    )


def test_a_thousand_settings_from_a_file_equal_running_the_model_again(held_out, tmp_path):
    """Spot checks of a sweep that is too large to repeat."""
    vocabulary = get_vocabulary(DATASET, "pseudo_unseen")
    model = build_model(held_out).eval()
    save_proposals(tmp_path / "kept", iterate_proposals(model, loader(held_out), DATASET), {})
    steps = [i / 9 for i in range(10)]
    grid = Grid([0.4 * i for i in range(10)], [0.45], steps, steps)
    settings = sweep(model, ProposalFile(tmp_path / "kept"), vocabulary, grid)
    assert len(settings) == 1000 and len({s.scores for s in settings}) > 50
    for place in (7, 503, 990):
        assert settings[place].scores == inferred(model, held_out, vocabulary, settings[place])
