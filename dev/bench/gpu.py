"""On a GPU: images a second, share of the measured ceiling, syncs, memory, torch.compile.

PYTHONPATH=dev python -m bench.gpu                          one command, about five minutes
PYTHONPATH=dev python -m bench.gpu --device cpu --quick     does it run, at toy size, without a GPU

R50 and ViT-B/16 with random weights, 640 x 640, bfloat16, beside transformers' MaskFormer and
Mask2Former in the same run, in turns. Writes output/bench/gpu.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from alignzeg.files import atomic_write
from bench.agreement import agreement
from bench.measure import OUTPUT
from bench.models import batch, normalized, ours
from bench.peers import mask2former, maskformer
from bench.report import machine

SEEN = 156
CEILING_SIDE = 8192

Step = Callable[[], Any]


class Bench:
    """Sizes, device and clock of one run."""

    def __init__(self, device: str, quick: bool, images: int) -> None:
        self.device = torch.device(device)
        self.quick = quick
        self.size = 64 if quick else 640
        self.images = 2 if quick else images
        self.turns = 1 if quick else 10
        self.data = (batch(self.size) * (-(-self.images // 2)))[: self.images]

    def synchronize(self) -> None:
        """Waits until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """As trainings use it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def milliseconds(self, run: Step) -> float:
        """Of one call, until the device is done."""
        self.synchronize()
        start = time.perf_counter()
        run()
        self.synchronize()
        return 1e3 * (time.perf_counter() - start)

    def our_step(self, method: str, compiled: bool = False) -> Step:
        """A training step of ours, the VLM included."""
        model = ours(method, self.quick, vlm=True, device=str(self.device)).train()
        if compiled:
            model.backbone.compile()
            model.head.extractor.compile()
        return self._step(model, lambda: sum(model(self.data).values()))

    def their_step(self, model: nn.Module, **options: Any) -> Step:
        """A training step of a model of transformers; options are of its forward pass."""
        model = model.to(self.device).train()
        targets = [item["targets"] for item in self.data]
        masks = [target.masks.float().to(self.device) for target in targets]
        labels = [target.labels.to(self.device) for target in targets]

        def loss() -> torch.Tensor:
            # The images are on the host, as in our batch.
            pixels = normalized([item["image"] for item in self.data]).to(self.device)
            return model(pixels, masks, labels, **options).loss.sum()

        return self._step(model, loss)

    def _step(self, model: nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with self.autocast():
                total = loss()
            total.backward()
            optimizer.step()

        return step

    def our_inference(self, method: str, compiled: bool = False) -> Step:
        """Label maps of the images by ours, one after the other."""
        model = ours(method, self.quick, vlm=True, device=str(self.device)).eval()
        if compiled:
            model.backbone.compile()
            model.head.extractor.compile()

        @torch.no_grad()
        def run() -> None:
            with self.autocast():
                for item in self.data:
                    model([{"image": item["image"], "vocabulary": item["vocabulary"]}])

        return run

    def their_inference(self, model: nn.Module) -> Step:
        """The same by a model of transformers, with its own post-processing."""
        from transformers import MaskFormerImageProcessor

        model, processor = model.to(self.device).eval(), MaskFormerImageProcessor()

        @torch.no_grad()
        def run() -> None:
            with self.autocast():
                for item in self.data:
                    output = model(pixel_values=normalized([item["image"]]).to(self.device))
                    size = tuple(item["image"].shape[-2:])
                    processor.post_process_semantic_segmentation(output, [size])[0].cpu()

        return run


def ceiling(bench: Bench) -> float:
    """TFLOP/s of a large product in bfloat16: what the device can do at most."""
    side = 256 if bench.quick else CEILING_SIDE
    values = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    run = lambda: values @ values  # noqa: E731 (timed as it stands)
    run()
    spent = statistics.median(bench.milliseconds(run) for _ in range(bench.turns))
    return 2 * side**3 / spent / 1e9


class _Unnamed:
    """Stands for the tracker of modules, which takes no parameters as inputs without gradients."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None


