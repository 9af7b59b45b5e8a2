"""Trained models as folders that another machine can use: weights, config, classes, model card."""

from alignzeg.sharing.folder import Pretrained, locate, save_pretrained
from alignzeg.sharing.weights import write_safetensors

__all__ = ["Pretrained", "locate", "save_pretrained", "write_safetensors"]
