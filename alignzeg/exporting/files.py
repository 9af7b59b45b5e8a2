"""From a checkpoint to a checked ONNX or PT2 file, and the text of class names beside it."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignzeg.arguments import require_file_place
from alignzeg.data.zeroshapes import render_scene, scene_rng
from alignzeg.engine.checkpoints.checkpoint import KEY
from alignzeg.engine.checkpoints.reading import read_about
from alignzeg.exporting.graph import INPUTS, OUTPUTS, ProposalGraph
from alignzeg.exporting.padding import fixed_padding
from alignzeg.files import atomic_write
from alignzeg.inference.predictor import Predictor
from alignzeg.modeling.vlm.encoding import resized
from alignzeg.progress import waiting
from alignzeg.structures import Vocabulary

SUFFIXES = (".onnx", ".pt2")
FORMAT = 1
# Largest difference from PyTorch, of any output, that a file may have.
TOLERANCE = 1e-3
# Shapes of the images that a file is checked with, in multiples of the divisor.
_CHECKED = ((3, 4), (5, 2))
_TRACED = (4, 5)
# Most pixels of a side, in multiples of what divides it.
_MOST = 4096
# Protocol buffers hold no more.
_MOST_BYTES = 2**31 - 1


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        file: the graph.
        classes: the text of the class names.
        size: of the graph, bytes.
        differences: the largest one from PyTorch, of each output, over all checks.
    """

    file: Path
    classes: Path
    size: int
    differences: dict[str, float]


def export_graph(
    weights: str | Path,
    output: str | Path,
    classes: Sequence[str] | None = None,
    opts: Sequence[str] = (),
    **allowed: Any,
) -> Exported:
    """Writes the network of a checkpoint as one graph.

    Args:
        weights: a checkpoint written by this package.
        output: the file to write; ends in .onnx or .pt2. `<stem>_classes.npz` beside it holds
            `names` (K,), `text` (K, D) float32 and `unseen` (K,) bool, the graph's inputs.
        classes: names as `Predictor` takes them; those seen in training unless given.
        opts: KEY VALUE pairs over the checkpoint's config.
        allowed: `plugins` and `trust_code` of `Predictor`.

    Returns:
        The files, and how far their answers are from PyTorch's.

    Raises:
        ValueError: if a package is missing, an argument is wrong, or the model has no proposals;
            nothing is written then.
        RuntimeError: if the graph answers something else than PyTorch; nothing is written.
    """
    weights, file = str(weights), require_file_place(output, "the output")
    if file.suffix not in SUFFIXES:
        raise ValueError(f"the output is {str(output)!r}; its name must end in .onnx or .pt2")
    require_packages(file.suffix)
    predictor = Predictor(weights, classes, "cpu", opts, **allowed)
    model: Any = predictor.model
    vocabulary = predictor.vocabulary
    if vocabulary is None:
        vocabulary = Vocabulary(predictor.seen, (True,) * len(predictor.seen))
    graph = ProposalGraph(model).eval()
    _require_expressible(model, vocabulary)
    settings = describe(graph, read_about(weights), predictor.cfg)
    with torch.no_grad():
        text, _ = model.text(vocabulary, single=True)
    unseen = vocabulary.unseen_mask()
    with waiting("tracing the network and comparing the graph with PyTorch: a minute or more"):
        program = trace(graph, text, unseen)
        content = _onnx(program, settings) if file.suffix == ".onnx" else _pt2(program, settings)
        differences = check(graph, content, text, vocabulary)
    table = file.with_name(f"{file.stem}_classes.npz")
    atomic_write(file, content, durable=True)
    names = np.array(vocabulary.names)
    atomic_write(
        table,
        lambda stream: np.savez(stream, names=names, text=text.numpy(), unseen=unseen.numpy()),
    )
    return Exported(file, table, len(content), differences)


def _require_expressible(model: Any, vocabulary: Vocabulary) -> None:
    """Refuses settings that a graph with one text for each class and one view cannot follow."""
    several = [
        name
        for name, size in zip(vocabulary.names, model.text(vocabulary)[1], strict=True)
        if size > 1
    ]
    if several:
        raise ValueError(
            f"ALIGNZEG.TEST.SYNONYMS max cannot be exported: a graph has one text for each class, "
            f"and {several[0]!r} has more; give ALIGNZEG.TEST.SYNONYMS mean, or one name each"
        )
    if not model.augmentation.single:
        raise ValueError(
            "a graph looks at an image once: give ALIGNZEG.TEST.WINDOW 0 and TEST.AUG.ENABLED "
            "False, and give the graph parts or scales of an image yourself"
        )


def require_packages(suffix: str) -> None:
    """Refuses to begin where a package is missing.

    Raises:
        ValueError: naming the first, and the extra that brings it.
    """
    needed = ("onnx", "onnxscript", "onnxruntime") if suffix == ".onnx" else ()
    for name in needed:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"a file ending in {suffix} needs the package {name}, which is not installed; "
                "pip install 'alignzeg[export]'"
            )


