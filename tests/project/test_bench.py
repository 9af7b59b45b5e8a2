"""The benchmark at toy size: every row is there, answers that must be equal are compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench import label_map, losses, report, run, vlm
from bench.growth import draw, exponent
from bench.measure import Others, Row, growth_mib, interleaved, timed
from bench.profile_step import Parts
from helpers import REPOSITORY

# What the bars ask for; each needs a row.
REQUIRED = {
    *(f"label_map/{name}" for name in ("C20_512", "C171_512", "C171_1024", "C847_1024")),
    *(f"label_map/{name}" for name in ("padded_resized", "fast", "memory_C171", "memory_growth")),
    *(f"matching/{peer}_K{k}" for peer in ("maskformer", "mask2former") for k in (5, 20, 60)),
    *("matching/memory_K60", "criterion/K8", "criterion/K20", "criterion/same_formula_K20"),
    *("criterion/memory_K8", "criterion/memory_K20"),
    *("regions/320", "regions/640", "text/cold", "text/warm"),
    *("whole/train_baseline", "whole/train_baseline_final_loss", "whole/train_refined"),
    *("whole/train_baseline_vlm", "whole/train_refined_vlm", "whole/inference_vlm"),
    *("whole/inference", "whole/end_to_end", "whole/end_to_end_vlm"),
    *("loader/sample", "loader/wait_zeroshapes", "loader/wait_msrc21"),
    *("processes/evaluation_2", "processes/train_2", "processes/train_4"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What one run at toy size writes; several processes have a test of their own."""
    folder = tmp_path_factory.mktemp("bench")
    parts = [part for part in run.PARTS if part != "processes"]
    words = [sys.executable, "dev/bench", "--quick", "--output", str(folder), "--only", *parts]
    done = subprocess.run(
        words,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(folder)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "results.json").read_text())


def test_every_bar_has_a_row_and_each_row_a_ratio(results: dict[str, dict]) -> None:
    known = run.rows()
    assert set(known) >= REQUIRED
    assert set(results) == {name for name, (part, _) in known.items() if part != "processes"}
    for name, found in results.items():
        assert {"ratio", "goal", "ours", "peer"} <= set(found)
        assert all(found[key] > 0 for key in ("ratio", "ours", "peer")), name
        assert found["goal"] == round(known[name][1].goal, 3)
    timed_rows = [name for name in results if known[name][1].measure is timed]
    for name in timed_rows:
        found = results[name]
        assert found["ratio"] == pytest.approx(found["peer"] / found["ours"], rel=0.02, abs=0.01)


def test_answers_are_compared(results: dict[str, dict]) -> None:
    assert results["label_map/padded_resized"]["note"] == "0 pixels differ"
    assert "as the plain formula" in results["matching/mask2former_K20"]["note"]
    assert "gradients equal" in results["criterion/same_formula_K20"]["note"]
    assert "identical images and masks" in results["loader/sample"]["note"]
    assert "pixels counted by each" in results["whole/end_to_end"]["note"]


def test_an_answer_that_differs_is_refused() -> None:
    labels = torch.zeros(4, 4, dtype=torch.uint8)
    other = labels.long()
    other[2, 3] = 1
    with pytest.raises(AssertionError, match="1 of 16 pixels differ"):
        label_map.all_equal(labels, other)
    sides = label_map.exact(20, 512, quick=True)
    named, wanted = sides["ours"](), sides["peer"]()
    assert label_map.equal_but_for_ties(20, 512, "plain", named, wanted) == "0 pixels differ"
    named[5, 7] = 19 - named[5, 7]
    with pytest.raises(AssertionError, match=r"1 pixels differ, by \d+\.\d+ of score"):
        label_map.equal_but_for_ties(20, 512, "plain", named, wanted)
    with pytest.raises(AssertionError, match="prototypes differ"):
        vlm.close(torch.zeros(2, 3), torch.full((2, 3), 1e-3))
    sides = losses.matching("maskformer", 5, quick=True)
    made, targets, found = sides["ours"]()
    swapped = found[0][0].targets.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    found[0][0] = type(found[0][0])(found[0][0].proposals, swapped)
    with pytest.raises(AssertionError, match="layer 0, image 0: another assignment"):
        losses.same_assignment((made, targets, found), sides["peer"]())


def test_memory_is_the_peak_of_the_side() -> None:
    def build(quick: bool) -> dict:
        size = 1 if quick else 64
        return {
            "ours": lambda: torch.ones(size, 2**18).sum(),
            "peer": lambda: (torch.ones(size, 2**18), torch.ones(size, 2**18)),
        }

    row = Row(1.0, "a test", timed, build)
    ours, peer = (growth_mib(row, side, quick=False) for side in ("ours", "peer"))
    assert 60 < ours < 80
    assert 120 < peer < 150


