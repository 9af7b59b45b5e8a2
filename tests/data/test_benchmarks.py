"""The shipped benchmarks against the tables of the protocols, and their prompts in the model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from helpers import REPOSITORY

from alignzeg.data import catalog
from alignzeg.data.benchmark import read_split_file
from alignzeg.data.labels import get_vocabulary
from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.data.preparation import ade20k, context, msrc
from alignzeg.data.preparation.recipe import read_ids
from alignzeg.modeling.prompts import ClassTexts, group_max
from alignzeg.structures import Vocabulary

FILES = sorted(catalog.SPLIT_DIR.glob("*.json"))
VOC_K = (10, 14, 1, 18, 8, 20, 19, 5, 9, 16)  # raw ids in the order of ZS3's lists
VOC_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
CONTEXT_K = ("cow", "motorbike", "sofa", "cat", "boat", "fence", "bird", "tvmonitor")
MSRC_K = ("cow", "boat", "cat", "bicycle", "flower", "book", "bird", "face")
# Raw value, id among 171 and name of the unseen classes, as SPNet and everybody after it.
COCO_UNSEEN = {
    (20, 19, "cow"),
    (24, 23, "giraffe"),
    (32, 28, "suitcase"),
    (33, 29, "frisbee"),
    (40, 36, "skateboard"),
    (56, 51, "carrot"),
    (86, 76, "scissors"),
    (99, 88, "cardboard"),
    (105, 94, "clouds"),
    (123, 112, "grass"),
    (144, 133, "playingfield"),
    (147, 136, "river"),
    (148, 137, "road"),
    (168, 157, "tree"),
    (171, 160, "wall-concrete"),
}
# name: classes, unseen, first and last raw id, ignored raw ids, images (train, val)
FACTS = {
    "voc2012": (20, 5, 1, 20, (0,), ((10582,), (1449,))),
    "voc20": (20, 0, 1, 20, (0,), (None, (1449,))),
    "pas20b": (21, 0, 1, 0, (), (None, (1449,))),
    "pas21": (21, 0, 0, 20, (), (None, (1449,))),
    "coco_stuff": (171, 15, 0, 181, (), ((118287,), (5000,))),
    "coco_stuff171": (171, 0, 0, 181, (), ((118287,), (5000,))),
    "context59": (59, 10, 1, 59, (0,), ((4996, 4998), (5104,))),
    "pc59": (59, 0, 1, 59, (0,), (None, (5104,))),
    "context60": (60, 10, 0, 59, (), ((4996, 4998), (5104,))),
    "context459": (459, 0, 0, 458, (), (None, (5104,))),
    "ade20k_150": (150, 0, 1, 150, (0,), ((20210,), (2000,))),
    "ade20k_847": (847, 0, 0, 846, (), (None, (2000,))),
    "msrc21": (21, 4, 0, 22, (4, 7), ((394,), (99,))),
    **{f"msrc21_k{k}": (21, k, 0, 22, (4, 7), ((394,), (99,))) for k in (2, 4, 6, 8)},
    **{f"voc2012_k{k}": (21, k, 0, 20, (), ((10582,), (1449,))) for k in (2, 4, 6, 8, 10)},
    **{f"context59_k{k}": (59, k, 1, 59, (0,), ((4996, 4998), (5104,))) for k in (2, 4, 6, 8)},
    **{f"context60_k{k}": (60, k, 0, 59, (), ((4996, 4998), (5104,))) for k in (2, 4, 6, 8)},
}


def read(name):
    return read_split_file(catalog.SPLIT_DIR / f"{name}.json")


def unseen_raw(name):
    benchmark = read(name)
    return {benchmark.raw_ids[i] for i in benchmark.vocabulary.unseen_ids}


def test_every_file_is_in_the_table_and_registered():
    own = {"zeroshapes", *(f"zeroshapes_k{k}" for k in (2, 4, 6, 8, 10))}
    assert {path.stem for path in FILES} == {*FACTS, *own}
    names = set(catalog.register_all())
    for path in FILES:
        benchmark = read_split_file(path)
        assert benchmark.name == path.stem
        for split in benchmark.folders:
            assert f"{path.stem}_{split}" in names
            assert MetadataCatalog.get(f"{path.stem}_{split}").vocabulary == benchmark.vocabulary


@pytest.mark.parametrize("name", FACTS)
def test_counts_and_ids(name):
    classes, unseen, first, last, ignored, images = FACTS[name]
    benchmark = read(name)
    assert len(benchmark.vocabulary) == len(benchmark.raw_ids) == classes
    assert len(benchmark.vocabulary.unseen_ids) == unseen
    assert (benchmark.raw_ids[0], benchmark.raw_ids[-1]) == (first, last)
    assert benchmark.ignored_raw_ids == ignored
    assert benchmark.ignore_label == (65535 if classes > 255 else 255)
    assert (benchmark.counts.get("train"), benchmark.counts.get("val")) == images
    if name != "pas20b":  # whose background is the last class by definition
        assert list(benchmark.raw_ids) == sorted(benchmark.raw_ids)
    script = benchmark.prepare.split()[4]
    assert (REPOSITORY / script).is_file(), script


@pytest.mark.parametrize("name", FACTS)
def test_pseudo_unseen_classes_are_few_seen_ones(name):
    benchmark = read(name)
    held, unseen = len(benchmark.pseudo_unseen), len(benchmark.vocabulary.unseen_ids)
    assert "background" not in benchmark.pseudo_unseen
    assert (0 < held <= unseen) if unseen else held == 0
    if unseen:
        catalog.register(benchmark)
        vocabulary = get_vocabulary(f"{name}_val", "pseudo_unseen")
        assert len(vocabulary.unseen_ids) == held
        assert len(vocabulary) == len(benchmark.vocabulary) - unseen


def test_unseen_classes_of_voc():
    assert unseen_raw("voc2012") == {16, 17, 18, 19, 20}
    names = read("voc2012").vocabulary.names
    assert names[15:] == ("pottedplant", "sheep", "sofa", "train", "tvmonitor")
    for k in (2, 4, 6, 8, 10):
        assert unseen_raw(f"voc2012_k{k}") == set(VOC_K[:k])
        assert read(f"voc2012_k{k}").vocabulary.names == ("background", *names)


@pytest.mark.parametrize(
    ("name", "by_raw_id"),
    [
        ("voc2012", dict(enumerate(VOC_NAMES, 1))),
        ("coco_stuff", {0: "person", 12: "stop sign", 91: "banner", 181: "wood"}),
        (
            "context459",
            {
                0: "accordion",
                207: "horse-drawncarriage",
                429: "umbrella",
                430: "unknown",
                458: "wool",
            },
        ),
        ("ade20k_150", {1: "wall", 8: "bed", 12: "sidewalk", 75: "computer", 150: "flag"}),
        ("ade20k_847", {0: "wall", 1: "building, edifice", 845: "towel rail"}),
    ],
)
def test_names_stand_at_their_official_numbers(name, by_raw_id):
    benchmark = read(name)
    names = dict(zip(benchmark.raw_ids, benchmark.vocabulary.names, strict=True))
    assert {raw: names[raw] for raw in by_raw_id} == by_raw_id


def test_classes_of_coco_stuff():
    benchmark = read("coco_stuff")
    unseen = benchmark.vocabulary.unseen_ids
    found = {(benchmark.raw_ids[i], i, benchmark.vocabulary.names[i]) for i in unseen}
    assert found == COCO_UNSEEN
    unused = set(range(182)) - set(benchmark.raw_ids)
    assert unused == {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    # ZegFormer evaluates seen classes before unseen ones; ours is the raw order.
    assert max(unseen) < 170


def test_unseen_classes_of_context():
    tids = {19, 33, 48, 14, 7, 24, 6, 54, 31, 0}
    assert set(read("context59").vocabulary.unseen_ids) == tids
    assert set(read("context60").vocabulary.unseen_ids) == {i + 1 for i in tids}
    assert read("context60").vocabulary.names == ("background", *read("context59").vocabulary.names)
    for k in (2, 4, 6, 8):
        for base in ("context59", "context60"):
            vocabulary = read(f"{base}_k{k}").vocabulary
            assert {vocabulary.names[i] for i in vocabulary.unseen_ids} == set(CONTEXT_K[:k])


def test_classes_of_msrc():
    official = tuple(msrc.COLOURS)
    assert len(official) == 23
    benchmark = read("msrc21")
    names = benchmark.vocabulary.names
    assert names == tuple(official[raw] for raw in benchmark.raw_ids)
    assert set(official) - set(names) == {"horse", "mountain"}
    assert unseen_raw("msrc21") == {3, 12, 19, 22}
    for k in (2, 4, 6, 8):
        vocabulary = read(f"msrc21_k{k}").vocabulary
        assert {vocabulary.names[i] for i in vocabulary.unseen_ids} == set(MSRC_K[:k])


def test_the_59_of_context_among_the_459():
    names = read("context59").vocabulary.names
    table = context.table_59()
    assert (np.flatnonzero(table)[[0, 1, 31, -1]] == [2, 9, 220, 458]).all()
    assert sorted(table[table > 0]) == list(range(1, 60))
    full = ("", *read("context459").vocabulary.names)
    differ = [(names[new - 1], full[old]) for old, new in enumerate(table) if new]
    assert [pair for pair in differ if pair[0] != pair[1]] == [("diningtable", "table")]
    assert len(read_ids(context.LISTS / "context_val.txt")) == 5104


def test_objects_of_ade20k():
    table = ade20k.table_847()
    assert [table[i] for i in (2978, 312, 2420, 3148, 0, 1)] == [0, 1, 2, 846, 65535, 65535]
    assert (np.sort(table[table != 65535]) == np.arange(847)).all()
    assert read("ade20k_847").vocabulary.prompts[1] == "building; edifice"
    assert "bed" in read("ade20k_150").vocabulary.names  # the official list says "bed "


def test_prompts_are_words():
    for path in FILES:
        for names in read_split_file(path).vocabulary.synonyms():
            assert len(set(names)) == len(names)
            assert all(name == name.strip() and name for name in names), path
    coco = read("coco_stuff").vocabulary
    prompts = dict(zip(coco.names, coco.prompts, strict=True))
    assert prompts["wall-brick"] == "brick wall"
    assert len(read("pas20b").vocabulary.synonyms()[20]) == 39


def test_a_base_gives_what_is_not_given_anew(tmp_path):
    base = {"name": "one", "classes": ["a", "b", "c"], "unseen": ["c"], "raw_ids": [4, 5, 6]}
    (tmp_path / "one.json").write_text(json.dumps(base))
    (tmp_path / "two.json").write_text(
        json.dumps({"base": "one", "name": "two", "unseen": [], "prompts": ["x", ["y", "z"], "c"]})
    )
    two = read_split_file(tmp_path / "two.json")
    assert (two.name, two.raw_ids, two.vocabulary.unseen_ids) == ("two", (4, 5, 6), ())
    assert two.vocabulary.synonyms() == (("x",), ("y", "z"), ("c",))
    (tmp_path / "one.json").write_text(json.dumps({**base, "base": "two"}))
    with pytest.raises(ValueError, match="has no end"):
        read_split_file(tmp_path / "two.json")
    (tmp_path / "two.json").write_text(json.dumps({"base": "three", "name": "two"}))
    with pytest.raises(ValueError, match=r"cannot read split file .*three\.json"):
        read_split_file(tmp_path / "two.json")


# ---------------------------------------------------------------------------------------- synonyms
def test_group_max_by_hand():
    scores = torch.tensor([[1.0, 5.0, 3.0, 2.0, 9.0]])
    assert group_max(scores, [2, 1, 1]).tolist() == [[5.0, 3.0, 2.0, 9.0]]
    assert group_max(scores, [1, 4]).tolist() == [[1.0, 9.0]]
    for sizes in ([3, 3], [0, 1]):
        with pytest.raises(ValueError, match="do not fit"):
            group_max(scores, sizes)


@pytest.mark.parametrize("ensemble", [0.0, 0.4])
def test_the_best_synonym_counts(tiny_cfg, ensemble):
    """As many classes as names, of which the best of each group is taken before the softmax."""
    test = tiny_cfg.ALIGNZEG.TEST
    test.SYNONYMS, test.ENSEMBLE_SEEN, test.ENSEMBLE_UNSEEN = "max", ensemble, ensemble
    tiny_cfg.ALIGNZEG.CORRECTOR.NAME = "NoCorrection"
    model = build_model(tiny_cfg).eval()
    record = DatasetCatalog.get("zeroshapes_val")[0]
    sample = ZeroShotMapper(tiny_cfg, False)(record)
    names = ("red circle", "crimson disc", "grass", "water")
    grouped = Vocabulary(("a", "b"), (True, True), ("red circle; crimson disc; grass", "water"))

    def scores(vocabulary):
        sample["vocabulary"] = vocabulary
        with torch.no_grad():
            return model([sample])[0]["class_probs"].double()

    if ensemble == 0:
        each = scores(Vocabulary(names, (True,) * 4)).log()
        best = torch.stack([each[:, :3].amax(-1), each[:, 3], each[:, 4]], -1).softmax(-1)
        torch.testing.assert_close(scores(grouped), best, rtol=1e-4, atol=1e-6)
    found = scores(grouped)
    assert found.shape[1] == 3
    tiny_cfg.ALIGNZEG.TEST.SYNONYMS = "mean"
    model.class_texts = ClassTexts()
    assert not torch.allclose(scores(grouped), found)
    alone = Vocabulary(("red circle", "water"), (True, True))
    plain = scores(alone)
    model.class_texts = ClassTexts(synonyms="max")
    assert torch.equal(scores(alone), plain)
    model.class_texts = ClassTexts(names="official")
    assert torch.equal(
        scores(Vocabulary(alone.names, (True, True), ("grass; brick", "wood"))), plain
    )


def test_a_prompt_of_several_names_is_their_mean(tiny_cfg):
    vlm = build_model(tiny_cfg).vlm
    both, first, second = vlm.embed_text(["red star; blue ring", "red star", "blue ring"])
    mean = torch.nn.functional.normalize(first + second, dim=0)
    torch.testing.assert_close(both, mean)


@pytest.mark.parametrize("key", ["VLM.NAMES", "TEST.SYNONYMS"])
def test_wrong_choices_are_refused(tiny_cfg, key):
    tiny_cfg.merge_from_list([f"ALIGNZEG.{key}", "best"])
    with pytest.raises(ValueError, match=rf"{key} is 'best'"):
        build_model(tiny_cfg)
