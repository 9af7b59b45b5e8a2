"""A checkpoint as a function from images to label maps."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from numpy.typing import NDArray
from torch import nn

from alignzeg.arguments import check_pairs
from alignzeg.data.class_names import read_class_list
from alignzeg.data.input_images import as_rgb
from alignzeg.data.lint import pitfalls, prompt_words
from alignzeg.data.mapper import test_augmentations
from alignzeg.engine import config_from_yaml, require_device
from alignzeg.engine.checkpoints.checkpoint import AlignZegCheckpointer
from alignzeg.engine.checkpoints.reading import read_about
from alignzeg.inference.checkpoint_classes import eval_vocabulary, provide_seen
from alignzeg.inference.prediction import Prediction, ProposalSet
from alignzeg.structures import Vocabulary
from alignzeg.visualize import resized, shrunk

logger = logging.getLogger(__name__)


def parse_classes(text: str) -> list[str]:
    """Class names from a command line, see `read_class_list`."""
    return list(read_class_list(text))


# Pixels of an image that are segmented at once, by default.
MAX_PIXELS = 2_000_000
# Windows are looked at one by one: so many times more pixels fit.
_WINDOWED = 4


class Predictor:
    """Names every pixel of an image among any class names; needs nothing but a weight file.

    Arrays and tensors are RGB, as from Pillow; what cv2.imread gives is BGR, `array[..., ::-1]`::

        predictor = Predictor("model_final.pth", classes=["red star", "brick"])
        prediction = predictor("image.jpg")
        prediction.overlay().save("overlay.png")
    """

    def __init__(
        self,
        weights: str | Path,
        classes: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        opts: Sequence[str] = (),
        max_pixels: int = MAX_PIXELS,
        *,
        plugins: Sequence[str | Path] = (),
        trust_code: bool = False,
    ) -> None:
        """Builds the model that the checkpoint describes.

        Args:
            weights: a checkpoint written by this package.
            classes: what to look for unless a call says otherwise; "sofa; couch" is sofa, which
                may also be called a couch.
            device: such as "cpu" or "cuda:0", which must be there; by default that of the config
                where it is there, else the CPU.
            opts: KEY VALUE pairs over the checkpoint's config, in turn.
            max_pixels: of larger images the network sees a smaller copy of so many pixels, and
                label maps are made at so many and enlarged; that bounds memory and time. With
                windows (ALIGNZEG.TEST.WINDOW) the network sees up to 4 times as many. 0: no limit.
            plugins: Python files of the caller's own with components of the model, in place of
                those that the checkpoint lists.
            trust_code: run the Python files that the checkpoint lists.

        Raises:
            ValueError: if the file is no such checkpoint, it lists plugins that nobody allowed, its
                VLM is not the one found here, a config key is unknown, the class names are empty
                or repeated, or another argument is none of what is said here.
        """
        if not isinstance(weights, (str, os.PathLike)):
            raise ValueError(f"weights is {weights!r}; it must be the name of a checkpoint's file")
        _require_count(max_pixels, "max_pixels")
        _require_pairs(opts)
        weights = os.fspath(weights)
        about = read_about(weights)
        device = str(device or "")
        if device:
            require_device(device)
        asked = dict(zip(opts[0::2], opts[1::2], strict=False)).get("MODEL.DEVICE")
        if asked:
            require_device(asked, "MODEL.DEVICE")
        opts = [*opts, *(["MODEL.DEVICE", device] if device else [])]
        folder = Path(weights).parent
        cfg = config_from_yaml(
            about["config"], opts, folder, plugins=plugins, trust_code=trust_code
        )
        self.vocabulary = None if classes is None else eval_vocabulary(classes, about["seen"])
        provide_seen(cfg, about["seen"])
        # The checkpoint has these weights too, so their package or file need not be here.
        cfg.ALIGNZEG.ENCODER.TIMM_WEIGHTS, cfg.MODEL.WEIGHTS = "", weights
        self.cfg = cfg
        self.model: nn.Module = build_model(cfg).eval()
        AlignZegCheckpointer(self.model, strict=True).load(weights)
        self.seen: tuple[str, ...] = tuple(about["seen"])
        self._resize = T.AugmentationList(test_augmentations(cfg))
        self._max_pixels = max_pixels
        # The last ones: a web page is asked for any number of lists.
        self._warned: deque[Vocabulary] = deque(maxlen=64)
        if self.vocabulary is not None:
            self._warn(self.vocabulary)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        classes: Sequence[str] | None = None,
        *,
        opts: Sequence[str] = (),
        revision: str | None = None,
        trust_code: bool = False,
        **options: Any,
    ) -> Predictor:
        """The model of a folder that `alignzeg share` made, or of the Hugging Face Hub.

        The source is the folder, or an id such as "user/model", and `revision` a branch, tag or
        commit on the Hub. With `trust_code` Python files that the model brings may run; `plugins`
        of the caller's own take their place. Classes, opts and further options are those of
        `Predictor`.

        Raises:
            ValueError: as above and as `alignzeg.sharing.locate`.
        """
        from alignzeg.sharing import locate

        own = "ALIGNZEG.PLUGINS" in opts[0::2] or bool(options.get("plugins"))
        found = locate(source, revision=revision, trust_code=trust_code or own)
        return cls(found.weights, classes, opts=(*found.opts, *opts), **options)

    @torch.inference_mode()
    def __call__(
        self,
        image: Any,
        classes: Sequence[str] | None = None,
        proposals: int = 0,
    ) -> Prediction | list[Prediction]:
        """Names every pixel of an image, or of each image of a list.

        Args:
            image: a file name; the bytes of an image file, or a file object opened to read them; a
                PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) in the order RGB; a
                tensor of these shapes, or with the channels first. uint8 0..255 or float 0..1; see
                `alignzeg.data.input_images.as_rgb`. Or a list or tuple of these, or a tensor
                (B, C, H, W).
            classes: names to choose from; by default those given at the start. Text is encoded
                once per list.
            proposals: how many of the surest mask proposals to keep in the result.

        Returns:
            The prediction, or a list of one for each image of a list or batch.

        Raises:
            ValueError: on an image that cannot be read or is of an unknown kind, or empty, repeated
                or missing class names; of a list, all are looked at before the first answer.
        """
        _require_count(proposals, "proposals")
        if proposals:
            self.require_proposals()
        vocabulary = self.vocabulary
        if classes is not None:
            vocabulary = eval_vocabulary(classes, self.seen)
            self._warn(vocabulary)
        if vocabulary is None:
            raise ValueError("no class names; give them to Predictor(...) or to this call")
        if isinstance(image, torch.Tensor) and image.ndim == 4:
            image = list(image)
        if isinstance(image, (list, tuple)):
            images = [as_rgb(one) for one in image]
            return [self._predict(rgb, vocabulary, proposals) for rgb in images]
        return self._predict(as_rgb(image), vocabulary, proposals)

    def require_proposals(self) -> None:
        """Raises ValueError if the model names pixels without mask proposals."""
        if not getattr(self.model, "makes_proposals", True):
            raise ValueError(
                f"{type(self.model).__name__} names pixels without mask proposals, so there are "
                "none to show"
            )

    def _predict(
        self, rgb: NDArray[np.uint8], vocabulary: Vocabulary, proposals: int
    ) -> Prediction:
        height, width = limited(rgb.shape[:2], self._max_pixels)
        sample = {
            "image": self.network_input(rgb),
            "vocabulary": vocabulary,
            "height": height,
            "width": width,
            "confidence": True,
        }
        answer = self.model([sample])[0]
        kept = _surest(answer, proposals) if proposals else None
        labels = resized(answer["sem_seg"].cpu().numpy(), rgb.shape[:2])
        best = answer.get("confidence")
        if best is not None:
            # Several proposals may add up to a little more than 1.
            best = resized(best.clamp(0, 1).half().cpu().numpy(), rgb.shape[:2])
        return Prediction(labels, vocabulary, rgb, kept, best)

    def known_words(self) -> dict[str, Any]:
        """Which words the checkpoint's VLM knows.

        Returns:
            "vlm": what it is called; "known": the words it was trained with, in order, or None
            where they are too many to list; "asked": the words of the classes, or None without.
            A model that can name its own classes alone stands in place of the VLM.
        """
        vlm: Any = getattr(self.model, "vlm", None)
        known = getattr(vlm, "known_words", None)
        if fixed := getattr(self.model, "fixed_names", ()):
            vlm, known = None, prompt_words(fixed)
        asked = None if self.vocabulary is None else prompt_words(self.vocabulary.prompts)
        name = getattr(vlm, "id", "this model, which has no VLM,")
        return {"vlm": name, "known": None if known is None else sorted(known), "asked": asked}

    def _warn(self, vocabulary: Vocabulary) -> None:
        """Logs, once for each list of classes, what makes an answer worth less than it looks."""
        if vocabulary in self._warned:
            return
        self._warned.append(vocabulary)
        for warning in pitfalls(vocabulary, getattr(self.model, "vlm", None)):
            logger.warning("%s", warning)

    def network_input(self, rgb: NDArray[np.uint8]) -> torch.Tensor:
        """(3, H, W) what the network sees of an image."""
        inputs = T.AugInput(rgb)
        self._resize(inputs)
        size = inputs.image.shape[:2]
        augmentation = getattr(self.model, "augmentation", None)
        single = augmentation is None or augmentation.single
        wanted = limited(size, self._max_pixels * (1 if single else _WINDOWED))
        if wanted != size:
            logger.warning(
                "an image of %d x %d pixels is looked at as one of %d x %d; "
                "ALIGNZEG.TEST.WINDOW 512 looks at it through windows",
                *(rgb.shape[1], rgb.shape[0], wanted[1], wanted[0]),
            )
            inputs.image = shrunk(inputs.image, wanted)
        return torch.from_numpy(np.ascontiguousarray(inputs.image.transpose(2, 0, 1)))


def limited(size: tuple[int, int], most: int) -> tuple[int, int]:
    """Height and width of the same shape, with at most so many pixels; 0: of any number."""
    height, width = size
    if not most or height * width <= most:
        return height, width
    scale = (most / (height * width)) ** 0.5
    height, width = max(1, int(height * scale)), max(1, int(width * scale))
    return min(height, most // width or 1), min(width, most // height or 1)


def _require_count(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is {value!r}; it must be a whole number, 0 or more")


def _require_pairs(opts: Any) -> None:
    if isinstance(opts, str) or not all(isinstance(word, str) for word in opts):
        raise ValueError(f"opts is {opts!r}; it must be a list of texts, KEY VALUE in turn")
    check_pairs(opts)


def _surest(answer: dict[str, Any], count: int) -> ProposalSet:
    if not {"class_probs", "mask_logits"} <= answer.keys():
        raise ValueError("this model's answers hold no mask proposals, so there are none to show")
    scores, classes = answer["class_probs"][:, :-1].float().max(-1)
    order = scores.argsort(descending=True)[:count]
    unseen = answer.get("unseen_probs")
    unseen = torch.full_like(scores, torch.nan) if unseen is None else unseen.float()
    return ProposalSet(
        masks=answer["mask_logits"][order].float().sigmoid().half().cpu().numpy(),
        classes=classes[order].cpu().numpy(),
        scores=scores[order].cpu().numpy(),
        unseen=unseen[order].cpu().numpy(),
    )
