"""Hostile files, as a checkpoint's folder and as a shared one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hostile_cases import Place
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alignzeg.files import file_hash
from alignzeg.sharing import save_pretrained


@pytest.fixture
def place(tmp_path: Path, tiny_weights: Path, zeroshapes: Path, monkeypatch: Any) -> Place:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    return Place(hostile, tiny_weights)


@pytest.fixture
def shared(place: Place, tiny_weights: Path) -> Path:
    """A shared folder that hides its plugin from alignzeg.json, but for the config inside."""
    folder = place.folder / "shared"
    save_pretrained(tiny_weights, folder)
    shutil.copytree(place.folder / "plugins", folder / "plugins")
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as stream:
        metadata = stream.metadata()
    about = json.loads(metadata["alignzeg"]) | {"config": place.config}
    save_file(load_file(file), file, metadata | {"alignzeg": json.dumps(about)})
    said = json.loads((folder / "alignzeg.json").read_text())
    said["sha256"] = {"model.safetensors": file_hash(file)}
    (folder / "alignzeg.json").write_text(json.dumps(said))
    (folder / "config.yaml").write_text(place.config)
    return folder
