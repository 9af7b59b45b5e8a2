"""The classes that a checkpoint was trained on, and those that it is asked for."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from alignzeg.data.class_names import class_names, readable
from alignzeg.data.labels import training_vocabulary
from alignzeg.structures import SYNONYM_SEPARATOR, Vocabulary, joined

logger = logging.getLogger(__name__)


def eval_vocabulary(classes: Sequence[str], seen: Sequence[str]) -> Vocabulary:
    """The classes that somebody asks for, each seen if the model was trained on it.

    "sofa; couch" is sofa, which may also be called a couch. Blanks, hyphens and underscores make no
    other name: "red_ball" and "redball" are the trained "red ball".

    Raises:
        ValueError: if a name is empty, or there are none or repeated ones.
    """
    words = [prompt.split(SYNONYM_SEPARATOR) for prompt in class_names(classes, "classes")]
    known = {joined(name): name for name in seen}
    names = tuple(several[0] for several in words)
    # The text encoder reads a trained name as it was trained.
    said = [[known.get(joined(word), readable(word)) for word in several] for several in words]
    flags = tuple(any(joined(word) in known for word in several) for several in words)
    for several, trained in zip(words, flags, strict=True):
        near = [known[form] for word in several for form in _forms(word) if form in known]
        if near and not trained:
            logger.warning(
                "%r is taken for unseen; training had %r: ask for that if it is meant",
                *(several[0], near[0]),
            )
    return Vocabulary(names, flags, tuple(map(SYNONYM_SEPARATOR.join, said)))


def _forms(word: str) -> tuple[str, ...]:
    """The singulars and plurals of a name in English, `joined`."""
    text = joined(word)
    return (f"{text}s", f"{text}es", text.removesuffix("s"), text.removesuffix("es"))


def provide_seen(cfg: CfgNode, seen: Sequence[str]) -> None:
    """Lets the config name a training set that has the checkpoint's seen classes.

    The set that a user trained on need not be registered where the weights are used.
    """
    if _knows(cfg, seen):
        return
    name = f"classes_of_a_checkpoint_{zlib.crc32(repr(tuple(seen)).encode()):08x}"
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(
            vocabulary=Vocabulary(tuple(seen), (True,) * len(seen)),
            stuff_classes=list(seen),
            pseudo_unseen=(),
        )
    cfg.DATASETS.TRAIN = (name,)
    cfg.ALIGNZEG.DATA.HOLD_OUT = ""


def _knows(cfg: CfgNode, seen: Sequence[str]) -> bool:
    """Whether the training sets of the config are here, with these seen classes."""
    names = cfg.DATASETS.TRAIN
    if not names or any(name not in DatasetCatalog for name in names):
        return False
    try:
        return training_vocabulary(cfg).names == tuple(seen)
    except ValueError:
        return False
