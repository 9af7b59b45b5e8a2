"""Wrong inputs of all commands: one line that names the value and the fix, code 2."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS
from PIL import Image

from alignzeg.__main__ import main

CONFIG = str(CONFIGS / "zeroshapes" / "alignzeg.yaml")
# Words of the command line, where {…} is a file of `place`; and what the line says.
CALIBRATE = ["calibrate", "--config-file", CONFIG, "--weights", "{model.pth}"]
WEB = ["web", "--weights", "{model.pth}"]
PREDICT = ["predict", "--weights", "{model.pth}", "--classes"]
TRAIN = ["train", "--config-file", CONFIG]
ABLATE = ["ablate", "--configs", CONFIG, "--output", "{out}"]
LABELS = ["pseudo-labels", "--config-file", CONFIG, "--dataset"]
LONG = "c" * 201
NO_LIST = "is no list of whole numbers from 0, separated by commas, such as 1,2,3"
CASES = [
    (
        ["calibrate", "--config-file", CONFIG, "--weights", "{none.pth}"],
        "none.pth', which is no file; train",
    ),
    ([*CALIBRATE, "--gammas", "0,much"], "'0,much' is no list of numbers separated by commas"),
    ([*CALIBRATE, "--gammas", "0,inf"], "'0,inf' is no list of numbers"),
    ([*CALIBRATE, "--gammas", ""], "'' is no list of numbers"),
    ([*CALIBRATE, "--thresholds", "0.5,50"], "50 in '0.5,50' is not a number from 0 to 1"),
    ([*CALIBRATE, "--unseen-exponents=-0.2"], "-0.2 in '-0.2' is not a number from 0 to 1"),
    ([*CALIBRATE, "--dataset", "zeroshapes_cailb"], "did you mean 'zeroshapes_calib'?"),
    ([*CALIBRATE, "--picture", "{a.gif}"], "its end must be one of ('.png', '.svg', '.pdf')"),
    ([*CALIBRATE, "--write-config", "{best.txt}"], "best.txt'; its end must be .yaml"),
    ([*CALIBRATE, "--write-config", CONFIG], "the file of --config-file; give another"),
    ([*CALIBRATE, "--cache", "{model.pth}"], "the file of --weights; give another"),
    ([*CALIBRATE, "--output", "{a.json}", "--cache", "{a.json}"], "the file of --output; give"),
    ([*CALIBRATE, "--output", "{deep/er/a.json}"], "there is no folder"),
    ([*WEB, "--port", "0"], "--port: '0' is not a whole number from 1 to 65535"),
    ([*WEB, "--port", "web"], "'web' is not a whole number from 1 to 65535"),
    ([*WEB, "--port", "{taken}"], "which cannot be used (Address already in use); give another"),
    (["web", "--weights", "{none.pth}", "--port", "{free}"], "none.pth', which is no file; give a"),
    ([*WEB, "--port", "{free}", "--classes", "cat, 3: dog"], "begins with a number; names only"),
    ([*WEB, "--port", "{free}", "--classes", "{none.txt}"], "cannot read class names from"),
    ([*WEB, "--port", "{free}", "--device", "tpu"], "--device is 'tpu'"),
    ([*WEB, "--port", "{free}"], "model.pth"),
    (["report", "{empty}"], "holds no evaluation; give the OUTPUT_DIR of an evaluated run"),
    (["report", "{none}"], "holds no evaluation; give the OUTPUT_DIR of an evaluated run"),
    (["report", *["{empty}"] * 5], "a report shows one to four runs; got 5"),
    (["report", "{empty}", "--worst", "-1"], "--worst: '-1' is not a whole number 0 or more"),
    (["report", "{empty}", "--output", "{empty}"], "which is a folder; give a file"),
    (["report", "{run}", "--dataset", "zeroshapes_val"], "no evaluation_zeroshapes_val.json below"),
    (["report", "{run}", "--images", "few"], "--images: 'few' is not a whole number 0 or more"),
    (
        ["report", "{list}"],
        "evaluation_x.json is no evaluation of alignzeg; evaluate the run again",
    ),
    (["report", "{words}"], "evaluation_x.json is no evaluation of alignzeg; evaluate the run"),
    (["report", "{bare}"], "holds no config.yaml; give the OUTPUT_DIR of a run itself"),
    ([*TRAIN, "--num-gpus", "0"], "--num-gpus is 0 and --num-machines 1; both must be 1 or more"),
    (["evaluate", "--config-file", CONFIG], "give the checkpoint to evaluate, as --weights FILE"),
    ([*CALIBRATE, "--output", "{pipe}"], "which is no plain file; give another"),
    ([*CALIBRATE, "--cache", "{pipe}"], "which is no plain file; give another"),
    ([*WEB, "--port", "{free}", "--classes", "cat, Cat"], "['Cat', 'cat']; keep one of each"),
    (
        [*WEB, "--port", "{free}", "--classes", LONG],
        "has 201 letters; a class name has 200 at most",
    ),
    (["web"], "required: --weights; see --help, or for example: alignzeg web --weights output"),
    (["predict", "{a.png}"], "required: --weights; see --help, or for example: alignzeg predict"),
    ([*PREDICT, LONG, "{a.png}"], "has 201 letters; a class name has 200 at most: shorten it"),
    ([*PREDICT, f"sofa; {LONG}", "{a.png}"], "a class name has 200 at most: shorten it"),
    ([*PREDICT, "grass, grass", "{a.png}"], "given more than once: ['grass']; keep one of each"),
    ([*PREDICT, "{lines.txt}", "{a.png}"], "line 2, 'sky\\x00', holds the invisible character"),
    ([*PREDICT, "grass\nsky", "{a.png}"], "holds the invisible character U+000A; delete it"),
    ([*PREDICT, "grass", "{a.png}", "--output", ""], "--output is ''; give the name of a folder"),
    ([*PREDICT, "grass", "{a.png}", "--output", "o" * 256], "--output holds a name of 256 bytes"),
    ([*PREDICT, "grass", "{a.png}", "--output", "{model.pth}"], "is a file; give another folder"),
    ([*PREDICT, "grass", "{loop}"], "is a link to what does not exist; mend it, or give another"),
    ([*PREDICT, "grass", "{a.png}", "SEED"], "the last one is 'SEED': give both, as in SEED 1"),
    (["predict", "--weights", "{empty}", "--classes", "a", "{a.png}"], "give another, such as the"),
    (["predict", "--weights", "{a.png}", "--classes", "a", "{a.png}"], "give another, such as the"),
    (["predict", "--weights", "", "--classes", "a", "{a.png}"], "'' does not exist; give another"),
    (["train", "--config-file", "{empty}"], "is a folder; give a YAML file, such as configs/"),
    (["train", "--config-file", "{none.yaml}"], "does not exist; give a YAML file, such as"),
    (["train", "--config-file", "{empty.yaml}"], "write keys with values into it, such as SEED: 1"),
    ([*TRAIN, "OUTPUT_DIR", ""], "OUTPUT_DIR is ''; give the name of a folder"),
    ([*TRAIN, "OUTPUT_DIR", "{model.pth}"], "model.pth is a file; give another folder"),
    ([*ABLATE, "--seeds", "-1"], f"'-1' {NO_LIST}"),
    ([*ABLATE, "--seeds", "one"], f"'one' {NO_LIST}"),
    ([*ABLATE, "--seeds", ""], f"'' {NO_LIST}"),
    ([*ABLATE, "--seeds", "4,5,4"], "'4,5,4' has a number twice; give each once"),
    ([*ABLATE, "--reuse", "a=b"], "--reuse has 'a=b'; give ROW=OTHER, where both are among the"),
    ([*ABLATE, "--reuse", "alignzeg"], "--reuse has 'alignzeg'; give ROW=OTHER"),
    (["ablate", "--configs", "{none.yaml}", "--output", "{out}"], "give one that exists, or run"),
    (["ablate", "--configs", "", "--output", "{out}"], "give both --configs and --seeds"),
    (["ksplits", "--splits", "3,x"], f"'3,x' {NO_LIST}"),
    ([*LABELS, "nope", "--output", "{out}"], "alignzeg doctor --all lists them"),
    ([*LABELS, "zeroshapes_train", "--output", ""], "--output is ''; give the name of a folder"),
    (["export", "{empty}", "{a.onnx}", "--classes", "a"], "give another, such as the model_final"),
    (["share", "{none.pth}", "{out}"], "does not exist; give another, such as the model_final.pth"),
    (["replay", "{empty}"], "give another, such as the model_final.pth that alignzeg train writes"),
    (["vocabulary", f"{LONG},"], "has 201 letters; a class name has 200 at most: shorten it"),
    (
        ["audit"],
        "required: --config-file; see --help, or for example: alignzeg audit --config-file",
    ),
    (["demo", "extra"], "the last one is 'extra': give both, as in SEED 1, or leave it out"),
    (["doctor", "--config-file", "{empty}"], "is a folder; give a YAML file, such as configs/"),
    (["compare", "{run}"], "required: REFERENCE; see --help, or for example: alignzeg compare"),
    (["significance", "{none}"], "does not exist; give a run's folder, evaluated with"),
]


@pytest.fixture
def place(tmp_path: Path):
    """Paths of a folder with what is none of what is asked for, a run, and a port that is taken."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "evaluation_other.json").write_text("{}")
    for name, held in (("list", "[1]"), ("bare", "{}"), ("words", '{"metrics": ["sIoU"]}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation_x.json").write_text(held)
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "lines.txt").write_bytes(b"grass\nsky\0\n")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    torch.save({"model": {}}, tmp_path / "model.pth")
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        ports = {"taken": str(taken.getsockname()[1]), "free": str(free.getsockname()[1])}
        free.close()
        yield lambda word: ports.get(word, str(tmp_path / word))


@pytest.mark.parametrize(("words", "said"), CASES, ids=[f"{w[0]}: {s[:40]}" for w, s in CASES])
def test_one_line_names_the_value_and_the_fix(
    words: list[str], said: str, place, zeroshapes: Path, tmp_path: Path, capsys
) -> None:
    before = sorted(path.name for path in tmp_path.rglob("*"))
    given = [place(word[1:-1]) if word.startswith("{") else word for word in words]
    assert main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_without_gradio_one_line_says_so(tmp_path: Path, monkeypatch, capsys) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "gradio" else find(name, *_)
    )
    assert main(["web", "--weights", "model.pth"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: alignzeg web needs Gradio, which is not installed: pip install gradio"
