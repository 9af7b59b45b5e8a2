"""Meta-architectures of the pixel-level family: every pixel is named on its own, without masks."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList
from torch import Tensor

from alignzeg.config.run_keys import TEST
from alignzeg.data.labels import training_vocabulary
from alignzeg.generative.pixel_branch import PixelBranch
from alignzeg.generative.pixel_loss import pixel_cross_entropy
from alignzeg.modeling.augmented_inference import build_test_time_augmentation, cut_views
from alignzeg.modeling.encoders import build_image_encoder
from alignzeg.modeling.interpolation import Geometry, Size, output_rows, temporary_bytes
from alignzeg.modeling.layers import ImageModel, PixelNormalizer
from alignzeg.modeling.prompts import shared_vocabulary
from alignzeg.modeling.test_time_augmentation import (
    PixelView,
    TestTimeAugmentation,
    merge_views,
)
from alignzeg.structures import SYNONYM_SEPARATOR, Vocabulary, joined

logger = logging.getLogger(__name__)

# What decides how proposals become label maps; the exponents come with each data set's config.
_OF_PROPOSALS = ("ENSEMBLE_NORMALIZED", "DUPLICATE_IOU", "SEMANTIC_INFERENCE", "SYNONYMS")
_DEFAULTS = TEST.node()
# Score of a class that is no answer: finite, as it is interpolated.
_NEVER = -1e30


@META_ARCH_REGISTRY.register()
class PixelSegmenter(ImageModel):
    """A DeepLabV3+ trained on the pixels of seen classes; it never answers an unseen one.

    The first step of ZS3Net: its features are what the generator learns to imitate.

    Source: ZS3Net (arXiv 1906.00817), step 0.
    """

    makes_proposals = False
    branch: PixelBranch
    normalizer: PixelNormalizer

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        branch: PixelBranch,
        seen: Vocabulary,
        names: Sequence[str],
        normalizer: PixelNormalizer,
        balance: float = 0.0,
        memory_mib: float = 512.0,
        reject_below: float = 0.0,
        augmentation: TestTimeAugmentation | None = None,
    ) -> None:
        """Takes the parts.

        Args:
            backbone: Detectron2 image encoder.
            branch: features and classifier.
            seen: the classes that have training masks.
            names: what the classifier's K scores stand for, the seen ones first.
            normalizer: RGB images in 0..255 -> the image encoder's input.
            balance: of the loss, see `pixel_cross_entropy`.
            memory_mib: what the temporaries of a label map may take, MiB.
            reject_below: pixels whose best share is lower get the highest number of the dtype.
            augmentation: scales, flips and windows to look at in a test; None looks once, at
                the whole image as it comes.
        """
        super().__init__()
        self.backbone = backbone
        self.branch = branch
        self.seen = seen
        self.names = tuple(names)
        self.normalizer = normalizer
        self.balance = balance
        self.memory_mib = memory_mib
        self.reject_below = reject_below
        # The last ones, as any number of lists may be asked.
        self._said: deque[Vocabulary] = deque(maxlen=64)
        self.augmentation = augmentation or TestTimeAugmentation()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Builds the parts that the config names; says which settings have no effect."""
        test = cfg.ALIGNZEG.TEST
        idle = [key for key in _OF_PROPOSALS if test[key] != _DEFAULTS[key]]
        if idle:
            logger.warning(
                "ALIGNZEG.TEST.%s: no effect on %s, which makes no proposals",
                *(", ".join(idle), cfg.MODEL.META_ARCHITECTURE),
            )
        backbone = build_image_encoder(cfg)
        seen = training_vocabulary(cfg)
        return {
            "backbone": backbone,
            "branch": PixelBranch(cfg, backbone.output_shape(), len(seen)),
            "seen": seen,
            "names": seen.names,
            "normalizer": PixelNormalizer(
                cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT
            ),
            "balance": cfg.ALIGNZEG.LOSS.PIXEL_BALANCE,
            "memory_mib": test.MEMORY_MIB,
            "reject_below": test.REJECT_BELOW,
            "augmentation": build_test_time_augmentation(cfg),
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Detectron2's interface.

        Args:
            batched_inputs: one dict per image with "image" (3, H, W) uint8 RGB, "vocabulary", and
                "targets" in training or "height" and "width" of the wanted label map otherwise;
                with "confidence", the answer has it too.

        Returns:
            {"loss_pixel": scalar} in training, else for each image {"sem_seg": (height, width)
            uint8, or uint16 for more than 255 names; "confidence": (height, width) share of the
            named class among all that the classifier knows, or None}.

        Raises:
            ValueError: if the images of a batch do not share one vocabulary, or it has no class
                that the classifier knows.
        """
        vocabulary = shared_vocabulary(batched_inputs)
        if not self.training:
            # The network sees padding: an answer must not depend on the sizes of other images.
            asked = self.scores_of(vocabulary)
            return [self.segment(item, asked) for item in batched_inputs]
        images = self.pad([item["image"] for item in batched_inputs])
        logits = self.branch.classify(self.pixels(images))
        size = tuple(images.tensor.shape[-2:])
        targets = [item["targets"].to(self.device).padded(size) for item in batched_inputs]
        return {"loss_pixel": pixel_cross_entropy(logits, targets, self.balance)}

    def segment(self, item: dict[str, Any], asked: Tensor) -> dict[str, Any]:
        """The label map of one image: of its scores or, looked at several times, mean shares."""
        image = item["image"].to(self.device).float()
        size = (image.shape[1], image.shape[2])
        wanted = (item.get("height", size[0]), item.get("width", size[1]))
        best = torch.empty(wanted, device=self.device) if item.get("confidence") else None
        limits = (self.memory_mib, self.reject_below, best)
        if self.augmentation.single:
            images = self.pad([image])
            scores = self.branch.classify(self.pixels(images))[0].float()
            padded = (images.tensor.shape[2], images.tensor.shape[3])
            labels = label_map(scores, asked, padded, size, wanted, *limits)
            return {"sem_seg": labels.cpu(), "confidence": best}
        views = []
        for frame, images in cut_views(self.augmentation, image, wanted, self.size_divisibility):
            probs = self.branch.classify(self.pixels(images))[0].float().softmax(dim=0)
            probs = probs[asked.clamp(min=0)].masked_fill((asked < 0)[:, None, None], -1)
            padded = (images.tensor.shape[2], images.tensor.shape[3])
            views.append(PixelView(frame, probs, padded))
        return {"sem_seg": merge_views(views, wanted, *limits).cpu(), "confidence": best}

    @property
    def fixed_names(self) -> tuple[str, ...]:
        """All that it can ever name."""
        return self.names

    @property
    def size_divisibility(self) -> int:
        """Pixels that both sides of a padded batch are a multiple of."""
        # The coarsest feature, at stride 32, must divide the image.
        return max(self.backbone.size_divisibility, 32)

    def pad(self, images: Sequence[Tensor]) -> ImageList:
        """A batch of padded RGB images in 0..255."""
        return ImageList.from_tensors(
            [image.to(self.device).float() for image in images],
            self.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def pixels(self, images: ImageList) -> Tensor:
        """(B, C, h, w) pixel features of a padded batch."""
        return self.branch(self.backbone(self.normalizer(images.tensor)))

    def scores_of(self, vocabulary: Vocabulary) -> Tensor:
        """(K,) which of the classifier's scores each asked class has, -1 for none.

        Raises:
            ValueError: if none of the classes has one.
        """
        places = {joined(name): place for place, name in enumerate(self.names)}
        places |= {name: place for place, name in enumerate(self.names)}
        # By its name or another spelling of it, else by a synonym that is no other class's name.
        known = [places.get(name, places.get(joined(name), -1)) for name in vocabulary.names]
        taken = set(known)
        for index, prompt in enumerate(vocabulary.prompts):
            found = (places.get(joined(word), -1) for word in prompt.split(SYNONYM_SEPARATOR))
            if known[index] < 0:
                known[index] = next((place for place in found if place not in taken), -1)
        if max(known) < 0:
            raise ValueError(
                f"this pixel classifier knows none of {list(vocabulary.names)}; it was trained "
                f"for {list(self.names)}, and unlike AlignZeg it can name no other classes"
            )
        lost = [n for n, place in zip(vocabulary.names, known, strict=True) if place < 0]
        if lost and vocabulary not in self._said:
            self._said.append(vocabulary)
            logger.warning(
                "never answered: %s; this pixel classifier was trained for %s alone",
                *(", ".join(map(repr, lost)), ", ".join(map(repr, self.names))),
            )
        return torch.tensor(known, device=self.device)


def label_map(
    scores: Tensor,
    asked: Tensor,
    padded_size: Size,
    image_size: Size,
    output_size: Size,
    memory_mib: float,
    reject_below: float = 0.0,
    confidence: Tensor | None = None,
) -> Tensor:
    """Names every pixel by the class of the highest score, interpolated as masks are.

    Args:
        scores: (N, h, w) of the padded image, finite, whose softmax are shares.
        asked: (K,) which score each class has, -1 for none.
        padded_size: height and width in pixels that (h, w) covers; the other sizes, and what
            follows them, as in `semantic_inference`.
        image_size: see there.
        output_size: see there.
        memory_mib: see there.
        reject_below: see there; of the share.
        confidence: see there; the share.

    Returns:
        (Ho, Wo) label map on the device of the scores, uint8, or uint16 where K > 255. Equal
        scores: the lower class.
    """
    (height, width), count = output_size, max(len(scores), len(asked))
    geometry = Geometry((scores.shape[1], scores.shape[2]), padded_size, image_size, output_size)
    dtype = torch.uint16 if len(asked) > 255 else torch.uint8
    labels = torch.empty(output_size, dtype=dtype, device=scores.device)
    places, never = asked.clamp(min=0), (asked < 0)[:, None, None]
    shares = reject_below > 0 or confidence is not None
    values = scores.float() if shares else scores.float()[places]
    # Scores at the width of the padded image, at that of the answer, and those that are asked.
    row_bytes = 4 * count * (2 * padded_size[1] + 3 * width)
    step = max(1, min(height, temporary_bytes(memory_mib, scores.device) // row_bytes))
    for start in range(0, height, step):
        rows = slice(start, min(height, start + step))
        index = torch.arange(rows.start, rows.stop, device=scores.device)
        found = output_rows(values, index, geometry, masks=False)
        of_asked = (found[places] if shares else found).masked_fill(never, _NEVER)
        best, names = of_asked.max(0)
        if shares:
            share = (best - found.logsumexp(0)).exp()
            names = names.masked_fill(share < reject_below, torch.iinfo(dtype).max)
            if confidence is not None:
                confidence[rows] = share
        labels[rows] = names.to(dtype)
    return labels