def test_our_own_work_is_not_the_load_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # Wall time, time of all cores, our time: in 10 s of two cores we used 12 and others 5.
    moments = iter([(100.0, 50.0, 7.0), (110.0, 67.0, 19.0)])
    monkeypatch.setattr(Others, "_seconds", staticmethod(lambda: next(moments)))
    assert Others().cores() == pytest.approx(0.5)


def test_time_of_cores_is_read() -> None:
    wall, busy, ours = Others._seconds()
    assert wall > 0 and busy > ours > 0


def test_sides_take_turns() -> None:
    calls: list[str] = []
    sides = {name: lambda name=name: calls.append(name) for name in ("ours", "peer")}
    interleaved(sides, 0, least=2)
    assert calls == ["ours", "peer", "ours", "peer"]


def test_only_takes_rows_parts_and_beginnings() -> None:
    known = {"a/1": ("first", None), "a/2": ("first", None), "b/1": ("second", None)}
    assert run.chosen(known, ["second", "a/2"]) == ["b/1", "a/2"]
    assert run.chosen(known, ["a"]) == ["a/1", "a/2"]
    assert run.chosen(known, []) == ["a/1", "a/2", "b/1"]
    with pytest.raises(ValueError, match="'a/3' is no row"):
        run.chosen(known, ["a/3"])


def test_the_page_names_what_is_below_its_goal_and_other_load() -> None:
    row = Row(2.0, "ours beside theirs", timed)
    found = {"ratio": 1.5, "goal": 2.0, "ours": 2.0, "peer": 3.0, "unit": "ms", "note": "equal"}
    quiet = {"loop_ms": [10.0, 10.5], "other_cores": 0.05}
    about = {"machine": report.machine(), "disturbance": quiet, "rows": {"a/1": found}}
    page = report.render(about, {"a/1": row, "a/2": row})
    assert "| a/1 | ours beside theirs | 1.50x (below) | 2 | 2 ms | 3 ms |" in page
    assert "| a/2 | ours beside theirs | not measured |" in page
    assert "- a/1: equal." in page
    assert "Disturbed" not in page
    for wrong in ({"loop_ms": [10.0, 14.0]}, {"other_cores": 1.2}):
        loaded = report.render(about | {"disturbance": quiet | wrong}, {"a/1": row})
        assert "Disturbed by other load" in loaded


def test_the_exponent_is_that_of_a_power_law() -> None:
    sizes = (10, 20, 40, 80)
    assert exponent(sizes, [0.5 * size**1.7 for size in sizes]) == pytest.approx(1.7)


def test_parts_inside_of_parts_are_counted_once() -> None:
    now = [0.0]
    parts = Parts(lambda: now[0])

    def inner() -> None:
        now[0] += 2.0

    def outer() -> None:
        now[0] += 1.0
        parts.timed("inner", inner)()
        now[0] += 4.0

    parts.timed("outer", outer)()
    assert parts.seconds == {"inner": 2.0, "outer": 5.0}


@pytest.mark.parametrize("module", ["growth", "gpu"])
def test_the_other_measurements_run_at_toy_size(module: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", f"bench.{module}", "--quick", "--output", str(tmp_path)]
    if module == "gpu":
        words += ["--device", "cpu", "--no-compile"]
    done = subprocess.run(
        words,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{REPOSITORY}/dev:{REPOSITORY}"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / f"{module}.json").read_text())
    if module == "gpu":
        assert set(found["training"]) >= {"ours, AlignZeg", "transformers, Mask2Former"}
        assert all(r["images_per_second"] > 0 for r in found["inference"].values())
    else:
        assert all(len(curve["ms"]) == len(curve["sizes"]) for curve in found.values())
        assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_the_axes_of_growth_name_its_sizes_without_powers(tmp_path, monkeypatch) -> None:
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    curve = {"sizes": [25, 50, 400], "ms": [0.61, 0.62, 0.6], "exponent": 0.0}
    draw({"label map / N": curve}, tmp_path / "growth.png")
    axis = drawn[0].axes[0]
    assert axis.get_xlabel() == "proposals"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["25", "50", "400"]
    low, high = axis.get_ylim()
    assert high / low >= 9.9
    shown = [t.get_text() for t in axis.get_yticklabels() if low <= t.get_position()[1] <= high]
    assert shown == ["0.2", "0.5", "1"]
