"""What is exported: one image to mask proposals, their embeddings and class scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alignzeg.exporting.pooling import ExportablePooling
from alignzeg.modeling.layers import geometric_ensemble, proposal_weights
from alignzeg.modeling.meta_arch import AlignZeg
from alignzeg.modeling.vlm.encoding import keeping_size

INPUTS = ("image", "vlm_image", "text", "unseen")
OUTPUTS = ("masks", "embeds", "scores", "weights")


class ProposalGraph(nn.Module):
    """A trained model from pixels to scored proposals; the text encoder stays outside.

    In it are the image encoder, the frozen VLM's image tower, the head, the bias correction and the
    ensemble with the frozen score. Not in it: resizing of the image, the text encoder, the label
    map, several views.
    """

    seen_text: Tensor

    def __init__(self, model: AlignZeg) -> None:
        """Takes a model on the CPU, in evaluation mode.

        Raises:
            ValueError: if the model has no mask proposals, or a VLM whose input size is unknown.
        """
        super().__init__()
        if not isinstance(model, AlignZeg):
            raise ValueError(
                f"MODEL.META_ARCHITECTURE {type(model).__name__} makes no mask proposals; a graph "
                "can be exported of AlignZeg and the methods that build on it, and an output that "
                "ends in .safetensors holds the weights of any method"
            )
        if not (hasattr(model.vlm, "cell") and hasattr(model.vlm, "image_size")):
            raise ValueError(
                f"ALIGNZEG.VLM.NAME {type(model.vlm).__name__} does not say which images it reads; "
                "give it the attributes image_size and cell, as OpenClipVLM has"
            )
        self.model = model
        # A frozen VLM hides its networks from the checkpoint; the graph needs them.
        self.frozen = nn.ModuleList(
            part
            for value in vars(model.vlm).values()
            if isinstance(value, tuple)
            for part in value
            if isinstance(part, nn.Module)
        )
        # A number of the graph, not something that it computes.
        self.logit_scale = float(model.vlm.logit_scale)
        with torch.no_grad():
            self.register_buffer("seen_text", model.text(model.seen, single=True)[0].clone())

    @property
    def divisor(self) -> int:
        """Pixels that both sides of the image must be a multiple of."""
        return self.model.size_divisibility

    @torch.no_grad()
    def forward(
        self, image: Tensor, vlm_image: Tensor, text: Tensor, unseen: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Segments one image.

        Args:
            image: (1, 3, H, W) float32 RGB in 0..255, padded with zeros at the right and at the
                bottom to multiples of `divisor`.
            vlm_image: (1, 3, h, w) the same, padding included, resized as
                `alignzeg.modeling.vlm.encoding.resized` does.
            text: (K, D) unit-length text prototypes.
            unseen: (K,) bool, the classes without training masks.

        Returns:
            Mask logits (Q, H/4, W/4); unit-length embeddings (Q, D) of the proposals; class
            probabilities (Q, K+1), background last; and how much each proposal counts, (Q,): the
            label of a pixel is the argmax over k of the sum over q of weights[q] * scores[q, k] *
            sigmoid(masks[q]).
        """
        model = self.model
        with ExportablePooling(), keeping_size():
            features = model.backbone(model.normalizer(image))
            outputs = model.head(vlm_image, features, text, self.seen_text)
            probs = model.head.correct(outputs, unseen).float().softmax(dim=-1)
            if any(model.ensemble):
                probs = self._ensembled(probs, outputs.region_embeds, text, unseen)
            masks = outputs.proposals[-1].mask_logits[0].float()
            weights = proposal_weights(masks, model.duplicate_iou)
        return masks, outputs.embeds[0], probs[0], weights

    def _ensembled(self, probs: Tensor, regions: Tensor, text: Tensor, unseen: Tensor) -> Tensor:
        """As `AlignZeg.ensembled`, with one text for each class."""
        model = self.model
        frozen = (self.logit_scale * regions.float() @ text.T).softmax(dim=-1)
        background = probs[..., -1:]
        exponents = torch.where(unseen, model.ensemble[1], model.ensemble[0])
        mixed = geometric_ensemble(
            probs[..., :-1], frozen * (1 - background), exponents, model.normalized
        )
        return torch.cat([mixed, background], dim=-1)
