"""Files are found through links, and written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

import alignzeg
from alignzeg import files
from alignzeg.files import atomic_write, files_below, free_bytes, leftovers


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_linked_folders_are_followed_and_hidden_files_left_out(tmp_path: Path) -> None:
    touch(tmp_path / "far" / "deep" / "b.png")
    own = touch(tmp_path / "here" / "a.png")
    touch(tmp_path / "here" / ".cache" / "c.png")
    touch(tmp_path / "here" / "._a.png")
    (tmp_path / "here" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "here" / "again").symlink_to("link")
    here = tmp_path / "here"
    walked = {
        Path(place, name)
        for place, _, names in os.walk(here, followlinks=True)
        for name in names
        if "/." not in f"{place}/{name}"[len(str(here)) :]
    }
    assert set(files_below(here)) == walked and len(walked) == 3 and own in walked


@pytest.mark.parametrize("target", [".", "..", "nowhere"])
def test_links_without_an_end_are_refused(tmp_path: Path, target: str) -> None:
    touch(tmp_path / "here" / "a.png")
    (tmp_path / "here" / "link").symlink_to(target)
    with pytest.raises(ValueError, match=r"here/link is a link|link/here is a link"):
        files_below(tmp_path / "here")


def make(root: Path) -> Path:
    for kind in ("images", "labels"):
        touch(root / kind / "train" / "a.png")
    (root / "classes.txt").write_text("grass\nsky\n")
    return root


def test_an_image_of_another_kind_is_not_passed_over(tmp_path: Path) -> None:
    root = make(tmp_path)
    alignzeg.register_folder("shapes_of_folders", root)
    touch(root / "labels" / "train" / "a.jpg")  # a preview beside the label file
    assert len(DatasetCatalog.get("shapes_of_folders_train")) == 1
    for name in ("b.gif", "b.HEIC", "b.dng"):
        touch(root / "images" / "train" / name)
        with pytest.raises(ValueError, match=rf"{name} \(1 such files\) is of a kind that is not"):
            DatasetCatalog.get("shapes_of_folders_train")
        (root / "images" / "train" / name).unlink()


@pytest.mark.parametrize("name", ["validation", "valid", "Val"])
def test_a_split_that_is_called_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    root = make(tmp_path)
    (root / "images" / name).mkdir()
    with pytest.raises(ValueError, match=f"images/{name} is no split; call it images/val"):
        alignzeg.register_folder("shapes_of_folders", root)


# ---- written whole or not at all


def test_a_file_takes_its_place_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    seen = []

    def content(file) -> None:
        file.write(b"half")
        seen.append(path.read_text() if path.exists() else None)
        file.write(b" and half")

    for before in (None, "half and half"):
        atomic_write(path, content, durable=True)
        assert seen.pop() == before
        assert path.read_text() == "half and half"
    atomic_write(path, "ü")
    assert path.read_bytes() == "ü".encode()
    assert list(path.parent.iterdir()) == [path]


def test_names_as_long_as_a_disk_takes_them_are_written(tmp_path: Path) -> None:
    for name in ("m" * 255, "猫" * 85):
        atomic_write(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("alignzeg.files.WAIT_S", 0.0)
    path = tmp_path / "figures.json"
    atomic_write(path, b"old")
    tries = []

    def content(file) -> None:
        tries.append(file)
        raise OSError(28, "no room")

    with pytest.raises(OSError, match=r"figures.json': no room \(3 attempts\); what was there"):
        atomic_write(path, content, attempts=3)

    def interrupted(file) -> None:
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, interrupted)
    assert len(tries) == 3
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        atomic_write(pipe, "all of it")
        assert os.read(reader, 100) == b"all of it"
    finally:
        os.close(reader)
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_a_device_stays_a_device() -> None:
    device = Path("/dev/full")
    if not device.is_char_device():
        pytest.skip("there is no /dev/full")
    with pytest.raises(OSError, match="cannot write '/dev/full': No space left"):
        atomic_write(device, "anything")
    assert device.is_char_device()


def test_what_a_killed_writer_left_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model_1.pth"
    program = (
        "import os, sys; from alignzeg.files import atomic_write; "
        "atomic_write(sys.argv[1], lambda file: os._exit(9))"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 9
    (left,) = leftovers(tmp_path, "model_*.pth")
    assert not path.exists() and left.name.startswith(".model_1.pth.")
    assert not leftovers(tmp_path, "last_*")


@pytest.mark.parametrize("of_folders", [True, False])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_what_cannot_be_flushed_is_one_warning(
    tmp_path: Path, monkeypatch, caplog, code: int, of_folders: bool
) -> None:
    """As of SMB, FUSE and WSL; but that a file's own bytes do not reach the disk is an error."""
    flush = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == of_folders:
            raise OSError(code, os.strerror(code))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(files, "_told", set())
    if code == errno.EIO and not of_folders:
        with pytest.raises(OSError, match="Input/output error"):
            atomic_write(tmp_path / "a", "x", durable=True)
        return
    for name in "ab":
        atomic_write(tmp_path / name, name, durable=True)
        assert (tmp_path / name).read_text() == name
    (record,) = caplog.records
    assert "cannot flush" in record.message and str(tmp_path) in record.message


def test_a_disk_that_does_not_say_its_size_is_not_full(tmp_path: Path, monkeypatch) -> None:
    assert 0 < free_bytes(tmp_path) < float("inf")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
    assert free_bytes(tmp_path) == free_bytes(tmp_path / "gone" / "deep") == float("inf")


def test_a_file_name_of_another_encoding_is_escaped(tmp_path: Path) -> None:
    atomic_write(tmp_path / "names.txt", os.fsdecode(b"Gr\xf6\xdfe.png"))
    assert "xf6" in (tmp_path / "names.txt").read_text("utf-8").replace("udcf6", "xf6")
