"""Checkpoints under kills, failing disks, torn files, forged files; and what is kept of them."""

from __future__ import annotations

import builtins
import errno
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, TOY_PLUGIN
from torch import nn

from alignzeg import files
from alignzeg.__main__ import main
from alignzeg.engine.checkpoints import checkpoint, reading
from alignzeg.engine.checkpoints.checkpoint import AlignZegCheckpointer
from alignzeg.engine.checkpoints.integrity import damage
from alignzeg.engine.checkpoints.reading import find_newest, prune, read_checkpoint, require_trust
from alignzeg.engine.training.hooks import KeepBest, selects_on_the_test
from alignzeg.files import atomic_write, hidden_file
from alignzeg.structures import Vocabulary


class Model(nn.Module):
    seen = Vocabulary(("cat", "dog"), (True, True))
    vlm = type("VLM", (), {"id": "toy", "hash": "0123"})

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(100, 100)
        nn.init.constant_(self.layer.weight, value)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WAIT_S", 0.0)


def checkpointer(folder: Path, value: float = 0.0, **kwargs: Any) -> AlignZegCheckpointer:
    return AlignZegCheckpointer(Model(value), str(folder), config="SEED: 1\n", **kwargs)


def save(folder: Path, step: int, **kwargs: Any) -> str:
    checkpointer(folder, float(step), **kwargs).save(f"model_{step:07d}", iteration=step)
    return str(folder / f"model_{step:07d}.pth")


def value_of(path: str) -> float:
    return read_checkpoint(path)["model"]["layer.weight"][0, 0].item()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- failing disks


class Faulty:
    """Fails the n-th call of a function of the operating system, or all from there on."""

    def __init__(self, real: Callable, number: int, code: int, forever: bool) -> None:
        self.real, self.number, self.code, self.forever = real, number, code, forever
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.number or (self.forever and self.calls > self.number):
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*args, **kwargs)


class FaultyFile:
    """An open file whose writes fail from the n-th on."""

    def __init__(self, file: Any, fault: Faulty) -> None:
        self._file, self._fault = file, fault
        fault.real = file.write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> FaultyFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> int:
        return self._fault(data)


def inject(monkeypatch: pytest.MonkeyPatch, where: str, fault: Faulty) -> None:
    if where in ("fsync", "replace"):
        fault.real = getattr(os, where)
        monkeypatch.setattr(files.os, where, fault)
    elif where == "check":
        fault.real = reading.damage
        monkeypatch.setattr(reading, "damage", fault)
    else:
        real = builtins.open

        def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not str(path).endswith(".tmp") or "w" not in mode:
                return real(path, mode, *args, **kwargs)
            if where == "open":
                fault.real = real
                return fault(path, mode, *args, **kwargs)
            return FaultyFile(real(path, mode, *args, **kwargs), fault)

        monkeypatch.setattr(builtins, "open", opened)


FAULTS = [
    *(("open", 1), ("write", 1), ("write", 3), ("write", 12), ("fsync", 1), ("fsync", 2)),
    *(("fsync", 3), ("check", 1), ("replace", 1), ("replace", 2)),
]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize(("where", "number"), FAULTS)
def test_a_failing_disk_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int, code: int
) -> None:
    old = save(tmp_path, 1)
    with monkeypatch.context() as patch:
        inject(patch, where, Faulty(open, number, code, forever=True))
        with pytest.raises(OSError, match=os.strerror(code)) as error:
            save(tmp_path, 2)
    assert "\n" not in str(error.value) and "4 attempts" in str(error.value)
    # The error may have come after the new file was in its place; the old one is as it was.
    assert {"last_checkpoint", "model_0000001.pth"} <= set(names(tmp_path))
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]
    assert value_of(find_newest(str(tmp_path), "last_checkpoint")) in (1.0, 2.0)
    assert value_of(old) == 1.0
    # A fault that goes away is not noticed.
    with monkeypatch.context() as patch:
        fault = Faulty(open, number, code, forever=False)
        inject(patch, where, fault)
        save(tmp_path, 3)
    assert fault.calls > number
    assert value_of(find_newest(str(tmp_path), "last_checkpoint")) == 3.0