def describe(graph: ProposalGraph, about: dict[str, Any], cfg: Any) -> dict[str, Any]:
    """What a program must know to make the inputs of the graph, as JSON holds it."""
    vlm = graph.model.vlm
    return {
        "format": FORMAT,
        "divisor": graph.divisor,
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "vlm_size": vlm.image_size,
        "vlm_cell": list(vlm.cell),
        "vlm_id": about["vlm_id"],
        "vlm_hash": about["vlm_hash"],
        "seen": about["seen"],
    }


def inputs(graph: ProposalGraph, rgb: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """`image` and `vlm_image` of an (H, W, 3) uint8 picture, at its own size."""
    image = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))).float()
    bottom, right = (-side % graph.divisor for side in image.shape[1:])
    image = torch.nn.functional.pad(image, (0, right, 0, bottom))[None]
    vlm = graph.model.vlm
    return image, resized(image, vlm.image_size, vlm.cell)


def trace(graph: ProposalGraph, text: Tensor, unseen: Tensor) -> torch.export.ExportedProgram:
    """The graph with free sizes of both images and a free number of classes."""
    rows, columns = graph.model.vlm.cell
    free = [torch.export.Dim(name, min=1, max=_MOST) for name in ("h", "w", "vlm_h", "vlm_w")]
    classes = torch.export.Dim("classes", min=1, max=2**20)
    shapes = (
        {2: graph.divisor * free[0], 3: graph.divisor * free[1]},
        {2: rows * free[2], 3: columns * free[3]},
        {0: classes},
        {0: classes},
    )
    image = torch.zeros(1, 3, *(graph.divisor * count for count in _TRACED))
    # Other sizes than the image's, so that none is taken for the other.
    vlm_image = torch.zeros(1, 3, 9 * rows, 11 * columns)
    # One class or two may be taken for a constant.
    text, unseen = (torch.cat([x, x, x, x])[:7] for x in (text, unseen))
    with _plain_attention(), fixed_padding(graph), torch.no_grad():
        return torch.export.export(
            graph,
            (image, vlm_image, text, unseen),
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without PyTorch's fused attention for inference, which no exporter knows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what the exporter says about its own optimizations."""
    exporter = logging.getLogger("onnxscript")
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        exporter.setLevel(before)


def _onnx(program: torch.export.ExportedProgram, settings: dict[str, Any]) -> bytes:
    with _quiet():
        made = torch.onnx.export(
            program, dynamo=True, input_names=INPUTS, output_names=OUTPUTS, verbose=False
        )
    assert made is not None
    proto = made.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(settings)
    if proto.ByteSize() > _MOST_BYTES:
        raise ValueError(
            f"the graph has {proto.ByteSize()} bytes, more than one ONNX file holds; "
            "give an output that ends in .pt2"
        )
    return proto.SerializeToString()


def _pt2(program: torch.export.ExportedProgram, settings: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={f"{KEY}.json": json.dumps(settings)})
    return stream.getvalue()


def check(
    graph: ProposalGraph, content: bytes, text: Tensor, vocabulary: Vocabulary
) -> dict[str, float]:
    """Runs a written graph on drawn scenes of several sizes beside the model itself.

    Returns:
        The largest absolute difference of each output; masks and scores are compared with those of
        the model's own answer, which the graph was not made of.

    Raises:
        RuntimeError: if one exceeds `TOLERANCE`.
    """
    run, unseen = _runner(content), vocabulary.unseen_mask()
    found = dict.fromkeys(OUTPUTS, 0.0)
    for index, counts in enumerate(_CHECKED):
        height, width = (graph.divisor * count for count in counts)
        scene = render_scene(scene_rng(index, "val", 0), max(height, width)).image
        rgb = scene[:height, :width]
        given = (*inputs(graph, rgb), text, unseen)
        image = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))
        with torch.no_grad():
            own = graph.model([{"image": image, "vocabulary": vocabulary}])[0]
            _, embeds, _, weights = graph(*given)
            answered = run(given)
        wanted = (own["mask_logits"], embeds, own["class_probs"], weights)
        for name, ours, theirs in zip(OUTPUTS, wanted, answered, strict=True):
            found[name] = max(found[name], float((ours - theirs).abs().max()))
    worst = max(found, key=lambda name: found[name])
    if not found[worst] <= TOLERANCE:
        raise RuntimeError(
            f"the exported graph's {worst} differ from the model's by {found[worst]:g}, more than "
            f"{TOLERANCE:g}; nothing was written"
        )
    return found


def _runner(content: bytes) -> Any:
    """A function from the inputs to the outputs, as tensors."""
    if content.startswith(b"PK"):
        program = torch.export.load(io.BytesIO(content)).module()
        return lambda given: program(*given)
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(given: Sequence[Tensor]) -> list[Tensor]:
        named = {name: value.numpy() for name, value in zip(INPUTS, given, strict=True)}
        return [torch.from_numpy(value) for value in session.run(list(OUTPUTS), named)]

    return run
