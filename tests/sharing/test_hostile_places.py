"""A shared model names no place of this machine, and no command runs or writes what others say."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import CONFIGS, TINY_OPTS
from hostile_cases import Place
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import alignzeg
from alignzeg.__main__ import main
from alignzeg.engine import setup_config
from alignzeg.files import file_hash
from alignzeg.sharing import locate, save_pretrained

CONFIG = ["--config-file", str(CONFIGS / "zeroshapes" / "alignzeg.yaml")]
# What is done with somebody else's checkpoint under a config of the caller's own, and how it ends.
OWN_CONFIG: dict[str, tuple[list[str], int]] = {
    "evaluate": (["evaluate", "--weights", "hostile/model_final.pth"], 0),
    "evaluate_resume": (["evaluate", "--resume"], 0),
    "resume": (["train", "--resume"], 2),
    "calibrate": (["calibrate", "--weights", "hostile/model_final.pth", "--output", "o/c.json"], 2),
    "pseudo_labels": (
        [
            *("pseudo-labels", "--weights", "hostile/model_final.pth"),
            *("--dataset", "zeroshapes_train", "--output", "o/labels"),
        ],
        0,
    ),
    "train": (["train", "MODEL.WEIGHTS", "hostile/model_final.pth"], 0),
}


@pytest.mark.parametrize(("words", "code"), OWN_CONFIG.values(), ids=OWN_CONFIG)
def test_a_config_of_ones_own_leaves_theirs_alone(
    words: list[str], code: int, place: Place, tmp_path: Path, capsys: Any
) -> None:
    resumed = "--resume" in words
    output = place.folder if resumed else tmp_path / "o"
    (place.folder / "last_checkpoint").write_text("model_final.pth")
    before = {p for p in tmp_path.rglob("*") if not p.is_relative_to(output)}
    at = next((i for i, word in enumerate(words) if word.isupper()), len(words))
    opts = [*TINY_OPTS, "OUTPUT_DIR", str(output), "ALIGNZEG.VLM.CACHE_DIR", str(tmp_path / "o")]
    found = main([*words[:at], *CONFIG, *words[at:], *opts])
    assert found == code, capsys.readouterr().err[-600:]
    place.check()
    after = {p for p in tmp_path.rglob("*") if not p.is_relative_to(output)}
    assert {p for p in after - before if not p.is_relative_to(tmp_path / "o")} == set()


def test_tools_that_read_a_run_run_nothing(place: Place, capsys: Any) -> None:
    assert main(["compare", "hostile", "hostile"]) in (0, 2)
    assert main(["significance", "hostile"]) in (0, 2)
    assert main(["export", "hostile/model_final.pth", "out.safetensors"]) == 0
    place.check()


def _with_config(folder: Path, changes: dict[str, str]) -> None:
    """Puts other values into the config of a shared folder, and makes its hashes right."""
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as stream:
        metadata = stream.metadata()
    about = json.loads(metadata["alignzeg"])
    config = yaml.safe_load(about["config"])
    for key, value in changes.items():
        *sections, leaf = key.split(".")
        node = config
        for section in sections:
            node = node[section]
        node[leaf] = value
    about["config"] = yaml.safe_dump(config)
    save_file(load_file(file), file, metadata | {"alignzeg": json.dumps(about)})
    (folder / "config.yaml").write_text(about["config"])
    said = json.loads((folder / "alignzeg.json").read_text())
    said["sha256"] = {name: file_hash(folder / name) for name in said["sha256"]}
    (folder / "alignzeg.json").write_text(json.dumps(said))


@pytest.fixture
def model(tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An honest shared folder, to be made hostile."""
    monkeypatch.chdir(tmp_path)
    save_pretrained(tiny_weights, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("key", ["ALIGNZEG.VLM.WEIGHTS", "ALIGNZEG.VLM.TEXT_WEIGHTS"])
@pytest.mark.parametrize("value", ["/etc/hostname", "../secret.pt", "~/secret.pt", "a\\b.pt"])
def test_a_shared_model_reads_no_path(model: Path, key: str, value: str) -> None:
    _with_config(model, {key: value})
    names = ["brick"]
    for call in (
        lambda: alignzeg.Predictor.from_pretrained(model, names),
        lambda: alignzeg.Predictor(model / "model.safetensors", names),
        lambda: setup_config(model / "config.yaml"),
    ):
        with pytest.raises(ValueError, match=rf"has {key} .*a path on this machine.*{key} FILE"):
            call()
    # What the caller says is the caller's.
    assert setup_config(model / "config.yaml", [key, value]).ALIGNZEG.VLM[key.split(".")[-1]]


def test_a_shared_config_is_not_the_callers_own(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker, plugin = tmp_path / "ran", tmp_path / "model" / "x.py"
    plugin.write_text(f"open({str(marker)!r}, 'w').close()\n")
    own = tmp_path / "own.yaml"
    own.write_text("_BASE_: model/config.yaml\nSEED: 3\n")
    away = str(tmp_path / "away")
    _with_config(model, {"OUTPUT_DIR": away, "ALIGNZEG.DATA.PSEUDO.ROOT": away})
    with caplog.at_level(logging.WARNING):
        cfg = setup_config(own)
    assert (cfg.OUTPUT_DIR, cfg.ALIGNZEG.DATA.PSEUDO.ROOT, cfg.SEED) == ("./output", "", 3)
    assert f"names OUTPUT_DIR {away!r}, which is left out" in caplog.text
    assert setup_config(own, ["OUTPUT_DIR", away]).OUTPUT_DIR == away
    _with_config(model, {"ALIGNZEG.PLUGINS": ["x.py"]})  # type: ignore[dict-item]
    for file in (own, model / "config.yaml"):
        with pytest.raises(ValueError, match=r"x\.py.*ALIGNZEG\.PLUGINS FILE"):
            setup_config(file)
    assert not marker.exists()
    own.write_text("_BASE_: model/config.yaml\nALIGNZEG: {PLUGINS: [model/x.py]}\n")
    setup_config(own)
    assert marker.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "alignzeg.json", "config.yaml"])
