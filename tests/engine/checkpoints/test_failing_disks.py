"""Checkpoints on disks that fail or are full: the old file stays."""

from __future__ import annotations

import builtins
import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import checkpointer, names, save

from alignzeg import files
from alignzeg.engine.checkpoints import checkpoint, reading
from alignzeg.engine.checkpoints.reading import find_newest, read_checkpoint
from alignzeg.files import atomic_write, hidden_file


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WAIT_S", 0.0)


def value_of(path: str) -> float:
    return read_checkpoint(path)["model"]["layer.weight"][0, 0].item()


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
    assert value_of(find_newest(str(tmp_path))) in (1.0, 2.0)
    assert value_of(old) == 1.0
    # A fault that goes away is not noticed.
    with monkeypatch.context() as patch:
        fault = Faulty(open, number, code, forever=False)
        inject(patch, where, fault)
        save(tmp_path, 3)
    assert fault.calls > number
    assert value_of(find_newest(str(tmp_path))) == 3.0


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
    newest = find_newest(str(tmp_path / "run"))
    assert newest.endswith("3.pth")
    assert read_checkpoint(newest)["ranks"] == [{"rank": 0}, {"rank": 1}]


def test_room_is_looked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: type("U", (), {"free": 2**20, "total": 2**30})
    )
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
