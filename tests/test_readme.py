"""What the README says to type works: every command is run here, with smaller numbers."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY_OPTS

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# Run elsewhere: `make test` is this suite; `make demo`, `make photos` and the ablation are long and
# have tests of their own (test_demo, test_ablation); the installation made the environment this
# runs in.
ELSEWHERE = ("make demo", "make photos", "make test", "pip install", "alignzeg ablate")
SMALLER = {
    "python datasets/prepare_zeroshapes.py": "--train 8 --val 8 --calib 2 --size 64",
    "alignzeg train": shlex.join(TINY_OPTS),
    "alignzeg evaluate": shlex.join(TINY_OPTS),
    "alignzeg pseudo-labels": shlex.join(TINY_OPTS),
    "alignzeg calibrate": "--gammas 0,2 --thresholds 0.5 " + shlex.join(TINY_OPTS),
    "python projects/tiny_clip/train_tiny_clip.py --eval-only": "--scenes 2",
    "python dev/fuzz.py": "--rounds 2",
    "alignzeg audit": shlex.join(TINY_OPTS),
    "alignzeg": "",
}


def blocks(language: str) -> list[str]:
    """The code blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    """The command lines of the README, without comments."""
    lines = "".join(blocks("bash")).splitlines()
    return [line.split("  #")[0].split(" #")[0].strip() for line in lines if line.strip()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a fresh clone: the repository's folders, and nothing made by a run."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("alignzeg", "configs", "dev", "projects", "tools"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "datasets").mkdir()
    for path in (REPOSITORY / "datasets").glob("*.py"):
        (folder / "datasets" / path.name).symlink_to(path)
    (folder / "my_head.py").write_text(blocks("python")[-1])
    (folder / "my_config.yaml").write_text(blocks("yaml")[0])
    return folder


def run(words: list[str], folder: Path) -> str:
    """Runs a command as typed in that folder; its output."""
    environment = {k: v for k, v in os.environ.items() if k != "DETECTRON2_DATASETS"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    python = {"python": [sys.executable], "alignzeg": [sys.executable, "-m", "alignzeg"]}
    words = [*python.get(words[0], words[:1]), *words[1:]]
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (
        f"{shlex.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout + done.stderr


def test_every_command_is_run_somewhere():
    known = (*ELSEWHERE, *SMALLER)
    assert len(commands()) > 8
    stray = [line for line in commands() if not line.startswith(known)]
    assert not stray, f"commands of the README that nothing runs: {stray}"


@pytest.mark.timeout(900)
def test_commands_in_order(workplace):
    done = 0
    for line in commands():
        prefix = next((key for key in SMALLER if line.startswith(key)), None)
        if prefix is None or line.startswith(ELSEWHERE):
            continue
        run(shlex.split(f"{line} {SMALLER[prefix]}"), workplace)
        if "my_config" in line:
            assert "AreaHead" in (workplace / "output" / "mine" / "config.yaml").read_text()
        done += 1
    assert done >= 8
    assert (workplace / "output" / "model_final.pth").is_file()


def test_the_own_head_fits_in_forty_lines():
    code, config = blocks("python")[-1], blocks("yaml")[0]
    lines = [line for line in (code + config).splitlines() if line.strip()]
    assert len(lines) < 40
    assert "HEAD_REGISTRY.register" in code
