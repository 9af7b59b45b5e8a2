"""The values that travel between the parts, and the one legend of their shapes.

Shape legend, used by every docstring of the package:
    B images, Q mask proposals, C hidden channels, D text-space channels, K active classes
    (index K = background), M background prototypes, N real samples, S synthetic samples,
    P virtual classes, G ground-truth masks of one image, HW input pixels, hw = HW / 4.
Names say the quantity: `x_logits` any real, `x_probs` in [0, 1], `x_embeds` unit length unless
the docstring says otherwise.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_LABEL = 255
# Between names in one prompt that mean the same class, as in "sofa; couch".
SYNONYM_SEPARATOR = "; "


def spelling(name: str) -> str:
    """What text encoders read of a name: no capitals, single blanks, composed letters.

    Two names of one spelling are one class.
    """
    words = re.split(r"[\s_-]+", unicodedata.normalize("NFC", name).lower())
    return " ".join(filter(None, words)) or name


def moved(values: Tensor, device: torch.device | str) -> Tensor:
    """The values on a device, which is not waited for unless they come to the CPU."""
    # A copy to the CPU that nobody waits for may be read before it is there.
    return values.to(device, non_blocking=torch.device(device).type != "cpu")


def joined(name: str) -> str:
    """The `spelling` of a name without blanks, so that "dining table" and "diningtable" are one."""
    return spelling(name).replace(" ", "")


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of class names, each either seen (has training masks) or unseen.

    Attributes:
        names: class names in id order; unique in their `spelling`, not empty.
        seen: for each name, whether training masks of it exist.
        prompts: what is said to the text encoder for each class; the names unless given. Names
            between `SYNONYM_SEPARATOR`s are synonyms.

    Raises:
        ValueError: on an empty list, an empty or duplicate name, or lengths that differ.
    """

    names: tuple[str, ...]
    seen: tuple[bool, ...]
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("a vocabulary needs at least one class name; got none")
        if any(not name.strip() for name in self.names):
            raise ValueError(f"class names must not be empty; got {list(self.names)}")
        alike: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            alike[spelling(name)].append(name)
        twice = sorted({name for names in alike.values() if len(names) > 1 for name in names})
        if twice:
            raise ValueError(
                "class names must be unique, also without capitals; given more than once: "
                f"{twice}; keep one of each"
            )
        if len(self.seen) != len(self.names):
            raise ValueError(f"{len(self.names)} names but {len(self.seen)} seen flags")
        if not self.prompts:
            object.__setattr__(self, "prompts", self.names)
        if len(self.prompts) != len(self.names):
            raise ValueError(f"{len(self.names)} names but {len(self.prompts)} prompts")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_unseen(cls, names: Sequence[str], unseen: Sequence[str]) -> Vocabulary:
        """Builds a vocabulary from all names and the names that are unseen.

        Raises:
            ValueError: if an unseen name is not among the names.
        """
        unknown = sorted(set(unseen) - set(names))
        if unknown:
            raise ValueError(f"unseen classes {unknown} are not among the classes {list(names)}")
        return cls(tuple(names), tuple(name not in set(unseen) for name in names))

    @classmethod
    def from_groups(cls, seen: Sequence[str], unseen: Sequence[str]) -> Vocabulary:
        """Builds a vocabulary from the seen names followed by the unseen names.

        Raises:
            ValueError: if a name is in both groups.
        """
        both = sorted(set(seen) & set(unseen))
        if both:
            raise ValueError(f"classes {both} are listed both as seen and as unseen")
        return cls((*seen, *unseen), (True,) * len(seen) + (False,) * len(unseen))

    @property
    def seen_ids(self) -> tuple[int, ...]:
        """Ids of the seen classes, ascending."""
        return tuple(i for i, seen in enumerate(self.seen) if seen)

    @property
    def unseen_ids(self) -> tuple[int, ...]:
        """Ids of the unseen classes, ascending."""
        return tuple(i for i, seen in enumerate(self.seen) if not seen)

    def synonyms(self) -> tuple[tuple[str, ...], ...]:
        """For each class the names in its prompt, one or more."""
        return tuple(tuple(prompt.split(SYNONYM_SEPARATOR)) for prompt in self.prompts)

    def seen_part(self) -> Vocabulary:
        """The vocabulary of the seen classes alone, in the same order."""
        ids = self.seen_ids
        return Vocabulary(
            tuple(self.names[i] for i in ids),
            (True,) * len(ids),
            tuple(self.prompts[i] for i in ids),
        )

    def unseen_mask(self, device: torch.device | str = "cpu") -> Tensor:
        """(K,) bool, true where the class is unseen."""
        return ~moved(torch.tensor(self.seen, dtype=torch.bool), device)


