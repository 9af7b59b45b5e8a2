"""What the model gets to see, and above all what it does not."""

import random

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from alignzeg.config import add_alignzeg_config
from alignzeg.data import catalog
from alignzeg.data.benchmark import Benchmark
from alignzeg.data.mapper import ZeroShotMapper, build_targets
from alignzeg.structures import Vocabulary

NAMES = ("sky", "cat", "dog", "cow", "car")
HIDDEN = (2, 4)
SIZE = (40, 52)


@pytest.fixture
def toy():
    names = catalog.register(
        Benchmark(
            name="mapped",
            vocabulary=Vocabulary.from_unseen(NAMES, ["dog", "car"]),
            pseudo_unseen=("cow",),
            raw_ids=tuple(range(5)),
            folders={"train": ("i", "l"), "val": ("i", "l")},
        )
    )
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(**changes):
    cfg = get_cfg()
    add_alignzeg_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("mapped_train",), ("mapped_val",)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (0,), 0
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.ALIGNZEG.DATA.COLOR_JITTER = False
    cfg.merge_from_list([part for pair in changes.items() for part in pair])
    return cfg


EVERYTHING = {
    "INPUT.MIN_SIZE_TRAIN": (30, 48, 64),
    "INPUT.RANDOM_FLIP": "horizontal",
    "ALIGNZEG.DATA.COLOR_JITTER": True,
    "ALIGNZEG.DATA.CROP_SIZE": 24,
    "ALIGNZEG.DATA.CROP_MAX_CLASS_SHARE": 0.6,
}


def blocks(seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 1, 2, 3, 4, 255], (5, 7)).astype(np.uint8)
    return np.kron(coarse, np.ones((8, 8), np.uint8))[: SIZE[0], : SIZE[1]]


def record(folder, labels, split="train", stem="x"):
    image = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    paths = {"file_name": folder / f"{stem}.png", "sem_seg_file_name": folder / f"{stem}_l.png"}
    Image.fromarray(image).save(paths["file_name"])
    Image.fromarray(labels).save(paths["sem_seg_file_name"])
    return {
        **{key: str(path) for key, path in paths.items()},
        "dataset_name": f"mapped_{split}",
    }, image


def seeded(mapper, item, seed):
    np.random.seed(seed)  # noqa: NPY002 (what Detectron2 seeds and uses)
    random.seed(seed)
    torch.manual_seed(seed)
    return mapper(item)


def test_masks_are_the_seen_pixels_one_by_one(tmp_path, toy):
    labels = blocks()
    item, image = record(tmp_path, labels)
    sample = ZeroShotMapper(config(), True)(item)
    assert sample["vocabulary"].names == ("sky", "cat", "cow")
    assert (sample["height"], sample["width"]) == SIZE
    assert sample["image"].dtype == torch.uint8
    np.testing.assert_array_equal(sample["image"].numpy(), image.transpose(2, 0, 1))
    targets = sample["targets"]
    assert targets.name == item["file_name"]
    assert (targets.labels.dtype, targets.masks.dtype) == (torch.int64, torch.bool)
    raw_of = {0: 0, 1: 1, 2: 3}
    found = {}
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            classes = [
                int(label)
                for label, mask in zip(targets.labels, targets.masks, strict=True)
                if mask[y, x]
            ]
            hidden = labels[y, x] in (*HIDDEN, 255)
            assert targets.valid[y, x] == (not hidden)
            assert [raw_of[c] for c in classes] == ([] if hidden else [labels[y, x]])
            found.update(dict.fromkeys(classes))
    assert sorted(found) == targets.labels.tolist()


@pytest.mark.parametrize("settings", [{}, EVERYTHING])
def test_hidden_labels_leave_no_trace(tmp_path, toy, settings):
    labels = blocks()
    mapper = ZeroShotMapper(config(**settings), True)
    rng = np.random.default_rng(0)
    for seed in range(12):
        item, _ = record(tmp_path, labels)
        first = seeded(mapper, item, seed)
        changed = labels.copy()
        hidden = np.isin(labels, (*HIDDEN, 255))
        changed[hidden] = rng.choice([*HIDDEN, 255], int(hidden.sum()))
        item, _ = record(tmp_path, changed)
        second = seeded(mapper, item, seed)
        assert first.keys() == second.keys()
        assert torch.equal(first["image"], second["image"])
        for part in ("labels", "masks", "valid"):
            assert torch.equal(getattr(first["targets"], part), getattr(second["targets"], part))


