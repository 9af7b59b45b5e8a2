"""Correction of the bias towards seen classes at inference."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from alignzeg.modeling.layers import MLP
from alignzeg.registries import BIAS_CORRECTOR_REGISTRY
from alignzeg.structures import SyntheticOutputs

# Draws of names that a LeaveOutIndicator learns from in a step.
_DRAWS = 8


def lower_seen(class_logits: Tensor, unseen: Tensor, amount: Tensor | float) -> Tensor:
    """Subtracts `amount` from the scores of the seen classes.

    Args:
        class_logits: (..., K+1), background last; background keeps its score.
        unseen: (K,) bool.
        amount: logits, a number or (..., 1).

    Returns:
        (..., K+1); the scores as they came if no class is unseen: there is nothing to correct.
    """
    lowered = torch.cat([~unseen & unseen.any(), unseen.new_zeros(1)])
    return class_logits - amount * lowered


@BIAS_CORRECTOR_REGISTRY.register()
class NoCorrection(nn.Module):
    """Leaves the scores alone."""

    @configurable
    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def from_config(cls, cfg: CfgNode, embed_dim: int, logit_scale: float) -> dict[str, object]:
        """Needs nothing."""
        del cfg, embed_dim, logit_scale
        return {}

    def indicate(self, embeds: Tensor, region_embeds: Tensor, seen_text: Tensor) -> None:
        """Has no indicator."""
        del embeds, region_embeds, seen_text

    def examples(
        self,
        embeds: Tensor,
        region_embeds: Tensor,
        labels: Tensor,
        text: Tensor,
        synthetic: SyntheticOutputs | None,
    ) -> None:
        """Has nothing to learn."""
        del embeds, region_embeds, labels, text, synthetic

    def correct(self, class_logits: Tensor, unseen_logits: Tensor | None, unseen: Tensor) -> Tensor:
        """(..., K+1) scores as they came."""
        del unseen_logits, unseen
        return class_logits


@BIAS_CORRECTOR_REGISTRY.register()
class ConstantShift(NoCorrection):
    """Lowers every seen score by the same amount, as ZegFormer and ZegCLIP do.

    They shift the per-pixel class scores; here the shift acts on the proposal's logits, where
    AlignZeg's correction acts, so that the two can be compared.
    """

    @configurable
    def __init__(self, *, gamma: float) -> None:
        """Args: gamma: amount in logits; 0 turns it off."""
        super().__init__()
        self.gamma = gamma

    @classmethod
    def from_config(cls, cfg: CfgNode, embed_dim: int, logit_scale: float) -> dict[str, object]:
        """Reads ALIGNZEG.CORRECTOR.GAMMA."""
        del embed_dim, logit_scale
        return {"gamma": cfg.ALIGNZEG.CORRECTOR.GAMMA}

    def correct(self, class_logits: Tensor, unseen_logits: Tensor | None, unseen: Tensor) -> Tensor:
        """(..., K+1) scores with the seen ones lowered."""
        del unseen_logits
        return lower_seen(class_logits, unseen, self.gamma)


@BIAS_CORRECTOR_REGISTRY.register()
class UnseenIndicator(nn.Module):
    """Predicts "this proposal is of a class not seen", and lowers seen scores where it is.

    A two-layer MLP on [embedding; highest seen cosines; entropy of the seen softmax] [ours: input].
    It reads the embeddings without shaping them: no gradient passes to the classifier [ours].
    Matched proposals are its examples of seen classes, synthetic features those of unseen ones.

    Source: AlignZeg (arXiv 2404.05667), predictive bias correction.
    """

    @configurable
    def __init__(
        self,
        *,
        embed_dim: int,
        logit_scale: float,
        hidden_dim: int,
        top_cosines: int,
        threshold: float,
        gamma: float,
        mode: Literal["hard", "soft"],
    ) -> None:
        """Builds the indicator.

        Args:
            embed_dim: D.
            logit_scale: factor of the cosines in the seen softmax.
            hidden_dim: channels inside the MLP.
            top_cosines: how many of the highest seen cosines it is given.
            threshold: probability in [0, 1] above which seen scores are lowered (hard).
            gamma: amount in logits; 0 turns the correction off.
            mode: "hard", or "soft" for gamma times the probability.

        Raises:
            ValueError: on an unknown mode or a threshold outside [0, 1].
        """
        super().__init__()
        if mode not in ("hard", "soft") or not 0 <= threshold <= 1:
            raise ValueError(
                "CORRECTOR needs MODE hard or soft and THRESHOLD in [0, 1]; "
                f"got {mode!r} and {threshold}"
            )
        self.logit_scale = logit_scale
        self.top_cosines = top_cosines
        self.threshold, self.gamma, self.mode = threshold, gamma, mode
        self.mlp = MLP(embed_dim + top_cosines + 1, hidden_dim, 1)

    @classmethod
    def from_config(cls, cfg: CfgNode, embed_dim: int, logit_scale: float) -> dict[str, object]:
        """Reads ALIGNZEG.CORRECTOR."""
        node = cfg.ALIGNZEG.CORRECTOR
        return {
            "embed_dim": embed_dim,
            "logit_scale": logit_scale,
            "hidden_dim": node.HIDDEN_DIM,
            "top_cosines": node.TOP_COSINES,
            "threshold": node.THRESHOLD,
            "gamma": node.GAMMA,
            "mode": node.MODE,
        }

    def indicate(self, embeds: Tensor, region_embeds: Tensor, seen_text: Tensor) -> Tensor:
        """Logits (...) that (..., D) unit-length embeddings are of no class in (K_seen, D)."""
        del region_embeds
        embeds = embeds.detach()
        return self.mlp(torch.cat([embeds, self.relations(embeds, seen_text)], dim=-1)).squeeze(-1)

    def relations(self, embeds: Tensor, seen_text: Tensor) -> Tensor:
        """(..., T+1) highest cosines of embeddings to (K_seen, D), and the softmax's entropy."""
        cosines = embeds @ seen_text.T
        count = min(self.top_cosines, cosines.shape[-1])
        top = cosines.new_zeros(*cosines.shape[:-1], self.top_cosines)
        top[..., :count] = cosines.topk(count, dim=-1).values
        log_probs = (self.logit_scale * cosines).log_softmax(dim=-1)
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1, keepdim=True)
        return torch.cat([top, entropy / math.log(max(cosines.shape[-1], 2))], dim=-1)

    def examples(
        self,
        embeds: Tensor,
        region_embeds: Tensor,
        labels: Tensor,
        text: Tensor,
        synthetic: SyntheticOutputs | None,
    ) -> tuple[Tensor, Tensor]:
        """Logits, and whether each is of a class not seen; see `CorrectorContract`."""
        del labels
        parts = [self.indicate(embeds, region_embeds, text)]
        if synthetic is not None:
            parts.append(self.indicate(synthetic.embeds, synthetic.region_embeds, text))
        logits = torch.cat(parts)
        return logits, torch.arange(len(logits), device=logits.device) >= len(embeds)

    def correct(self, class_logits: Tensor, unseen_logits: Tensor | None, unseen: Tensor) -> Tensor:
        """(..., K+1) scores with the seen ones lowered where the indicator speaks up."""
        assert unseen_logits is not None
        probs = unseen_logits.sigmoid().unsqueeze(-1)
        share = probs if self.mode == "soft" else (probs > self.threshold).to(probs.dtype)
        return lower_seen(class_logits, unseen, self.gamma * share)


