"""The generative meta-architecture: unseen classes are learned from features made from words."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor

from alignzeg.contracts import VLMContract
from alignzeg.data.labels import get_vocabulary
from alignzeg.generative.pixel_branch import PixelBranch
from alignzeg.generative.pixel_segmenter import PixelSegmenter
from alignzeg.generative.recursion import Feedback, Phase
from alignzeg.generative.word_vectors import build_semantics
from alignzeg.losses.functional import no_loss
from alignzeg.losses.mmd import weighted_mmd
from alignzeg.modeling.generator import GMMNGenerator
from alignzeg.registries import build_vlm

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class GenerativeSegmenter(PixelSegmenter):
    """ZS3Net and, with rounds of feedback, recursive training with ZS-MMD.

    In training it takes features of labelled pixels, not images: image encoder and decoder are
    frozen. A round teaches the generator to imitate the features of each seen class, then the
    classifier on real features of seen and generated ones of unseen classes. From round 1 on the
    generator also learns from pseudo-features of the unseen classes, weighted by the classifier's
    confidence in them. The names of the unseen classes are used in training: that is transductive.

    With a VLM, a pixel's feature is the decoder's and, behind it, the VLM's dense embedding. The
    decoder has learned to tell seen classes apart and forgets the others; the frozen VLM does not.

    Source: ZS3Net (arXiv 1906.00817); recursive training and ZS-MMD (arXiv 2103.00086). [ours: the
    VLM's part]
    """

    TRAINER = "GenerativeTrainer"

    generator: GMMNGenerator
    semantics: Tensor
    pseudo: Tensor
    pseudo_weights: Tensor
    vlm: VLMContract | None

    @configurable
    def __init__(
        self,
        *,
        generator: GMMNGenerator,
        semantics: Tensor,
        feedback: Feedback,
        bandwidths: Sequence[float],
        vlm: VLMContract | None = None,
        vlm_norm: float = 1.0,
        **pixel: Any,
    ) -> None:
        """Takes the parts.

        Args:
            generator: semantic vectors -> features.
            semantics: (K, A) of all classes, the seen ones first.
            feedback: what becomes of the features that the classifier is sure of.
            bandwidths: of the discrepancy's Gaussian kernels, in feature units.
            vlm: the frozen model whose dense embedding a pixel's feature ends with, if any; the
                branch's classifier reads it.
            vlm_norm: the length that it gets, in feature units.
            pixel: as `PixelSegmenter`, with a classifier and names for all K classes.
        """
        super().__init__(**pixel)
        self.backbone.requires_grad_(False)
        self.branch.decoder.requires_grad_(False)
        self.generator = generator
        self.feedback = feedback
        self.bandwidths = tuple(bandwidths)
        self.vlm = vlm
        self.vlm_norm = vlm_norm
        self.register_buffer("semantics", semantics, False)
        # Pseudo-features of the round, and their weights: in sum 1 for each unseen class, or 0
        # where the classifier is sure of none.
        unseen = len(self.names) - len(self.seen)
        self.register_buffer("pseudo", torch.zeros(unseen, feedback.count, self.branch.channels))
        self.register_buffer("pseudo_weights", torch.zeros(unseen, feedback.count))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Builds the parts that the config names.

        Raises:
            ValueError: if no class is unseen, or there is a skip to features that do not end with
                the VLM's embedding.
        """
        pixel = PixelSegmenter.from_config(cfg)
        vocabulary = get_vocabulary(cfg.DATASETS.TRAIN[0], cfg.ALIGNZEG.DATA.HOLD_OUT)
        if not vocabulary.unseen_ids:
            raise ValueError(
                f"data set {cfg.DATASETS.TRAIN[0]!r} has no unseen class to generate features for"
            )
        order = [*vocabulary.seen_ids, *vocabulary.unseen_ids]
        semantics = build_semantics(cfg, vocabulary)[order]
        node, recursion = cfg.ALIGNZEG.GENERATOR, cfg.ALIGNZEG.RECURSION
        vlm = build_vlm(cfg) if node.VLM_NORM else None
        width = vlm.embed_dim if vlm else 0
        if node.SKIP and width != semantics.shape[1]:
            raise ValueError(
                f"ALIGNZEG.GENERATOR.SKIP is {node.SKIP}, but features do not end with an "
                f"embedding of {semantics.shape[1]} channels, as semantic vectors have: set "
                "ALIGNZEG.SEMANTICS.SOURCE to vlm and VLM_NORM above 0, or SKIP to 0"
            )
        branch = PixelBranch(cfg, pixel["backbone"].output_shape(), len(order), vlm_channels=width)
        return {
            **pixel,
            "branch": branch,
            "names": [vocabulary.names[i] for i in order],
            "generator": GMMNGenerator(
                semantic_dim=semantics.shape[1],
                feature_dim=branch.channels,
                hidden_dim=node.HIDDEN_DIM,
                dropout=node.DROPOUT,
                skip=node.SKIP,
            ),
            "vlm": vlm,
            "vlm_norm": node.VLM_NORM,
            "semantics": semantics,
            "feedback": Feedback(
                weight=recursion.WEIGHT,
                confidence=recursion.CONFIDENCE,
                count=recursion.PSEUDO,
                source=recursion.SOURCE,
                use=recursion.USE,
            ),
            "bandwidths": node.BANDWIDTHS,
        }

    def train(self, mode: bool = True) -> GenerativeSegmenter:
        """Sets the mode of generator and classifier; the frozen parts stay as in a test."""
        super().train(mode)
        self.backbone.eval()
        self.branch.decoder.eval()
        return self

    def pixels(self, images: ImageList) -> Tensor:
        """(B, C, h, w) pixel features of a padded batch; with a VLM its embedding comes last."""
        decoded = super().pixels(images)
        if self.vlm is None:
            return decoded
        return torch.cat([decoded, self.embeds(images, decoded.shape[-2:])], dim=1)

    @torch.no_grad()
    def embeds(self, images: ImageList, size: Sequence[int]) -> Tensor:
        """(B, D, h, w) the VLM's dense embedding of a padded batch, every vector of one length.

        The VLM sees each image without its padding, beneath which the border goes on.
        """
        assert self.vlm is not None
        height, width = images.tensor.shape[-2:]
        found = []
        for image, (rows, columns) in zip(images.tensor, images.image_sizes, strict=True):
            dense = self.vlm.embed_dense(image[None, :, :rows, :columns]).float()
            inside = (round(rows * size[0] / height), round(columns * size[1] / width))
            dense = F.interpolate(dense, inside, mode="bilinear", align_corners=False)
            missing = (0, size[1] - inside[1], 0, size[0] - inside[0])
            dense = F.pad(dense, missing, mode="replicate")
            found.append(self.vlm_norm * F.normalize(dense, dim=1))
        return torch.cat(found)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Detectron2's interface; as `PixelSegmenter`, but in training one dict of features.

        Args:
            batched_inputs: in training one dict with "classes" (S,) the seen classes that there are
                features of, "features" (S, N, C), "shares" (K,) of all pixels that each class has
                in the layout, "unlabelled" (M, C) features of pixels without a label, "step", and
                "phase" with the fields of its `Phase`.

        Returns:
            In training {"loss_mmd", "loss_zs_mmd"} or {"loss_classifier"}.
        """
        if not self.training:
            return super().forward(batched_inputs)
        batch: dict[str, Any] = {
            key: value.to(self.device) if isinstance(value, Tensor) else value
            for key, value in batched_inputs[0].items()
        }
        phase = Phase(**batch["phase"])
        if phase.first and phase.round:
            self.collect(batch["unlabelled"], batch["step"])
        if not phase.generator:
            return {"loss_classifier": self.classifier_loss(batch, phase.round > 0)}
        real = batch["features"]
        made = self.generator(self.semantics[batch["classes"]], real.shape[1])
        losses = {"loss_mmd": weighted_mmd(made, real, None, self.bandwidths).mean()}
        if phase.round and self.feedback.use != "self_training":
            losses["loss_zs_mmd"] = self.feedback.weight * self.zs_mmd(real.shape[1])
        return losses

    def zs_mmd(self, samples: int) -> Tensor:
        """Mean discrepancy between fresh and pseudo-features of the unseen classes that have any.

        Source: ZS-MMD (arXiv 2103.00086).
        """
        made = self.generator(self.semantics[len(self.seen) :], samples)
        sure = self.pseudo_weights.sum(dim=1) > 0
        if not sure.any():
            return no_loss(made)
        weights = self.pseudo_weights[sure]
        return weighted_mmd(made[sure], self.pseudo[sure], weights, self.bandwidths).mean()

    def classifier_loss(self, batch: dict[str, Any], feedback: bool = False) -> Tensor:
        """Cross-entropy over real features of seen and made ones of unseen classes.

        Classes weigh as much as the share of pixels that the layout gives them. With `feedback` and
        self-training, an unseen class that has pseudo-features is half made and half those.

        Source: ZS3Net; self-training its ZS5Net (arXiv 1906.00817), there on images.
        """
        seen, real = batch["classes"], batch["features"]
        with torch.no_grad():
            made = self.generator(self.semantics[len(self.seen) :], real.shape[1])
            if feedback and self.feedback.use != "zs_mmd":
                made = self.self_trained(made)
        unseen = torch.arange(len(self.seen), len(self.names), device=self.device)
        classes = torch.cat([seen, unseen])
        logits = self.branch.classifier(torch.cat([real, made])).float()
        log_probs = logits.log_softmax(dim=-1)[torch.arange(len(classes)), :, classes]
        shares = batch["shares"][classes]
        return -(log_probs.mean(dim=1) * shares).sum() / shares.sum()

    def self_trained(self, made: Tensor) -> Tensor:
        """(U, N, C) made features with every second one replaced by a pseudo-feature of its class.

        Pseudo-features are drawn with their weights as probabilities; classes without any keep
        what was made.
        """
        sure = self.pseudo_weights.sum(dim=1) > 0
        if not sure.any():
            return made
        count = len(made[0, ::2])
        drawn = self.pseudo_weights[sure].multinomial(count, replacement=True)
        mixed = made.clone()
        found = self.pseudo[sure].gather(1, drawn[..., None].expand(-1, -1, made.shape[-1]))
        mixed[sure.nonzero()[:, 0], ::2] = found
        return mixed

    @torch.no_grad()
    def collect(self, unlabelled: Tensor, seed: int) -> None:
        """Makes the pseudo-features of a round: those of unseen classes that are likely.

        With the source "pixels" they are chosen from (M, C) unlabelled features. The seed is of
        noise and dropout, so that every process collects the same.
        """
        first, count = len(self.seen), self.feedback.count
        unseen = torch.arange(first, len(self.names), device=self.device)
        if self.feedback.source == "generated":
            # With dropout, as they are made for the classifier: without it they vary less, and the
            # generator would learn that.
            devices = [self.device] if self.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                torch.manual_seed(seed)
                features = self.generator(self.semantics[first:], count)
            probs = self.probs(features)[torch.arange(len(unseen)), :, unseen]
        else:
            count = min(count, len(unlabelled))
            probs, places = self.probs(unlabelled)[:, first:].T.topk(count, dim=1)
            features = unlabelled[places]
        weights = probs * (probs > self.feedback.confidence)
        self.pseudo.zero_()[:, :count] = features
        self.pseudo_weights.zero_()[:, :count] = F.normalize(weights, p=1, dim=1)
        kept = (weights > 0).float().mean(dim=1)
        worst = int(kept.argmin())
        logger.info(
            "pseudo-features (%s): %.0f %% of %d for each unseen class are kept, fewest of %r: "
            "%.0f %%",
            *(self.feedback.source, 100 * float(kept.mean()), count),
            *(self.names[first + worst], 100 * float(kept[worst])),
        )

    def probs(self, features: Tensor) -> Tensor:
        """(..., K) class probabilities of (..., C) features."""
        return self.branch.classifier(features).float().softmax(dim=-1)