def test_seeds_decide_every_random_choice(tmp_path, toy):
    mapper = ZeroShotMapper(config(**EVERYTHING), True)
    item, _ = record(tmp_path, blocks())
    samples = [seeded(mapper, item, seed) for seed in (3, 3, 4, 5, 6)]
    assert torch.equal(samples[0]["image"], samples[1]["image"])
    assert torch.equal(samples[0]["targets"].masks, samples[1]["targets"].masks)
    assert not all(torch.equal(samples[0]["image"], other["image"]) for other in samples[2:])


def test_labels_follow_the_image_through_augmentation(tmp_path, toy):
    labels = blocks()
    item, _ = record(tmp_path, labels)
    palette = np.arange(256, dtype=np.uint8) * 37
    Image.fromarray(np.repeat(palette[labels][..., None], 3, 2)).save(item["file_name"])
    settings = {"INPUT.RANDOM_FLIP": "horizontal", "ALIGNZEG.DATA.CROP_SIZE": 24}
    mapper = ZeroShotMapper(config(**settings), True)
    for seed in range(6):
        sample = seeded(mapper, item, seed)
        assert sample["image"].shape == (3, 24, 24)
        for label, mask in zip(sample["targets"].labels, sample["targets"].masks, strict=True):
            raw = (0, 1, 3)[label]
            assert torch.equal(mask, sample["image"][0] == int(palette[raw]))


def test_sizes(tmp_path, toy):
    settings = {"INPUT.MIN_SIZE_TRAIN": (80,), "INPUT.MIN_SIZE_TEST": 20}
    item, _ = record(tmp_path, blocks())
    sample = ZeroShotMapper(config(**settings), True)(item)
    assert sample["image"].shape == (3, 80, 104)
    assert sample["targets"].masks.shape[1:] == sample["targets"].valid.shape == (80, 104)
    item["dataset_name"] = "mapped_val"
    sample = ZeroShotMapper(config(**settings), False)(item)
    assert sample["image"].shape == (3, 20, 26)
    assert (sample["height"], sample["width"]) == SIZE


def test_a_test_sample_asks_for_all_classes_and_carries_no_labels(tmp_path, toy):
    item, _ = record(tmp_path, blocks(), "val")
    sample = ZeroShotMapper(config(), False)(item)
    assert sample["vocabulary"].names == NAMES
    assert sample["image"].shape == (3, *SIZE)
    assert sample["sem_seg_file_name"] == item["sem_seg_file_name"]
    assert "targets" not in sample


def test_held_out_classes(tmp_path, toy):
    cfg = config(**{"ALIGNZEG.DATA.HOLD_OUT": "pseudo_unseen"})
    labels = blocks()
    item, _ = record(tmp_path, labels)
    sample = ZeroShotMapper(cfg, True)(item)
    assert sample["vocabulary"].names == ("sky", "cat")
    np.testing.assert_array_equal(sample["targets"].valid.numpy(), labels < 2)
    item["dataset_name"] = "mapped_val"
    vocabulary = ZeroShotMapper(cfg, False)(item)["vocabulary"]
    assert (vocabulary.names, vocabulary.seen) == (("sky", "cat", "cow"), (True, True, False))


def test_an_image_without_a_seen_pixel_is_kept(tmp_path, toy):
    item, _ = record(tmp_path, np.full(SIZE, 4, np.uint8))
    targets = ZeroShotMapper(config(**EVERYTHING), True)(item)["targets"]
    assert targets.masks.shape == (0, 24, 24)
    assert targets.labels.shape == (0,)
    assert not targets.valid.any()