def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    before = (tmp_path / "model_0000001.pth").read_bytes()
    monkeypatch.setattr(checkpoint, "ATTEMPTS", 1)
    # Every write to this device fails for want of space.
    os.symlink("/dev/full", hidden_file(str(tmp_path / "model_0000002.pth")))
    with pytest.raises(OSError, match="No space left on device"):
        save(tmp_path, 2)
    # And here the kernel refuses in the middle of the file.
    number, limits = signal.SIGXFSZ, resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(number, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(number, handler)
    assert names(tmp_path) == ["last_checkpoint", "model_0000001.pth"]
    assert (tmp_path / "model_0000001.pth").read_bytes() == before


def save_in_two(rank: int, folder: Path) -> None:
    """What each of two processes does: the disk of the first one, which writes, is full once."""
    meet = f"file://{folder / 'meet'}"
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    saver = checkpointer(folder / "run", of_rank=lambda: {"rank": rank})
    saver.save("model_0000001")
    with pytest.MonkeyPatch.context() as patch:
        if rank == 0:
            inject(patch, "fsync", Faulty(open, 1, errno.ENOSPC, forever=True))
        with pytest.raises(OSError, match="cannot write .*No space left on device.*untouched"):
            saver.save("model_0000002")
    saver.save("model_0000003")
    torch.distributed.destroy_process_group()


def test_a_full_disk_is_an_error_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    torch.multiprocessing.start_processes(save_in_two, (tmp_path,), 2, start_method="fork")
    assert names(tmp_path / "run") == ["last_checkpoint", "model_0000001.pth", "model_0000003.pth"]
    newest = find_newest(str(tmp_path / "run"), "last_checkpoint")
    assert newest.endswith("3.pth")
    assert read_checkpoint(newest)["ranks"] == [{"rank": 0}, {"rank": 1}]


def test_room_is_looked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("U", (), {"free": 2**20}))
    with pytest.raises(OSError, match=r"no room for a checkpoint in .*: it takes 1.0 MiB and 1.0"):
        save(tmp_path, 1)
    assert names(tmp_path) == []


