"""What frozen vision-language models have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignzeg.modeling.vlm.encoding import EncodedImage, check_masks


class FrozenVLM(nn.Module):
    """A model around a frozen network: no trainable parameter and no key in a checkpoint.

    The network is not a submodule, so that none is missing from a checkpoint either, and `train()`
    does not reach it; devices and dtypes do.

    Attributes:
        id: name of the model and its weights, for checkpoints and messages.
        hash: sha256 of the weights and of what else the answers follow from, whatever the file
            that they were in.
        former_hash: what checkpoints of version 0.1 hold in its place, "" if that was another.
        embed_dim: D, the channels of the text space.
        image_size: shorter side in pixels that the network sees.
        context_length: tokens that the text encoder reads, start and end included.
    """

    id: str
    hash: str
    former_hash: str = ""
    embed_dim: int
    image_size: int
    context_length: int

    def __init__(self, network: nn.Module) -> None:
        """Takes the network; the tuple hides it from `nn.Module`."""
        super().__init__()
        self._hidden = (network,)

    def _apply(self, fn: Callable, recurse: bool = True) -> Any:
        self._hidden[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def embed_text(self, names: Sequence[str]) -> Tensor:
        """(K, D) float32 text prototypes of class names, unit length: means over the templates.

        A name may hold several, between SYNONYM_SEPARATORs; then it is the mean over these, too.

        Raises:
            ValueError: if there are no names, or an empty one.
        """
        raise NotImplementedError

    def encode_image(self, image: Tensor) -> EncodedImage:
        """One pass over images; give the result to `embed_dense` and `embed_regions`.

        Args:
            image: (B, 3, H, W) RGB in 0..255, any size, not normalised.

        Raises:
            ValueError: if the shape is not (B, 3, H, W).
        """
        raise NotImplementedError

    def pool(self, encoded: EncodedImage, mask_logits: Tensor) -> Tensor:
        """(B, Q, D) embeddings of (B, Q, h, w) masks, Q >= 1, not normalised."""
        raise NotImplementedError

    def embed_dense(self, image: Tensor | EncodedImage) -> Tensor:
        """(B, D, Hv, Wv) in the text space, not normalised, of images or their encoding."""
        return (image if isinstance(image, EncodedImage) else self.encode_image(image)).dense

    @torch.no_grad()
    def embed_regions(self, image: Tensor | EncodedImage, mask_logits: Tensor) -> Tensor:
        """Embeddings of mask proposals, see the class; an empty mask takes its most likely place.

        Args:
            image: (B, 3, H, W) RGB in 0..255, or what `encode_image` made of them.
            mask_logits: (B, Q, h, w) at any resolution, covering the same image.

        Returns:
            (B, Q, D) unit length.

        Raises:
            ValueError: if the masks are not (B, Q, h, w) with the images' B.
        """
        encoded = image if isinstance(image, EncodedImage) else self.encode_image(image)
        dense = encoded.dense
        check_masks(mask_logits, dense)
        if mask_logits.shape[1] == 0:
            return dense.new_zeros(dense.shape[0], 0, dense.shape[1], dtype=torch.float32)
        return F.normalize(self.pool(encoded, mask_logits).float(), dim=-1)
