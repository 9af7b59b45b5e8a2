"""The frozen vision-language model: any open_clip model, read for names, pictures and regions."""

from alignzeg.modeling.vlm.model import EncodedImage, OpenClipVLM

__all__ = ["EncodedImage", "OpenClipVLM"]
