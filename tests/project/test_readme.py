"""What README and docs say to type works: every command is run here, with smaller numbers."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY, TINY_OPTS
from PIL import Image
from typed import typed

from alignzeg.inference.video import write_video

DOCS = REPOSITORY / "docs"
README = REPOSITORY / "README.md"
# In the order in which a newcomer reads them: later commands use what earlier ones made.
PAGES = [
    README,
    *(DOCS / f"{n}.md" for n in ("getting_started", "predict", "evaluation", "reliability")),
    *(DOCS / "methods" / f"{name}.md" for name in ("alignzeg", "cel", "generative")),
    DOCS / "extend.md",
    DOCS / "share.md",
]
# Their commands have a test of their own (test_custom_data_tutorial), or take photographs or hours;
# those of the last two are read here, but not run.
OTHERS = {DOCS / f"{name}.md" for name in ("custom_data", "photographs", "results")}
# Run elsewhere: `make test` is this suite; `make demo`, `make photos`, ablation and K-splits are
# long and have tests of their own, as has `alignzeg web`, which ends when it is told to; the
# installation made the environment this runs in.
ELSEWHERE = ("make ", "pip install", "alignzeg ablate", "alignzeg ksplits", "alignzeg web")
GENERATIVE = (
    *("ALIGNZEG.RECURSION.ROUNDS", "0", "ALIGNZEG.RECURSION.GENERATOR_STEPS", "1"),
    *("ALIGNZEG.RECURSION.CLASSIFIER_STEPS", "1", "ALIGNZEG.GENERATOR.BANK", "32"),
)
SMALLER = {
    "python datasets/prepare_zeroshapes.py": "--train 8 --val 8 --calib 2 --size 64",
    "alignzeg train --config-file configs/zeroshapes/transductive": shlex.join(
        [*TINY_OPTS, *GENERATIVE]
    ),
    "alignzeg train": shlex.join(TINY_OPTS),
    "alignzeg evaluate": shlex.join(TINY_OPTS),
    "alignzeg pseudo-labels": shlex.join(TINY_OPTS),
    "alignzeg calibrate": "--gammas 0,2 --thresholds 0.5 " + shlex.join(TINY_OPTS),
    "alignzeg audit": shlex.join(TINY_OPTS),
    "python projects/onnx/predict.py": "",
    "alignzeg": "",
}


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(*pages: Path) -> list[str]:
    """The command lines of pages, each once, without comments."""
    lines = "".join(block for page in pages for block in blocks(page, "bash")).splitlines()
    bare = [line.split("  #")[0].split(" #")[0].strip() for line in lines if line.strip()]
    return list(dict.fromkeys(line for line in bare if not line.startswith("#")))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a fresh clone: the repository's folders, and nothing made by a run."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("alignzeg", "configs", "tools", "projects"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "datasets").mkdir()
    for path in (REPOSITORY / "datasets").glob("*.py"):
        (folder / "datasets" / path.name).symlink_to(path)
    write_video(folder / "clip.mp4", np.zeros((3, 64, 64, 3), np.uint8), 5)
    (folder / "my_head.py").write_text(blocks(DOCS / "extend.md", "python")[-1])
    (folder / "my_config.yaml").write_text(blocks(DOCS / "extend.md", "yaml")[0])
    return folder


def run(words: list[str], folder: Path) -> str:
    """Runs a command as typed in that folder; its output."""
    code, said = typed(words, folder, folder / "said.txt")
    # Two trainings of other lengths differ, which `compare` says with exit code 1.
    fine = (0, 1) if "compare" in words else (0,)
    assert code in fine, f"{shlex.join(words)}\n{said[-3000:]}"
    return said


def test_every_page_is_in_one_of_the_lists():
    pages = {*DOCS.rglob("*.md")} - {*PAGES, *OTHERS}
    assert not [page for page in pages if commands(page)]


def test_every_command_is_run_somewhere():
    known = (*ELSEWHERE, *SMALLER)
    assert len(commands(*PAGES)) > 16
    stray = [line for line in commands(*PAGES) if not line.startswith(known)]
    assert not stray, f"commands that nothing runs: {stray}"


@pytest.mark.timeout(900)
def test_commands_in_order(workplace):
    done = 0
    for line in commands(*PAGES):
        prefix = next((key for key in SMALLER if line.startswith(key)), None)
        if prefix is None or line.startswith(ELSEWHERE):
            continue
        more = SMALLER[prefix]
        if "MODEL.WEIGHTS" in line:
            more = re.sub(r"MODEL\.WEIGHTS \S+", "", more)
        run(shlex.split(f"{line} {more}"), workplace)
        if "my_config" in line:
            assert "AreaHead" in (workplace / "output" / "mine" / "config.yaml").read_text()
        done += 1
    assert done >= 16
    for block in blocks(DOCS / "share.md", "python"):
        run(["python", "-c", block], workplace)
    assert (workplace / "output" / "model_final.pth").is_file()
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(workplace / "image.png")
    for page in (README, DOCS / "predict.md"):
        (workplace / "blocks.py").write_text("\n".join(blocks(page, "python")))
        run(["python", "blocks.py"], workplace)
    assert (workplace / "output" / "predictions" / "image.json").is_file()


@pytest.mark.parametrize(("page", "least"), [("results", 11), ("photographs", 4)])
def test_the_commands_of_long_trainings_can_be_read(page, least):
    lines = [line for line in commands(DOCS / f"{page}.md") if line.startswith("alignzeg ")]
    assert len(lines) >= least
    for line in lines:
        name, *words = shlex.split(line)[1:]
        command = importlib.import_module(f"alignzeg.commands.{name.replace('-', '_')}")
        command.parser().parse_args(words)
        for word in re.findall(r"configs/\S+?\.yaml", line):
            assert (REPOSITORY / word).is_file(), line


def test_links_of_readme_and_docs_lead_somewhere():
    for page in [README, REPOSITORY / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page}: {target}"


PROSE = [
    *(README, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "datasets" / "README.md"),
    *DOCS.rglob("*.md"),
]


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_scripts_and_headings_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    scripts = re.findall(r"\b(?:dev|tools|datasets|projects)/[\w/]+\.(?:py|sh)", text)
    assert not [name for name in scripts if not (REPOSITORY / name).is_file()]
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", text):
        place = (page.parent / target) if target else page
        headings = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]


def test_the_readme_is_short():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert not [line for line in lines if len(line) > 200]


def test_the_own_head_fits_in_forty_lines():
    page = DOCS / "extend.md"
    code, config = blocks(page, "python")[-1], blocks(page, "yaml")[0]
    lines = [line for line in (code + config).splitlines() if line.strip()]
    assert len(lines) < 40
    assert "HEAD_REGISTRY.register" in code
