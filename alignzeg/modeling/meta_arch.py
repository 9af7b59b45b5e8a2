"""The meta-architecture: the only file that sees image encoder, head, matcher and criteria."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from alignzeg.contracts import HeadContract, VLMContract
from alignzeg.data.labels import training_vocabulary
from alignzeg.losses.criteria import count_masks, merge_losses
from alignzeg.losses.matcher import HungarianMatcher
from alignzeg.modeling.augmented_inference import (
    build_test_time_augmentation,
    segment_augmented,
)
from alignzeg.modeling.encoders import build_image_encoder
from alignzeg.modeling.layers import (
    MASK_STRIDE,
    REFINED_STRIDES,
    ImageModel,
    PixelNormalizer,
    geometric_ensemble,
    proposal_weights,
)
from alignzeg.modeling.prompts import ClassTexts, build_class_texts, group_max, shared_vocabulary
from alignzeg.modeling.semantic_inference import background_wins, semantic_inference
from alignzeg.modeling.test_time_augmentation import (
    TestTimeAugmentation,
)
from alignzeg.registries import build_criteria, build_head, build_vlm
from alignzeg.structures import Matches, Outputs, Targets, Vocabulary, moved


@META_ARCH_REGISTRY.register()
class AlignZeg(ImageModel):
    """Zero-shot semantic segmentation by mask proposals.

    The baseline and every row of the ablation are this class with other components in the config.

    Source: AlignZeg (arXiv 2404.05667).
    """

    head: HeadContract
    normalizer: PixelNormalizer

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: HeadContract,
        matcher: nn.Module,
        criteria: list[nn.Module],
        seen: Vocabulary,
        normalizer: PixelNormalizer,
        ensemble: tuple[float, float],
        normalized: bool = False,
        duplicate_iou: float,
        inference_opts: dict[str, Any],
        class_texts: ClassTexts | None = None,
        augmentation: TestTimeAugmentation | None = None,
    ) -> None:
        """Takes the parts, each by the contract of its registry.

        Args:
            backbone: Detectron2 image encoder with outputs at strides 4 to 32.
            head: see HEAD_REGISTRY; it owns the frozen VLM as `head.vlm`.
            matcher: assigns proposals to masks.
            criteria: see CRITERION_REGISTRY.
            seen: the classes that have training masks.
            normalizer: RGB images in 0..255 -> the image encoder's input.
            ensemble: exponents of the frozen VLM's score for seen and for unseen classes.
            normalized: whether the ensemble leaves a proposal's foreground probability as it was.
            duplicate_iou: IoU from which two proposals count as one; above 1 each counts.
            inference_opts: keyword arguments of `semantic_inference`: memory_mib, mode,
                reject_below.
            class_texts: what is said for each class; None: its prompt.
            augmentation: scales, flips and windows to look at in a test; None looks once, at
                the whole image as it comes.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.matcher = matcher
        self.criteria = nn.ModuleList(criteria)
        self.seen = seen
        self.normalizer = normalizer
        self.ensemble = ensemble
        self.normalized = normalized
        self.duplicate_iou = duplicate_iou
        self.inference_opts = inference_opts
        self.class_texts = class_texts or ClassTexts()
        self.augmentation = augmentation or TestTimeAugmentation()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Builds the parts that the config names."""
        backbone = build_image_encoder(cfg)
        test = cfg.ALIGNZEG.TEST
        return {
            "backbone": backbone,
            "head": build_head(cfg, backbone.output_shape(), build_vlm(cfg)),
            "matcher": HungarianMatcher(cfg),
            "criteria": build_criteria(cfg),
            "seen": training_vocabulary(cfg),
            "normalizer": PixelNormalizer(
                cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT
            ),
            "ensemble": (test.ENSEMBLE_SEEN, test.ENSEMBLE_UNSEEN),
            "normalized": test.ENSEMBLE_NORMALIZED,
            "duplicate_iou": test.DUPLICATE_IOU,
            "inference_opts": {
                "memory_mib": test.MEMORY_MIB,
                "mode": test.SEMANTIC_INFERENCE,
                "reject_below": test.REJECT_BELOW,
            },
            "class_texts": build_class_texts(cfg),
            "augmentation": build_test_time_augmentation(cfg),
        }

    @property
    def size_divisibility(self) -> int:
        """Pixels that both sides of a padded batch are a multiple of."""
        return max(self.backbone.size_divisibility, *REFINED_STRIDES)

    @property
    def vlm(self) -> VLMContract:
        """The frozen vision-language model."""
        return self.head.vlm

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Detectron2's interface.

        Args:
            batched_inputs: one dict per image with "image" (3, H, W) uint8 RGB, "vocabulary", and
                "targets" in training or "height" and "width" of the wanted label map otherwise;
                with "confidence", the answer has it too.

        Returns:
            A dict of weighted losses in training, else for each image a dict with "sem_seg"
            (height, width) uint8/uint16, "confidence" (height, width) best scores or None,
            "mask_logits" (Q, h, w), "background" (h, w) bool, true where it would beat every
            class, "class_probs" (Q, K+1) and "unseen_probs" (Q,) or None.

        Raises:
            ValueError: if the images of a batch do not share one vocabulary.
        """
        vocabulary = shared_vocabulary(batched_inputs)
        if not (self.training or self.augmentation.single):
            return [segment_augmented(self, item, vocabulary) for item in batched_inputs]
        if not self.training and len(batched_inputs) > 1:
            # Networks see padding: an answer must not depend on the sizes of other images.
            return [self([item])[0] for item in batched_inputs]
        images = ImageList.from_tensors(
            [moved(item["image"], self.device).float() for item in batched_inputs],
            self.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )
        if self.training:
            targets = [item["targets"].to(self.device) for item in batched_inputs]
            # The processes exchange it before one of them can fail.
            count = count_masks(targets)
        outputs = self.outputs(images, vocabulary)
        if self.training:
            outputs = dataclasses.replace(outputs, mask_count=count)
            return self.losses(outputs, targets, images, vocabulary)
        return self.segment(outputs, batched_inputs, images, vocabulary)

    def outputs(self, images: ImageList, vocabulary: Vocabulary) -> Outputs:
        """Proposals and scores of a batch of padded RGB images in 0..255."""
        features = self.backbone(self.normalizer(images.tensor))
        text, sizes = self.text(vocabulary)
        seen_text, _ = self.text(self.seen, single=True)
        outputs = self.head(images.tensor, features, text, seen_text)
        return dataclasses.replace(outputs, class_logits=group_max(outputs.class_logits, sizes))

    def text(self, vocabulary: Vocabulary, single: bool = False) -> tuple[Tensor, list[int]]:
        """(S, D) text prototypes, class by class, and how many of them each class has.

        Each has one in training, or if `single`.
        """
        names, sizes = self.class_texts.texts(vocabulary, self.training or single)
        return self.vlm.embed_text(names).to(self.device), sizes

    def losses(
        self, outputs: Outputs, targets: list[Targets], images: ImageList, vocabulary: Vocabulary
    ) -> dict[str, Tensor]:
        """The weighted losses of all criteria."""
        targets = [target.padded(images.tensor.shape[-2:]) for target in targets]
        matches = self.matcher(outputs, targets)
        queries, regions, embeds = (
            of_matched(values, matches[-1])
            for values in (outputs.proposals[-1].embeds, outputs.region_embeds, outputs.embeds)
        )
        pairs = zip(targets, matches[-1], strict=True)
        labels = torch.cat([target.labels[match.targets] for target, match in pairs])
        text, _ = self.text(vocabulary, single=True)
        synthetic = self.head.synthesize(regions, queries, labels, text)
        outputs = dataclasses.replace(
            outputs,
            text=text,
            synthetic=synthetic,
            unseen_examples=self.head.corrector.examples(embeds, regions, labels, text, synthetic),
        )
        return merge_losses([criterion(outputs, targets, matches) for criterion in self.criteria])

    def segment(
        self,
        outputs: Outputs,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
        vocabulary: Vocabulary,
    ) -> list[dict[str, Any]]:
        """Label maps of the original size, and the scored proposals they were made of."""
        probs = self.class_probs(outputs, vocabulary)
        results = []
        for index, (item, size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
            logits = outputs.proposals[-1].mask_logits[index].float()
            output_size = (item.get("height", size[0]), item.get("width", size[1]))
            weighted_probs = self.weighted_probs(probs[index], logits)
            padded = tuple(images.tensor.shape[-2:])
            best = logits.new_empty(output_size) if item.get("confidence") else None
            labels = self.label_map(weighted_probs, logits, padded, size, output_size, best)
            rows, columns = (-(-edge // MASK_STRIDE) for edge in size)
            unseen, memory = outputs.unseen_logits, self.inference_opts["memory_mib"]
            inside = logits[:, :rows, :columns]
            results.append(
                {
                    "sem_seg": labels.cpu(),
                    "confidence": best,
                    "mask_logits": inside,
                    "background": background_wins(weighted_probs, inside, memory),
                    "class_probs": probs[index],
                    "unseen_probs": None if unseen is None else unseen[index].float().sigmoid(),
                }
            )
        return results

    def weighted_probs(self, class_probs: Tensor, mask_logits: Tensor) -> Tensor:
        """(Q, K+1) probabilities of one image, whose (Q, h, w) masks share a vote if copies."""
        return class_probs * proposal_weights(mask_logits, self.duplicate_iou).unsqueeze(-1)

    def label_map(
        self,
        weighted_probs: Tensor,
        mask_logits: Tensor,
        padded_size: tuple[int, int],
        image_size: tuple[int, int],
        output_size: tuple[int, int],
        confidence: Tensor | None = None,
    ) -> Tensor:
        """Names every pixel of one image from (Q, K+1) weighted probabilities and (Q, h, w) masks.

        Sizes are (height, width) in pixels: of the padded batch, of the image inside it, and of the
        (H, W) label map that is wanted; best scores go to `confidence`.
        """
        sizes = (padded_size, image_size, output_size)
        options = {**self.inference_opts, "confidence": confidence}
        return semantic_inference(weighted_probs[:, :-1], mask_logits, *sizes, **options)

    def class_probs(self, outputs: Outputs, vocabulary: Vocabulary) -> Tensor:
        """(B, Q, K+1) probabilities after bias correction and, by option, the ensemble."""
        probs = self.corrected_probs(outputs, vocabulary)
        if not any(self.ensemble):
            return probs
        return self.ensembled(probs, self.frozen_probs(outputs, vocabulary), vocabulary)

    def corrected_probs(self, outputs: Outputs, vocabulary: Vocabulary) -> Tensor:
        """(B, Q, K+1) trained probabilities after bias correction, background last."""
        unseen = vocabulary.unseen_mask(self.device)
        return self.head.correct(outputs, unseen).float().softmax(dim=-1)

    def frozen_probs(self, outputs: Outputs, vocabulary: Vocabulary) -> Tensor:
        """(B, Q, K) probabilities of the frozen VLM, which knows no background."""
        text, sizes = self.text(vocabulary)
        scores = self.vlm.logit_scale * outputs.region_embeds.float() @ text.T
        return group_max(scores, sizes).softmax(dim=-1)

    def ensembled(self, probs: Tensor, frozen: Tensor, vocabulary: Vocabulary) -> Tensor:
        """(B, Q, K+1) of the trained (B, Q, K+1) and the frozen (B, Q, K) probabilities."""
        unseen = vocabulary.unseen_mask(self.device)
        foreground = 1 - probs[..., -1:]
        exponents = torch.where(unseen, self.ensemble[1], self.ensemble[0])
        mixed = geometric_ensemble(probs[..., :-1], frozen * foreground, exponents, self.normalized)
        return torch.cat([mixed, probs[..., -1:]], dim=-1)


def of_matched(values: Tensor, matches: list[Matches]) -> Tensor:
    """(N, ...) rows of (B, Q, ...) values of the proposals that own a mask."""
    return torch.cat([values[i, match.proposals] for i, match in enumerate(matches)])
