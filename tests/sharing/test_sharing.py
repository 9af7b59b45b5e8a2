"""Shared models: a folder says all and is whole or refused; its card has the figures."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from helpers import CONFIGS, REPOSITORY, TINY_OPTS, TOY_PLUGIN
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alignzeg.__main__ import main
from alignzeg.config.plugins import import_plugin
from alignzeg.data.zeroshapes import render_scene, scene_rng
from alignzeg.engine import AlignZegCheckpointer, setup_config
from alignzeg.files import file_hash
from alignzeg.inference import Predictor
from alignzeg.sharing import locate, save_pretrained

CLASSES = ["red star", "brick", "my own thing"]
EVALUATION = {
    "metrics": {
        **{"pAcc": 91.24, "mIoU": 70.0, "sIoU": 80.55, "uIoU": 40.0, "hIoU": None},
        "unseen_to_seen": 12.34,
    },
    "protocol": {"dataset": "toys_val", "images": 7, "setting": "generalized: of all classes"},
    "classes": [
        {"name": "brick", "seen": True, "IoU": 80.55},
        {"name": "blue box", "seen": False, "IoU": None},
    ],
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained model, whose config names places of this machine."""
    folder = tmp_path_factory.mktemp("weights")
    seed_all_rng(0)
    places = ["OUTPUT_DIR", str(folder / "out"), "ALIGNZEG.VLM.CACHE_DIR", str(folder / "text")]
    cfg = setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", [*TINY_OPTS, *places])
    AlignZegCheckpointer(build_model(cfg), str(folder), config=cfg.dump()).save("model")
    (folder / "evaluation_toys_val.json").write_text(json.dumps(EVALUATION))
    return folder / "model.pth"


@pytest.fixture(scope="module")
def made(weights: Path) -> Path:
    """The folder that the command makes of it."""
    folder = weights.with_name("shared")
    evaluation = str(weights.with_name("evaluation_toys_val.json"))
    assert main(["share", str(weights), str(folder), "--evaluation", evaluation]) == 0
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_the_folder_predicts_as_the_checkpoint(weights: Path, made: Path, copy: Path) -> None:
    image = render_scene(scene_rng(3, "val", 0), 64).image
    wanted = Predictor(weights, CLASSES)(image, proposals=9)
    found = Predictor.from_pretrained(copy, CLASSES, device="cpu")(image, proposals=9)
    assert (found.labels == wanted.labels).all()
    np.testing.assert_array_equal(found.proposals.scores, wanted.proposals.scores)


def test_the_folder_says_what_is_in_it(weights: Path, made: Path) -> None:
    names = {"README.md", "alignzeg.json", "config.yaml", "model.safetensors", "vocabulary.txt"}
    assert {path.name for path in made.iterdir()} == names
    stored = torch.load(weights, weights_only=True)
    for key, value in load_file(made / "model.safetensors").items():
        assert torch.equal(value, stored["model"][key])
    about = json.loads((made / "alignzeg.json").read_text())
    for key in ("seen", "vlm_id", "vlm_hash"):
        assert about[key] == stored["alignzeg"][key]
    assert about["sha256"]["model.safetensors"] == file_hash(made / "model.safetensors")
    lines = (made / "vocabulary.txt").read_text().splitlines()
    assert lines == [*stored["alignzeg"]["seen"], "blue box"]


def test_no_place_of_this_machine_is_in_it(weights: Path, made: Path) -> None:
    texts = [p.read_bytes().decode("utf-8", "replace") for p in made.rglob("*") if p.is_file()]
    for place in (str(weights.parent), str(REPOSITORY), str(Path.home())):
        assert not [text for text in texts if place in text], place
    config = yaml.safe_load((made / "config.yaml").read_text())
    assert config["OUTPUT_DIR"] == "./output"
    with safe_open(made / "model.safetensors", "pt") as file:
        assert (
            json.loads(file.metadata()["alignzeg"])["config"] == (made / "config.yaml").read_text()
        )


def test_the_card_has_the_figures(made: Path, weights: Path) -> None:
    text = (made / "README.md").read_text()
    _, front, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    header = yaml.safe_load(front)
    assert header["library_name"] == "alignzeg"
    (result,) = header["model-index"][0]["results"]
    figures = {entry["type"]: entry["value"] for entry in result["metrics"]}
    assert figures == {"pAcc": 91.24, "mIoU": 70.0, "sIoU": 80.55, "uIoU": 40.0}
    # hIoU is not there, and is not called 0.
    assert "| toys_val | 7 | 91.2 | 70.0 | 80.5 | 40.0 | - | 12.3 |" in body
    assert "| brick | seen | 80.5 |" in body and "| blue box | unseen | - |" in body
    about = torch.load(weights, weights_only=True)["alignzeg"]
    assert about["vlm_hash"] in body and about["vlm_id"] in body
    code = re.search(r"```python\n(.*?)```", body, re.DOTALL).group(1)
    compile(code, "card", "exec")


def test_without_an_evaluation_the_card_says_so(weights: Path, tmp_path: Path) -> None:
    save_pretrained(weights, tmp_path / "shared")
    text = (tmp_path / "shared" / "README.md").read_text()
    assert "Not measured." in text and "model-index" not in text


