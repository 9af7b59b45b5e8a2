"""Pseudo-labels: regions, names, files; human labels stay, and a killed run changes nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from forks import living
from helpers import CONFIGS
from PIL import Image

from alignzeg.data.labels import get_vocabulary, read_labels
from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.data.pseudo import register_pseudo_labels
from alignzeg.engine import Trainer, setup_config, validate
from alignzeg.pseudo_labels import Job, make_pseudo_labels
from alignzeg.pseudo_labels.classes import Classes, find_classes
from alignzeg.pseudo_labels.labeller import RegionSource
from alignzeg.pseudo_labels.region_labels import Thresholds, choose, name_probs, paint
from alignzeg.pseudo_labels.regions import proposal_regions, superpixel_regions
from alignzeg.pseudo_labels.summary import Tally

CONFIG = str(CONFIGS / "zeroshapes" / "cel.yaml")
SURE = Thresholds(confidence=0.3, margin=0.05, min_area=20)


# --- regions


def test_superpixels_part_the_hidden_pixels_along_edges():
    image = np.full((120, 180, 3), 30, np.uint8)
    image[30:90, 60:120] = (220, 40, 40)
    image[30:90, 120:156] = (40, 40, 220)
    hidden = np.zeros((120, 180), dtype=bool)
    hidden[24:96, 54:162] = hidden[0:5, 0:5] = True
    regions = superpixel_regions(image, hidden, scale=100, min_area=30)
    assert regions.dtype == bool and not (regions & ~hidden).any()
    assert (regions.sum((1, 2)) >= 30).all()
    assert len(np.unique(regions.reshape(len(regions), -1), axis=0)) == len(regions)

    def iou(box):
        truth = np.zeros_like(hidden)
        truth[box] = True
        return max((r & truth).sum() / (r | truth).sum() for r in regions)

    # Both things, but for their blurred edges, and all; the corner of 25 pixels is too small.
    assert iou(np.s_[30:90, 60:120]) > 0.7 and iou(np.s_[30:90, 120:156]) > 0.7
    assert iou(np.s_[24:96, 54:162]) == 1
    assert not regions[:, :5, :5].any()
    assert superpixel_regions(image, np.zeros_like(hidden), 100, 30).shape == (0, 120, 180)


def test_proposals_are_cut_to_the_hidden_pixels_they_mostly_cover():
    logits = torch.full((4, 8, 8), -9.0)
    logits[0, :, :4] = 9  # half of it is hidden
    logits[1, 4:, 4:] = 9  # nothing is
    logits[2, :3, 1:3] = 9  # all of it is
    hidden = np.zeros((16, 16), dtype=bool)
    hidden[:8, :8] = True
    regions = proposal_regions(logits, hidden, min_share=0.5, min_area=1)
    assert len(regions) == 2
    assert np.array_equal(regions[0], hidden)
    assert regions[1].sum() == pytest.approx(24, abs=8) and not (regions[1] & ~hidden).any()
    assert len(proposal_regions(logits, hidden, 0.6, 1)) == 1
    assert len(proposal_regions(logits, hidden, 0.5, 40)) == 1
    assert proposal_regions(logits[:0], hidden, 0.5, 1).shape == (0, 16, 16)


# --- names


class StubVLM:
    """Sees the mean colour of a region."""

    logit_scale = 8.0

    def embed_regions(self, image, mask_logits):
        inside = (mask_logits > 0).float()
        sums = torch.einsum("bchw,bqhw->bqc", image, inside)
        return F.normalize(sums / inside.sum((2, 3))[..., None], dim=-1)


def test_names_are_a_softmax_of_scaled_cosines():
    image = torch.zeros(3, 4, 6)
    image[0, :, :3], image[1, :, 3:] = 200, 100
    regions = torch.zeros(2, 4, 6, dtype=torch.bool)
    regions[0, :, :3] = regions[1, :, 3:] = True
    probs = name_probs(StubVLM(), image, regions, torch.eye(3))
    right = np.exp(8) / (np.exp(8) + 2)
    assert probs[0, 0].item() == pytest.approx(right)
    assert probs[1, 1].item() == pytest.approx(right)


def test_only_sure_and_wanted_names_are_given():
    probs = torch.tensor(
        [[0.1, 0.7, 0.2], [0.7, 0.1, 0.2], [0.05, 0.5, 0.45], [0.2, 0.4, 0.4], [0.1, 0.2, 0.7]]
    )
    wanted = torch.tensor([False, True, True])
    names, confidence = choose(probs, None, wanted, Thresholds(0.45, 0.1))
    assert names.tolist() == [1, -1, -1, -1, 2]
    torch.testing.assert_close(confidence, probs.max(1).values)
    mirrored = torch.tensor([[0.1, 0.6, 0.3]] * 5)
    names, confidence = choose(probs, mirrored, wanted, Thresholds(0.3, 0.0, flips=True))
    # The last is another one in the mirror; the second is a name that humans give.
    assert names.tolist() == [1, -1, 1, 1, -1]
    assert confidence[0].item() == pytest.approx(0.65)
    assert choose(torch.ones(1, 1), None, torch.ones(1).bool(), Thresholds())[0].tolist() == [0]
    for wrong in ({"confidence": 1.1}, {"margin": -0.1}, {"min_area": 0}):
        with pytest.raises(ValueError, match="need a confidence"):
            Thresholds(**wrong)


def test_the_surest_region_is_on_top():
    regions = np.zeros((3, 2, 4), dtype=bool)
    regions[0, :, :3] = regions[1, :, 2:] = regions[2] = True
    labels, sureness = paint(regions, np.array([5, 7, -1]), np.array([0.6, 0.9, 1.0]))
    assert labels.tolist() == [[5, 5, 7, 7]] * 2
    assert sureness.tolist() == [[0.6, 0.6, 0.9, 0.9]] * 2
    labels, sureness = paint(regions, np.array([5, -1, -1]), np.array([0.6, 0.9, 1.0]))
    assert labels.tolist() == [[5, 5, 5, -1]] * 2 and not sureness[:, 3].any()


def test_the_names_of_a_data_set_and_of_an_open_vocabulary(zeroshapes):
    vocabulary = get_vocabulary("zeroshapes_train")
    own = find_classes("zeroshapes_train", "", ())
    assert own.names == vocabulary.names and own.human == vocabulary.seen
    assert own.raw_ids == MetadataCatalog.get("zeroshapes_train").raw_ids
    held = find_classes("zeroshapes_train", "pseudo_unseen", ())
    assert len(held.names) == 33 and 0 < sum(not human for human in held.human) < 12
    words = ("zebra", "red star", "lion", "zebra", "grass")
    free = find_classes("zeroshapes_train", "", words)
    assert free.names == (*vocabulary.seen_part().names, "zebra", "red star", "lion")
    ids = dict(zip(free.names, free.raw_ids, strict=True))
    assert ids["red star"] == vocabulary.names.index("red star")
    assert {ids["zebra"], ids["lion"]} == {42, 43} and 255 not in free.raw_ids
    with pytest.raises(ValueError, match="name some with --words"):
        find_classes("coco_stuff171_train", "", ())


def test_the_tally_by_hand(zeroshapes):
    facts = MetadataCatalog.get("zeroshapes_train")
    names = ("red square", "red circle", "red star")  # raw 1, 0 and 3; the first is seen
    raw_ids = tuple(facts.stuff_classes.index(name) for name in names)
    classes = Classes(names, names, raw_ids, (True, False, False), 255, ())
    tally = Tally("zeroshapes_train", classes)
    raw = np.array([[1, 1, 0, 0, 0, 0, 3, 3, 7, 255]], np.uint8)
    labels = np.array([[1, 1, 0, 0, 3, 255, 3, 255, 0, 3]], np.uint8)
    confidence = np.array([[0, 0, 102, 102, 204, 0, 51, 0, 102, 255]], np.uint8)
    tally.add(raw, labels, confidence)
    report = tally.report()
    assert report["images"] == 1 and report["pixels_without_human_label"] == 8
    assert report["pixels"] == 6 and report["true_pixels"] == 6 and report["on_no_class"] == 1
    assert report["precision"] == pytest.approx(100 * 3 / 5)
    assert report["precision_all"] == pytest.approx(100 * 3 / 6)
    assert report["coverage"] == pytest.approx(100 * 4 / 6)
    circle = report["names"]["red circle"]
    assert circle["mean_confidence"] == pytest.approx(0.4)
    assert circle["precision"] == pytest.approx(100 * 2 / 3)
    assert circle["coverage"] == pytest.approx(75)
    labels[0, 0] = 3
    with pytest.raises(ValueError, match="a human label was changed"):
        tally.add(raw, labels, confidence)


# --- files


def job(output: Path, cache: Path, **changes) -> Job:
    values = {"thresholds": SURE, "opts": ("ALIGNZEG.VLM.CACHE_DIR", str(cache / "text"))}
    return Job(CONFIG, "zeroshapes_train", str(output), **(values | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def forget() -> None:
    DatasetCatalog.remove("zeroshapes_train_pseudo")
    MetadataCatalog.remove("zeroshapes_train_pseudo")


def test_human_labels_stay_and_a_training_reads_the_rest(zeroshapes, tmp_path):
    about = make_pseudo_labels(job(tmp_path / "made", tmp_path))
    summary = about["summary"]
    assert summary["images"] == 8 and 0 < summary["coverage"] <= 100
    vocabulary = get_vocabulary("zeroshapes_train")
    given = 0
    for record in DatasetCatalog.get("zeroshapes_train"):
        stem = Path(record["sem_seg_file_name"]).stem
        raw = read_labels(record["sem_seg_file_name"], "zeroshapes_train")
        labels, confidence = (
            np.asarray(Image.open(tmp_path / "made" / kind / f"{stem}.png"))
            for kind in ("labels", "confidence")
        )
        human = np.isin(raw, vocabulary.seen_ids)
        assert labels.dtype == raw.dtype
        assert np.array_equal(labels[human], raw[human])
        assert np.isin(labels[~human], [*vocabulary.unseen_ids, 255]).all()
        assert np.array_equal(confidence > 0, ~human & (labels != 255))
        given += int((confidence > 0).sum())
    assert given == summary["pixels"] > 0
    opts = ["ALIGNZEG.DATA.PSEUDO.ROOT", str(tmp_path / "made")]
    cfg = setup_config(CONFIGS / "zeroshapes" / "cel_transductive.yaml", opts)
    try:
        validate(cfg)
        mapper = ZeroShotMapper(cfg, True)
        samples = [mapper(record) for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0])]
        weights = torch.cat([sample["targets"].weights.flatten() for sample in samples])
        assert int((weights == 0.5).sum()) == given
        labels = {int(i) for sample in samples for i in sample["targets"].labels}
        assert labels & {*vocabulary.unseen_ids} and samples[0]["vocabulary"].names
        (tmp_path / "made" / "labels" / "00003.png").unlink()
        with pytest.raises(ValueError, match=r"labels.00003\.png does not exist"):
            DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    finally:
        forget()


def test_labels_of_pseudo_unseen_classes_serve_settings_chosen_on_them(zeroshapes, tmp_path):
    cache = ("ALIGNZEG.VLM.CACHE_DIR", str(tmp_path / "text"))
    held = (*cache, "ALIGNZEG.DATA.HOLD_OUT", "pseudo_unseen")
    make_pseudo_labels(job(tmp_path / "held", tmp_path, opts=held))
    try:
        name = register_pseudo_labels(tmp_path / "held")
        whole = get_vocabulary("zeroshapes_train", "pseudo_unseen")
        assert whole.unseen_ids and whole.names == get_vocabulary(name, "pseudo_unseen").names
        assert all(get_vocabulary(name, "pseudo_unseen").seen)
        make_pseudo_labels(job(tmp_path / "made", tmp_path))
        register_pseudo_labels(tmp_path / "made")
        with pytest.raises(ValueError, match="lists no pseudo-unseen classes"):
            get_vocabulary(name, "pseudo_unseen")
    finally:
        forget()


def test_other_settings_and_missing_folders_are_refused(zeroshapes, tmp_path):
    made = tmp_path / "made"
    make_pseudo_labels(job(made, tmp_path))
    with pytest.raises(ValueError, match="other settings .thresholds: .*choose another --output"):
        make_pseudo_labels(job(made, tmp_path, thresholds=Thresholds()))
    with pytest.raises(ValueError, match="is not empty"):
        make_pseudo_labels(job(tmp_path, tmp_path))
    cfg = setup_config(CONFIGS / "zeroshapes" / "cel_transductive.yaml")
    cfg.ALIGNZEG.DATA.PSEUDO.ROOT = str(tmp_path / "none")
    with pytest.raises(ValueError, match=r"PSEUDO\.ROOT is '.*none'.*alignzeg pseudo-labels"):
        validate(cfg)
    with pytest.raises(ValueError, match="no complete pseudo-labels in"):
        register_pseudo_labels(tmp_path / "none")
    (made / "pseudo_labels.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a description"):
        register_pseudo_labels(made)


def test_words_and_proposals_of_an_untrained_model(zeroshapes, tmp_path):
    cfg = setup_config(CONFIG, ["ALIGNZEG.VLM.CACHE_DIR", str(tmp_path / "text")])
    weights = tmp_path / "model.pth"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, weights)
    anything = Thresholds(confidence=0, margin=0, min_area=1)
    about = make_pseudo_labels(
        job(
            tmp_path / "made",
            tmp_path,
            words=("red star", "zebra"),
            source=RegionSource(str(weights), min_share=0.0),
            thresholds=anything,
        )
    )
    assert about["classes"][-2:] == ["red star", "zebra"]
    assert about["summary"]["names"]["zebra"]["precision"] is None
    try:
        name = register_pseudo_labels(tmp_path / "made")
        assert get_vocabulary(name).names == tuple(about["classes"])
        for record in DatasetCatalog.get(name):
            assert read_labels(record["sem_seg_file_name"], name).shape == (64, 64)
    finally:
        forget()


def test_a_kill_and_other_processes_change_no_file(zeroshapes, tmp_path):
    """Started in two processes, killed half-way, finished in one: as if never stopped."""
    make_pseudo_labels(job(tmp_path / "whole", tmp_path))
    thresholds = ["--confidence", "0.3", "--margin", "0.05", "--min-area", "20"]
    command = [
        *(sys.executable, "-m", "alignzeg", "pseudo-labels"),
        *("--config-file", CONFIG, "--dataset", "zeroshapes_train"),
        *("--output", str(tmp_path / "killed"), *thresholds),
    ]
    opts = ["ALIGNZEG.VLM.CACHE_DIR", str(tmp_path / "text")]
    first = subprocess.Popen([*command, "--jobs", "2", *opts], start_new_session=True)
    while not list((tmp_path / "killed").glob("labels/*.png")):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    # No worker is left behind, whether or not it was at work by then.
    while living(first.pid):
        time.sleep(0.1)
    again = subprocess.run([*command, *opts], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["images"] == 8
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
