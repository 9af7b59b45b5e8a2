"""Every leaf of configs/, its K-splits and what else its parts compose: it trains and evaluates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers import CONFIGS
from PIL import Image
from tiny_imagenet import tiny_imagenet

from alignzeg.commands.ksplits import split_opts
from alignzeg.data.catalog import SPLIT_DIR
from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.engine import Trainer, setup_config, validate
from alignzeg.engine.run import trainer_of
from alignzeg.modeling.vlm import model as vlm_module
from alignzeg.pseudo_labels import Job, make_pseudo_labels
from alignzeg.pseudo_labels.region_labels import Thresholds

BASE = CONFIGS / "_base_"
LEAVES = sorted(path for path in CONFIGS.rglob("*.yaml") if BASE not in path.parents)
# Benchmarks whose encoders and VLM are downloaded.
REAL = ("voc2012", "coco_stuff", "context", "cross")
SMALLER = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "SEED", "1"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "ALIGNZEG.TEST.RECALL", "False"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "ALIGNZEG.ENCODER.SMALL_CHANNELS", "[16, 24, 32, 40]"),
    *("ALIGNZEG.VLM.MODEL", "alignzeg-tiny", "ALIGNZEG.VLM.WEIGHTS", ""),
    *("ALIGNZEG.VLM.TEMPLATES", "['single']"),
    *("ALIGNZEG.EXTRACTOR.NUM_QUERIES", "4", "ALIGNZEG.EXTRACTOR.LAYERS", "1"),
    *("ALIGNZEG.EXTRACTOR.HIDDEN_DIM", "32", "ALIGNZEG.EXTRACTOR.FFN_DIM", "32"),
    *("ALIGNZEG.LOSS.NUM_POINTS", "64", "ALIGNZEG.CLASSIFIER.ADAPTER_DIM", "16"),
    *("INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.MIN_SIZE_TEST", "48", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "32"),
    *("ALIGNZEG.RECURSION.GENERATOR_STEPS", "1", "ALIGNZEG.RECURSION.CLASSIFIER_STEPS", "1"),
    *("ALIGNZEG.RECURSION.ROUNDS", "0", "ALIGNZEG.GENERATOR.SAMPLES", "4"),
    *("ALIGNZEG.DATA.SKIP_UNSEEN_IMAGES", "False"),
]
SIZE = (48, 64)


@dataclass(frozen=True)
class Case:
    """A leaf, or the parts that a leaf would list, with KEY VALUE pairs."""

    config: Path | tuple[str, ...]
    opts: tuple[str, ...] = ()

    def __str__(self) -> str:
        if isinstance(self.config, Path):
            words = [str(self.config.relative_to(CONFIGS)), *self.opts[1:2]]
        else:
            words = [Path(part).name for part in self.config]
        return "-".join(words)

    def path(self, folder: Path) -> Path:
        """The config, written if it is no file yet."""
        if isinstance(self.config, Path):
            return self.config
        path = folder / f"{self}.yaml"
        bases = [str(BASE / f"{part}.yaml") for part in self.config]
        path.write_text(yaml.safe_dump({"_BASE_": bases}))
        return path


def k_splits() -> Iterator[Case]:
    """Each benchmark and K; the data set is all that K changes, so one method is enough."""
    for leaf, dataset, splits in (
        ("voc2012/transductive_recursive_R101", "voc2012", (2, 4, 6, 8, 10)),
        ("context/transductive_recursive_R101", "context60", (2, 4, 6, 8)),
        ("context/alignzeg_R50", "context59", (2, 4, 6, 8)),
        ("zeroshapes/transductive_recursive", "zeroshapes", (2, 4, 6, 8, 10)),
        ("msrc21/transductive_recursive", "msrc21", (2, 4, 6, 8)),
    ):
        for split in splits:
            yield Case(CONFIGS / f"{leaf}.yaml", split_opts(dataset, split))
    whole = ("DATASETS.TRAIN", "context59_train", "DATASETS.TEST", "context59_val")
    yield Case(CONFIGS / "context" / "baseline_R50.yaml", whole)


def composed() -> Iterator[Case]:
    """Method, encoder and benchmark where no leaf stands for them."""
    kinds = [("R50", "cel"), ("R50", "alignzeg_cel")]
    kinds += [(model, method) for model in ("R50", "R101") for method in ("baseline", "alignzeg")]
    for benchmark in (*REAL, "own"):
        schedule = "zegformer" if benchmark in REAL else "adamw"
        for model, method in kinds if benchmark in REAL else [("R50", "baseline")]:
            if not (CONFIGS / benchmark / f"{method}_{model}.yaml").is_file():
                data = (f"datasets/{benchmark}", f"schedules/{schedule}")
                yield Case((f"models/{model}", *data, f"methods/{method}"))
    yield Case(("models/imagenet", "datasets/own", "schedules/adamw", "methods/baseline"))


def transductive() -> Iterator[Case]:
    """CEL on the pseudo-labels of a benchmark."""
    root = ("ALIGNZEG.DATA.PSEUDO.ROOT", "output/pseudo_labels")
    for benchmark in ("voc2012", "coco_stuff"):
        train = ("DATASETS.TRAIN", f"{benchmark}_train_pseudo")
        yield Case(CONFIGS / benchmark / "cel_R50.yaml", (*train, *root))


CASES = [*map(Case, LEAVES), *k_splits(), *composed(), *transductive()]


def setup(case: Case, cache_dir: Path) -> CfgNode:
    """The config of a case, made small; pseudo-labels are made."""
    opts = [*SMALLER, "ALIGNZEG.VLM.CACHE_DIR", str(cache_dir / "text")]
    path = case.path(cache_dir)
    cfg = setup_config(path, [*opts, *case.opts])
    if cfg.ALIGNZEG.VLM.NAME == "ImageNetVLM":
        opts += tiny_imagenet(cache_dir)
        cfg = setup_config(path, [*opts, *case.opts])
    if cfg.ALIGNZEG.DATA.PSEUDO.ROOT:
        source = cfg.DATASETS.TRAIN[0].removesuffix("_pseudo")
        folder = str(cache_dir / source)
        everything = Thresholds(confidence=0, margin=0)
        make_pseudo_labels(Job(str(path), source, folder, tuple(opts), thresholds=everything))
        cfg = setup_config(path, [*opts, *case.opts, "ALIGNZEG.DATA.PSEUDO.ROOT", folder])
    if cfg.ALIGNZEG.DATA.CROP_SIZE:
        cfg.ALIGNZEG.DATA.CROP_SIZE = 32
    # Images of 48 pixels hold no more.
    cfg.ALIGNZEG.VLM.IMAGE_SIZE = min(cfg.ALIGNZEG.VLM.IMAGE_SIZE, 64)
    if not cfg.DATASETS.TRAIN:
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("zeroshapes_train",), ("zeroshapes_val",)
    return cfg


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root where every registered benchmark has two images of noise in every split."""
    folder = tmp_path_factory.mktemp("datasets")
    random = np.random.default_rng(0)
    for name in DatasetCatalog.list():
        benchmark = MetadataCatalog.get(name).get("benchmark")
        if benchmark is None or benchmark.root is not None:
            continue
        images, labels = benchmark.folders[name.removeprefix(f"{benchmark.name}_")]
        wide = max(benchmark.raw_ids) > 255 or benchmark.ignore_label > 255
        seen = [benchmark.raw_ids[i] for i in benchmark.vocabulary.seen_ids]
        for stem in ("a", "b"):
            classes = np.array([*random.choice(seen, 3), benchmark.raw_ids[-1]])
            blocks = classes[np.indices(SIZE)[1] // (SIZE[1] // 4)]
            image = random.integers(0, 256, (*SIZE, 3))
            for file, array in (
                (folder / images / f"{stem}.jpg", image.astype(np.uint8)),
                (folder / labels / f"{stem}.png", blocks.astype(np.uint16 if wide else np.uint8)),
            ):
                file.parent.mkdir(parents=True, exist_ok=True)
                if not file.exists():
                    Image.fromarray(array).save(file)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_reading_of_the_weights() -> Iterator[None]:
    """The frozen CLIP is read from disk once, not once for each config."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vlm_module, "load_clip", cache(vlm_module.load_clip))
        yield


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_trains_two_steps_and_evaluates(
    case: Case, root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    cfg = setup(case, cache_dir)
    cfg.OUTPUT_DIR = str(tmp_path)
    validate(cfg)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    mapper = ZeroShotMapper(cfg, True)
    batch = [mapper(record) for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0])]
    trainer = trainer_of(cfg)
    if trainer is not Trainer:
        loader = trainer.build_train_loader(cfg)
        loader.model = model
        batch = next(iter(loader))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for _ in range(2):
        loss = sum(model(batch).values())
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert any(
        not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before
    )
    results = Trainer.test(cfg, model.eval())
    reports = [results] if len(cfg.DATASETS.TEST) == 1 else list(results.values())
    assert len(reports) == len(cfg.DATASETS.TEST)
    assert all("mIoU" in report["sem_seg"] for report in reports)


def test_every_zero_shot_data_set_is_trained_on(tmp_path: Path) -> None:
    trained = set()
    for case in CASES:
        cfg = setup_config(case.path(tmp_path), case.opts)
        trained.update(cfg.DATASETS.TRAIN)
        if cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone":
            assert cfg.ALIGNZEG.VLM.MODEL == "ViT-B-16-quickgelu"
            assert cfg.MODEL.WEIGHTS.endswith(f"/R-{cfg.MODEL.RESNETS.DEPTH}.pkl")
    zero_shot = {
        name
        for name in (f"{path.stem}_train" for path in SPLIT_DIR.glob("*.json"))
        if name in DatasetCatalog and MetadataCatalog.get(name).vocabulary.unseen_ids
    }
    assert len(zero_shot) >= 20
    assert {*zero_shot, "coco_stuff171_train"} <= trained
