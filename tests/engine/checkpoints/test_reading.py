"""Torn and forged checkpoints: the newest intact one is read, and nothing in it is executed."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_cases import Model, checkpointer, save
from safetensors.torch import save_file

from alignzeg import files
from alignzeg.engine.checkpoints import reading
from alignzeg.engine.checkpoints.reading import (
    KEY,
    damage,
    find_newest,
    read_about,
    read_checkpoint,
    require_trust,
    seen_names,
)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WAIT_S", 0.0)


def test_the_newest_intact_one_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert find_newest(str(tmp_path)) == ""
    paths = [save(tmp_path, step) for step in (9, 19, 29)]
    checkpointer(tmp_path, 39.0).save("model_final", iteration=39)
    final = str(tmp_path / "model_final.pth")

    def newest() -> str:
        return find_newest(str(tmp_path))

    assert newest() == final
    pointer = tmp_path / "last_checkpoint"
    pointer.write_text("model_0000019.pth")
    assert newest() == paths[1]
    for torn in ("", "model_00", "../../etc/passwd", "\udcff"):
        pointer.write_text(torn, errors="surrogateescape")
        assert newest() == final
    data = bytearray(Path(final).read_bytes())
    data[len(data) // 2] ^= 1
    Path(final).write_bytes(data)
    assert "checksum" in damage(final) and newest() == paths[2]
    Path(paths[2]).write_bytes(Path(paths[2]).read_bytes()[:-1000])
    assert newest() == paths[1]
    Path(paths[1]).write_bytes(b"")
    assert newest() == paths[0] and "is damaged" in caplog.text
    Path(paths[0]).unlink()
    with pytest.raises(ValueError, match="none of the 3 checkpoints in .* is intact"):
        newest()


def test_every_cut_and_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    whole = Path(path).read_bytes()
    copy = tmp_path / "copy.pth"
    numbers = np.random.default_rng(0)
    for length in numbers.integers(0, len(whole), 60):
        copy.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="checkpoint .*copy.pth"):
            read_checkpoint(str(copy))
    expected = read_checkpoint(path)
    refused = 0
    for place in numbers.integers(0, len(whole), 300):
        data = bytearray(whole)
        data[place] ^= 1 << int(numbers.integers(8))
        copy.write_bytes(data)
        try:
            found = read_checkpoint(str(copy))
        except ValueError:
            refused += 1
        else:
            # The byte was padding, or a date.
            assert str(found) == str(expected)
            assert torch.equal(found["model"]["layer.weight"], expected["model"]["layer.weight"])
    assert refused > 250


class Bomb:
    def __reduce__(self) -> tuple:
        return (os.system, ("touch bombed",))


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(reading.TRUSTED_VARIABLE, raising=False)
    bomb = pickle.dumps(Bomb())
    torch.save({"model": {}, "alignzeg": Bomb()}, "bomb.pth")
    torch.save({"model_state": Bomb()}, "bomb.pyth")
    torch.save({"model": Bomb()}, "old.pth", _use_new_zipfile_serialization=False)
    for name in ("bomb.pkl", "pickle.pth", "bomb.safetensors"):
        Path(name).write_bytes(bomb)
    torch.save([1, 2], "list.pth")
    found = ["bomb.pth", "bomb.pyth", "old.pth", "bomb.pkl", "pickle.pth", "bomb.safetensors"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in [*found, "list.pth"]:
            with pytest.raises(ValueError, match=f"'{name}'") as error:
                checkpointer(tmp_path).load(name)
            assert "\n" not in str(error.value)
    assert not Path("bombed").exists()
    torch.save({"model": {}, "alignzeg": {"version": 1}}, "edited.pth")
    with pytest.raises(ValueError, match="says too little about itself"):
        checkpointer(tmp_path).load("edited.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin"])
def test_the_content_says_how_a_file_is_read_not_its_name(tmp_path: Path, name: str) -> None:
    weights = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    save_file(weights, tmp_path / f"a{name}")
    torch.save({"model": weights}, tmp_path / f"b{name}")
    for path in (tmp_path / f"a{name}", tmp_path / f"b{name}"):
        found = reading.read_checkpoint(str(path))["model"]
        assert all(torch.equal(found[key], weights[key]) for key in weights)


def test_pickles_need_somebody_who_vouches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(reading.TRUSTED_VARIABLE, raising=False)
    weights = {key: value.numpy() + 3 for key, value in Model().state_dict().items()}
    path = tmp_path / "zoo" / "backbone.pkl"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "me"}))
    with pytest.raises(ValueError, match="pickle, which can run any code.*--trust-pickle"):
        checkpointer(tmp_path).load(str(path))
    trusting = checkpointer(tmp_path, trust_pickle=True)
    trusting.load(str(path))
    assert trusting.model.layer.weight[0, 0] == 3
    monkeypatch.setenv(reading.TRUSTED_VARIABLE, f"/nowhere{os.pathsep}{tmp_path / 'zoo'}")
    trusting = checkpointer(tmp_path)
    trusting.load(str(path))
    assert trusting.model.layer.weight[0, 0] == 3
    # A link inside a trusted folder to a file outside is outside.
    outside = tmp_path / "outside.pkl"
    outside.write_bytes(path.read_bytes())
    link = tmp_path / "zoo" / "link.pkl"
    link.symlink_to(outside)
    with pytest.raises(ValueError, match="pickle"):
        require_trust(str(link), str(link))
    require_trust("detectron2://ImageNetPretrained/MSRA/R-50.pkl", "/cache/R-50.pkl")


@pytest.mark.parametrize("seen", [torch.ones(3), "cat", {"cat": 1}, None, [], 3])
def test_classes_of_another_kind_are_none(tmp_path: Path, seen: object) -> None:
    path = str(tmp_path / "a.pth")
    about = {"version": 1, "config": "SEED: 1", "seen": seen, "vlm_id": "a", "vlm_hash": "b"}
    torch.save({KEY: about}, path)
    assert seen_names(read_checkpoint(path)) == []
    with pytest.raises(ValueError, match="does not say which config and classes"):
        read_about(path)
    for about in (torch.ones(3), [1], "x", None):
        assert seen_names({KEY: about}) == []


def test_the_checksums_of_a_file_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, looked = save(tmp_path, 1), []
    test = zipfile.ZipFile.testzip
    monkeypatch.setattr(
        zipfile.ZipFile, "testzip", lambda self: (looked.append(self), test(self))[1]
    )
    os.utime(path, (1e9, 1e9))
    assert find_newest(str(tmp_path)) == find_newest(str(tmp_path)) == path
    assert read_about(path)["seen"] == ["cat", "dog"]
    read_checkpoint(path)
    assert len(looked) == 1
    # Another content is another file, as is one that has just been written.
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    Path(path).write_bytes(data)
    for _ in range(2):
        with pytest.raises(ValueError, match="checksum"):
            read_checkpoint(path)
    assert len(looked) == 3


def test_a_file_that_cannot_be_mapped_is_read(tmp_path: Path) -> None:
    """As those of PyTorch before 1.6, and any file on some network file systems."""
    path = save(tmp_path, 1)
    content = read_checkpoint(path)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert read_about(path) == content[KEY]
    assert torch.equal(
        read_checkpoint(path, mapped=True)["model"]["layer.weight"],
        content["model"]["layer.weight"],
    )