def test_hidden_pixels_as_negatives(tmp_path, toy):
    item, _ = record(tmp_path, blocks())
    blind = ZeroShotMapper(config(), True)(item)["targets"]
    strict = ZeroShotMapper(config(**{"ALIGNZEG.DATA.IGNORE_AS_NEGATIVE": True}), True)(item)[
        "targets"
    ]
    assert not blind.valid.all()
    assert strict.valid.all()
    assert torch.equal(strict.masks, blind.masks)
    assert torch.equal(strict.labels, blind.labels)


def test_grey_and_palette_images(tmp_path, toy):
    item, _ = record(tmp_path, blocks())
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(item["file_name"])
    labels = Image.fromarray(blocks()).convert("L")
    labels.putpalette([5] * 768)
    labels.save(item["sem_seg_file_name"])
    sample = ZeroShotMapper(config(), True)(item)
    assert (sample["image"] == 9).all()
    np.testing.assert_array_equal(sample["targets"].valid.numpy(), np.isin(blocks(), (0, 1, 3)))


def test_bad_files_are_named(tmp_path, toy):
    mapper = ZeroShotMapper(config(), True)
    wrong = blocks()
    wrong[3, 4] = 5
    item, _ = record(tmp_path, wrong)
    with pytest.raises(ValueError, match=r"x_l\.png holds \[5\].*0-4 and 255"):
        mapper(item)
    item, _ = record(tmp_path, blocks()[:-1])
    with pytest.raises(ValueError, match=r"x\.png has 40 x 52 .*x_l\.png has 39 x 52"):
        mapper(item)
    item, _ = record(tmp_path, blocks())
    content = (tmp_path / "x.png").read_bytes()
    for broken in (b"", b"hello", content[: len(content) // 2]):
        (tmp_path / "x.png").write_bytes(broken)
        with pytest.raises(ValueError, match=r"cannot read image file .*x\.png"):
            mapper(item)
    with pytest.raises(ValueError, match="built for"):
        mapper({**item, "dataset_name": "other"})


def test_more_classes_than_a_byte_can_name():
    labels = np.array([[0, 299, 298], [65535, 299, 299]], np.float32)
    targets = build_targets(labels, 300)
    assert targets.labels.tolist() == [0, 298, 299]
    assert targets.masks.sum((1, 2)).tolist() == [1, 1, 3]
    assert targets.valid.tolist() == [[True] * 3, [False, True, True]]


def test_a_pseudo_label_weighs_less_wherever_it_goes(toy, tmp_path):
    labels = blocks()
    item, _ = record(tmp_path, labels)
    pseudo = np.zeros(SIZE, np.uint8)
    pseudo[4:20, 10:30] = np.arange(1, 21)
    Image.fromarray(pseudo).save(tmp_path / "pseudo.png")
    mapper = ZeroShotMapper(config(**{"ALIGNZEG.DATA.PSEUDO.WEIGHT": 0.25}), True)
    assert mapper(item)["targets"].weights is None
    marked = {**item, "pseudo_file_name": str(tmp_path / "pseudo.png")}
    weights = mapper(marked)["targets"].weights
    assert weights.dtype == torch.float32
    assert np.array_equal(weights.numpy(), np.where(pseudo, 0.25, 1).astype(np.float32))
    # Crops and flips take it along: paint the pseudo-labels in a class of their own and compare.
    labels[pseudo > 0], labels[(pseudo == 0) & (labels == 0)] = 0, 1
    item, _ = record(tmp_path, labels)
    marked = {**item, "pseudo_file_name": str(tmp_path / "pseudo.png")}
    mapper = ZeroShotMapper(config(**EVERYTHING, **{"ALIGNZEG.DATA.PSEUDO.WEIGHT": 0.25}), True)
    seen = 0
    for seed in range(8):
        targets = seeded(mapper, marked, seed)["targets"]
        own = targets.masks[targets.labels == 0].any(0)
        assert torch.equal(targets.weights == 0.25, own)
        seen += int(own.any())
    assert seen > 3
    Image.fromarray(pseudo[:-1]).save(tmp_path / "pseudo.png")
    with pytest.raises(ValueError, match=r"confidence of its pseudo-labels, .*pseudo\.png"):
        mapper(marked)
