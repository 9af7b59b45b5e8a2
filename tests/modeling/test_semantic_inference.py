"""Label maps against the plain formula: upsample all masks, multiply by all classes, argmax."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alignzeg.modeling.interpolation import Geometry
from alignzeg.modeling.semantic_inference import (
    background_wins,
    named_in_stripes,
    semantic_inference,
)


def plain_scores(
    probs: Tensor,
    logits: Tensor,
    padded: tuple[int, int],
    image: tuple[int, int],
    output: tuple[int, int],
) -> Tensor:
    """(K, Ho, Wo) in double precision, in the order of Detectron2's sem_seg_postprocess."""
    masks = F.interpolate(logits[None].double(), padded, mode="bilinear", align_corners=False)[0]
    scores = torch.einsum("qk,qhw->khw", probs.double(), masks.sigmoid())
    scores = scores[:, : image[0], : image[1]]
    return F.interpolate(scores[None], output, mode="bilinear", align_corners=False)[0]


def random_case(
    queries: int, classes: int, low: tuple[int, int], seed: int = 0
) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    probs = (3 * torch.randn(queries, classes + 1, generator=rng)).softmax(-1)[:, :-1]
    return probs, 3 * torch.randn(queries, *low, generator=rng)


def unexplained(labels: Tensor, scores: Tensor) -> int:
    """Pixels whose label is not within 1e-6 of the best score."""
    chosen = scores.gather(0, labels.long()[None])[0]
    return int((scores.amax(0) - chosen > 1e-6).sum())


GEOMETRIES = {
    "plain": ((16, 24), (64, 96), (64, 96), (64, 96)),
    "padded, odd": ((17, 24), (68, 96), (61, 83), (61, 83)),
    "up": ((16, 16), (64, 64), (57, 64), (131, 147)),
    "down": ((24, 24), (96, 96), (91, 96), (37, 39)),
    "far down": ((32, 32), (128, 128), (128, 127), (9, 7)),
    "one way each": ((16, 24), (64, 96), (64, 90), (32, 181)),
    "stride not 4": ((13, 11), (50, 47), (50, 41), (50, 41)),
    "one pixel": ((1, 1), (4, 4), (3, 1), (5, 2)),
}


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("memory_mib", [0.02, 0.3, 64])
def test_equals_the_plain_formula(name: str, memory_mib: float) -> None:
    low, padded, image, output = GEOMETRIES[name]
    for seed, (queries, classes) in enumerate(itertools.product((1, 7), (1, 2, 37))):
        probs, logits = random_case(queries, classes, low, seed)
        labels = semantic_inference(probs, logits, padded, image, output, memory_mib)
        scores = plain_scores(probs, logits, padded, image, output)
        assert labels.dtype == torch.uint8
        assert labels.shape == output
        assert unexplained(labels, scores) == 0


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("memory", [2e4, 3e5, 1e8])
def test_the_way_of_a_gpu_equals_the_plain_formula(name: str, memory: float) -> None:
    low, padded, image, output = GEOMETRIES[name]
    for queries, classes in itertools.product((1, 7), (1, 2, 37)):
        probs, logits = random_case(queries, classes, low)
        geometry = Geometry(low, padded, image, output)
        found = list(named_in_stripes(probs, logits, geometry, int(memory), False, True))
        places = [i for rows, _, _ in found for i in range(rows.start, rows.stop)]
        assert places == list(range(output[0]))
        scores = plain_scores(probs, logits, padded, image, output)
        assert unexplained(torch.cat([names for _, names, _ in found]), scores) == 0
        best = torch.cat([values for _, _, values in found if values is not None])
        torch.testing.assert_close(best, scores.amax(0).float())


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_fast_way_of_a_gpu_is_that_of_a_cpu(name: str) -> None:
    low, padded, image, output = GEOMETRIES[name]
    probs, logits = random_case(7, 37, low)
    best = torch.zeros(output)
    semantic_inference(probs, logits, padded, image, output, 1.0, "fast", confidence=best)
    geometry = Geometry(low, padded, image, output)
    found = list(named_in_stripes(probs, logits, geometry, 10**5, True, True))
    torch.testing.assert_close(torch.cat([v for _, _, v in found if v is not None]), best)


