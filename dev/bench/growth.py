"""How cost grows: each part against one size at a time, the exponent of a fitted power law, a plot.

PYTHONPATH=dev python -m bench.growth             output/bench/growth.json and growth.png
PYTHONPATH=dev python -m bench.growth --quick     two small sizes of each, seconds
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignzeg.evaluation.metrics import confusion
from alignzeg.files import atomic_write
from alignzeg.losses.criteria import MaskCriterion
from alignzeg.losses.matcher import HungarianMatcher
from alignzeg.modeling.semantic_inference import semantic_inference
from alignzeg.structures import Matches
from bench import losses
from bench.label_map import MEMORY_MIB, proposals
from bench.measure import OUTPUT, interleaved
from bench.models import batch, ours
from bench.vlm import vlm

# An exponent of the whole range may exceed 1 by this much through noise and caches.
SLACK = 0.15


@dataclass(frozen=True)
class Curve:
    """One part against one size.

    Attributes:
        make: a size -> what is timed.
        sizes: ascending.
        linear_in: what the cost should be proportional to, as a power of the size: a side counts
            twice.
        inherent: why it may grow faster than that; empty: it may not.
    """

    make: Callable[[int], Callable[[], Any]]
    sizes: tuple[int, ...]
    linear_in: int = 1
    inherent: str = ""


def label_map(queries: int = 100, classes: int = 171, side: int = 512) -> Callable[[], Any]:
    """The exact label map."""
    logits, masks = proposals(classes, side, queries)
    probs = logits.softmax(-1)[:, :-1].contiguous()
    sizes = ((side, side),) * 3
    return lambda: semantic_inference(probs, masks, *sizes, MEMORY_MIB)


def matching(masks: int = 20, side: int = 512, queries: int = 100) -> Callable[[], Any]:
    """The matcher on six layers of two images."""
    made, targets = losses.outputs(side, queries), losses.scenes(masks, side)
    matcher = HungarianMatcher(**losses.WEIGHTS)
    return lambda: matcher(made, targets)


def criterion(masks: int = 20, side: int = 512) -> Callable[[], Any]:
    """Mask losses on the grid and their gradients."""
    made, targets = losses.outputs(side), losses.scenes(masks, side)
    logits = [layer.mask_logits.requires_grad_() for layer in made.proposals]
    pick = [Matches(torch.arange(masks), torch.arange(masks)) for _ in targets]
    loss = MaskCriterion(
        mask_weight=1.0, dice_weight=1.0, num_points=0, oversample=3.0, importance=0.75
    )

    def run() -> Any:
        total = sum(loss(made, targets, [pick] * losses.LAYERS).values())
        return torch.autograd.grad(total, logits)

    return run


def regions(queries: int = 100, side: int = 320, quick: bool = False) -> Callable[[], Any]:
    """Region embeddings in one dense pass."""
    model = vlm(quick, side)
    model.image_size = side
    image = torch.rand(1, 3, side, side) * 255
    masks = proposals(3, side, queries)[1][None]
    return lambda: model.embed_regions(model.encode_image(image), masks)


def names(count: int, quick: bool = False) -> Callable[[], Any]:
    """Prototypes of so many names, cold."""
    model = vlm(quick)
    words = [f"thing {index}" for index in range(count)]

    @torch.no_grad()
    def run() -> None:
        for word in words:
            model._prototype(word)

    return run


def step(images: int, quick: bool = False) -> Callable[[], Any]:
    """Losses and gradients of the baseline, without the VLM."""
    model = ours("baseline", quick, vlm=False).train()
    data = batch(64 if quick else 256, 2) * ((images + 1) // 2)

    def run() -> None:
        sum(model(data[:images]).values()).backward()
        model.zero_grad()

    return run


def evaluation(images: int, classes: int = 171) -> Callable[[], Any]:
    """Confusion matrices of so many images."""
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, classes, (2, 480, 640), dtype=np.uint8)
    return lambda: [confusion(truth, found, classes) for _ in range(images)]


# What a size is called below its axis.
_SIZES = {"N": "proposals", "C": "classes", "side": "side, pixels"}
ATTENTION = "attention over the places of the image"


def curves(quick: bool) -> dict[str, Curve]:
    """Every curve; at toy size two points each."""
    found = {
        "label map / N": Curve(lambda n: label_map(queries=n), (25, 50, 100, 200, 400)),
        "label map / C": Curve(lambda c: label_map(classes=c), (20, 80, 171, 400, 847)),
        "label map / side": Curve(lambda s: label_map(side=s), (256, 512, 1024, 2048), 2),
        "matching / N": Curve(lambda n: matching(queries=n), (50, 100, 200, 400)),
        "matching / masks": Curve(lambda k: matching(k), (5, 10, 20, 40, 80)),
        "matching / side": Curve(lambda s: matching(side=s), (256, 512, 1024), 2),
        "criterion / masks": Curve(lambda k: criterion(k), (5, 10, 20, 40, 80)),
        "criterion / side": Curve(lambda s: criterion(side=s), (256, 512, 1024), 2),
        "regions / N": Curve(partial(regions, quick=quick), (25, 50, 100, 200, 400)),
        "regions / side": Curve(
            lambda s: regions(side=s, quick=quick), (160, 320, 640), 2, ATTENTION
        ),
        "text / names": Curve(partial(names, quick=quick), (20, 40, 80, 160)),
        "training step / images": Curve(partial(step, quick=quick), (1, 2, 4)),
        "evaluation / images": Curve(evaluation, (1, 2, 4, 8)),
    }
    if not quick:
        return found
    sides = {"side": (64, 128), "N": (9, 16), "C": (5, 10), "masks": (2, 4), "names": (2, 4)}
    small = {key: sides.get(key.split(" / ")[1], (1, 2)) for key in found}
    return {
        key: Curve(curve.make, small[key], curve.linear_in, curve.inherent)
        for key, curve in found.items()
    }


def exponent(sizes: tuple[int, ...], milliseconds: list[float]) -> float:
    """Slope of the fitted line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(milliseconds), 1)[0])