def operations(run: Step) -> float:
    """TFLOP of products and convolutions in one call."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Unnamed()
    with counter:
        run()
    return counter.get_total_flops() / 1e12


def syncs(bench: Bench, run: Step) -> dict[str, int] | None:
    """How often a line of Python waits for the device in one call; None without a GPU."""
    if bench.device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchroniz" in str(w.message)]
    return dict(Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waits).most_common())


def peak_gib(bench: Bench, run: Step) -> float | None:
    """Peak memory of one call; None without a GPU."""
    if bench.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(bench.device)
    run()
    return torch.cuda.max_memory_allocated(bench.device) / 2**30


def compare(bench: Bench, steps: dict[str, Callable[[], Step]]) -> dict[str, dict[str, Any]]:
    """Images a second of each, in turns; one that fails says why and the others go on."""
    ready, found = {}, {}
    for name, make in steps.items():
        try:
            run = make()
            run()
            run()
        except Exception as error:  # noqa: BLE001 (such as a compiler that is not there)
            traceback.print_exc()
            found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
        else:
            ready[name] = run
    spent: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(bench.turns):
        for name, run in ready.items():
            spent[name].append(bench.milliseconds(run))
    for name, run in ready.items():
        ms = statistics.median(spent[name])
        found[name] = {
            "ms": ms,
            "images_per_second": 1e3 * bench.images / ms,
            "tflops": operations(run) / ms * 1e3,
            "syncs": syncs(bench, run),
            "peak_gib": peak_gib(bench, run),
        }
    return found


def main() -> int:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=8, help="in a batch")
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--only", default="", help='such as "inference: ours"')
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.stderr.write("error: no GPU that PyTorch can use; --device cpu --quick tries it out\n")
        return 2
    bench = Bench(args.device, args.quick, args.images)
    training: dict[str, Callable[[], Step]] = {
        "ours, baseline": lambda: bench.our_step("baseline"),
        "ours, AlignZeg": lambda: bench.our_step("alignzeg"),
        "transformers, MaskFormer": lambda: bench.their_step(
            maskformer(SEEN, args.quick, auxiliary=True), output_hidden_states=True
        ),
        "transformers, Mask2Former": lambda: bench.their_step(mask2former(SEEN, args.quick)),
    }
    if not args.no_compile:
        training["ours, AlignZeg, compiled"] = lambda: bench.our_step("alignzeg", compiled=True)
    inference = {
        "ours, baseline": lambda: bench.our_inference("baseline"),
        "ours, AlignZeg": lambda: bench.our_inference("alignzeg"),
        "transformers, MaskFormer": lambda: bench.their_inference(maskformer(SEEN, args.quick)),
        "transformers, Mask2Former": lambda: bench.their_inference(mask2former(SEEN, args.quick)),
    }
    if not args.no_compile:
        inference["ours, AlignZeg, compiled"] = lambda: bench.our_inference("alignzeg", True)
    agreed = agreement(args.device, args.quick)
    sys.stdout.write(f"beside the CPU, differences at most: {agreed}\n")
    most = ceiling(bench)
    found = {}
    for kind, steps in (("training", training), ("inference", inference)):
        chosen = {n: make for n, make in steps.items() if f"{kind}: {n}".startswith(args.only)}
        found[kind] = compare(bench, chosen)
    about = machine()
    if bench.device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(bench.device)
    sys.stdout.write(f"ceiling {most:.1f} TFLOP/s in bfloat16\n")
    for kind, group in found.items():
        for name, result in group.items():
            if "error" in result:
                sys.stdout.write(f"{kind:10s} {name:28s} FAILED: {result['error']}\n")
                continue
            result["share_of_ceiling"] = result["tflops"] / most
            memory, waits = result["peak_gib"], result["syncs"]
            waits = "-" if waits is None else f"{sum(waits.values())} {waits}"
            sys.stdout.write(
                f"{kind:10s} {name:28s} {result['images_per_second']:8.2f} images/s  "
                f"{100 * result['share_of_ceiling']:5.1f} % of the ceiling  "
                f"{'-' if memory is None else f'{memory:.1f} GiB'}  syncs {waits}\n"
            )
    report = {"machine": about, "ceiling_tflops": most, "images": bench.images, "agreement": agreed}
    report |= found
    atomic_write(args.output / "gpu.json", json.dumps(report, indent=1) + "\n")
    # Without a compiler the rest still counts.
    broken = [n for group in found.values() for n, r in group.items() if "error" in r]
    return 1 if any("compiled" not in name for name in broken) else 0


if __name__ == "__main__":
    sys.exit(main())
