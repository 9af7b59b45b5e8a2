"""Shared fixtures: fixed seeds, a handful of zeroshapes scenes, a tiny config."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from helpers import CONFIGS, TINY_OPTS, TOY_PLUGIN

from alignzeg.data.zeroshapes import write_dataset
from alignzeg.engine import AlignZegCheckpointer, setup_config
from alignzeg.engine.records.log import LOGGERS


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers in every test, in whatever order they run."""
    seed_all_rng(0)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Logs reach `caplog`, and nothing of a run's logging is left to later tests."""
    for name in LOGGERS:
        logging.getLogger(name).propagate = True
    loggers = [logging.getLogger(), *map(logging.getLogger, LOGGERS)]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.setLevel(level)
        for handler in list(logger.handlers):
            # Those of pytest come and go by themselves.
            if handler not in handlers and not type(handler).__module__.startswith("_pytest"):
                logger.removeHandler(handler)
                handler.close()


@pytest.fixture(scope="session")
def zeroshapes_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data-set root with 8 training and 5 validation scenes of 64 x 64."""
    root = tmp_path_factory.mktemp("datasets")
    write_dataset(root, "train", 8, size=64, workers=1)
    write_dataset(root, "val", 5, size=64, workers=1)
    return root


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained AlignZeg that runs in a moment."""
    folder = tmp_path_factory.mktemp("weights")
    seed_all_rng(0)
    cfg = setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", TINY_OPTS)
    AlignZegCheckpointer(build_model(cfg), str(folder), config=cfg.dump()).save("model")
    return folder / "model.pth"


@pytest.fixture
def zeroshapes(zeroshapes_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny data set as the one that the catalog, and programs started here, will find."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(zeroshapes_files))
    return zeroshapes_files


@pytest.fixture
def tiny_opts(tmp_path: Path) -> list[str]:
    """KEY VALUE pairs that make a zeroshapes config run in seconds, writing to tmp_path."""
    cache = ["ALIGNZEG.VLM.CACHE_DIR", str(tmp_path / "text")]
    return [*TINY_OPTS, *cache, "OUTPUT_DIR", str(tmp_path / "output")]


@pytest.fixture
def tiny_cfg(zeroshapes: Path, tiny_opts: list[str]) -> CfgNode:
    """AlignZeg on the tiny data set, not frozen."""
    return setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", tiny_opts)


@pytest.fixture
def toy_cfg(zeroshapes: Path, tiny_opts: list[str]) -> CfgNode:
    """A run of the plugin's one-layer model."""
    toy = ["ALIGNZEG.PLUGINS", str(TOY_PLUGIN), "MODEL.META_ARCHITECTURE", "ToySegmenter"]
    opts = [*tiny_opts, *toy, "ALIGNZEG.TEST.RECALL", "False"]
    return setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", opts)


@pytest.fixture
def held_out(zeroshapes: Path, tiny_opts: list[str]) -> CfgNode:
    """AlignZeg on the tiny data set without the pseudo-unseen classes."""
    opts = [*tiny_opts, "ALIGNZEG.DATA.HOLD_OUT", "pseudo_unseen"]
    return setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", opts)