@dataclass(frozen=True)
class Targets:
    """Ground truth of one training image.

    Attributes:
        labels: (G,) int64 seen-class index of each mask.
        masks: (G, H, W) bool, disjoint.
        valid: (H, W) bool, false on padding and on pixels whose label is hidden or missing, unless
            the config makes these negatives; no loss may depend on a prediction where it is false.
        name: the image's file name, for error messages.
        padding: (H, W) bool, true on pixels added around the image; None: there are none.
        weights: (H, W) float32 in [0, 1], what a pixel counts in the losses where it is valid;
            None: all count 1.
    """

    labels: Tensor
    masks: Tensor
    valid: Tensor
    name: str = ""
    padding: Tensor | None = None
    weights: Tensor | None = None

    @property
    def supervision(self) -> Tensor:
        """(H, W) what a pixel counts: its weight where it is valid, else 0; bool if all count 1."""
        return self.valid if self.weights is None else self.weights * self.valid

    @property
    def mask_weights(self) -> Tensor:
        """(G,) float32 mean weight of each mask's pixels; 1 for an empty mask."""
        if self.weights is None:
            return torch.ones(len(self.masks), device=self.masks.device)
        sizes = self.masks.flatten(1).sum(1)
        totals = (self.masks * self.weights).flatten(1).sum(1)
        return torch.where(sizes > 0, totals / sizes.clamp(min=1), 1.0)

    def to(self, device: torch.device) -> Targets:
        """The same targets on another device."""
        return Targets(
            moved(self.labels, device),
            moved(self.masks, device),
            moved(self.valid, device),
            self.name,
            None if self.padding is None else moved(self.padding, device),
            None if self.weights is None else moved(self.weights, device),
        )

    def padded(self, size: tuple[int, int]) -> Targets:
        """The same targets at a batch's size (height, width); what is added is not valid."""
        height, width = self.valid.shape
        edges = (0, size[1] - width, 0, size[0] - height)
        if not any(edges):
            return self
        return replace(
            self,
            masks=F.pad(self.masks, edges),
            valid=F.pad(self.valid, edges),
            padding=F.pad(torch.zeros_like(self.valid), edges, value=True),
            weights=None if self.weights is None else F.pad(self.weights, edges),
        )


@dataclass(frozen=True)
class Proposals:
    """Class-agnostic mask proposals of one decoder layer.

    Attributes:
        embeds: (B, Q, C) query states, not normalised.
        mask_logits: (B, Q, h, w) at stride 4.
    """

    embeds: Tensor
    mask_logits: Tensor


@dataclass(frozen=True)
class Synthetic:
    """Features of classes that have no training mask.

    Attributes:
        embeds: (S, D) unit-length features.
        prototypes: (P, D) unit-length text prototypes of the virtual classes.
        targets: (S,) int64 row of `prototypes` that each feature belongs to.
        imitated: two sets of samples, (N, E) made with gradient and (N, E) real, that a generator
            is to make alike; None where nothing is generated.
    """

    embeds: Tensor
    prototypes: Tensor
    targets: Tensor
    imitated: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Matches:
    """One-to-one assignment of proposals to ground-truth masks of one image.

    Attributes:
        proposals: (n,) int64 proposal indices.
        targets: (n,) int64 target indices, n = min(Q, G).
    """

    proposals: Tensor
    targets: Tensor


@dataclass(frozen=True)
class SyntheticOutputs:
    """What the head says about synthetic features.

    Attributes:
        logits: (S, K+1+P) class scores: seen classes, background, virtual classes.
        targets: (S,) int64 index into the K+1+P scores.
        embeds: (S, D) unit-length embeddings.
        region_embeds: (S, D) unit length, what stands for their frozen region embeddings.
        imitated: as in `Synthetic`.
    """

    logits: Tensor
    targets: Tensor
    embeds: Tensor
    region_embeds: Tensor
    imitated: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Outputs:
    """Everything the head computes for a batch.

    Attributes:
        proposals: one entry per decoder layer; the last is final.
        embeds: (B, Q, D) unit-length adapted region embeddings of the final proposals.
        region_embeds: (B, Q, D) unit-length frozen region embeddings, before the adapter.
        class_logits: (B, Q, K+1); index K is background.
        unseen_logits: (B, Q) the indicator's logits, or None without an indicator.
        background: (M, D) unit-length background prototypes.
        synthetic: scores of the synthetic features; None in inference or without a synthesizer.
        text: (K, D) unit-length text prototypes of the classes in training; None in inference.
        unseen_examples: (M,) logits of the indicator and (M,) bool truth, for its loss; None in
            inference or without an indicator.
        mask_count: () ground-truth masks of a process's batch, at least 1, the mean over processes;
            None in inference.
    """

    proposals: tuple[Proposals, ...]
    embeds: Tensor
    region_embeds: Tensor
    class_logits: Tensor
    unseen_logits: Tensor | None = None
    background: Tensor | None = None
    synthetic: SyntheticOutputs | None = field(default=None)
    text: Tensor | None = None
    unseen_examples: tuple[Tensor, Tensor] | None = None
    mask_count: Tensor | None = None