def test_what_does_not_read_back_is_not_kept(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(TypeError, match=r"checkpoint\['extra'\] is a object"):
        checkpointer(tmp_path).save("model_0000002", extra=object())
    with pytest.raises(OSError, match="does not read back as it was written"):
        atomic_write(tmp_path / "model_0000002.pth", b"x", check=reading.check_written)
    assert names(tmp_path) == ["last_checkpoint", "model_0000001.pth"]


# ---- torn and forged files


def test_the_newest_intact_one_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert find_newest(str(tmp_path), "last_checkpoint") == ""
    paths = [save(tmp_path, step) for step in (9, 19, 29)]
    checkpointer(tmp_path, 39.0).save("model_final", iteration=39)
    final = str(tmp_path / "model_final.pth")

    def newest() -> str:
        return find_newest(str(tmp_path), "last_checkpoint")

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


# ---- what is kept


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        save(tmp_path, step, keep=2)
    checkpointer(tmp_path, keep=2).save("model_final", iteration=5)
    Path(hidden_file(str(tmp_path / "model_0000009.pth"))).write_bytes(b"left by a kill")
    kept = ["last_checkpoint", "model_0000003.pth", "model_0000004.pth", "model_final.pth"]
    prune(str(tmp_path), 0)
    assert names(tmp_path) == kept
    # One of another, longer run is not taken for the newest.
    save(tmp_path, 99)
    os.utime(tmp_path / "model_0000099.pth", (0, 0))
    save(tmp_path, 5, keep=2)
    assert names(tmp_path) == [
        *("last_checkpoint", "model_0000004.pth", "model_0000005.pth", "model_0000099.pth"),
        "model_final.pth",
    ]


def test_the_best_is_kept_and_not_resumed_from(tmp_path: Path) -> None:
    save(tmp_path, 1)
    storage = type("Storage", (), {"figures": {}, "latest": lambda self: self.figures})()
    best = KeepBest(checkpointer(tmp_path, 7.0), "sem_seg/sIoU")
    for step, value in ((1, 30.0), (2, 20.0), (3, float("nan")), (4, 31.0), (5, 31.0)):
        storage.figures = {"sem_seg/sIoU": (value, step)}
        best.consider(storage, step)
    assert (best.value, best.iteration) == (31.0, 4)
    found = read_checkpoint(str(tmp_path / "model_best.pth"))
    assert found["selected"] == {"sem_seg/sIoU": 31.0} and found["iteration"] == 4
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_choosing_on_unseen_classes_is_called_what_it_is() -> None:
    mixed = Vocabulary(("cat", "dog"), (True, False))
    assert selects_on_the_test("sem_seg/hIoU", [mixed], "")
    assert selects_on_the_test("a/sem_seg/mIoU", [mixed.seen_part(), mixed], "")
    assert not selects_on_the_test("sem_seg/sIoU", [mixed], "")
    assert not selects_on_the_test("sem_seg/hIoU", [mixed.seen_part()], "")
    # These are taken from the seen classes.
    assert not selects_on_the_test("sem_seg/hIoU", [mixed], "pseudo_unseen")


def test_export_can_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, 4)
    assert main(["export", path]) == 0
    exported = path.replace(".pth", ".safetensors")
    assert f"{exported}: 2 tensors" in capsys.readouterr().out
    loader = checkpointer(tmp_path)
    loader.strict = True
    loader.load(exported)
    assert loader.model.layer.weight[0, 0] == 4
    about = read_checkpoint(exported)["alignzeg"]
    assert about == read_checkpoint(path)["alignzeg"] and json.dumps(about)
    loader.model.vlm = type("Other", (), {"id": "toy", "hash": "4567"})
    with pytest.raises(ValueError, match="their hash was 0123, here it is 4567"):
        loader.load(exported)
    for words in ([str(tmp_path / "none.pth")], [path, "x.bin"], [path, "no/where.safetensors"]):
        assert main(["export", *words]) == 2
        assert capsys.readouterr().err.startswith("error: ")


# ---- SLURM


@pytest.mark.parametrize(
    ("code", "requeued"), [(75, True), (138, True), (143, True), (0, False), (3, False)]
)
def test_a_stopped_job_goes_back_into_the_queue(tmp_path: Path, code: int, requeued: bool) -> None:
    for name, lines in (
        ("srun", 'shift; exec "$@"'),
        ("scontrol", f'echo "$@" > {tmp_path}/scontrol.txt'),
        ("python", f'echo "$@" > {tmp_path}/python.txt; exit {code}'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(REPOSITORY / "tools" / "slurm_requeue.sh"), "--config-file", "a b.yaml"],
        env={"PATH": path, "PYTHON": str(tmp_path / "python"), "SLURM_JOB_ID": "17"},
        timeout=30,
    )
    assert done.returncode == code
    words = (tmp_path / "python.txt").read_text()
    assert words == "tools/train_net.py --resume --config-file a b.yaml\n"
    assert (tmp_path / "scontrol.txt").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 17\n"


# ---- kills


def test_a_few_kills_lose_nothing(tmp_path: Path) -> None:
    toy = ["ALIGNZEG.PLUGINS", str(TOY_PLUGIN)]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "dev" / "stress_kills.py"), "--kills", "6"]
        + ["--steps", "12", "--period", "3", *toy, "MODEL.META_ARCHITECTURE", "ToySegmenter"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tally = json.loads(done.stdout.splitlines()[-1])
    assert tally["kills"] == 6 and tally["in_save"] >= 2 and tally["finished"] >= 1
    assert tally["unreadable"] == tally["lost"] == tally["different"] == 0
