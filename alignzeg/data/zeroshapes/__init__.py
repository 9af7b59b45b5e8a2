"""The embedded data set: procedural scenes with exact masks and compositional class names.

A scene is two or three stuff regions (textures), two to five overlapping things ("red star") and
some grey clutter that no class names. Class names live in `splits/zeroshapes.json` alone; this
package parses them: "<colour> <shape>" is a thing, one word is a texture. Everything follows from
`(seed, split, index)`.
"""

from alignzeg.data.zeroshapes.names import SPLIT_FILE, class_names, stuff_names, thing_names
from alignzeg.data.zeroshapes.scenes import SPLIT_STREAMS, Scene, Thing, render_scene, scene_rng
from alignzeg.data.zeroshapes.shapes import COLOURS, OUTLINES
from alignzeg.data.zeroshapes.textures import TEXTURES
from alignzeg.data.zeroshapes.writing import DEFAULT_COUNTS, write_dataset

__all__ = [
    "COLOURS",
    "DEFAULT_COUNTS",
    "OUTLINES",
    "SPLIT_FILE",
    "SPLIT_STREAMS",
    "TEXTURES",
    "Scene",
    "Thing",
    "class_names",
    "render_scene",
    "scene_rng",
    "stuff_names",
    "thing_names",
    "write_dataset",
]