def test_a_plugin_comes_along_and_runs_only_if_trusted(
    zeroshapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    (work / "output").mkdir(parents=True)
    # Its copies are this module, which other tests of this process may have to find again.
    import_plugin(TOY_PLUGIN)
    shutil.copy(TOY_PLUGIN, work / "toy_of_mine.py")
    monkeypatch.chdir(work)
    opts = [*TINY_OPTS, "ALIGNZEG.PLUGINS", "toy_of_mine.py"]
    cfg = setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", opts)
    assert cfg.ALIGNZEG.PLUGINS == ["toy_of_mine.py"]
    AlignZegCheckpointer(build_model(cfg), "output", config=cfg.dump()).save("model")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "shared"
    save_pretrained(work / "output" / "model.pth", folder)
    assert (folder / "plugins" / "toy_of_mine.py").read_text() == TOY_PLUGIN.read_text()
    shutil.rmtree(work)
    with pytest.raises(ValueError, match=r"toy_of_mine\.py, which would run; .*trust_code=True"):
        locate(folder)
    found = locate(folder, trust_code=True)
    assert found.opts[0] == "ALIGNZEG.PLUGINS" and str(folder) in found.opts[1]


def edit(folder: Path, **changes: object) -> None:
    """Changes entries of alignzeg.json."""
    file = folder / "alignzeg.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def other_vlm(folder: Path) -> None:
    """The model of somebody whose VLM had other weights."""
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as stream:
        metadata = stream.metadata()
    about = json.loads(metadata["alignzeg"]) | {"vlm_hash": "0" * 64}
    save_file(load_file(file), file, metadata | {"alignzeg": json.dumps(about)})
    hashes = json.loads((folder / "alignzeg.json").read_text())["sha256"]
    edit(folder, vlm_hash="0" * 64, sha256=hashes | {"model.safetensors": file_hash(file)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "neither a folder"),
        (lambda f: (f / "alignzeg.json").unlink(), "has no alignzeg.json"),
        (lambda f: (f / "alignzeg.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "alignzeg.json").write_text("[]"), "cannot be read"),
        (lambda f: edit(f, format=99), "has format 99"),
        (lambda f: edit(f, sha256={}), "not what `alignzeg share` writes"),
        (lambda f: edit(f, sha256={"../x": "", "model.safetensors": ""}), "not what"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "its SHA-256 differs"),
        (lambda f: (f / "config.yaml").write_text("SEED: 1"), "its SHA-256 differs"),
        (lambda f: edit(f, vlm_hash="0" * 64), "gives the VLM hash as '0000"),
        (lambda f: edit(f, seen=["grass"]), r"gives the seen classes as \['grass'\]"),
        (other_vlm, "trained with other weights of the VLM .* their hash was 0000"),
    ],
)
def test_a_damaged_folder_is_refused(copy: Path, damage, message: str) -> None:
    damage(copy)
    with pytest.raises(ValueError, match=message) as caught:
        Predictor.from_pretrained(copy, CLASSES)
    assert "\n" not in str(caught.value)


def test_an_id_is_looked_up_on_the_hub(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own function stands in for the network."""
    asked = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(made)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert locate("user/model", revision="v1").weights == made / "model.safetensors"
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("user/model", "v1") and "model.safetensors" in patterns


def test_a_hub_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="'nobody/nothing', and it could not be downloaded"):
        locate("nobody/nothing")
    for wrong in ("a/b/c", "../up", "model.pth"):
        with pytest.raises(ValueError, match=f"{re.escape(wrong)}' is neither a folder"):
            locate(wrong)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.pth", "new"], "'none.pth' does not exist"),
        (["text.pth", "new"], "text.pth"),
        (["foreign.pth", "new"], "not a checkpoint of alignzeg"),
        (
            ["lost.pth", "new"],
            "in ALIGNZEG.PLUGINS, lost_plugin.py, which would run",
        ),
        (["W", "text.pth"], "is a file; give another folder"),
        (["W", "text.pth/deep"], "is a file; give another folder"),
        (["W", "full"], "holds other files; give one that is empty"),
        (["W", "new", "--evaluation", "none.json"], "'none.json' cannot be read"),
        (["W", "new", "--evaluation", "text.pth"], "no evaluation of alignzeg"),
        (["W", "new", "--evaluation", "empty.json"], "no evaluation of alignzeg"),
        (["W", "new", "--evaluation", "other.json"], "another model: it counts ['zebra'] as seen"),
        (["W", "new", "--evalution", "x.json"], "did you mean '--evaluation'?"),
        (["W"], "FOLDER"),
    ],
)
def test_what_cannot_be_shared_is_one_line(
    words, message, weights, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    torch.save({"model": {"a": torch.zeros(1)}}, "foreign.pth")
    content = torch.load(weights, weights_only=True)
    about = content["alignzeg"]
    lost = yaml.safe_load(about["config"])
    lost["ALIGNZEG"]["PLUGINS"] = ["lost_plugin.py"]
    torch.save(content | {"alignzeg": about | {"config": yaml.safe_dump(lost)}}, "lost.pth")
    (tmp_path / "empty.json").write_text("{}")
    zebra = {"name": "zebra", "seen": True, "IoU": 1.0}
    (tmp_path / "other.json").write_text(json.dumps({**EVALUATION, "classes": [zebra]}))
    before = sorted(tmp_path.rglob("*"))
    assert main(["share", *(str(weights) if word == "W" else word for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_second_call_replaces_the_first(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    save_pretrained(weights, folder)
    (folder / "README.md").write_text("old")
    save_pretrained(weights, folder)
    assert "Seen classes" in (folder / "README.md").read_text()
    assert locate(folder).weights == folder / "model.safetensors"