def measure(curve: Curve, seconds: float) -> dict[str, Any]:
    """Times of every size, and the exponent against what the cost should be proportional to."""
    times = []
    for size in curve.sizes:
        run = curve.make(size)
        run()
        times.append(interleaved({"run": run}, seconds, least=1 if not seconds else 3)["run"])
    slope = exponent(curve.sizes, times) / curve.linear_in
    return {
        "sizes": list(curve.sizes),
        "ms": times,
        "exponent": slope,
        "superlinear": slope > 1 + SLACK,
        "inherent": curve.inherent,
    }


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """One panel for each curve, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    columns = 4
    rows = -(-len(found) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False)
    for axis in axes.flat[len(found) :]:
        axis.axis("off")
    for axis, (name, curve) in zip(axes.flat, found.items(), strict=False):
        part, size = name.split(" / ")
        axis.loglog(curve["sizes"], curve["ms"], "o-")
        axis.set_title(f"{part}: exponent {curve['exponent']:.2f}", fontsize=10)
        axis.set_xlabel(_SIZES.get(size, size))
        axis.set_ylabel("ms")
        axis.set_xticks(curve["sizes"], [str(value) for value in curve["sizes"]])
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        # A factor of ten at least, so that noise looks as small as it is.
        middle = (min(curve["ms"]) * max(curve["ms"])) ** 0.5
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, middle / 10**0.5), max(high, middle * 10**0.5))
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=9))
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_minor_locator(ticker.NullLocator())
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main() -> int:
    """Measures and writes; exit code 1 if something grows faster than it must."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="toy sizes, no exponents")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    found = {}
    for name, curve in curves(args.quick).items():
        found[name] = result = measure(curve, 0 if args.quick else 2)
        said = f"  ({result['inherent']})" if result["inherent"] else ""
        sys.stdout.write(f"{name:24s} exponent {result['exponent']:5.2f}{said}\n")
        sys.stdout.flush()
    args.output.mkdir(parents=True, exist_ok=True)
    atomic_write(args.output / "growth.json", json.dumps(found, indent=1) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "growth.png"
        draw(found, picture)
        atomic_write(args.output / "growth.png", picture.read_bytes())
    worse = [n for n, curve in found.items() if curve["superlinear"] and not curve["inherent"]]
    if worse and not args.quick:
        sys.stdout.write(f"grows faster than in proportion: {', '.join(worse)}\n")
    return 1 if worse and not args.quick else 0


if __name__ == "__main__":
    sys.exit(main())
