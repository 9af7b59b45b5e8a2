"""Which weights and settings an evaluation is of, and what a model card says of others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS, TINY_OPTS

from alignzeg.__main__ import main
from alignzeg.engine import read_checkpoint, setup_config
from alignzeg.engine.checkpoints.state import weights_hash
from alignzeg.sharing import save_pretrained

EVALUATION = Path("inference", "evaluation_zeroshapes_val.json")


@pytest.fixture(scope="module")
def run(zeroshapes_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A training of two steps, and its evaluation."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(zeroshapes_files))
        yield trained(folder)


def trained(folder: Path) -> Path:
    config = str(CONFIGS / "zeroshapes" / "alignzeg.yaml")
    assert main(["train", "--config-file", config, *TINY_OPTS, "OUTPUT_DIR", str(folder)]) == 0
    return folder


def evaluated(run: Path, folder: Path, weights: Path, *opts: str) -> Path:
    """The JSON of an evaluation with settings of its own."""
    config = str(CONFIGS / "zeroshapes" / "alignzeg.yaml")
    words = ["evaluate", "--config-file", config, "--weights", str(weights), *TINY_OPTS]
    assert main([*words, *opts, "OUTPUT_DIR", str(folder)]) == 0
    return folder / EVALUATION


def test_an_evaluation_says_what_it_is_of(run: Path, tmp_path: Path) -> None:
    """The same in the training that made the weights and in a command that reads them."""
    first = json.loads((run / EVALUATION).read_text())
    again = json.loads(evaluated(run, tmp_path, run / "model_final.pth").read_text())
    assert first["made_by"] == again["made_by"]
    stored = read_checkpoint(str(run / "model_final.pth"))["model"]
    assert first["made_by"]["weights"] == weights_hash(stored)
    settings = first["made_by"]["settings"]
    cfg = setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", TINY_OPTS)
    assert settings["ALIGNZEG.CORRECTOR.GAMMA"] == cfg.ALIGNZEG.CORRECTOR.GAMMA
    assert settings["INPUT.MIN_SIZE_TEST"] == cfg.INPUT.MIN_SIZE_TEST
    assert "ALIGNZEG.TEST.MEMORY_MIB" not in settings


def test_other_settings_stand_on_the_card(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = run / "model_final.pth"
    save_pretrained(weights, tmp_path / "same", [run / EVALUATION])
    assert "unlike the config" not in (tmp_path / "same" / "README.md").read_text()
    assert "was made with" not in capsys.readouterr().out
    opts = ["ALIGNZEG.CORRECTOR.GAMMA", "7.5", "INPUT.MIN_SIZE_TEST", "48"]
    other = evaluated(run, tmp_path / "other", weights, *opts)
    save_pretrained(weights, tmp_path / "shared", [other])
    card, warned = (tmp_path / "shared" / "README.md").read_text(), capsys.readouterr().out
    for said in ("ALIGNZEG.CORRECTOR.GAMMA 7.5", "INPUT.MIN_SIZE_TEST 48"):
        assert f"- made with `{said}`, unlike the config" in card
        assert said in warned.rpartition("was made with")[2]


def test_an_evaluation_of_other_weights_is_refused(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "model_final.pth", weights_only=True)
    name = next(key for key, value in content["model"].items() if value.is_floating_point())
    content["model"][name].view(-1)[0] += 1e-3
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is of other weights; evaluate these"):
        save_pretrained(tmp_path / "other.pth", tmp_path / "new", [run / EVALUATION])
    assert not (tmp_path / "new").exists()


def test_an_evaluation_that_does_not_say_is_taken_with_a_word(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads((run / EVALUATION).read_text())
    del content["made_by"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    save_pretrained(run / "model_final.pth", tmp_path / "new", [tmp_path / "old.json"])
    assert "does not say which weights it is of" in caplog.text


def test_the_hash_of_weights_is_of_their_content() -> None:
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}
    same = weights_hash(weights)
    assert weights_hash(dict(reversed(weights.items()))) == same
    assert weights_hash({**weights, "a": weights["a"].t().contiguous().t()}) == same
    others = [
        {**weights, "a": weights["a"].view(3, 2)},
        {**weights, "a": weights["a"].double()},
        {**weights, "a": weights["a"] + 1},
        {"a": weights["a"], "c": weights["b"]},
        {"a": weights["a"]},
    ]
    assert same not in {weights_hash(other) for other in others}
