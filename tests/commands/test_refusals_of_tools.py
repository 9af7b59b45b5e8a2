"""Wrong inputs of calibrate, web and report: one line that names the value and the fix, code 2."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS

from alignzeg.__main__ import main

CONFIG = str(CONFIGS / "zeroshapes" / "alignzeg.yaml")
# Words of the command line, where {…} is a file of `place`; and what the line says.
CALIBRATE = ["calibrate", "--config-file", CONFIG, "--weights", "{model.pth}"]
WEB = ["web", "--weights", "{model.pth}"]
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
]


@pytest.fixture
def place(tmp_path: Path):
    """Paths of a folder with a file that is no checkpoint, a run, and a port that is taken."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "evaluation_other.json").write_text("{}")
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
