"""What somebody else's model, run, bundle or folder brings neither runs nor writes by itself."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CONFIGS
from hostile_cases import Place

import alignzeg
from alignzeg.__main__ import main
from alignzeg.engine import config_from_yaml, setup_config
from alignzeg.engine.failures.crash import replay_bundle
from alignzeg.exporting import export_graph
from alignzeg.inference import Predictor
from alignzeg.sharing import locate, save_pretrained

CLASSES = ["red star", "brick"]

COMMANDS = {
    "predict": ["predict", "a.png", "--weights", "model_final.pth", "--classes", "brick"],
    "words": ["predict", "--words", "--weights", "model_final.pth"],
    "web": ["web", "--weights", "model_final.pth", "--port", "17861"],
    "onnx": ["export", "model_final.pth", "out.onnx"],
    "share": ["share", "model_final.pth", "out"],
    "replay": ["replay", "bundle.pth"],
    "report": ["report", "."],
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_no_command_runs_what_a_checkpoint_lists(
    words: list[str], place: Place, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(place.folder)
    before = sorted(place.folder.rglob("*"))
    assert main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and "plugins/x.py" in line and "--trust-code" in line
    place.check()
    assert sorted(place.folder.rglob("*")) == before


CALLS: dict[str, Callable[[Place], Any]] = {
    "Predictor": lambda place: alignzeg.Predictor(place.weights, CLASSES),
    "config": lambda place: config_from_yaml(place.config, folder=place.folder),
    "pt2": lambda place: export_graph(place.weights, place.folder / "out.pt2"),
    "share": lambda place: save_pretrained(place.weights, place.folder / "out"),
    "bundle": lambda place: replay_bundle(str(place.folder / "bundle.pth")),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_no_class_runs_it(call: Callable[[Place], Any], place: Place) -> None:
    with pytest.raises(ValueError, match=r"plugins/x\.py.*trust_code=True"):
        call(place)
    place.check()
    assert not (place.folder / "out").exists()


def test_a_shared_folder_that_hides_its_code(shared: Path, place: Place) -> None:
    for call in (locate, lambda folder: Predictor.from_pretrained(folder, CLASSES)):
        with pytest.raises(ValueError, match=r"plugins/x\.py.*trust_code=True"):
            call(shared)
    # Its config.yaml is not the caller's own either.
    with pytest.raises(ValueError, match=r"plugins/x\.py.*--trust-code"):
        setup_config(shared / "config.yaml")
    place.check()


def test_the_user_may_allow_it_or_name_his_own(shared: Path, place: Place) -> None:
    mine = place.folder / "mine_ran"
    Predictor(place.weights, CLASSES, plugins=[place.mine])
    assert mine.exists()
    place.check()
    # A file that this process has imported is let through.
    Predictor.from_pretrained(shared, CLASSES, plugins=[place.mine])
    opts = ["ALIGNZEG.PLUGINS", str(place.mine)]
    assert setup_config(shared / "config.yaml", opts).ALIGNZEG.PLUGINS == ["hostile/mine.py"]
    place.check()
    predictor = Predictor(place.weights, CLASSES, trust_code=True)
    assert place.marker.exists() and not (place.folder / "written").exists()
    assert predictor.cfg.ALIGNZEG.VLM.CACHE_DIR == ""


def test_a_checkpoint_shares_no_file_of_this_machine(place: Place) -> None:
    """What the config lists as a plugin may be any file; it must not be published."""
    (place.folder / "plugins" / "x.py").write_text("secret")
    with pytest.raises(ValueError, match="trust_code=True"):
        save_pretrained(place.weights, place.folder / "out")
    save_pretrained(place.weights, place.folder / "out", plugins=[place.mine])
    assert [path.name for path in (place.folder / "out" / "plugins").iterdir()] == ["mine.py"]


def test_sharing_follows_no_link(tiny_weights: Path, tmp_path: Path) -> None:
    save_pretrained(tiny_weights, tmp_path / "out")
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    (tmp_path / "out" / "vocabulary.txt").unlink()
    (tmp_path / "out" / "vocabulary.txt").symlink_to(outside)
    with pytest.raises(ValueError, match=r"vocabulary\.txt' is a link"):
        save_pretrained(tiny_weights, tmp_path / "out")
    assert outside.read_text() == "mine"


class Payload:
    """Would make a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["model.pth", "model.pkl", "model.safetensors", "model.pyth"])
def test_pickled_code_runs_nowhere(name: str, place: Place) -> None:
    path = place.folder / name
    for content in (pickle.dumps({"model": Payload(place.marker)}), None):
        if content is None:
            torch.save({"model": {"a": Payload(place.marker)}}, path)
        else:
            path.write_bytes(content)
        config = ["--config-file", str(CONFIGS / "zeroshapes" / "alignzeg.yaml")]
        tiny = ["OUTPUT_DIR", str(place.folder / "run"), "MODEL.DEVICE", "cpu"]
        assert main(["evaluate", *config, "--weights", str(path), *tiny]) != 0
        assert main(["train", *config, "MODEL.WEIGHTS", str(path), *tiny]) != 0
        assert main(["train", *config, "ALIGNZEG.VLM.WEIGHTS", str(path), *tiny]) != 0
        with pytest.raises(ValueError, match=name):
            alignzeg.Predictor(path, CLASSES)
        place.check()
