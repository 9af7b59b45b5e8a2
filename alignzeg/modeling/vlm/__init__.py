"""Frozen vision-language models, read for names, images and regions."""

from alignzeg.modeling.vlm.encoding import EncodedImage
from alignzeg.modeling.vlm.imagenet import ImageNetVLM
from alignzeg.modeling.vlm.model import OpenClipVLM

__all__ = ["EncodedImage", "ImageNetVLM", "OpenClipVLM"]
