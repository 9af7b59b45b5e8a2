"""A loading worker that cannot hand over its sample ends the run instead of making it wait."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS, TINY_OPTS

from alignzeg.engine import Trainer, setup_config
from alignzeg.engine.processes.errors import (
    USER_ERROR,
    exit_code,
    explain,
    is_short_of_shared_memory,
)
from alignzeg.engine.training.sampling import TrainLoader, start_worker


class Unsendable(torch.Tensor):
    """Stands for a sample that does not fit: handing it to another process fails as torch does."""

    def __reduce_ex__(self, _: object) -> object:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space")


def too_large(_: object) -> dict[str, object]:
    return {"image": torch.zeros(2).as_subclass(Unsendable)}


@pytest.mark.timeout(120)
def test_a_full_shared_memory_is_an_error_with_its_fix(capfd: pytest.CaptureFixture[str]) -> None:
    loader = TrainLoader([{}] * 4, too_large, images=2, seed=0, workers=2)
    with pytest.raises(RuntimeError) as failure:
        next(iter(loader))
    said = explain(failure.value)
    for word in ("/dev/shm", "docker run --shm-size", "DATALOADER.NUM_WORKERS 0"):
        assert word in said
    assert "\n" not in said
    assert exit_code(failure.value) == USER_ERROR
    assert capfd.readouterr().err == ""


def test_what_torch_says_of_full_shared_memory_is_known() -> None:
    for said in (
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
        "DataLoader worker (pid(s) 12, 13) exited unexpectedly",
        "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory. Please try to raise your shared memory "
        "limit.",
    ):
        assert is_short_of_shared_memory(RuntimeError(said))
    assert not is_short_of_shared_memory(RuntimeError("shapes differ"))
    assert not is_short_of_shared_memory(ValueError("unable to mmap"))


def test_the_message_says_how_much_room_there_is() -> None:
    said = explain(RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly"))
    if Path("/dev/shm").is_dir():
        assert f"of {shutil.disk_usage('/dev/shm').total / 2**20:.1f} MiB are free" in said


def test_workers_of_a_test_loader_leave_too(zeroshapes: Path) -> None:
    opts = [*TINY_OPTS, "DATALOADER.NUM_WORKERS", "1"]
    cfg = setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", opts)
    loader = Trainer.build_test_loader(cfg, "zeroshapes_val")
    assert loader.num_workers == 1 and loader.worker_init_fn is start_worker
