"""Pixel features of the training images, made once, and the endless stream of batches of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from alignzeg.data.labels import get_vocabulary, label_lookup, read_labels, training_vocabulary
from alignzeg.data.mapper import ZeroShotMapper, test_augmentations
from alignzeg.engine.checkpoints.state import isolated_rng
from alignzeg.generative.recursion import Schedule, build_schedule
from alignzeg.losses.functional import cell_shares
from alignzeg.structures import Targets, Vocabulary

logger = logging.getLogger(__name__)

# Cells of one image that are kept for each class, so that many images are represented.
_PER_IMAGE = 16
_UNLABELLED = -1


@dataclass(frozen=True)
class FeatureBank:
    """Features of the training images' pixels.

    Attributes:
        classes: (S,) the seen classes that there are features of.
        features: of each of these (n, C).
        unlabelled: (M, C) features of pixels without a label.
        shares: (K,) share of the pixels that each class has in the layout; sums to 1.
    """

    classes: Tensor
    features: Sequence[Tensor]
    unlabelled: Tensor
    shares: Tensor


class Reservoir:
    """A uniform sample of everything that was put in, of at most a given size."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        """Takes the size, and what draws."""
        self._size = size
        self._generator = generator
        self._rows: list[Tensor] = []
        self._ranks: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Puts (n, C) in."""
        self._rows.append(rows)
        self._ranks.append(torch.rand(len(rows), generator=self._generator))
        if sum(map(len, self._ranks)) > 2 * self._size:
            self.sample()

    def sample(self) -> Tensor:
        """(n, C), n at most the size."""
        rows, ranks = torch.cat(self._rows), torch.cat(self._ranks)
        kept = ranks.topk(min(self._size, len(ranks))).indices
        self._rows, self._ranks = [rows[kept]], [ranks[kept]]
        return rows[kept]


def build_feature_loader(
    cfg: CfgNode, records: Sequence[Mapping[str, str]], **place: Any
) -> FeatureLoader:
    """The loader of a config; it needs `model` before it is read.

    `place` is "seed", "rank" and "world_size" of the stream.
    """
    node = cfg.ALIGNZEG.GENERATOR
    seen = training_vocabulary(cfg)
    mapper = ZeroShotMapper(
        is_train=True,
        vocabularies=dict.fromkeys(cfg.DATASETS.TRAIN, seen),
        augmentations=test_augmentations(cfg),
    )
    whole = get_vocabulary(cfg.DATASETS.TRAIN[0], cfg.ALIGNZEG.DATA.HOLD_OUT)
    names = (*seen.names, *(whole.names[i] for i in whole.unseen_ids))
    hidden = count_pixels(records, names)[len(seen) :] if node.LAYOUT == "real" else None

    def fill(model: nn.Module) -> FeatureBank:
        samples = (mapper(record) for record in records)
        return fill_bank(model, samples, len(names), node.BANK, hidden)

    return FeatureLoader(
        fill,
        build_schedule(cfg),
        samples=node.SAMPLES,
        accumulate=cfg.ALIGNZEG.SOLVER.ACCUMULATE,
        **place,
    )


def count_pixels(records: Iterable[Mapping[str, str]], names: Sequence[str]) -> Tensor:
    """(K,) pixels of each named class in the label files, hidden classes included."""
    vocabulary = Vocabulary(tuple(names), (True,) * len(names))
    counts = torch.zeros(len(names))
    for record in records:
        lookup = label_lookup(record["dataset_name"], vocabulary)
        labels = lookup[read_labels(record["sem_seg_file_name"], record["dataset_name"])]
        found = torch.bincount(torch.from_numpy(labels).flatten().long(), minlength=len(names))
        counts += found[: len(names)]
    return counts


