"""Images that come with the page: photographs of scikit-image, and scenes that are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from alignzeg.data.zeroshapes.scenes import render_scene, scene_rng
from alignzeg.web.session import Session

_SCENES = (
    (0, "red star, blue ring, green triangle, grass, brick, sand"),
    (3, "red star, blue ring, yellow square, wood, water, grass"),
)
# Names of scikit-image's data that ship with the package itself.
_PHOTOGRAPHS = (
    ("chelsea", "cat, wall, cloth"),
    ("coffee", "cup, spoon, table, saucer"),
    ("astronaut", "person, flag, helmet, space shuttle"),
)


@dataclass(frozen=True)
class Example:
    """An image file and what to look for in it."""

    file: Path
    classes: str


def write_examples(folder: Path, session: Session) -> list[Example]:
    """Writes the examples that suit a model: drawn scenes, or photographs if it knows their words.

    A model whose VLM has never read "cat" answers nonsense for a cat.
    """
    from skimage import data

    photographs = [(name, classes) for name, classes in _PHOTOGRAPHS if hasattr(data, name)]
    knows = any(session.knows(classes) for _, classes in photographs)
    found = []
    if knows:
        for name, classes in photographs:
            Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
            found.append(Example(folder / f"{name}.png", classes))
    if not knows or session.knows(_SCENES[0][1]):
        for number, classes in _SCENES:
            file = folder / f"scene {number}.png"
            Image.fromarray(render_scene(scene_rng(1, "val", number), 256).image).save(file)
            found.append(Example(file, classes))
    return found
