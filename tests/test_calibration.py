"""The sweep over cached proposals gives what running the model again would give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CONFIGS
from detectron2.modeling import build_model

from alignzeg.calibration import Setting, best, cache_proposals, sweep
from alignzeg.data.labels import get_vocabulary, label_lookup, read_labels
from alignzeg.engine import Trainer, setup_config
from alignzeg.evaluation import confusion, metrics_from_confusion

DATASET = "zeroshapes_val"


def loader(cfg):
    return Trainer.build_test_loader(cfg, DATASET)


@pytest.fixture
def held_out(zeroshapes, tiny_opts):
    opts = [*tiny_opts, "ALIGNZEG.DATA.HOLD_OUT", "pseudo_unseen"]
    return setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", opts)


def test_cached_scores_equal_running_the_model_again(held_out):
    vocabulary = get_vocabulary(DATASET, "pseudo_unseen")
    model = build_model(held_out).eval()
    cached = cache_proposals(model, loader(held_out), DATASET)
    settings = sweep(model, cached, vocabulary, [0.0, 40.0], [0.2, 0.9])
    assert [(s.threshold, s.gamma) for s in settings] == [(0.2, 0), (0.2, 40), (0.9, 0), (0.9, 40)]
    assert (model.head.corrector.gamma, model.head.corrector.threshold) == (
        held_out.ALIGNZEG.CORRECTOR.GAMMA,
        held_out.ALIGNZEG.CORRECTOR.THRESHOLD,
    )
    lookup = label_lookup(DATASET, vocabulary)
    for setting in settings:
        model.head.corrector.gamma = setting.gamma
        model.head.corrector.threshold = setting.threshold
        matrix = 0
        for batch in loader(held_out):
            with torch.no_grad():
                labels = np.asarray(model(batch)[0]["sem_seg"])
            truth = lookup[read_labels(batch[0]["sem_seg_file_name"], DATASET)]
            matrix = matrix + confusion(truth, labels, len(vocabulary))
        want = metrics_from_confusion(matrix, vocabulary.seen)
        got = (setting.seen_iou, setting.unseen_iou, setting.harmonic_iou)
        assert got == (want["sIoU"], want["uIoU"], want["hIoU"])
    # An untrained indicator is near 1/2: above 0.2 it corrects everything, above 0.9 nothing.
    assert settings[1].seen_iou < settings[0].seen_iou
    assert settings[3].seen_iou == settings[2].seen_iou


def test_no_truly_unseen_class_is_looked_at(held_out):
    real = get_vocabulary(DATASET)
    used = get_vocabulary(DATASET, "pseudo_unseen")
    assert not {real.names[i] for i in real.unseen_ids} & set(used.names)
    model = build_model(held_out).eval()
    for image in cache_proposals(model, loader(held_out), DATASET):
        assert set(np.unique(image.truth)) <= {*range(len(used)), 255}
        assert image.outputs.class_logits.shape[-1] == len(used) + 1


def test_nothing_to_calibrate(held_out):
    held_out.ALIGNZEG.CORRECTOR.NAME = "NoCorrection"
    held_out.ALIGNZEG.CRITERIA = ["MaskCriterion"]
    model = build_model(held_out).eval()
    with pytest.raises(ValueError, match="NoCorrection has nothing to calibrate"):
        sweep(model, [], get_vocabulary(DATASET, "pseudo_unseen"), [0.0], [0.5])


def test_best_prefers_the_milder_of_equals():
    settings = [
        Setting(0.0, 0.5, 80.0, None, None),
        Setting(4.0, 0.5, 60.0, 60.0, 60.0),
        Setting(2.0, 0.5, 60.0, 60.0, 60.0),
        Setting(9.0, 0.5, 10.0, 90.0, 18.0),
    ]
    assert best(settings).gamma == 2.0
