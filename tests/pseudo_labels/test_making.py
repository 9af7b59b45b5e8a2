"""Files of pseudo-labels: human labels stay, and a killed run changes nothing."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from forks import living
from helpers import CONFIGS
from PIL import Image

from alignzeg.__main__ import main
from alignzeg.data.labels import get_vocabulary, read_labels
from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.data.pseudo import register_pseudo_labels
from alignzeg.engine import Trainer, setup_config, validate
from alignzeg.pseudo_labels import Job, make_pseudo_labels
from alignzeg.pseudo_labels.classes import Classes
from alignzeg.pseudo_labels.labeller import RegionSource
from alignzeg.pseudo_labels.region_labels import Thresholds
from alignzeg.pseudo_labels.summary import Tally

CONFIG = str(CONFIGS / "zeroshapes" / "cel.yaml")


SURE = Thresholds(confidence=0.3, margin=0.05, min_area=20)


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
    # The same command line with an edited YAML.
    edited = tmp_path / "cel.yaml"
    for text in ("INPUT: {MIN_SIZE_TEST: 32}", "ALIGNZEG: {DATA: {HOLD_OUT: pseudo_unseen}}"):
        edited.write_text(f"_BASE_: {CONFIG}\n{text}\n")
        changed = dataclasses.replace(job(made, tmp_path), config_file=str(edited))
        with pytest.raises(ValueError, match="other settings .config: .*choose another --output"):
            make_pseudo_labels(changed)
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


def test_a_kill_and_other_processes_change_no_file(zeroshapes, tmp_path, capsys):
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
    assert main([*command[3:], *opts]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 8
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
