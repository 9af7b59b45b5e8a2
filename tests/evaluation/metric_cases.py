"""The metrics by a loop over pixels."""

import pytest


def naive_metrics(gt, pred, seen):
    """Every figure by counting single pixels, in exact integers as long as possible."""
    k = len(seen)
    pixels = [(int(g), int(p)) for g, p in zip(gt.flat, pred.flat, strict=True) if g < k]
    iou, present, touched = {}, [], []
    for c in range(k):
        inter = sum(g == c and p == c for g, p in pixels)
        union = sum(g == c or p == c for g, p in pixels)
        iou[c] = 100 * inter / union if union else 0.0
        present += [c] * any(g == c for g, _ in pixels)
        touched += [c] * (union > 0)

    def mean(classes):
        return sum(iou[c] for c in classes) / len(classes) if classes else None

    def share(hits, total):
        return 100 * hits / total if total else None

    result = {"pAcc": share(sum(g == p for g, p in pixels), len(pixels))}
    for end, counted in (("", present), ("_union", touched)):
        result["mIoU" + end] = mean(counted)
        s = result["sIoU" + end] = mean([c for c in counted if seen[c]])
        u = result["uIoU" + end] = mean([c for c in counted if not seen[c]])
        result["hIoU" + end] = (
            None if s is None or u is None else 2 * s * u / (s + u) if s + u else 0.0
        )
    for own, other, flag in (("seen", "unseen", True), ("unseen", "seen", False)):
        mine = [(g, p) for g, p in pixels if seen[g] == flag]
        named = [(g, p) for g, p in mine if p < k]
        result[f"{own}_to_{other}"] = share(sum(seen[p] != flag for _, p in named), len(mine))
        result[f"{own}_to_{own}_wrong"] = share(
            sum(seen[p] == flag and p != g for g, p in named), len(mine)
        )
        result[f"{own}_rejected"] = share(len(mine) - len(named), len(mine))
        result[f"{own}_correct"] = share(sum(g == p for g, p in mine), len(mine))
    return result


def assert_same(result, expected):
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert result[name] is None, name
        else:
            assert result[name] == pytest.approx(value, abs=1e-9), name
