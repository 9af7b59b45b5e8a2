"""The config keys of the tiny ImageNetVLM."""

from __future__ import annotations

from pathlib import Path

from tiny_imagenet import MODEL


def imagenet_opts(imagenet_files: Path) -> list[str]:
    return [
        *("ALIGNZEG.VLM.NAME", "ImageNetVLM", "ALIGNZEG.VLM.MODEL", MODEL),
        *("ALIGNZEG.VLM.WEIGHTS", str(imagenet_files / f"{MODEL}.pth")),
        *("ALIGNZEG.VLM.IMAGE_SIZE", "64"),
        *("ALIGNZEG.VLM.TEXT_WEIGHTS", str(imagenet_files / "sentences")),
        *("ALIGNZEG.VLM.CACHE_DIR", str(imagenet_files / "cache")),
    ]
