"""`alignzeg calibrate`: what it writes, what it reads again, what it refuses."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from helpers import CONFIGS
from PIL import Image

from alignzeg.__main__ import main
from alignzeg.data.labels import get_vocabulary
from alignzeg.engine import AlignZegCheckpointer, setup_config
from alignzeg.evaluation.calibration import Setting, config_text, default_dataset, table
from alignzeg.modeling.meta_arch import AlignZeg

DATASET = "zeroshapes_val"


@pytest.fixture
def weights(held_out, tmp_path):
    model = build_model(held_out)
    AlignZegCheckpointer(model, str(tmp_path), config=held_out.dump()).save("model")
    return tmp_path / "model.pth"


@pytest.fixture
def looks(monkeypatch):
    """Counts how often the network runs."""
    runs = []
    network = AlignZeg.outputs

    def counted(self, *args):
        runs.append(1)
        return network(self, *args)

    monkeypatch.setattr(AlignZeg, "outputs", counted)
    return runs


def command(weights, tiny_opts, *words):
    config = str(CONFIGS / "zeroshapes" / "alignzeg.yaml")
    given = ["--config-file", config, "--weights", str(weights), "--dataset", DATASET]
    return main(["calibrate", *given, *words, *tiny_opts])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ALIGNZEG.DATA.HOLD_OUT", ""], "ALIGNZEG.DATA.HOLD_OUT is '', and calibrate always"),
        (["DATASETS.TEST", "zeroshapes_train"], "DATASETS.TEST is 'zeroshapes_train'"),
    ],
)
def test_what_its_results_say_cannot_be_undone(words, message, weights, tiny_opts, capsys, looks):
    """Else the truly unseen classes are called pseudo-unseen."""
    assert command(weights, tiny_opts, "--gammas", "0", *words) == 2
    assert message in capsys.readouterr().err and not looks


@pytest.mark.parametrize(
    ("config", "dataset"),
    [("zeroshapes/alignzeg", "zeroshapes_calib"), ("msrc21/baseline", "msrc21_calib")],
)
def test_the_data_set_is_that_of_the_config(config, dataset):
    assert default_dataset(setup_config(CONFIGS / f"{config}.yaml")) == dataset


def test_the_data_set_of_a_benchmark_without_one_must_be_given():
    with pytest.raises(ValueError, match=r"coco_stuff_val.*give --dataset"):
        default_dataset(setup_config("", ["DATASETS.TEST", "coco_stuff_val"]))


def test_weights_that_lack_something_are_refused(weights, tiny_opts, capsys, looks):
    """They would stay random."""
    content = torch.load(weights, weights_only=True)
    content["model"].popitem()
    torch.save(content, weights)
    assert command(weights, tiny_opts, "--gammas", "0") == 2
    assert "1 missing" in capsys.readouterr().err and not looks


def test_the_command_writes_and_the_second_sweep_runs_no_network(
    weights, tiny_opts, looks, capsys, tmp_path
):
    words = ["--gammas", "0,2", "--thresholds", "0.5", "--seen-exponents", "0.1"]
    words += ["--unseen-exponents", "0.2,0.8", "--write-config", str(tmp_path / "best.yaml")]
    assert command(weights, tiny_opts, *words) == 0
    assert len(looks) == 5
    said = capsys.readouterr().out.splitlines()
    result = json.loads((tmp_path / "calibration.json").read_text())
    rows = result["settings"]
    assert [(r["gamma"], r["seen_exponent"], r["unseen_exponent"]) for r in rows] == [
        (0, 0.1, 0.2),
        (0, 0.1, 0.8),
        (2, 0.1, 0.2),
        (2, 0.1, 0.8),
    ]
    chosen = Setting(**result["best"])
    helps = result["best"] != result["uncorrected"]
    assert said[-1] == f"{'best' if helps else 'no correction helps'}: {chosen.opts()}"
    assert re.match(r"4 settings on 5 images of zeroshapes_val in \d+\.\d s: ", said[-2])
    assert any("no correction" in line for line in said)
    assert Image.open(tmp_path / "calibration.png").size == (1024, 768)
    tried = setup_config(tmp_path / "best.yaml")
    assert tried.ALIGNZEG.CORRECTOR.GAMMA == chosen.gamma
    assert tried.ALIGNZEG.TEST.ENSEMBLE_UNSEEN == chosen.unseen_exponent
    assert command(weights, tiny_opts, *words) == 0
    assert len(looks) == 5
    assert json.loads((tmp_path / "calibration.json").read_text())["settings"] == rows
    # Other weights are looked at anew.
    model = torch.load(weights, weights_only=True)
    next(iter(model["model"].values())).add_(0.5)
    torch.save(model, weights)
    capsys.readouterr()
    assert command(weights, tiny_opts, *words) == 0
    assert len(looks) == 10
    assert "it is made anew" in capsys.readouterr().err


def test_a_file_that_is_something_else_is_not_overwritten(weights, tiny_opts, looks, capsys):
    notes = weights.with_name("notes.txt")
    notes.write_text("precious")
    assert command(weights, tiny_opts, "--cache", str(notes)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: '{notes}' is no file of cached proposals")
    assert notes.read_text() == "precious" and not looks


def test_weights_that_have_seen_the_pseudo_unseen_classes_are_refused(
    tiny_weights, tiny_opts, zeroshapes, looks, capsys
):
    assert command(tiny_weights, tiny_opts) == 2
    (line,) = capsys.readouterr().err.splitlines()
    hidden = get_vocabulary(DATASET, "pseudo_unseen").unseen_mask()
    names = get_vocabulary(DATASET, "pseudo_unseen").names
    wrong = [name for name, unseen in zip(names, hidden.tolist(), strict=True) if unseen]
    assert f"was trained with masks of {', '.join(wrong)}, which calibrate takes for" in line
    assert "train with ALIGNZEG.DATA.HOLD_OUT pseudo_unseen" in line and not looks


def test_the_table_has_no_row_twice():
    plain = Setting(0.0, 0.5, 0, 0, 80.0, 10.0, 17.8)
    settings = [plain, Setting(1.0, 0.5, 0, 0, 70.0, 30.0, 42.0)]
    settings += [Setting(g, 0.5, 0, 0, 60.0, 60.0, 60.0) for g in (4.0, 2.0, 3.0)]
    shown = table(settings, plain)
    columns = [list(column.cells) for column in shown.columns]
    assert columns[0] == ["no correction", "1.", "2.", "3."]
    assert columns[1] == ["0", "2", "1", "0"]
    assert columns[7] == ["17.80", "60.00", "42.00", "17.80"]


def test_a_written_config_names_the_other_from_where_it_lies(tmp_path: Path):
    config = CONFIGS / "zeroshapes" / "alignzeg.yaml"
    chosen = Setting(2.5, 0.25, 0.125, 0.75, 1.0, 1.0, 1.0)
    (tmp_path / "deep").mkdir()
    place = tmp_path / "deep" / "best.yaml"
    place.write_text(config_text(config, place, "zeroshapes_calib", chosen))
    assert not os.path.isabs(place.read_text().split("_BASE_: ")[1].splitlines()[0])
    cfg, base = setup_config(place), setup_config(config)
    node = cfg.ALIGNZEG
    assert (node.CORRECTOR.GAMMA, node.CORRECTOR.THRESHOLD) == (2.5, 0.25)
    assert (node.TEST.ENSEMBLE_SEEN, node.TEST.ENSEMBLE_UNSEEN) == (0.125, 0.75)
    assert cfg.ALIGNZEG.HEAD == base.ALIGNZEG.HEAD and cfg.SOLVER == base.SOLVER
