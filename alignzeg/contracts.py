"""What each registered part must do, one contract a registry. Shapes: `alignzeg.structures`.

A part is an `nn.Module` with a typed keyword-only constructor (`@configurable`). Nothing but what
stands here is called or read, so a part of your own needs no base class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from alignzeg.structures import (
    Matches,
    Outputs,
    Proposals,
    Synthetic,
    SyntheticOutputs,
    Targets,
)


class VLMContract(Protocol):
    """A frozen vision-language model, without trainable parameters or checkpoint keys.

    Built as `cls(cfg)`. It may also have `known_words`: those that it was trained with, where these
    are few; `token_counts` and `unread` of names, by which these are checked; and `former_hash`,
    another hash by which older checkpoints know the same weights.

    Attributes:
        embed_dim: D.
        logit_scale: of cosines.
        id: name of the model and its weights, for messages and checkpoints.
        hash: of the weights, whatever file they are in.
    """

    embed_dim: int
    logit_scale: float
    id: str
    hash: str

    def embed_text(self, names: Sequence[str]) -> Tensor:
        """(K, D) unit-length prototypes of names."""

    def encode_image(self, image: Tensor) -> Any:
        """An encoding of (B, 3, H, W) RGB in 0..255, which the next two take in its place."""

    def embed_dense(self, image: Any) -> Tensor:
        """(B, D, Hv, Wv) features of an image or encoding."""

    def embed_regions(self, image: Any, mask_logits: Tensor) -> Tensor:
        """(B, Q, D) unit-length embeddings of the regions of (B, Q, h, w) masks."""


class ExtractorContract(Protocol):
    """Class-agnostic mask extraction. Built as `cls(cfg, input_shape, dense_dim)`."""

    def __call__(self, features: dict[str, Tensor], dense: Tensor) -> tuple[Proposals, ...]:
        """One entry for each decoder layer; the last is final.

        Args:
            features: (B, C, H/s, W/s) of the image encoder.
            dense: (B, D, Hv, Wv) of the VLM.
        """


class ClassifierContract(Protocol):
    """Proposals to class scores. Built as `cls(cfg, embed_dim, logit_scale)`.

    Attributes:
        logit_scale: of cosines.
        background: (M, D) unit-length prototypes.
    """

    logit_scale: float

    @property
    def background(self) -> Tensor: ...  # noqa: D102 (see the class)

    def embed(self, region_embeds: Tensor, query_embeds: Tensor) -> Tensor:
        """(..., D) unit length, of (..., D) region embeddings and (..., C) query states."""

    def score(self, embeds: Tensor, text: Tensor) -> Tensor:
        """(..., K+1) logits of (..., D) embeddings for (K, D) prototypes; K is background."""


class SynthesizerContract(Protocol):
    """Features of classes that were never labelled, in training. Built as `cls(cfg, embed_dim)`."""

    def __call__(self, embeds: Tensor, labels: Tensor, text: Tensor) -> Synthetic:
        """Made of (N, E) embeds with (N,) labels and (K, D) prototypes; possibly of no samples.

        They are region embeddings beside what was learned; the head splits and normalises
        them.
        """


class CorrectorContract(Protocol):
    """Correction of the bias to seen classes. Built as `cls(cfg, embed_dim, logit_scale)`.

    `seen_text` are the prototypes of the classes seen in training, also when other names are asked
    for.
    """

    def indicate(self, embeds: Tensor, region_embeds: Tensor, seen_text: Tensor) -> Tensor | None:
        """(...) logits of "class not seen", of (..., D) embeddings; None without an indicator."""

    def examples(
        self,
        embeds: Tensor,
        region_embeds: Tensor,
        labels: Tensor,
        text: Tensor,
        synthetic: SyntheticOutputs | None,
    ) -> tuple[Tensor, Tensor] | None:
        """(M,) logits and (M,) bool "class not seen" to learn from, or None.

        Args:
            embeds: (N, D) of matched proposals.
            region_embeds: (N, D).
            labels: (N,) their classes.
            text: (K, D) prototypes.
            synthetic: what the head made.
        """

    def correct(self, class_logits: Tensor, unseen_logits: Tensor | None, unseen: Tensor) -> Tensor:
        """(..., K+1) scores of the same; `unseen` is (K,) bool."""


class HeadContract(Protocol):
    """Extractor, region embedding, classifier and corrector as one.

    Built as `cls(cfg, input_shape, vlm)`, with the shapes of the image encoder's features.

    Attributes:
        vlm: the frozen model that it was built with.
        corrector: of the bias.
    """

    vlm: VLMContract
    corrector: CorrectorContract

    def __call__(
        self, image: Tensor, features: dict[str, Tensor], text: Tensor, seen_text: Tensor
    ) -> Outputs:
        """`Outputs` with all but those fields that are there in training alone.

        Args:
            image: (B, 3, H, W) RGB in 0..255.
            features: of the image encoder.
            text: (K, D) unit-length prototypes of the names to choose from.
            seen_text: (K_seen, D) of the classes seen in training.
        """

    def score(self, embeds: Tensor, text: Tensor) -> Tensor:
        """(..., K+1) logits of (..., D) embeddings, background last."""

    def synthesize(
        self, region_embeds: Tensor, query_embeds: Tensor, labels: Tensor, text: Tensor
    ) -> SyntheticOutputs | None:
        """Synthetic features of (N, D), (N, C) and (N,) of matched proposals, scored; or None."""

    def correct(self, outputs: Outputs, unseen: Tensor) -> Tensor:
        """(B, Q, K+1) class logits after bias correction; `unseen` is (K,) bool."""


class CriterionContract(Protocol):
    """One loss family. Built as `cls(cfg)`.

    A loss must not wait for other processes, as one of them may have failed by then.
    """

    def __call__(
        self, outputs: Outputs, targets: list[Targets], matches: list[list[Matches]]
    ) -> dict[str, Tensor]:
        """Scalars by name, already weighted.

        Names begin with "loss_" and are unique over all criteria of a run. A scalar stays connected
        to the graph where there is nothing to learn from.

        Args:
            outputs: of the head, with what is there in training alone.
            targets: one for each image, padded to the batch.
            matches: by layer, then image.
        """