@BIAS_CORRECTOR_REGISTRY.register()
class LeaveOutIndicator(UnseenIndicator):
    """Predicts "not seen" from how a frozen region relates to the seen names, some left out.

    In training some names are left out, at random: a matched proposal of a class whose name is left
    out is an example of "not seen", any other of "seen". So the indicator learns on real proposals
    what a class without a name in the list looks like. It reads the highest cosines of the frozen
    region embedding and their entropy alone: the region embedding never learned the classes that
    are left out, and the MLP cannot learn them by heart.

    Source: [ours], within predictive bias correction of AlignZeg (arXiv 2404.05667), whose
    indicator learns from synthetic features.
    """

    @configurable
    def __init__(self, *, left_out: float, **parts: Any) -> None:
        """Takes what `UnseenIndicator` takes, and the share of seen names left out at a time.

        Raises:
            ValueError: if the share is out of range.
        """
        super().__init__(**parts)
        if not 0 < left_out < 1:
            raise ValueError(f"CORRECTOR.LEFT_OUT must be above 0 and below 1; got {left_out}")
        self.left_out = left_out

    @classmethod
    def from_config(cls, cfg: CfgNode, embed_dim: int, logit_scale: float) -> dict[str, object]:
        """Reads ALIGNZEG.CORRECTOR."""
        del embed_dim  # the embedding itself is not read
        parts = super().from_config(cfg, 0, logit_scale)
        return {**parts, "left_out": cfg.ALIGNZEG.CORRECTOR.LEFT_OUT}

    def indicate(self, embeds: Tensor, region_embeds: Tensor, seen_text: Tensor) -> Tensor:
        """Logits (...) that (..., D) frozen regions are of no class in (K_seen, D)."""
        del embeds
        return self.mlp(self.relations(region_embeds.float(), seen_text)).squeeze(-1)

    def examples(
        self,
        embeds: Tensor,
        region_embeds: Tensor,
        labels: Tensor,
        text: Tensor,
        synthetic: SyntheticOutputs | None,
    ) -> tuple[Tensor, Tensor]:
        """As `UnseenIndicator.examples`; every proposal occurs in each of several draws of names.

        With fewer than two seen names nothing can be left out, and all are examples of "seen".
        """
        del synthetic
        count = round(self.left_out * len(text))
        count = min(max(count, 1), len(text) - 1)
        logits, targets = [], []
        for _ in range(_DRAWS):
            order = torch.randperm(len(text), device=text.device)
            logits.append(self.indicate(embeds, region_embeds, text[order[count:]]))
            targets.append(torch.isin(labels, order[:count]))
        return torch.cat(logits), torch.cat(targets)
