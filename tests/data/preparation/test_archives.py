"""Official archives become the same files, and none writes outside its folder."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile

import pytest
from official_trees import (
    TREES,
    pack,
)
from preparation_cases import snapshot

from alignzeg.data.preparation import (
    archives,
    voc,
)
from alignzeg.data.preparation.archives import unpack
from alignzeg.data.preparation.command import prepare
from alignzeg.data.preparation.recipe import Archive


def tar_of(path, *members, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:gz" if path.suffix in (".tgz", ".gz") else "w") as packed:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc"
            packed.addfile(info, io.BytesIO(content))


PACKED = {name: tree for name, tree in TREES.items() if tree.archives}


@pytest.mark.parametrize("tree", PACKED.values(), ids=PACKED)
def test_official_archives_become_the_same_files(tree, tmp_path, capsys):
    """Only what is needed is unpacked; what goes missing comes back, and nothing is done twice."""
    folders = [tmp_path / name for name in ("unpacked", "downloads", "root")]
    for folder in folders:
        folder.mkdir()
    unpacked, downloads, root = folders
    tree.build(unpacked)
    for place in tree.archives:
        if (unpacked / place).is_dir():
            (unpacked / place / "unwanted").mkdir()
            (unpacked / place / "unwanted/file.txt").write_text("x")
    pack(tree, unpacked, downloads)
    official = snapshot(unpacked)
    by_hand = ["--root", str(unpacked), "--workers", "1", *tree.options]
    command = ["--root", str(root), "--archives", str(downloads), "--workers", "1", *tree.options]
    assert prepare(tree.recipe, [*command, "--dry-run"]) == 0
    assert "would unpack" in capsys.readouterr().out
    assert not snapshot(root)
    assert prepare(tree.recipe, by_hand) == 0
    assert prepare(tree.recipe, command) == 0
    first, wanted = snapshot(root), snapshot(unpacked)
    made = wanted.keys() - official.keys()
    assert len(made) == tree.files
    assert made <= first.keys() <= wanted.keys()
    assert all(content == wanted[name][0] for name, (content, _) in first.items())
    if all(
        inside.startswith(("VOC", "bench", "ADE", "MSRC")) for _, inside in tree.archives.values()
    ):
        assert not [name for name in first if "unwanted" in name]
    capsys.readouterr()
    assert prepare(tree.recipe, command) == 0
    assert snapshot(root) == first
    assert " 0 files unpacked" in capsys.readouterr().out
    lost = root / min(name for name in first if name.endswith((".jpg", ".bmp")))
    lost.unlink()
    assert prepare(tree.recipe, command) == 0
    assert lost.read_bytes() == first[lost.relative_to(root).as_posix()][0]


def test_interrupted_unpacking_completes(tmp_path, monkeypatch, capsys):
    tree = TREES["voc2012"]
    (tmp_path / "root").mkdir()
    pack(tree, tree.build(tmp_path / "unpacked"), tmp_path)
    command = ["--root", str(tmp_path / "root"), "--archives", str(tmp_path), "--workers", "1"]
    copy, copied = archives.shutil.copyfileobj, []

    def stop_in_the_middle(source, sink, length):
        copied.append(sink)
        if len(copied) == 4:
            sink.write(source.read(10))
            raise KeyboardInterrupt
        copy(source, sink, length)

    with monkeypatch.context() as patch:
        patch.setattr(archives.shutil, "copyfileobj", stop_in_the_middle)
        assert prepare(tree.recipe, command) == 130
    part = snapshot(tmp_path / "root")
    assert len(part) == 3
    assert prepare(tree.recipe, command) == 0
    whole = snapshot(tmp_path / "root")
    assert {name: whole[name] for name in part} == part
    assert len([name for name in whole if "annotations_raw" in name]) == 3


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "c:/outside"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_no_archive_writes_outside_its_folder(tmp_path, name, kind):
    path = tmp_path / f"evil.{kind}"
    if kind == "tar":
        tar_of(path, ("fine", b"1"), (name, b"2"))
    else:
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("fine", b"1")
            packed.writestr(name, b"2")
    with pytest.raises(ValueError, match="leaves the target folder; nothing was unpacked"):
        unpack(Archive(path.name, "somewhere", "data"), tmp_path, tmp_path / "root")
    assert not list(tmp_path.rglob("*outside"))
    assert not list(tmp_path.rglob("fine"))


def test_links_and_damaged_archives_are_refused(tmp_path):
    archive = Archive("a.tar", "somewhere")
    tar_of(tmp_path / "a.tar", ("link", b""), kind=tarfile.SYMTYPE)
    with pytest.raises(ValueError, match="'link' is a link or a device"):
        unpack(archive, tmp_path, tmp_path / "root")
    tar_of(tmp_path / "whole.tgz", ("file", os.urandom(100_000)))
    content = (tmp_path / "whole.tgz").read_bytes()
    for name in ("half.tgz", "half.zip"):
        (tmp_path / name).write_bytes(content[:50_000] if "tgz" in name else b"PK\x03\x04half")
        with pytest.raises(ValueError, match=r"cannot unpack .*Is the download complete"):
            unpack(Archive(name, "somewhere"), tmp_path, tmp_path / "root")
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file()]


def test_an_empty_folder_of_downloads_names_the_archives(tmp_path, capsys):
    assert prepare(voc.RECIPE, ["--archives", str(tmp_path), "--root", str(tmp_path)]) == 1
    assert "VOCtrainval_11-May-2012.tar, benchmark.tgz" in capsys.readouterr().err
