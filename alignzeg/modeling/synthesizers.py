"""Synthetic features: samples of classes without labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.distributions import Beta

from alignzeg.modeling.generator import GMMNGenerator
from alignzeg.registries import SYNTHESIZER_REGISTRY
from alignzeg.structures import Synthetic


@SYNTHESIZER_REGISTRY.register()
class ManifoldMixup(nn.Module):
    """Mixes features of two seen classes, and their text prototypes alike.

    v = norm(l e_i + (1-l) e_j) with l ~ Beta(alpha, alpha), kept in a range; its virtual class is
    t = norm(l T_i + (1-l) T_j) [ours: mirrored in text space].

    Source: AlignZeg (arXiv 2404.05667), feature expansion; manifold mixup (arXiv 1806.05236).
    """

    @configurable
    def __init__(self, *, alpha: float, mix_range: tuple[float, float], ratio: float) -> None:
        """Builds the synthesizer.

        Args:
            alpha: parameter of the Beta distribution, > 0.
            mix_range: lowest and highest mixing share, inside [0, 1].
            ratio: synthetic samples per real sample, >= 0.

        Raises:
            ValueError: if a value is out of its range.
        """
        super().__init__()
        low, high = mix_range
        if alpha <= 0 or ratio < 0 or not 0 <= low <= high <= 1:
            raise ValueError(
                f"SYNTHESIZER needs ALPHA > 0, RATIO >= 0 and RANGE inside [0, 1]; "
                f"got {alpha}, {ratio} and {list(mix_range)}"
            )
        self.alpha = alpha
        self.low, self.high = low, high
        self.ratio = ratio

    @classmethod
    def from_config(cls, cfg: CfgNode, embed_dim: int) -> dict[str, object]:  # noqa: ARG003
        """Reads ALIGNZEG.SYNTHESIZER."""
        node = cfg.ALIGNZEG.SYNTHESIZER
        return {"alpha": node.ALPHA, "mix_range": tuple(node.RANGE), "ratio": node.RATIO}

    def forward(self, embeds: Tensor, labels: Tensor, text: Tensor) -> Synthetic:
        """Mixes pairs of different classes; see `SynthesizerContract`.

        Returns:
            At most round(ratio * N) samples, each with a virtual class of its own; none where
            fewer than two classes are present.
        """
        count = round(self.ratio * len(labels)) if len(labels.unique()) > 1 else 0
        first = torch.randint(max(len(labels), 1), (count,), device=labels.device)
        # A partner of another class: the highest of random ranks among those that differ.
        rank = torch.rand(count, len(labels), device=labels.device)
        rank = rank.masked_fill(labels[first][:, None] == labels[None], -1.0)
        second = rank.argmax(dim=1) if count else first
        share = Beta(self.alpha, self.alpha).sample((count, 1)).to(embeds)
        share = share.clamp(self.low, self.high)

        def mix(values: Tensor, left: Tensor, right: Tensor) -> Tensor:
            return share * values[left] + (1 - share) * values[right]

        return Synthetic(
            embeds=mix(embeds, first, second),
            prototypes=F.normalize(mix(text, labels[first], labels[second]), dim=-1),
            targets=torch.arange(count, device=labels.device),
        )


@SYNTHESIZER_REGISTRY.register()
class GMMNSynthesizer(ManifoldMixup):
    """Makes features of virtual classes with a generator, in place of mixing real ones.

    The virtual classes are those of mixup: mixed text prototypes, so that no unseen name is used.
    The generator learns from `Synthetic.imitated` alone, which needs the GeneratorCriterion.

    Source: ZS3Net (arXiv 1906.00817), there for pixels; for proposals, and with virtual classes,
    ours.
    """

    @configurable
    def __init__(self, *, generator: GMMNGenerator, **mixing: Any) -> None:
        """Takes the generator, text prototype -> feature, and what `ManifoldMixup` takes."""
        super().__init__(**mixing)
        self.generator = generator

    @classmethod
    def from_config(cls, cfg: CfgNode, embed_dim: int) -> dict[str, object]:
        """Reads ALIGNZEG.SYNTHESIZER and ALIGNZEG.GENERATOR."""
        node = cfg.ALIGNZEG.GENERATOR
        return {
            **super().from_config(cfg, embed_dim),
            "generator": GMMNGenerator(
                semantic_dim=embed_dim,
                feature_dim=embed_dim,
                hidden_dim=node.HIDDEN_DIM,
                dropout=node.DROPOUT,
            ),
        }

    def forward(self, embeds: Tensor, labels: Tensor, text: Tensor) -> Synthetic:
        """Makes one feature for each virtual class; see `ManifoldMixup.forward`.

        Returns:
            Features without gradient, and what the generator learns from: made and real features,
            each beside the prototype of its class.
        """
        mixed = super().forward(embeds, labels, text)
        with torch.no_grad():
            made = self._make(mixed.prototypes)
        known = text[labels]
        fake, real = self._make(known), embeds.detach()
        return Synthetic(
            embeds=made,
            prototypes=mixed.prototypes,
            targets=mixed.targets,
            imitated=(torch.cat([fake, known], dim=1), torch.cat([real, known], dim=1)),
        )

    def _make(self, prototypes: Tensor) -> Tensor:
        return F.normalize(self.generator(prototypes, 1)[..., 0, :], dim=-1)
