"""The table of ZS3Net against recursive training, from runs written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import CONFIGS

from alignzeg.commands import ksplits
from alignzeg.studies.ablation import Plan, _words, check

ZEROSHAPES = ksplits.Splits(CONFIGS / "zeroshapes")


def write(folder: Path, *rounds: tuple[int, float, float]) -> Path:
    """A run's metrics: iteration, mIoU and uIoU of each round, between other entries."""
    folder.mkdir(parents=True)
    lines = [{"iteration": 3, "loss_mmd": 0.5}]
    for iteration, miou, uiou in rounds:
        lines.append({"iteration": iteration, "sem_seg/mIoU": miou, "sem_seg/uIoU": uiou})
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    return folder


def plan(tmp_path: Path, rows: tuple) -> Plan:
    return Plan(rows, (1,), tmp_path, (), 1)


def test_each_split_starts_from_its_own_pixel_network(tmp_path):
    rows = ksplits.rows(ZEROSHAPES, [2, 10])
    check(plan(tmp_path, rows))
    assert [row.name for row in rows] == [
        "k2_pixel",
        "k2_transductive_recursive",
        "k2_transductive_self_training",
        "k2_transductive_recursive_generated",
        "k10_pixel",
        "k10_transductive_recursive",
        "k10_transductive_self_training",
        "k10_transductive_recursive_generated",
    ]
    command = _words(plan(tmp_path, rows), rows[1], seed=1)
    weights = str(tmp_path / "k2_pixel" / "seed_1" / "model_final.pth")
    assert command[command.index("MODEL.WEIGHTS") + 1] == weights
    assert "--resume" in command
    assert command[command.index("DATASETS.TRAIN") + 1] == "zeroshapes_k2_train"
    assert command[command.index("DATASETS.TEST") + 1] == "zeroshapes_k2_val"


def test_pairs_of_the_user_come_after_those_of_the_split(tmp_path):
    rows = ksplits.rows(ZEROSHAPES, [4])
    words = _words(Plan(rows, (1,), tmp_path, ("K", "V"), 1), rows[0], 1)
    start = words.index("DATASETS.TRAIN")
    assert words[start : start + 6] == [*rows[0].opts, "K", "V"]


def test_one_pixel_network_may_serve_all_splits_if_it_saw_none_of_their_unseen(tmp_path):
    rows = ksplits.rows(ZEROSHAPES, [2, 4, 10], base=10)
    check(plan(tmp_path, rows))
    assert [row.starts_from for row in rows] == ["", *["k10_pixel"] * 9]
    with pytest.raises(ValueError, match="share that of the largest K"):
        ksplits.rows(ZEROSHAPES, [2, 4], base=2)


def test_the_configs_of_another_encoder_have_its_name(tmp_path):
    rows = ksplits.rows(ksplits.Splits(CONFIGS / "voc2012", "R101"), [2])
    check(plan(tmp_path, rows))
    assert [row.name for row in rows] == ["k2_pixel_R101", "k2_transductive_recursive_R101"]
    with pytest.raises(ValueError, match=r"no config .*voc2012/transductive_recursive\.yaml"):
        ksplits.rows(ksplits.Splits(CONFIGS / "voc2012"), [2])


def test_the_configs_of_a_folder_may_serve_another_data_set(tmp_path):
    folder = CONFIGS / "context"
    rows = ksplits.rows(ksplits.Splits(folder, "R101", "context59"), [8])
    assert rows[0].opts == (
        *("DATASETS.TRAIN", "context59_k8_train", "DATASETS.TEST", "context59_k8_val"),
    )
    with pytest.raises(ValueError, match="no split context_k8.*--dataset context60.*context59_k2,"):
        ksplits.rows(ksplits.Splits(folder, "R101"), [8])


def test_the_first_and_the_last_round_are_compared(tmp_path):
    two = [
        write(tmp_path / "a", (9, 30.0, 10.0), (19, 1.0, 1.0), (30, 34.0, 16.0)),
        # An evaluation made up for after a kill counts once.
        write(tmp_path / "b", (9, 99.0, 99.0), (9, 32.0, 12.0), (30, 34.0, 12.0)),
    ]
    four = [write(tmp_path / "c", (9, 20.0, 8.0), (30, 19.0, 6.0))]
    first, last = ksplits.METHODS[0], ksplits.METHODS[2]
    runs = {2: {first: two, last: two}, 4: {first: four, last: four}}
    lines = ksplits.table(runs).splitlines()
    assert lines[2] == "| 2 | ZS3Net |  | 31.0 ± 1.4 |  | 11.0 ± 1.4 |  |"
    assert lines[3] == "| 2 | recursive |  | 34.0 ± 0.0 |  | 14.0 ± 2.8 |  |"
    assert lines[5] == "| 4 | recursive |  | 19.0 |  | 6.0 |  |"
    assert lines[-1].startswith(
        "recursive: uIoU above ZS3Net's for 1 of 2 K; mean: pAcc +0.0, mIoU"
    )
    assert "mIoU +1.0" in lines[-1] and "uIoU +0.5" in lines[-1]


def test_a_run_without_an_evaluation_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no evaluation"):
        ksplits.rounds(write(tmp_path / "empty"))
    with pytest.raises(ValueError, match="holds no evaluation"):
        ksplits.rounds(tmp_path / "nowhere")
