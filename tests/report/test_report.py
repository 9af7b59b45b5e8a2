"""The HTML report: self-contained, well-formed, and showing the numbers it was given."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from alignzeg.colors import palette
from alignzeg.data.labels import get_vocabulary
from alignzeg.report import About, RunResult, Sample, choose_worst, read_run, write_report
from alignzeg.report.charts import ticks
from alignzeg.report.page import render
from alignzeg.report.sections import delta, harmonic_chart
from alignzeg.structures import Vocabulary
from alignzeg.visualize import blend, boundaries, colorize, with_legend

VOCABULARY = Vocabulary.from_unseen(["grass", "brick", "red <star>"], ["red <star>"])


VOID = {"meta", "img", "line", "br", "i"} - {"i"}


class Checker(HTMLParser):
    """Collects text, links and images, and insists on closed tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def evaluation(hiou: float) -> dict[str, object]:
    return {
        "metrics": {
            "pAcc": 81.25,
            "mIoU": 61.0,
            "sIoU": 71.5,
            "uIoU": 33.25,
            "hIoU": hiou,
            "unseen_to_seen": 44.4,
            "AR50_unseen": 77.7,
        },
        "protocol": {"dataset": "toy_val", "images": 5, "seen": 2, "unseen": 1},
        "groups": {
            "seen": {"seen": 900, "unseen": 100, "rejected": 0},
            "unseen": {"seen": 444, "unseen": 556, "rejected": 0},
        },
        "classes": [
            {"name": "grass", "seen": True, "IoU": 88.5},
            {"name": "brick", "seen": True, "IoU": None},
            {"name": "red <star>", "seen": False, "IoU": 12.75},
        ],
        "confusion": [[1]],
    }


@pytest.fixture
def runs(tmp_path: Path) -> list[RunResult]:
    result = []
    for name, hiou in (("baseline", 40.04), ("alignzeg", 63.13)):
        folder = tmp_path / name
        (folder / "inference").mkdir(parents=True)
        path = folder / "inference" / "evaluation_toy_val.json"
        path.write_text(json.dumps(evaluation(hiou)))
        lines = [
            {"iteration": i, "total_loss": 9 / (1 + i), "loss_mask": 1.0, "loss_mask_0": 2.0}
            for i in range(0, 100, 10)
        ]
        lines += [{"iteration": i, "sem_seg/AR50_unseen": 60.0 + i / 10} for i in (49, 99)]
        text = "\n".join(json.dumps(line) for line in lines)
        (folder / "metrics.json").write_text(text + '\n{"iteration": 100, "total_lo')
        (folder / "config.yaml").write_text("A: <b>\n")
        result.append(read_run(name, name.title(), folder, "toy_val", f"train {name}"))
    return result


