"""Intervals and paired tests against loops, closed forms and full enumeration."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from alignzeg.__main__ import main
from alignzeg.evaluation import PerImage, compare, intervals, load_per_image
from alignzeg.evaluation.metrics import metrics_from_confusion
from alignzeg.evaluation.per_image import sparse
from alignzeg.evaluation.uncertainty import FIGURES, group_ious, resampled_counts

SEEN = (True, True, True, False, False)
K = len(SEEN)


def matrices(n: int, seed: int = 0, skill: float = 0.6, absent: float = 0.2) -> np.ndarray:
    """(n, K, K + 1) made-up counts; some classes are absent from some images."""
    rng = np.random.default_rng(seed)
    true = rng.integers(50, 500, (n, K)) * (rng.random((n, K)) > absent)
    result = np.zeros((n, K, K + 1), dtype=np.int64)
    for i in range(n):
        quality = np.clip(rng.normal(skill, 0.15), 0.05, 0.95)
        for c in range(K):
            share = np.full(K + 1, (1 - quality) / K)
            share[c] = quality
            result[i, c] = rng.multinomial(true[i, c], share)
    return result


def evaluation(counts: np.ndarray, names: list[str] | None = None) -> PerImage:
    names = names or [f"/data/labels/{i:03}.png" for i in range(len(counts))]
    rows = [(name, *sparse(matrix)) for name, matrix in zip(names, counts, strict=True)]
    return PerImage.collect(tuple("abcde"), SEEN, rows)


def figures(matrix: np.ndarray) -> list[float]:
    found = metrics_from_confusion(matrix, SEEN)
    return [np.nan if found[name] is None else found[name] for name in FIGURES]


def test_the_file_holds_what_was_counted(tmp_path):
    counts = matrices(7)
    names = [f"/data/labels/city{i % 2}/{i}.png" for i in range(7)]
    shuffled = np.random.default_rng(0).permutation(7)
    kept = evaluation(counts[shuffled], [names[i] for i in shuffled])
    kept.save(tmp_path / "deep" / "per_image_x.npz")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["per_image_x.npz"]
    found = load_per_image(tmp_path / "deep" / "per_image_x.npz")
    order = np.argsort(names)
    assert found.images == tuple(f"city{i % 2}/{i}.png" for i in order)
    assert np.array_equal(found.total(), counts.sum(0))
    want = [[m.diagonal(), m.sum(1), m.sum(0)[:K]] for m in counts[order]]
    assert np.array_equal(found.class_counts(), want)


def test_resampled_figures_equal_a_loop():
    counts = matrices(12, absent=0.85)
    table = evaluation(counts).class_counts()
    picks = np.random.default_rng(1).integers(0, 12, (300, 12))
    found = group_ious(resampled_counts(table, picks), np.array(SEEN))
    want = [figures(counts[pick].sum(0)) for pick in picks]
    assert np.isnan(want).any(), "some resample must miss a group"
    np.testing.assert_allclose(found, want, rtol=1e-12)


def test_the_interval_is_that_of_the_normal_limit():
    """With equal unions in every image an IoU is a mean of shares, whose error is known."""
    n, size = 400, 1000
    hits = np.random.default_rng(3).integers(300, 700, (n, 2))
    counts = np.zeros((n, K, K + 1), dtype=np.int64)
    for column, c in enumerate((0, 3)):
        counts[:, c, c] = hits[:, column]
        counts[:, c, K] = size - hits[:, column]
    found = intervals(evaluation(counts), resamples=4000)
    for column, name in enumerate(("sIoU", "uIoU")):
        share = 100 * hits[:, column] / size
        half = 1.959964 * share.std() / np.sqrt(n)
        assert found[name].value == pytest.approx(share.mean())
        assert found[name].low == pytest.approx(share.mean() - half, abs=0.08 * half)
        assert found[name].high == pytest.approx(share.mean() + half, abs=0.08 * half)


def test_the_paired_test_is_the_full_enumeration():
    first = matrices(8)
    second = redistribute(first, 0.7)
    found = compare(evaluation(first), evaluation(second), permutations=10_000)
    a, b = figures(first.sum(0)), figures(second.sum(0))
    draws = []
    for swap in itertools.product((False, True), repeat=8):
        flags = np.array(swap)[:, None, None]
        x, y = np.where(flags, second, first), np.where(flags, first, second)
        draws.append(np.subtract(figures(y.sum(0)), figures(x.sum(0))))
    for column, name in enumerate(FIGURES):
        row = found[name]
        values = np.array(draws)[:, column]
        observed = b[column] - a[column]
        tail = min((values >= observed - 1e-9).mean(), (values <= observed + 1e-9).mean())
        assert row.p_value == pytest.approx(min(1.0, 2 * tail))
        assert (row.first, row.second) == pytest.approx((a[column], b[column]))
        assert row.difference.value == pytest.approx(observed)
        assert row.difference.low <= observed <= row.difference.high


def redistribute(counts: np.ndarray, skill: float, seed: int = 9) -> np.ndarray:
    """Another model's predictions of the same images."""
    rng = np.random.default_rng(seed)
    share = np.full((K, K + 1), (1 - skill) / K)
    share[range(K), range(K)] = skill
    return np.array(
        [[rng.multinomial(row.sum(), share[c]) for c, row in enumerate(m)] for m in counts]
    )