@torch.no_grad()
def fill_bank(
    model: Any,
    samples: Iterable[Mapping[str, Any]],
    num_classes: int,
    size: int,
    hidden: Tensor | None = None,
) -> FeatureBank:
    """Runs the pixel network over the training images.

    A cell of the feature map counts if all its pixels have one label, or none has any.

    Args:
        model: with `pad`, `pixels`, `seen` and `names`, see `PixelSegmenter`; in a test's mode.
        samples: as the mapper makes them in training, without random augmentation.
        num_classes: K, the seen ones first.
        size: features kept of each class, and of unlabelled pixels.
        hidden: (K - S,) pixels of the unseen classes in the layout; None gives each as many as a
            seen class has.

    Raises:
        ValueError: if no cell has a label.
    """
    generator = torch.Generator().manual_seed(0)
    kept: dict[int, Reservoir] = {}
    counts = torch.zeros(num_classes)
    for sample in samples:
        images = model.pad([sample["image"]])
        pixels = model.pixels(images)[0].movedim(0, -1).cpu()
        targets = sample["targets"].padded(tuple(images.tensor.shape[-2:]))
        counts[targets.labels] += targets.masks.flatten(1).sum(dim=1)
        for label, cells in labelled_cells(targets, pixels.shape[:2]):
            chosen = cells.nonzero()
            chosen = chosen[torch.randperm(len(chosen), generator=generator)[:_PER_IMAGE]]
            rows = pixels[chosen[:, 0], chosen[:, 1]]
            kept.setdefault(label, Reservoir(size, generator)).add(rows)
    unlabelled = kept.pop(_UNLABELLED).sample() if _UNLABELLED in kept else None
    if not kept:
        raise ValueError("no training image has a labelled area as large as a feature's cell")
    missing = sorted(set(range(len(model.seen))) - set(kept))
    if missing:
        names = [model.seen.names[i] for i in missing]
        logger.warning("no pixel features of the seen classes %s; they are not learned", names)
    classes = sorted(kept)
    shown = counts[: len(model.seen)]
    counts[len(model.seen) :] = shown[shown > 0].mean() if hidden is None else hidden
    features = [kept[label].sample() for label in classes]
    logger.info("%d features of %d seen classes", sum(map(len, features)), len(classes))
    return FeatureBank(
        classes=torch.tensor(classes),
        features=features,
        unlabelled=features[0][:0] if unlabelled is None else unlabelled,
        shares=counts / counts.sum(),
    )


def labelled_cells(targets: Targets, size: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """For each class, and for -1, the (h, w) cells that lie in it, or without a label, entirely."""
    rows_columns = (size[0], size[1])
    for label, mask in zip(targets.labels.tolist(), targets.masks, strict=True):
        yield label, cell_shares(mask & targets.valid, rows_columns) == 1
    bare = ~targets.valid
    if targets.padding is not None:
        bare &= ~targets.padding
    yield _UNLABELLED, cell_shares(bare, rows_columns) == 1


class FeatureLoader:
    """Endless batches of features; batch number p is the same wherever the run was interrupted.

    It has the state of `TrainLoader`, counted in batches. The bank is filled when the first batch
    is asked for, with the frozen part of the model as it is then.
    """

    def __init__(
        self,
        fill: Callable[[nn.Module], FeatureBank],
        schedule: Schedule,
        *,
        samples: int,
        seed: int,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Takes what fills the bank, and this process's share.

        A batch has `samples` features of each class, a step `accumulate` batches. Each process
        draws its own.
        """
        self.model: nn.Module | None = None
        self._fill = fill
        self._schedule = schedule
        self._accumulate = accumulate
        self._samples = samples
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._position = 0

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Goes on where the state says; see `GenerativeSegmenter.forward` for what a batch holds.

        Raises:
            ValueError: if no model was given.
        """
        if self.model is None:
            raise ValueError("a FeatureLoader needs `model` before it is read")
        training = self.model.training
        with isolated_rng():
            bank = self._fill(self.model.eval())
        self.model.train(training)
        while True:
            batch = self._batch(bank)
            self._position += 1
            yield [batch]

    def _batch(self, bank: FeatureBank) -> dict[str, Any]:
        with isolated_rng(self._seed, self._rank, self._position):
            features = [rows[torch.randint(len(rows), (self._samples,))] for rows in bank.features]
        step = self._position // self._accumulate
        return {
            "step": step,
            "phase": asdict(self._schedule.at(step)),
            "file_name": f"features {self._position}",
            "classes": bank.classes,
            "features": torch.stack(features),
            "unlabelled": bank.unlabelled,
            "shares": bank.shares,
        }

    def state_dict(self) -> dict[str, Any]:
        """Where this process stands, in batches handed out."""
        return {"seed": self._seed, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues after what `state_dict` has counted; takes effect with the next `iter`."""
        self._seed, self._position = state["seed"], state["position"]

    def rescale(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continues a stream that another number of processes has read."""
        self.load_state_dict(states[0])