def test_no_link_leads_out_of_a_shared_folder(model: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    os.rename(model / name, outside)
    (model / name).symlink_to(outside)
    with pytest.raises(ValueError, match=rf"{name}' is a link to .*outside', out of the model's"):
        locate(model)


def test_the_hubs_own_links_are_followed(model: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in model.iterdir():
        os.rename(file, blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert locate(snapshot).weights == snapshot / "model.safetensors"


@pytest.mark.parametrize(
    "name", ["../x.py", "/x.py", "plugins/../../x.py", "plugins/a/x.py", "plugins/x.so", "x.py"]
)
def test_other_names_are_refused(model: Path, name: str) -> None:
    said = json.loads((model / "alignzeg.json").read_text())
    said["sha256"][name] = ""
    (model / "alignzeg.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="not what `alignzeg share` writes"):
        locate(model, trust_code=True)


def test_a_card_shows_names_as_they_are(model: Path, tmp_path: Path) -> None:
    evil = "<script>a|b</script>\n\n# [x](http://y) `"
    evaluation = {
        "metrics": {"mIoU": 1.0},
        "protocol": {"dataset": evil, "setting": evil},
        "classes": [{"name": evil, "seen": False, "IoU": None}],
    }
    (tmp_path / "e.json").write_text(json.dumps(evaluation))
    save_pretrained(model / "model.safetensors", tmp_path / "new", [tmp_path / "e.json"])
    text = (tmp_path / "new" / "README.md").read_text().split("---", 2)[2]
    shown = r"\<script\>a\|b\</script\> # \[x\](http://y) \`"
    assert f"| {shown} | unseen | - |" in text and f"### {shown}\n" in text
    assert "<script>" not in text.replace(r"\<", "")