def test_the_same_evaluation_twice_differs_by_nothing():
    one = evaluation(matrices(20))
    for row in compare(one, one, permutations=200).values():
        assert row.p_value == 1.0
        assert (row.difference.value, row.difference.low, row.difference.high) == (0, 0, 0)


def test_p_values_of_equal_models_are_uniform():
    p_values = []
    for seed in range(60):
        counts = matrices(30, seed)
        other = redistribute(counts, 0.6, seed)
        rng = np.random.default_rng(seed + 1000)
        # Which of the two made a prediction is a coin toss, as the null hypothesis says.
        coin = rng.random(30) < 0.5
        first = np.where(coin[:, None, None], counts, other)
        second = np.where(coin[:, None, None], other, counts)
        found = compare(evaluation(first), evaluation(second), permutations=199, resamples=100)
        p_values.append(found["hIoU"].p_value)
    share = np.mean(np.array(p_values) < 0.2)
    assert 0.05 < share < 0.38, "20 % expected; 4 standard errors of 60 trials are 0.2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("image", r"differ in their images: '003.png' and '003b.png'"),
        ("less", r"differ in their images: '8 images' and '7'"),
        ("class", r"differ in their classes: 'a' and 'z'"),
        ("label", r"true pixels"),
    ],
)
def test_unlike_evaluations_are_refused(change, message):
    counts = matrices(8)
    first, second = evaluation(counts), evaluation(counts)
    names = [f"/data/labels/{i:03}.png" for i in range(8)]
    if change == "image":
        second = evaluation(counts, [*names[:3], "/data/labels/003b.png", *names[4:]])
    elif change == "less":
        second = evaluation(counts[:7])
    elif change == "class":
        second = PerImage(tuple("zbcde"), SEEN, second.images, *arrays(second))
    else:
        counts = counts.copy()
        counts[0, 0, 0] += 1
        second = evaluation(counts)
    with pytest.raises(ValueError, match=message):
        compare(first, second)


def arrays(found: PerImage) -> tuple[np.ndarray, ...]:
    return found.image, found.cell, found.count


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="at least two"):
        intervals(evaluation(matrices(1)))
    rare = matrices(5, absent=0.0)
    rare[1:, 3:] = 0
    with pytest.raises(ValueError, match="uIoU is undefined in .* of the resamples"):
        intervals(evaluation(rare))
    none = matrices(5, absent=0.0)
    none[:, 3:] = 0
    assert list(intervals(evaluation(none))) == ["sIoU"]


@pytest.mark.parametrize("damage", ["text", "cut", "missing", "index", "kind", "pickle"])
def test_a_damaged_file_is_one_line(tmp_path, damage, capsys):
    path = tmp_path / "per_image_x.npz"
    evaluation(matrices(4)).save(path)
    if damage == "text":
        path.write_text("no archive")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "missing":
        path.unlink()
    else:
        with np.load(path) as file:
            parts = dict(file)
        if damage == "index":
            parts["cell"][0] = 30
        elif damage == "kind":
            parts["count"] = parts["count"].astype(float)
        else:
            parts["images"] = np.array([{}], dtype=object)
        np.savez(path, **parts)
    assert main(["significance", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert "SAVE_PER_IMAGE" in lines[0]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = matrices(25)
    for run, counts in (("a", first), ("b", redistribute(first, 0.9))):
        evaluation(counts).save(tmp_path / run / "inference" / "per_image_toy_val.npz")
    target = tmp_path / "figures.json"
    assert main(["significance", str(tmp_path / "a")]) == 0
    assert "25 images" in capsys.readouterr().out
    words = ["significance", str(tmp_path / "a"), str(tmp_path / "b"), "--json", str(target)]
    assert main([*words, "--permutations", "500"]) == 0
    assert "B - A" in capsys.readouterr().out
    row = json.loads(target.read_text())["per_image_toy_val.npz"]["hIoU"]
    assert row["difference"]["low"] > 0 and row["p_value"] < 0.01
    for wrong in (
        ["--level", "2"],
        ["--resamples", "1"],
        ["x", "y"],
        ["--seed", "-1"],
        ["--json", "none/x"],
    ):
        assert main(["significance", str(tmp_path / "a"), *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["significance", str(tmp_path / "c")]) == 2
    assert "does not exist" in capsys.readouterr().err