def test_autocast_does_not_round_the_scores() -> None:
    probs, logits = random_case(7, 37, (16, 16))
    sizes = ((64, 64), (64, 64), (64, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        labels = semantic_inference(probs, logits, *sizes, 1.0)
    assert unexplained(labels, plain_scores(probs, logits, *sizes)) == 0


@pytest.mark.parametrize("name", ["padded, odd", "up", "far down"])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_the_confidence_is_the_best_score(name: str, mode: str) -> None:
    low, padded, image, output = GEOMETRIES[name]
    probs, logits = random_case(7, 5, low)
    best = plain_scores(probs, logits, padded, image, output).amax(0).float()
    limit = float(best.median())
    found = torch.full(output, torch.nan)
    labels = semantic_inference(
        *(probs, logits, padded, image, output, 0.02, mode), reject_below=limit, confidence=found
    )
    assert 0 < int((labels == 255).sum()) < labels.numel()
    assert torch.equal(labels == 255, found < limit)
    if mode == "exact":
        torch.testing.assert_close(found, best)


@pytest.mark.parametrize(("classes", "dtype"), [(255, torch.uint8), (256, torch.uint16)])
def test_many_classes(classes: int, dtype: torch.dtype) -> None:
    probs, logits = random_case(20, classes, (16, 16))
    labels = semantic_inference(probs, logits, (64, 64), (60, 64), (60, 64), 0.5)
    scores = plain_scores(probs, logits, (64, 64), (60, 64), (60, 64))
    assert labels.dtype == dtype
    assert unexplained(labels, scores) == 0
    assert int((labels.long() != scores.argmax(0)).sum()) == 0


def test_the_last_class_of_300_can_be_named() -> None:
    probs, logits = torch.zeros(2, 300), torch.full((2, 4, 4), 8.0)
    probs[0, 299] = probs[1, 7] = 0.5
    logits[1, :, :2] = -8
    logits[0, :, 2:] = -8
    labels = semantic_inference(probs, logits, (16, 16), (16, 16), (16, 16), 1)
    assert labels[0].tolist() == [299] * 8 + [7] * 8


def test_ties_go_to_the_lower_class() -> None:
    probs = torch.full((1, 5), 0.25)
    probs[0, 0] = 0.125
    logits = torch.randn(1, 8, 8)
    labels = semantic_inference(probs, logits, (32, 32), (32, 32), (32, 32), 0.01)
    assert labels.unique().tolist() == [1]


def test_stripes_do_not_change_a_label() -> None:
    probs, logits = random_case(10, 60, (20, 20))
    whole = semantic_inference(probs, logits, (80, 80), (77, 80), (110, 50), 1000)
    for memory_mib in (0.001, 0.1, 1):
        striped = semantic_inference(probs, logits, (80, 80), (77, 80), (110, 50), memory_mib)
        differing = whole.long() != striped.long()
        scores = plain_scores(probs, logits, (80, 80), (77, 80), (110, 50))
        top = scores.topk(2, dim=0).values
        assert bool(((top[0] - top[1])[differing] < 1e-6).all())


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_reject(mode: str) -> None:
    probs, logits = torch.tensor([[0.6, 0.1]]), torch.full((1, 4, 4), 20.0)
    logits[:, :, 2:] = -20
    arguments = (probs, logits, (16, 16), (16, 16), (16, 16), 1.0, mode)
    assert semantic_inference(*arguments).unique().tolist() == [0]
    labels = semantic_inference(*arguments, reject_below=0.5)
    assert labels[:, 0].tolist() == [0] * 16
    assert labels[:, -1].tolist() == [255] * 16
    many = torch.cat([probs, torch.zeros(1, 300)], dim=1)
    labels = semantic_inference(many, *arguments[1:], reject_below=0.5)
    assert labels[:, -1].tolist() == [65535] * 16


def test_fast_is_product_first_then_one_resize() -> None:
    probs, logits = random_case(9, 12, (16, 20))
    low = torch.einsum("qk,qhw->khw", probs, logits.sigmoid())
    scores = F.interpolate(low[None], (64, 80), mode="bilinear", align_corners=False)[0]
    for memory_mib in (0.01, 100):
        labels = semantic_inference(probs, logits, (64, 80), (60, 75), (60, 75), memory_mib, "fast")
        assert unexplained(labels, scores[:, :60, :75]) == 0


def test_fast_is_near_exact_on_smooth_masks() -> None:
    probs, logits = random_case(12, 20, (6, 6))
    logits = F.interpolate(logits[None], (48, 48), mode="bicubic")[0] * 2
    arguments = (probs, logits, (192, 192), (190, 190), (281, 150), 8.0)
    differing = semantic_inference(*arguments) != semantic_inference(*arguments, mode="fast")
    assert differing.float().mean() < 0.02


def test_classes_that_are_left_out_never_win() -> None:
    # Blobs and peaked classes: most tiles are decided by their bounds, edges are not.
    probs, logits = random_case(30, 200, (8, 8))
    logits = F.interpolate(2 * logits[None], (32, 32), mode="bicubic")[0]
    sizes = ((128, 128), (120, 111), (120, 111))
    labels = semantic_inference(probs, logits, *sizes, 0.5)
    assert unexplained(labels, plain_scores(probs, logits, *sizes)) == 0
    best = torch.zeros(120, 111)
    scored = semantic_inference(probs, logits, *sizes, 0.5, confidence=best)
    assert torch.equal(labels, scored)


def test_classes_that_differ_by_less_than_the_bounds_allow_are_all_compared() -> None:
    # Two classes with almost equal scores, and a third that is behind everywhere.
    probs = torch.tensor([[0.3, 0.300001, 0.1], [0.300001, 0.3, 0.1]])
    _, logits = random_case(2, 3, (16, 16))
    sizes = ((64, 64), (64, 64), (64, 64))
    labels = semantic_inference(probs, logits, *sizes, 1.0)
    wanted = plain_scores(probs, logits, *sizes).argmax(0)
    assert set(labels.unique().tolist()) == {0, 1}
    assert float((labels.long() == wanted).float().mean()) > 0.95


@pytest.mark.parametrize("output", [(1, 1), (16, 16), (17, 33), (15, 250)])
def test_sizes_around_those_of_a_tile(output: tuple[int, int]) -> None:
    probs, logits = random_case(5, 9, (12, 20))
    sizes = ((48, 80), (40, 77), output)
    labels = semantic_inference(probs, logits, *sizes, 0.1)
    assert unexplained(labels, plain_scores(probs, logits, *sizes)) == 0


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_an_image_of_nan_is_named_and_spoils_nothing_else(mode: str) -> None:
    probs, logits = random_case(5, 9, (24, 24))
    sizes = ((96, 96), (96, 96), (96, 96))
    whole = semantic_inference(probs, logits, *sizes, 0.1, mode)
    logits[:, :2, :2] = torch.nan
    best = torch.zeros(96, 96)
    labels = semantic_inference(probs, logits, *sizes, 0.1, mode, confidence=best)
    assert int(labels.max()) < 9
    assert torch.equal(labels[16:, 16:], whole[16:, 16:])
    assert best[:4, :4].isnan().all() and not best[16:, 16:].isnan().any()


def test_where_the_background_wins() -> None:
    probs = torch.tensor([[0.6, 0.1, 0.3], [0.1, 0.1, 0.8]])
    logits = torch.full((2, 5, 6), -8.0)
    logits[0, :, :3] = logits[1, :, 3:] = 8
    assert background_wins(probs, logits, 1.0).tolist() == [[False] * 3 + [True] * 3] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_probs": torch.rand(3, 4)}, "same Q"),
        ({"class_probs": torch.rand(2, 0)}, "no proposals in"),
        ({"image_size": (40, 16)}, "inside its padding"),
        ({"output_size": (0, 16)}, "positive"),
        ({"memory_mib": 0}, "memory_mib"),
        ({"mode": "quick"}, "quick"),
    ],
)
def test_refuses(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "class_probs": torch.rand(2, 4),
        "mask_logits": torch.rand(2, 4, 4),
        "padded_size": (16, 16),
        "image_size": (16, 16),
        "output_size": (16, 16),
        "memory_mib": 1,
    }
    with pytest.raises(ValueError, match=message):
        semantic_inference(**(arguments | change))  # type: ignore[arg-type]
