"""The head: proposals, their region embeddings, class scores and bias correction in one place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from alignzeg.contracts import (
    ClassifierContract,
    CorrectorContract,
    ExtractorContract,
    SynthesizerContract,
    VLMContract,
)
from alignzeg.modeling.layers import mask_quality, with_foreground_share
from alignzeg.registries import (
    HEAD_REGISTRY,
    build_classifier,
    build_corrector,
    build_extractor,
    build_synthesizer,
)
from alignzeg.structures import Outputs, SyntheticOutputs

MIXED = ("input", "embedding", "region")


@HEAD_REGISTRY.register()
class MaskProposalHead(nn.Module):
    """Extract masks, embed each region with the frozen VLM in one pass, score it against text.

    The baseline (ZegFormer, zsseg) and AlignZeg are both this head with other components.

    Source: AlignZeg (arXiv 2404.05667), figure 2.
    """

    vlm: VLMContract
    extractor: ExtractorContract
    classifier: ClassifierContract
    synthesizer: SynthesizerContract | None
    corrector: CorrectorContract

    @configurable
    def __init__(
        self,
        *,
        vlm: VLMContract,
        extractor: ExtractorContract,
        classifier: ClassifierContract,
        synthesizer: SynthesizerContract | None,
        corrector: CorrectorContract,
        mixed: str = "input",
    ) -> None:
        """Takes the parts, each by the contract of its registry.

        Args:
            vlm: the frozen vision-language model.
            extractor: of mask proposals.
            classifier: of proposals.
            synthesizer: of features for training; None makes none.
            corrector: of the bias towards seen classes.
            mixed: what the synthesizer is given beside region embeddings: "input", the query
                states; "embedding", what classes are scored by; "region", nothing.

        Raises:
            ValueError: if `mixed` is something else.
        """
        if mixed not in MIXED:
            raise ValueError(f"SYNTHESIZER.SPACE is {mixed!r}; choose one of {list(MIXED[:2])}")
        super().__init__()
        self.vlm = vlm
        self.extractor = extractor
        self.classifier = classifier
        self.synthesizer = synthesizer
        self.corrector = corrector
        self.mixed = mixed

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], vlm: VLMContract
    ) -> dict[str, object]:
        """Builds the parts that the config names.

        Raises:
            ValueError: if the synthesizer cannot make what the classifier reads.
        """
        node = cfg.ALIGNZEG
        regions_alone = node.CLASSIFIER.EMBEDDING == "region" and node.SYNTHESIZER.SPACE == "input"
        if node.SYNTHESIZER.NAME == "GMMNSynthesizer" and not regions_alone:
            raise ValueError(
                "GMMNSynthesizer makes region embeddings alone: it needs CLASSIFIER.EMBEDDING "
                f"'region' and SYNTHESIZER.SPACE 'input'; got {node.CLASSIFIER.EMBEDDING!r} and "
                f"{node.SYNTHESIZER.SPACE!r}"
            )
        return {
            "vlm": vlm,
            "extractor": build_extractor(cfg, input_shape, vlm.embed_dim),
            "classifier": build_classifier(cfg, vlm.embed_dim, vlm.logit_scale),
            "synthesizer": build_synthesizer(cfg, vlm.embed_dim),
            "corrector": build_corrector(cfg, vlm.embed_dim, vlm.logit_scale),
            "mixed": "region" if regions_alone else cfg.ALIGNZEG.SYNTHESIZER.SPACE,
        }

    def forward(
        self, image: Tensor, features: dict[str, Tensor], text: Tensor, seen_text: Tensor
    ) -> Outputs:
        """`Outputs` without synthetic features; see `HeadContract`."""
        encoded = self.vlm.encode_image(image)
        proposals = self.extractor(features, self.vlm.embed_dense(encoded))
        # The frozen VLM passes no gradient to the masks, with either region strategy.
        regions = self.vlm.embed_regions(encoded, proposals[-1].mask_logits.detach())
        embeds = self.classifier.embed(regions, proposals[-1].embeds)
        return Outputs(
            proposals=proposals,
            embeds=embeds,
            region_embeds=regions,
            class_logits=self.classifier.score(embeds, text),
            unseen_logits=self.corrector.indicate(embeds, regions, seen_text),
            background=self.classifier.background,
        )

    def score(self, embeds: Tensor, text: Tensor) -> Tensor:
        """Class scores of (..., D) unit-length embeddings: (..., K+1), background last."""
        return self.classifier.score(embeds, text)

    def correct(self, outputs: Outputs, unseen: Tensor) -> Tensor:
        """(B, Q, K+1) class scores after bias correction; `unseen` is (K,) bool."""
        return self.corrector.correct(outputs.class_logits, outputs.unseen_logits, unseen)

    def synthesize(
        self, region_embeds: Tensor, query_embeds: Tensor, labels: Tensor, text: Tensor
    ) -> SyntheticOutputs | None:
        """Scores over K classes, background and the batch's virtual classes; see `HeadContract`."""
        if self.synthesizer is None:
            return None
        learned = query_embeds
        if self.mixed == "region":
            learned = query_embeds[:, :0]
        elif self.mixed == "embedding":
            learned = self.classifier.embed(region_embeds, query_embeds)
        sizes = (region_embeds.shape[-1], learned.shape[-1])
        made = self.synthesizer(torch.cat([region_embeds, learned], dim=-1), labels, text)
        regions, learned = made.embeds.split(sizes, dim=-1)
        regions = F.normalize(regions, dim=-1)
        if self.mixed == "embedding":
            embeds = F.normalize(learned, dim=-1)
        else:
            embeds = self.classifier.embed(regions, learned)
        virtual = self.classifier.logit_scale * embeds @ made.prototypes.T
        return SyntheticOutputs(
            logits=torch.cat([self.score(embeds, text), virtual], dim=-1),
            targets=len(text) + 1 + made.targets,
            embeds=embeds,
            region_embeds=regions,
            imitated=made.imitated,
        )


@HEAD_REGISTRY.register()
class MaskQualityHead(MaskProposalHead):
    """Counts a proposal by the quality of its mask where the other heads count 1 - p(background).

    For classifiers that have learned no background: at inference the classes share the mean mask
    probability inside the mask among them, and the background gets the rest.

    Source: CEL (arXiv 2301.07336) trains without a background; the quality is ours.
    """

    def correct(self, outputs: Outputs, unseen: Tensor) -> Tensor:
        """(B, Q, K+1) class scores after bias correction; `unseen` is (K,) bool."""
        quality = mask_quality(outputs.proposals[-1].mask_logits)
        return with_foreground_share(super().correct(outputs, unseen).float(), quality)
