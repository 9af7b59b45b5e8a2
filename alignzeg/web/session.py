"""What the page asks a model: the network once per image and class list, corrections at once."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alignzeg.data.input_images import as_rgb
from alignzeg.data.lint import pitfalls
from alignzeg.evaluation.cached_proposals import propose
from alignzeg.evaluation.settings_counts import restored
from alignzeg.inference.checkpoint_classes import eval_vocabulary
from alignzeg.inference.predictor import Predictor, limited
from alignzeg.modeling.correctors import ConstantShift
from alignzeg.modeling.layers import MASK_STRIDE
from alignzeg.structures import Outputs, Vocabulary
from alignzeg.visualize import shrunk

logger = logging.getLogger(__name__)

# Pixels of the image that the page shows and names.
_SHOWN_PIXELS = 600_000
# Characters of class names that a visitor may have encoded at once.
_LONGEST = 20_000


@dataclass(frozen=True)
class Scene:
    """One image that the network has looked at with one list of classes.

    Attributes:
        key: of image and classes; the same for the same.
        image: (H, W, 3) uint8 RGB as it is shown.
        vocabulary: the classes; which of them are seen may change later.
        notes: what makes the answers worth less than they look, one line each.
        outputs: scored proposals, a batch of one.
        sizes: height and width that the mask logits cover, and of the network's input.
    """

    key: str
    image: NDArray[np.uint8] = field(repr=False)
    vocabulary: Vocabulary
    notes: tuple[str, ...]
    outputs: Outputs = field(repr=False)
    sizes: tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Answer:
    """A scene under one correction.

    Attributes:
        labels: (H, W) class ids; the highest number of the dtype is "none of these".
        scores: (Q,) highest probability of each proposal.
        classes: (Q,) its class.
        unseen: (Q,) probability of "not a class seen in training", or None without an indicator.
    """

    labels: NDArray
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    unseen: NDArray[np.float32] | None


class Session:
    """A checkpoint that answers for many images; safe to be asked by several threads.

    Attributes:
        seen: names of the classes that the checkpoint was trained on.
        gamma: the amount of its bias correction, in logits.
        threshold: of its unseen indicator, 0 to 1; None without one.
    """

    def __init__(self, predictor: Predictor) -> None:
        """Takes the model of a predictor; one without a bias correction gets a constant shift.

        Raises:
            ValueError: if the model makes no mask proposals, or looks at an image more than once.
        """
        model: Any = predictor.model
        if not hasattr(model, "head") or not hasattr(model.head, "corrector"):
            raise ValueError(
                f"the page shows mask proposals, but the checkpoint is a {type(model).__name__}, "
                "which makes none; use alignzeg predict"
            )
        if not model.augmentation.single:
            raise ValueError(
                "the page looks at each image once; set TEST.AUG.ENABLED False and "
                "ALIGNZEG.TEST.WINDOW 0"
            )
        if not hasattr(model.head.corrector, "gamma"):
            model.head.corrector = ConstantShift(gamma=0.0)
        self._predictor, self._model = predictor, model
        self._lock = threading.Lock()
        self.seen: tuple[str, ...] = tuple(predictor.seen)
        self.gamma = float(model.head.corrector.gamma)
        threshold = getattr(model.head.corrector, "threshold", None)
        self.threshold = None if threshold is None else float(threshold)

    def vocabulary(self, text: str, marked: Collection[str] | None = None) -> Vocabulary:
        """The classes that a line of names means; never a file, as the text comes from a browser.

        "sofa; couch" is sofa, which may also be called a couch. `marked` names count as seen in
        training; None: those that were.

        Raises:
            ValueError: if there is no name, or one that cannot be meant.
        """
        if len(text) > _LONGEST:
            raise ValueError(f"{len(text):,} characters are too many; type at most {_LONGEST:,}")
        parts = [part for part in text.replace("\n", ",").split(",") if part.strip()]
        if not parts:
            raise ValueError('type class names between commas, such as "cat, grass, sky"')
        asked = eval_vocabulary(parts, self.seen)
        if marked is None:
            return asked
        return dataclasses.replace(asked, seen=tuple(name in marked for name in asked.names))

    def knows(self, text: str) -> bool:
        """Whether the frozen VLM has read the words of a line of class names."""
        return not pitfalls(self.vocabulary(text), getattr(self._model, "vlm", None))

    @torch.no_grad()
    def look(self, image: Any, text: str, before: Scene | None = None) -> Scene:
        """Runs the network, unless it has looked at this image with these classes before.

        Raises:
            ValueError: on an image or names that cannot be meant.
        """
        vocabulary = self.vocabulary(text)
        rgb = as_rgb(image)
        digest = hashlib.sha256(repr((rgb.shape, vocabulary.prompts)).encode())
        digest.update(rgb.tobytes())
        key = digest.hexdigest()
        if before is not None and before.key == key:
            return before
        notes = tuple(pitfalls(vocabulary, getattr(self._model, "vlm", None)))
        with self._lock:
            logger.info("looking at an image of %d x %d", rgb.shape[1], rgb.shape[0])
            outputs, covered, size = propose(
                self._model, self._predictor.network_input(rgb), vocabulary
            )
        shown = shrunk(rgb, limited(rgb.shape[:2], _SHOWN_PIXELS))
        return Scene(key, shown, vocabulary, notes, outputs, (covered, size))

    @torch.no_grad()
    def answer(
        self, scene: Scene, marked: Collection[str], gamma: float, threshold: float | None = None
    ) -> Answer:
        """Names the pixels of a scene under a correction; the network does not run.

        `marked` names count as seen in training. A gamma of 0 is without correction; without a
        threshold it is the checkpoint's own.
        """
        model, outputs = self._model, scene.outputs
        seen = tuple(name in marked for name in scene.vocabulary.names)
        vocabulary = dataclasses.replace(scene.vocabulary, seen=seen)
        masks = outputs.proposals[-1].mask_logits[0].float()
        with self._lock, restored(model):
            model.head.corrector.gamma = float(gamma)
            if threshold is not None and self.threshold is not None:
                model.head.corrector.threshold = float(threshold)
            probs = model.class_probs(outputs, vocabulary)[0]
            weighted = model.weighted_probs(probs, masks)
            labels = model.label_map(weighted, masks, *scene.sizes, scene.image.shape[:2])
        scores, classes = probs[:, :-1].float().max(-1)
        unseen = outputs.unseen_logits
        return Answer(
            labels.cpu().numpy(),
            scores.cpu().numpy(),
            classes.cpu().numpy(),
            None if unseen is None else unseen[0].float().sigmoid().cpu().numpy(),
        )

    def masks(self, scene: Scene, numbers: Sequence[int]) -> NDArray[np.float32]:
        """(n, h, w) probabilities of some proposals of a scene, at a quarter of its size."""
        rows, columns = (-(-edge // MASK_STRIDE) for edge in scene.sizes[1])
        logits = scene.outputs.proposals[-1].mask_logits[0, list(numbers), :rows, :columns]
        return logits.float().sigmoid().cpu().numpy()
