"""The leak audit: does an unseen label or name reach a loss of a config?

A few real training steps are made several times: as they are; with nonsense in place of every
unseen name; with every pixel that should be hidden labelled as something else that should be
hidden. Loader, model, losses and optimizer are those of the config, plugins included. Targets and
losses must be the same to the bit. At last the *seen* labels are changed, and the losses must
change: otherwise the audit has proved nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import Tensor

from alignzeg.data.changed import Relabelling, hidden_names, relabelled, renamed
from alignzeg.data.labels import training_vocabulary
from alignzeg.engine import Trainer
from alignzeg.engine.training.trainer import build_step_trainer

# What a model may raise on targets that it must never see; looked at only if there are such.
_STEP_ERRORS = (ValueError, IndexError, RuntimeError, ArithmeticError)


@dataclass
class Trial:
    """What a few training steps have read and computed.

    Attributes:
        files: every image, in the order of reading.
        samples: for every image a hash of its name, pixels, classes and targets.
        losses: for every step all terms, as hexadecimal floats.
        problem: the first thing in a sample that must not be there; empty if there is none.
    """

    files: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    losses: list[dict[str, str]] = field(default_factory=list)
    problem: str = ""


class _Watched:
    """A loader that notes what it hands out."""

    def __init__(self, loader: Iterable[Any], trial: Trial, hidden: frozenset[str]) -> None:
        self._loader, self._trial, self._hidden = loader, trial, hidden

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            for sample in batch:
                self._trial.files.append(sample["file_name"])
                self._trial.samples.append(hash_sample(sample))
                self._trial.problem = self._trial.problem or find_hidden(sample, self._hidden)
            yield batch


def find_hidden(sample: Mapping[str, Any], hidden: frozenset[str]) -> str:
    """Names the hidden class or the impossible id in a training sample; empty if there is none."""
    vocabulary, targets = sample["vocabulary"], sample["targets"]
    named = sorted(hidden & {*vocabulary.names, *vocabulary.prompts})
    if named:
        return f"the classes of {sample['file_name']} include the unseen {named}"
    ids = [int(label) for label in targets.labels]
    wrong = [label for label in ids if not 0 <= label < len(vocabulary)]
    if wrong:
        return f"the targets of {sample['file_name']} include {wrong}, which is no seen class"
    return ""


def hash_sample(sample: Mapping[str, Any]) -> str:
    """A hash of all that the model is given for one image."""
    digest = hashlib.sha256()
    targets = sample["targets"]
    parts = [getattr(targets, entry.name) for entry in dataclasses.fields(targets)]
    for part in (sample["file_name"], sample["image"], sample["vocabulary"], *parts):
        if isinstance(part, Tensor):
            array = part.cpu().contiguous().numpy()
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def observe(cfg: CfgNode, steps: int, hidden: frozenset[str]) -> Trial:
    """Makes training steps from the start, everything seeded, and notes what happens."""
    trial = Trial()
    seed_all_rng(cfg.SEED)
    loader = _Watched(Trainer.build_train_loader(cfg), trial, hidden)
    model = Trainer.build_model(cfg)
    trainer = build_step_trainer(cfg, model, loader, Trainer.build_optimizer(cfg, model))
    with EventStorage(0) as storage:
        for step in range(steps):
            trainer.iter = storage.iter = step
            try:
                trainer.run_step()
            except _STEP_ERRORS:
                if trial.problem:
                    break
                raise
            latest = storage.latest()
            trial.losses.append(
                {
                    name: float(value).hex()
                    for name, (value, when) in sorted(latest.items())
                    if "loss" in name and when == step
                }
            )
    return trial


def first_difference(first: Trial, second: Trial) -> str:
    """Where two trials part; empty if they are the same to the bit."""
    for index, (a, b) in enumerate(zip(first.samples, second.samples, strict=False)):
        if a != b:
            return f"the sample of {first.files[index]} (image {index}) became another one"
    for step, (ours, theirs) in enumerate(zip(first.losses, second.losses, strict=False)):
        for name in dict.fromkeys([*ours, *theirs]):
            pair = ours.get(name), theirs.get(name)
            if pair[0] != pair[1]:
                values = [None if v is None else float.fromhex(v) for v in pair]
                return f"{name} of step {step} was {values[0]!r} and became {values[1]!r}"
    counts = [(len(trial.samples), len(trial.losses)) for trial in (first, second)]
    return "" if counts[0] == counts[1] else f"(images, steps) {counts[0]} became {counts[1]}"


def audit(cfg: CfgNode, steps: int) -> Iterator[tuple[str, str, str]]:
    """Makes the trials, one after another; nothing is written to the OUTPUT_DIR of the config.

    Yields:
        (what was tried, what it was tried on, the leak that was found or an empty string).

    Raises:
        ValueError: if nothing can be proved: no class is unseen, none of its pixels was read, two
            equal trials differ, or the losses do not depend on the labels.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = max(cfg.SEED, 0)
    names = tuple(cfg.DATASETS.TRAIN)
    seen = training_vocabulary(cfg)
    hidden = hidden_names(names, seen)
    if not hidden:
        raise ValueError(f"every class of {list(names)} is seen; there is nothing that could leak")
    with tempfile.TemporaryDirectory() as folder:
        cfg.OUTPUT_DIR = folder
        start = observe(cfg, steps, hidden)
        yield "targets", f"{len(start.samples)} images, {len(seen)} seen classes", start.problem
        if start.problem:
            return
        again = first_difference(start, observe(cfg, steps, hidden))
        if again:
            raise ValueError(
                f"two equal runs differ ({again}), so nothing can be proved; audit with "
                "MODEL.DEVICE cpu"
            )
        with renamed(hidden):
            other = observe(cfg, steps, hidden)
        yield "names", f"nonsense for {len(hidden)} unseen names", first_difference(start, other)
        change = Relabelling(names, seen, frozenset(start.files), folder)
        with relabelled(change, seen_labels=False):
            other = observe(cfg, steps, hidden)
        what = describe_change(change, len(start.files), steps)
        yield "labels", what, first_difference(start, other)
        with relabelled(change, seen_labels=True):
            other = observe(cfg, steps, hidden)
        if other.losses == start.losses:
            raise ValueError(
                "the losses stay the same when the seen labels change, so this config learns "
                "nothing from labels and nothing is proved; check ALIGNZEG.CRITERIA"
            )
        yield "control", "other seen labels change the losses, as they must", ""


def describe_change(change: Relabelling, images: int, steps: int) -> str:
    """How many hidden pixels were relabelled.

    Raises:
        ValueError: if none of them showed an unseen class.
    """
    if not change.unseen_pixels:
        raise ValueError(
            f"none of the {images} images of these {steps} steps holds a pixel of an unseen class; "
            "raise --steps"
        )
    return (
        f"other labels for {change.changed_pixels} hidden pixels "
        f"({change.unseen_pixels} of unseen classes)"
    )
