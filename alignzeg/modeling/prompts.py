"""What is said to the VLM for each class, and how several names of one class become one score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from alignzeg.structures import Vocabulary


@dataclass(frozen=True)
class ClassTexts:
    """The two choices.

    Attributes:
        names: "prompts", or "official" for the class names as the benchmark has them.
        synonyms: "mean" or "max" over the names in one prompt, in a test; in training always the
            mean of their embeddings.

    Raises:
        ValueError: on another value.
    """

    names: str = "prompts"
    synonyms: str = "mean"

    def __post_init__(self) -> None:
        if self.names not in ("prompts", "official"):
            raise ValueError(
                f"ALIGNZEG.VLM.NAMES is {self.names!r}; it can be 'prompts' or 'official'"
            )
        if self.synonyms not in ("mean", "max"):
            raise ValueError(
                f"ALIGNZEG.TEST.SYNONYMS is {self.synonyms!r}; it can be 'mean' or 'max'"
            )

    def texts(self, vocabulary: Vocabulary, training: bool) -> tuple[list[str], list[int]]:
        """Texts to embed, class by class, and how many of them each class has."""
        if self.names == "official":
            return list(vocabulary.names), [1] * len(vocabulary)
        if training or self.synonyms == "mean":
            return list(vocabulary.prompts), [1] * len(vocabulary)
        groups = vocabulary.synonyms()
        return [name for names in groups for name in names], [len(names) for names in groups]


def build_class_texts(cfg: CfgNode) -> ClassTexts:
    """Reads ALIGNZEG.VLM.NAMES and ALIGNZEG.TEST.SYNONYMS."""
    return ClassTexts(cfg.ALIGNZEG.VLM.NAMES, cfg.ALIGNZEG.TEST.SYNONYMS)


def group_max(scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """The highest score of each group.

    Args:
        scores: (..., S + R), groups one after the other, then R scores that are left as they are.
        sizes: K numbers of group members, each at least 1, S in sum.

    Returns:
        (..., K + R).

    Raises:
        ValueError: if a size is below 1 or there are more members than scores.
    """
    rest = scores.shape[-1] - sum(sizes)
    if rest < 0 or min(sizes, default=1) < 1:
        raise ValueError(f"groups of {list(sizes)} do not fit {scores.shape[-1]} scores")
    if max(sizes, default=1) == 1:
        return scores
    *groups, left = scores.split([*sizes, rest], dim=-1)
    return torch.cat([*(group.amax(dim=-1, keepdim=True) for group in groups), left], dim=-1)


def shared_vocabulary(batched_inputs: Sequence[Mapping[str, Any]]) -> Vocabulary:
    """The "vocabulary" of all images of a batch.

    Raises:
        ValueError: if they do not share one.
    """
    vocabularies = {item["vocabulary"] for item in batched_inputs}
    if len(vocabularies) != 1:
        raise ValueError(
            "all images of a batch must share one vocabulary; got "
            f"{[v.names for v in vocabularies]}: batch the data sets separately"
        )
    return vocabularies.pop()
