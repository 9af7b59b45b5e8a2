"""What a run logs: each line once, in its own folder, and no colour codes but on a terminal."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from detectron2.utils.logger import setup_logger
from helpers import CONFIGS
from termcolor import colored

from alignzeg.commands.train import parse_args
from alignzeg.engine import setup_config, start_run
from alignzeg.engine.records.log import LOGGERS, start_log


def watched(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Stands in for the screen; to be called in the test, as pytest sets its own before."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leaves the loggers as they were."""
    kept = {name: list(logging.getLogger(name).handlers) for name in LOGGERS}
    yield
    for name, handlers in kept.items():
        logging.getLogger(name).handlers[:] = handlers


def say(text: str) -> None:
    for name in ("alignzeg.engine", "detectron2.engine", "fvcore.common"):
        logging.getLogger(name).warning("%s", text)


def test_a_second_run_of_the_process_has_a_log_of_its_own(tmp_path: Path, monkeypatch) -> None:
    screen = watched(monkeypatch)
    # As the first cell of many notebooks does.
    setup_logger.cache_clear()
    setup_logger()
    for name in ("one", "two", "one"):
        start_log(tmp_path / name)
        say(f"in {name}")
    assert screen.getvalue().count("in two") == 3
    assert screen.getvalue().count("in one") == 6
    for name, count in (("one", 6), ("two", 3)):
        lines = (tmp_path / name / "log.txt").read_text().splitlines()
        assert len(lines) == count and all(f"in {name}" in line for line in lines)


def test_handlers_of_the_user_stay(tmp_path: Path, monkeypatch) -> None:
    watched(monkeypatch)
    mine = logging.StreamHandler(io.StringIO())
    logging.getLogger("alignzeg").addHandler(mine)
    start_log(tmp_path / "a")
    start_log(tmp_path / "b")
    say("hello")
    assert mine.stream.getvalue() == "hello\n"


def test_colours_are_for_terminals(tmp_path: Path, monkeypatch) -> None:
    screen = watched(monkeypatch)
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = colored("green", "green", force_color=True)
    start_log(tmp_path)
    say(text)
    assert "green" in screen.getvalue() and "\x1b" not in screen.getvalue()
    assert "d2.engine]: green" in screen.getvalue() and "WARNING" in screen.getvalue()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    start_log(tmp_path)
    say(text)
    assert "\x1b" in screen.getvalue()
    assert "\x1b" not in (tmp_path / "log.txt").read_text()
    monkeypatch.setenv("NO_COLOR", "1")
    screen.truncate(0)
    start_log(tmp_path)
    say("plain")
    assert "\x1b" not in screen.getvalue()


def test_only_the_first_process_writes_to_the_screen(tmp_path: Path, monkeypatch) -> None:
    screen = watched(monkeypatch)
    start_log(tmp_path, rank=1)
    say("from the second")
    assert screen.getvalue() == ""
    assert (tmp_path / "log.txt.rank1").read_text().count("from the second") == 3


def test_the_config_is_a_file_and_not_in_the_log(tmp_path: Path, monkeypatch) -> None:
    screen = watched(monkeypatch)
    cfg = setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", ["OUTPUT_DIR", str(tmp_path)])
    start_run(cfg, parse_args([]))
    assert len(screen.getvalue().splitlines()) < 6
    assert str(tmp_path / "config.yaml") in screen.getvalue()
    log = (tmp_path / "log.txt").read_text()
    assert "ANCHOR_GENERATOR" not in log and "\x1b" not in log
    assert "PyTorch" in log  # the environment
    loaded = setup_config(tmp_path / "config.yaml")
    assert yaml.safe_load(loaded.dump()) == yaml.safe_load(cfg.dump())


def test_a_logged_traceback_is_one_line_on_the_terminal_and_whole_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = watched(monkeypatch)
    start_log(tmp_path, tracebacks=False)
    try:
        raise ValueError("label file\na.png")
    except ValueError:
        logging.getLogger(LOGGERS[1]).exception("Exception during %s:", "training")
    (line,) = screen.getvalue().splitlines()
    assert line.endswith("Exception during training: label file a.png")
    assert "Traceback (most recent call last)" in (tmp_path / "log.txt").read_text()