@pytest.fixture
def page(tmp_path: Path, runs: list[RunResult]) -> str:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (8, 12)).astype(np.uint8)
    labels[0] = 255
    image = rng.integers(0, 256, (8, 12, 3)).astype(np.uint8)
    sample = Sample("00001", image, labels, {"baseline": labels, "alignzeg": labels})
    about = About("A <title>", "Lead & more.", ["make demo"], {"seed": 1})
    path = write_report(tmp_path / "new" / "report.html", runs, [sample], VOCABULARY, about)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_is_well_formed_and_needs_nothing_else(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert checker.sources
    assert all(source.startswith("data:") for source in checker.sources)
    assert not re.search(r"https?://|@import|url\(|<script|<link", page)


def test_images_decode(page: str) -> None:
    uris = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(uris) == 4
    for uri in uris:
        assert Image.open(io.BytesIO(base64.b64decode(uri, validate=True))).size == (12, 8)


def test_contains_the_numbers(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    text = " ".join(checker.text)
    for expected in ("40.0", "63.1", "+23.1", "81.2", "88.5", "12.8", "44.4 %", "make demo"):
        assert expected in text, expected
    for expected in ("A <title>", "red <star>", "A: <b>", "train alignzeg", "unlabelled"):
        assert expected in text, expected
    assert "mask, per pixel" in text
    assert "toy_val" in text


def test_reads_a_log_with_a_cut_line_and_a_resumed_run(tmp_path: Path) -> None:
    (tmp_path / "evaluation_d.json").write_text(json.dumps({"metrics": {"hIoU": None}}))
    lines = [{"iteration": 5, "total_loss": 3.0}, {"iteration": 9, "total_loss": 2.0}]
    lines += [{"iteration": 5, "total_loss": 2.5}, {"data_time": 1}]
    log = "\n".join(json.dumps(line) for line in lines) + '\n{"iteration": 12, "total_loss": NaN}'
    (tmp_path / "metrics.json").write_text(log + "\n{")
    run = read_run("a", "A", tmp_path, "d")
    assert run.losses == {"total_loss": [(5, 2.5), (9, 2.0)]}
    assert run.evaluations == {}


def test_results_in_a_linked_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "disk" / "evaluation_d.json").write_text(json.dumps({"metrics": {"hIoU": 41.0}}))
    (tmp_path / "run" / "inference").symlink_to(tmp_path / "disk")
    assert read_run("a", "A", tmp_path / "run", "d").metrics == {"hIoU": 41.0}


def test_a_run_with_nothing_but_a_metric(tmp_path: Path) -> None:
    run = RunResult("a", "A", {"hIoU": None})
    path = write_report(tmp_path / "r.html", [run], [], VOCABULARY, About("T", "L"))
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    assert checker.open == []
    assert "–" in checker.text


def test_the_worst_images_are_found_in_the_data_set(zeroshapes: Path) -> None:
    vocabulary = get_vocabulary("zeroshapes_val")
    asked = []

    def predict(name: str) -> SimpleNamespace:
        asked.append(Path(name).name)
        return SimpleNamespace(labels=np.zeros((64, 64), np.uint8))

    right = {"val/00003.png": 12.5, "nowhere.png": 20.0, "00001.png": 31.0, "00002.png": 40.0}
    found = choose_worst("zeroshapes_val", vocabulary, {"one": predict}, right, 2)
    assert [sample.note for sample in found] == [
        "00003.png: 12.5 % right",
        "00001.png: 31.0 % right",
    ]
    assert asked == ["00003.png", "00001.png"]
    truth = np.asarray(Image.open(zeroshapes / "zeroshapes/annotations/val/00003.png"))
    assert np.array_equal(found[0].truth, truth)
    assert choose_worst("zeroshapes_val", vocabulary, {}, right) == []
    page = render([RunResult("one", "One", {})], [], vocabulary, About("T", "L"), found)
    assert "Worst images" in page and "00003.png: 12.5 % right" in page


def test_the_harmonic_mean_over_training() -> None:
    points = [(49, 10.0), (99, 30.0)]
    run = RunResult("a", "A", {}, evaluations={"hIoU": points})
    assert "hIoU over training" in harmonic_chart([run, RunResult("b", "B", {})])
    assert harmonic_chart([RunResult("a", "A", {}, evaluations={"hIoU": points[:1]})]) == ""


def test_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was the run evaluated"):
        read_run("a", "A", tmp_path, "nowhere")
    with pytest.raises(ValueError, match="one to four"):
        write_report(tmp_path / "r.html", [], [], VOCABULARY, About("T", "L"))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0, 93, [0, 25, 50, 75, 100]),
        (50, 100, [40, 60, 80, 100]),
        (0, 0, [0, 0.25, 0.5, 0.75, 1]),
    ],
)
def test_ticks_are_round_and_cover(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_delta_knows_what_is_better() -> None:
    assert "up" in delta(1.0, 2.0)
    assert "down" in delta(1.0, 2.0, lower_is_better=True)
    assert "±0.0" in delta(1.0, 1.04)
    assert delta(None, 1.0) == ""


def test_overlay_and_legend() -> None:
    labels = np.array([[0, 0, 1], [0, 0, 255]], dtype=np.uint8)
    colors = palette(2)
    colored = colorize(labels, colors)
    assert colored[0, 0].tolist() == colors[0].tolist()
    assert colored[1, 2].tolist() not in colors.tolist()
    assert boundaries(labels).tolist() == [[False, True, True], [False, True, False]]
    image = np.full((2, 3, 3), 100, dtype=np.uint8)
    mixed = blend(image, labels, colors, 0.5)
    assert (
        mixed[0, 0].tolist() == np.round((100 + colors[0].astype(float)) / 2).astype(int).tolist()
    )
    with pytest.raises(ValueError, match="labels of"):
        blend(image, labels.T, colors)
    tall = np.full((90, 30, 3), 7, dtype=np.uint8)
    image = with_legend(tall, [(f"name {i}", (255, 0, i)) for i in range(20)], text_size=12)
    assert image.height == 90
    assert image.width > 30
    assert np.asarray(image)[:, :30].tolist() == tall.tolist()
