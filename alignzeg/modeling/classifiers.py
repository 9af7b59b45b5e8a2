"""Proposal classifiers in the text space of the VLM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from alignzeg.modeling.layers import MLP
from alignzeg.registries import CLASSIFIER_REGISTRY

EMBEDDINGS = ("region", "query", "both")


@CLASSIFIER_REGISTRY.register()
class CosineClassifier(nn.Module):
    """Cosine to the text prototypes, and to M learnable background prototypes.

    A proposal's embedding joins what is frozen and what is learned from masks:

        region: norm(r + psi(r)), r the frozen region embedding, psi a residual adapter whose last
            layer starts at zero, so that training starts from the frozen VLM's own answer [ours];
        query: norm(P(q)), P a two-layer MLP of the query state, as ZegFormer (arXiv 2112.07910);
        both: norm(norm(r + psi(r)) + P(q)) [ours].

    Background is scored by logsumexp_m scale * <e, b_m>; M = 1 is the usual single background
    embedding.

    Source: AlignZeg (arXiv 2404.05667), multiple background prototypes; the logsumexp is ours.
    """

    @configurable
    def __init__(
        self,
        *,
        embed_dim: int,
        logit_scale: float,
        num_background: int,
        adapter_dim: int,
        adapter_ratio: float = 1.0,
        embedding: str = "region",
        query_dim: int = 0,
    ) -> None:
        """Builds the classifier.

        Args:
            embed_dim: D.
            logit_scale: factor of the cosines, the VLM's own (CLIP: at most 100).
            num_background: M, at least 1.
            adapter_dim: channels inside the adapter; 0 leaves the embeddings as they are.
            adapter_ratio: factor of what the adapter adds, as CLIP-Adapter (arXiv 2110.04544); it
                slows the adapter down, which else fits the seen classes before masks are learned.
            embedding: "region", "query" or "both".
            query_dim: C, channels of the query states; not needed for "region".

        Raises:
            ValueError: if `num_background` < 1, `adapter_ratio` <= 0 or the embedding is unknown.
        """
        super().__init__()
        if embedding not in EMBEDDINGS:
            raise ValueError(
                f"CLASSIFIER.EMBEDDING is {embedding!r}; choose one of {list(EMBEDDINGS)}"
            )
        if num_background < 1:
            raise ValueError(f"CLASSIFIER.NUM_BACKGROUND must be at least 1; got {num_background}")
        if adapter_ratio <= 0:
            raise ValueError(
                f"CLASSIFIER.ADAPTER_RATIO must be above 0; got {adapter_ratio}. "
                "ADAPTER_DIM 0 takes the adapter away"
            )
        self.logit_scale = logit_scale
        self.adapter_ratio = adapter_ratio
        self.embedding = embedding
        self.adapter = None
        if adapter_dim and embedding != "query":
            mlp = MLP(embed_dim, adapter_dim, embed_dim)
            for parameter in mlp[-1].parameters():
                nn.init.zeros_(parameter)
            self.adapter = nn.Sequential(nn.LayerNorm(embed_dim), mlp)
        self.background_embeds = nn.Embedding(num_background, embed_dim)
        self.project = None
        if embedding != "region":
            self.project = MLP(query_dim, query_dim, embed_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, embed_dim: int, logit_scale: float) -> dict[str, object]:
        """Reads ALIGNZEG.CLASSIFIER."""
        return {
            "embed_dim": embed_dim,
            "logit_scale": logit_scale,
            "num_background": cfg.ALIGNZEG.CLASSIFIER.NUM_BACKGROUND,
            "adapter_dim": cfg.ALIGNZEG.CLASSIFIER.ADAPTER_DIM,
            "adapter_ratio": cfg.ALIGNZEG.CLASSIFIER.ADAPTER_RATIO,
            "embedding": cfg.ALIGNZEG.CLASSIFIER.EMBEDDING,
            "query_dim": cfg.ALIGNZEG.EXTRACTOR.HIDDEN_DIM,
        }

    @property
    def background(self) -> Tensor:
        """(M, D) unit-length background prototypes."""
        return F.normalize(self.background_embeds.weight.float(), dim=-1)

    def embed(self, region_embeds: Tensor, query_embeds: Tensor) -> Tensor:
        """(..., D) float32 embeddings in the text space, unit length; see `ClassifierContract`."""
        learned = None if self.project is None else self.project(query_embeds).float()
        if self.embedding == "query" and learned is not None:
            return F.normalize(learned, dim=-1)
        embeds = region_embeds.float()
        if self.adapter is not None:
            embeds = embeds + self.adapter_ratio * self.adapter(embeds).float()
        embeds = F.normalize(embeds, dim=-1)
        return embeds if learned is None else F.normalize(embeds + learned, dim=-1)

    def score(self, embeds: Tensor, text: Tensor) -> Tensor:
        """Scores (..., D) embeddings against (K, D) text, both unit length: (..., K+1)."""
        classes = embeds @ text.T
        background = embeds @ self.background.T
        scaled = self.logit_scale * background
        return torch.cat(
            [self.logit_scale * classes, scaled.logsumexp(dim=-1, keepdim=True)], dim=-1
        )
