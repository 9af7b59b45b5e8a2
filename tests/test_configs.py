"""Every YAML in configs/: it merges, builds, trains two steps and evaluates, at reduced size."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import CONFIGS
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tiny_imagenet import tiny_imagenet

from alignzeg.data.catalog import SPLIT_DIR
from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.engine import Trainer, setup_config, validate
from alignzeg.engine.training.generative import trainer_of
from alignzeg.modeling.vlm import model as vlm_module
from alignzeg.pseudo_labels import Job, make_pseudo_labels
from alignzeg.pseudo_labels.naming import Thresholds

FILES = sorted(CONFIGS.rglob("*.yaml"))
IDS = [str(path.relative_to(CONFIGS)) for path in FILES]
# Folders of configs that name no data set; files that name no image encoder are made whole too.
PIECES = ("parts", "own")
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


def setup(path: Path, cache_dir: Path) -> CfgNode:
    """The config of a file, made small; a piece gets what it lacks, and pseudo-labels are made."""
    opts = [*SMALLER, "ALIGNZEG.VLM.CACHE_DIR", str(cache_dir / "text")]
    generative = path.parent.name == "parts" and path.stem.startswith("transductive")
    cfg = setup_config(path.with_name("pixel_small.yaml") if generative else path, opts)
    if generative:
        cfg.merge_from_file(str(path))
        cfg.merge_from_list(opts)
    if cfg.ALIGNZEG.DATA.PSEUDO.ROOT:
        source = cfg.DATASETS.TRAIN[0].removesuffix("_pseudo")
        folder = str(cache_dir / source)
        everything = Thresholds(confidence=0, margin=0)
        make_pseudo_labels(Job(str(path), source, folder, tuple(opts), thresholds=everything))
        cfg = setup_config(path, [*opts, "ALIGNZEG.DATA.PSEUDO.ROOT", folder])
    if cfg.ALIGNZEG.VLM.NAME == "ImageNetVLM":
        cfg = setup_config(path, [*opts, *tiny_imagenet(cache_dir)])
    if cfg.ALIGNZEG.DATA.CROP_SIZE:
        cfg.ALIGNZEG.DATA.CROP_SIZE = 32
    if path.parent.name in PIECES:
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("zeroshapes_train",), ("zeroshapes_val",)
        if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
            cfg.MODEL.META_ARCHITECTURE = "AlignZeg"
    if not any(kind in cfg.MODEL.BACKBONE.NAME for kind in ("fpn", "deeplab")):
        assert path.stem == "Base" or path.parent.name == "parts"
        cfg.MODEL.BACKBONE.NAME = "build_small_fpn_backbone"
    return cfg


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root where every registered benchmark has two pictures of noise in every split."""
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
            picture = random.integers(0, 256, (*SIZE, 3))
            for file, array in (
                (folder / images / f"{stem}.jpg", picture.astype(np.uint8)),
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


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_it_trains_two_steps_and_evaluates(
    path: Path, root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    cfg = setup(path, cache_dir)
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


def chain(path: Path) -> int:
    """How many files lie below a config, at most."""
    base = yaml.safe_load(path.read_text(encoding="utf-8")).get("_BASE_", [])
    below = [base] if isinstance(base, str) else base
    return 1 + max((chain(path.parent / name) for name in below), default=0)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_two_levels_and_a_line_that_says_what_it_is(path: Path) -> None:
    assert chain(path) <= 2
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_every_zero_shot_benchmark_has_its_configs() -> None:
    trained = {}
    for path in FILES:
        if path.parent.name not in PIECES:
            cfg = setup_config(path)
            key = (cfg.DATASETS.TRAIN[0], cfg.ALIGNZEG.EXTRACTOR.NAME, cfg.MODEL.RESNETS.DEPTH)
            if cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone":
                trained.setdefault(key[0], set()).add(key[1:])
                assert cfg.ALIGNZEG.VLM.MODEL == "ViT-B-16-quickgelu"
                assert cfg.MODEL.WEIGHTS.endswith(f"/R-{cfg.MODEL.RESNETS.DEPTH}.pkl")
    wanted = {
        (name, depth)
        for name in ("PlainExtractor", "MutuallyRefinedExtractor")
        for depth in (50, 101)
    }
    names = {path.stem for path in SPLIT_DIR.glob("*.json")}
    zero_shot = {
        f"{name}_train"
        for name in names
        # Those that train without a download have configs with other encoders.
        if not name.startswith(("zeroshapes", "msrc21"))
        and f"{name}_train" in DatasetCatalog
        and MetadataCatalog.get(f"{name}_train").vocabulary.unseen_ids
    }
    assert len(zero_shot) >= 16
    for name in (*zero_shot, "coco_stuff171_train"):
        assert trained[name] >= wanted, name


def test_configs_that_the_texts_name_exist() -> None:
    for text in (CONFIGS.parent / "README.md", *sorted((CONFIGS.parent / "docs").glob("*.md"))):
        for name in re.findall(r"configs/[\w/]+\.yaml", text.read_text(encoding="utf-8")):
            assert (CONFIGS.parent / name).is_file(), f"{text.name} names {name}"


def test_every_open_vocabulary_set_is_evaluated_by_a_config() -> None:
    tested = set(setup_config(CONFIGS / "cross" / "alignzeg_R50.yaml").DATASETS.TEST)
    wanted = {"ade20k_150", "ade20k_847", "pc59", "context459", "voc20", "pas20b", "pas21"}
    assert tested == {f"{name}_val" for name in wanted}
    assert tested <= set(DatasetCatalog.list())
