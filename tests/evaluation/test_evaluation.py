"""The metrics against loops over single pixels, and the same counts from 1 to 4 processes."""

import json
import math
import multiprocessing

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import inference_on_dataset, print_csv_format
from PIL import Image
from torch.nn.functional import interpolate

from alignzeg.config import add_alignzeg_config
from alignzeg.data import catalog, zeroshapes
from alignzeg.data.benchmark import Benchmark
from alignzeg.data.labels import get_vocabulary, read_labels
from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.evaluation import (
    ZeroShotEvaluator,
    confusion,
    load_per_image,
    mask_ious,
    metrics_from_confusion,
)
from alignzeg.evaluation.metrics import class_iou, group_confusion, harmonic_mean
from alignzeg.structures import Vocabulary

NAMES = ("sky", "cat", "dog", "cow")
UNSEEN = ("dog",)


def register_toy():
    """Registers the toy data set; also called in spawned processes."""
    return catalog.register(
        Benchmark(
            name="judged",
            vocabulary=Vocabulary.from_unseen(NAMES, UNSEEN),
            pseudo_unseen=("cat",),
            raw_ids=(3, 2, 1, 0),
            folders={"val": ("i", "l")},
        )
    )


@pytest.fixture
def toy():
    for name in register_toy():
        yield name
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def naive_metrics(gt, pred, seen):
    """Every figure by counting single pixels, in exact integers as long as possible."""
    k = len(seen)
    pixels = [(int(g), int(p)) for g, p in zip(gt.flat, pred.flat, strict=True) if g < k]
    iou, present, touched = {}, [], []
    for c in range(k):
        inter = sum(g == c and p == c for g, p in pixels)
        union = sum(g == c or p == c for g, p in pixels)
        iou[c] = 100 * inter / union if union else 0.0
        present += [c] * any(g == c for g, _ in pixels)
        touched += [c] * (union > 0)

    def mean(classes):
        return sum(iou[c] for c in classes) / len(classes) if classes else None

    def share(hits, total):
        return 100 * hits / total if total else None

    result = {"pAcc": share(sum(g == p for g, p in pixels), len(pixels))}
    for end, counted in (("", present), ("_union", touched)):
        result["mIoU" + end] = mean(counted)
        s = result["sIoU" + end] = mean([c for c in counted if seen[c]])
        u = result["uIoU" + end] = mean([c for c in counted if not seen[c]])
        result["hIoU" + end] = (
            None if s is None or u is None else 2 * s * u / (s + u) if s + u else 0.0
        )
    for own, other, flag in (("seen", "unseen", True), ("unseen", "seen", False)):
        mine = [(g, p) for g, p in pixels if seen[g] == flag]
        named = [(g, p) for g, p in mine if p < k]
        result[f"{own}_to_{other}"] = share(sum(seen[p] != flag for _, p in named), len(mine))
        result[f"{own}_to_{own}_wrong"] = share(
            sum(seen[p] == flag and p != g for g, p in named), len(mine)
        )
        result[f"{own}_rejected"] = share(len(mine) - len(named), len(mine))
        result[f"{own}_correct"] = share(sum(g == p for g, p in mine), len(mine))
    return result


def assert_same(result, expected):
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert result[name] is None, name
        else:
            assert result[name] == pytest.approx(value, abs=1e-9), name


def test_metrics_equal_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    without = {"unseen": 0, "seen": 0}
    for _ in range(1200):
        k = int(rng.integers(1, 6))
        seen = tuple(bool(flag) for flag in rng.random(k) < 0.6)
        shape = tuple(rng.integers(1, 6, 2))
        few = rng.choice(k, int(rng.integers(1, k + 1)), replace=False)
        gt = rng.choice([*few, 255], shape).astype(np.uint8)
        pred = rng.choice([*range(k), 255], shape).astype(rng.choice([np.uint8, np.uint16]))
        result = metrics_from_confusion(confusion(gt, pred, k), seen)
        assert_same(result, naive_metrics(gt, pred, seen))
        assert not any(value is not None and math.isnan(value) for value in result.values())
        without["unseen"] += result["uIoU"] is None
        without["seen"] += result["sIoU"] is None
    assert min(without.values()) > 50


def test_a_case_by_hand():
    # true:      8 a, 4 b, 4 u          a and b are seen, u is not
    matrix = np.array([[6, 1, 1, 0], [0, 2, 0, 2], [2, 0, 2, 0]])
    result = metrics_from_confusion(matrix, (True, True, False))
    a, b, u = 6 / 10, 2 / 5, 2 / 5
    assert class_iou(matrix) == pytest.approx([60, 40, 40])
    assert result["pAcc"] == pytest.approx(100 * 10 / 16)
    assert result["mIoU"] == pytest.approx(100 * (a + b + u) / 3)
    assert result["sIoU"] == pytest.approx(50)
    assert result["uIoU"] == pytest.approx(40)
    assert result["hIoU"] == pytest.approx(2 * 50 * 40 / 90)
    assert result["unseen_to_seen"] == pytest.approx(50)
    assert result["seen_to_unseen"] == pytest.approx(100 / 12)
    assert result["seen_rejected"] == pytest.approx(200 / 12)
    assert group_confusion(matrix, (True, True, False)) == {
        "seen": {"seen": 9, "unseen": 1, "rejected": 2},
        "unseen": {"seen": 2, "unseen": 2, "rejected": 0},
    }


def test_a_class_that_is_only_predicted_counts_in_the_old_denominator_alone():
    matrix = np.array([[3, 1], [0, 0]])
    result = metrics_from_confusion(matrix, (True, True))
    assert result["mIoU"] == pytest.approx(75)
    assert result["mIoU_union"] == pytest.approx(37.5)
    assert (result["uIoU"], result["hIoU"], result["unseen_to_seen"]) == (None, None, None)


def test_nothing_labelled_is_undefined_everywhere():
    matrix = confusion(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), 2)
    assert matrix.sum() == 0
    assert set(metrics_from_confusion(matrix, (True, False)).values()) == {None}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0, 0, 0), (0, 50, 0), (50, 0, 0), (40, 40, 40), (None, 5, None), (5, None, None)],
)
def test_harmonic_mean_edges(first, second, expected):
    assert harmonic_mean(first, second) == expected


def test_class_order_does_not_matter():
    rng = np.random.default_rng(1)
    for _ in range(100):
        k = 6
        seen = rng.random(k) < 0.5
        matrix = rng.integers(0, 9, (k, k + 1)) * (rng.random((k, 1)) < 0.8)
        order = rng.permutation(k)
        shuffled = matrix[order][:, [*order, k]]
        assert_same(
            metrics_from_confusion(shuffled, seen[order].tolist()),
            metrics_from_confusion(matrix, seen.tolist()),
        )


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        confusion(np.zeros((2, 2), int), np.zeros((2, 3), int), 2)
    with pytest.raises(ValueError, match="does not fit 3 classes"):
        metrics_from_confusion(np.zeros((2, 2), int), (True, True, False))


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_mask_ious_equal_a_loop(chunk):
    generator = torch.Generator().manual_seed(0)
    for case in range(30):
        q, height, width = 1 + case % 7, 9 + case % 5, 12
        logits = torch.randn(q, 3, 4, generator=generator)
        labels = torch.tensor([0, 1, 2, 255])[
            torch.randint(4, (height, width), generator=generator)
        ].to(torch.uint8)
        result = mask_ious(logits, labels, [2, 0], chunk)
        full = interpolate(logits[None], (height, width), mode="bilinear")[0].sigmoid()
        for found, wanted in zip(result, (2, 0), strict=True):
            best = 0.0
            for mask in full:
                inter = union = 0
                for y in range(height):
                    for x in range(width):
                        if labels[y, x] == 255:
                            continue
                        inside, true = bool(mask[y, x] > 0.5), int(labels[y, x]) == wanted
                        inter += inside and true
                        union += inside or true
                best = max(best, inter / union if union else 0.0)
            assert float(found) == pytest.approx(best, abs=1e-12)


def test_mask_ious_without_proposals_or_classes():
    labels = torch.zeros(4, 4, dtype=torch.uint8)
    assert mask_ious(torch.zeros(0, 2, 2), labels, [0]).tolist() == [0.0]
    assert mask_ious(torch.zeros(3, 2, 2), labels, []).shape == (0,)


def image(folder, index):
    """One label file with its raw ids reversed, a prediction, and proposals; by index alone."""
    rng = np.random.default_rng(index)
    coarse = rng.choice([0, 1, 2, 3, 255], (3, 4), p=[0.3, 0.3, 0.2, 0.1, 0.1])
    gt = np.kron(coarse, np.ones((8, 8))).astype(np.uint8)
    path = folder / f"{index}.png"
    if not path.exists():
        raw = np.where(gt == 255, 255, 3 - gt).astype(np.uint8)
        Image.fromarray(raw).save(path)
    pred = np.where(rng.random(gt.shape) < 0.7, np.minimum(gt, 3), rng.integers(0, 4, gt.shape))
    logits = torch.stack([torch.from_numpy(coarse == c) for c in (0, 1, 2)]).float() * 4 - 2
    logits = logits + torch.from_numpy(rng.normal(0, 1.5, logits.shape)).float()
    return (
        {"sem_seg_file_name": str(path), "file_name": f"{index}.jpg"},
        {
            "sem_seg": torch.from_numpy(pred.astype(np.uint8)),
            "mask_logits": logits,
            "background": torch.from_numpy(rng.random((6, 8)) < 0.3),
        },
        gt,
    )


def evaluate_share(folder, count, output):
    """Judges this process's share of the images, as a test loader would split them."""
    register_toy()
    evaluator = ZeroShotEvaluator(
        "judged_val",
        get_vocabulary("judged_val"),
        str(output),
        min_segment=9,
        per_image=True,
    )
    for index in InferenceSampler(count):
        record, prediction, _ = image(folder, index)
        evaluator.process([record], [prediction])
    evaluator.evaluate()


def worker(rank, processes, shares):
    """One process of a gloo group; an error of the evaluator is left in a file."""
    first_output = shares[0][2]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{first_output}/group", rank=rank, world_size=processes
    )
    for share in shares:
        try:
            evaluate_share(*share)
        except ValueError as error:
            (share[2] / f"error{rank}.txt").write_text(str(error))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def run_processes(processes, shares):
    """Runs `worker` in a group; the fork server imports the package once for all of them."""
    multiprocessing.set_forkserver_preload(["alignzeg.evaluation", "detectron2.data"])
    torch.multiprocessing.start_processes(
        worker, (processes, shares), nprocs=processes, start_method="forkserver"
    )


def report_of(output):
    return json.loads((output / "evaluation_judged_val.json").read_text())


def test_one_to_four_processes_count_the_same(tmp_path, toy):
    labels, broken = tmp_path / "labels", tmp_path / "broken"
    for folder in (labels, broken, *(tmp_path / name for name in "1234")):
        folder.mkdir()
    count = 7
    evaluate_share(labels, count, tmp_path / "1")
    Image.fromarray(np.full((24, 32), 9, np.uint8)).save(broken / "3.png")
    run_processes(2, [(labels, count, tmp_path / "2"), (broken, 4, broken)])
    run_processes(3, [(labels, count, tmp_path / "3")])
    run_processes(4, [(labels, count, tmp_path / "4")])
    check_counts(tmp_path, labels, count)
    # A label out of range in one process stops both, each with the file's name.
    for rank in (0, 1):
        message = (broken / f"error{rank}.txt").read_text()
        assert "3.png holds [9]" in message
        assert "allowed are 0-3 and 255" in message
    assert not (broken / "evaluation_judged_val.json").exists()
    assert not list(labels.glob("error*")) + list((tmp_path / "2").glob("error*"))


def check_counts(tmp_path, labels, count):
    """The reports of 1 to 4 processes are equal, and equal to plain loops over everything."""
    reports = [report_of(tmp_path / str(processes)) for processes in (1, 2, 3, 4)]
    assert all(report == reports[0] for report in reports)
    files = [load_per_image(tmp_path / n / "per_image_judged_val.npz") for n in "1234"]
    assert files[0].images == tuple(f"{index}.png" for index in range(count))
    assert files[0].total().tolist() == reports[0]["confusion"]
    for file in files:
        assert file.images == files[0].images
        assert np.array_equal(file.class_counts(), files[0].class_counts())
    images = [image(labels, index) for index in range(count)]
    gt = np.stack([truth for _, _, truth in images])
    pred = np.stack([output["sem_seg"].numpy() for _, output, _ in images])
    seen = get_vocabulary("judged_val").seen
    metrics = dict(reports[0]["metrics"])
    recall = {name: metrics.pop(name) for name in list(metrics) if name.startswith("AR")}
    lost = {name: metrics.pop(f"{name}_to_background") for name in ("seen", "unseen")}
    assert_same(metrics, naive_metrics(gt, pred, seen))
    assert reports[0]["protocol"]["images"] == count
    hits = {name: [] for name in recall}
    for _, output, truth in images:
        full = interpolate(output["mask_logits"][None], truth.shape, mode="bilinear")[0].numpy() > 0
        for c in range(4):
            segment = truth == c
            if segment.sum() < 9:
                continue
            ious = [(m & segment).sum() / ((m & (truth != 255)) | segment).sum() for m in full]
            group = "seen" if seen[c] else "unseen"
            hits[f"AR50_{group}"].append(max(ious) >= 0.5)
            hits[f"AR75_{group}"].append(max(ious) >= 0.75)
    background = np.stack([output["background"].numpy() for _, output, _ in images])
    background = background.repeat(4, axis=1).repeat(4, axis=2)
    for name, flag in (("seen", True), ("unseen", False)):
        of_group = np.isin(gt, [c for c in range(4) if seen[c] is flag])
        assert lost[name] == pytest.approx(100 * background[of_group].mean())
    for name, found in hits.items():
        assert recall[name] == pytest.approx(100 * np.mean(found))
    assert len({0.0, 100.0, *recall.values()}) > 3


def test_result_and_report(tmp_path, toy):
    vocabulary = get_vocabulary(toy)
    evaluator = ZeroShotEvaluator(toy, vocabulary, str(tmp_path / "new"))
    for index in range(3):
        record, prediction, _ = image(tmp_path, index)
        evaluator.process([record], [prediction])
    result = evaluator.evaluate()
    print_csv_format(result)
    assert all(isinstance(value, float) for value in result["sem_seg"].values())
    assert {"pAcc", "mIoU", "sIoU", "uIoU", "hIoU", "unseen_to_seen", "AR50_unseen"} <= set(
        result["sem_seg"]
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["evaluation_judged_val.json"]
    report = report_of(tmp_path / "new")
    matrix = np.array(report["confusion"])
    assert matrix.shape == (4, 5)
    assert [row["name"] for row in report["classes"]] == list(NAMES)
    assert [row["gt_pixels"] for row in report["classes"]] == matrix.sum(1).tolist()
    assert [row["predicted_pixels"] for row in report["classes"]] == matrix.sum(0)[:4].tolist()
    assert report["classes"][2]["seen"] is False
    protocol = report["protocol"]
    assert (protocol["classes"], protocol["seen"], protocol["unseen"]) == (4, 3, 1)
    evaluator.reset()
    with pytest.raises(ValueError, match="no image"):
        evaluator.evaluate()


def test_absent_groups_are_null_in_the_report_and_missing_in_the_result(tmp_path, toy):
    evaluator = ZeroShotEvaluator(toy, get_vocabulary(toy), str(tmp_path), recall=False)
    Image.fromarray(np.full((4, 4), 3, np.uint8)).save(tmp_path / "a.png")
    record = {"sem_seg_file_name": str(tmp_path / "a.png")}
    evaluator.process([record], [{"sem_seg": np.array([[0, 1, 2, 255]] * 4, np.uint8)}])
    result = evaluator.evaluate()["sem_seg"]
    assert result["sIoU"] == pytest.approx(25)
    assert not {"uIoU", "hIoU", "unseen_to_seen", "AR50_seen"} & set(result)
    metrics = report_of(tmp_path)["metrics"]
    assert metrics["seen_rejected"] == pytest.approx(25)
    assert metrics["uIoU"] is None
    assert metrics["hIoU"] is None


def test_held_out_vocabulary_does_not_count_the_unseen_classes(tmp_path, toy):
    vocabulary = get_vocabulary(toy, "pseudo_unseen")
    assert vocabulary.names == ("sky", "cat", "cow")
    evaluator = ZeroShotEvaluator(
        toy, vocabulary, str(tmp_path), recall=False, hold_out="pseudo_unseen"
    )
    Image.fromarray(np.array([[3, 2, 1, 0]], np.uint8)).save(tmp_path / "a.png")
    record = {"sem_seg_file_name": str(tmp_path / "a.png")}
    evaluator.process([record], [{"sem_seg": np.array([[0, 0, 1, 2]], np.uint8)}])
    evaluator.evaluate()
    report = report_of(tmp_path)
    assert report["confusion"] == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]
    assert report["metrics"]["unseen_to_seen"] == 100
    assert report["protocol"]["hold_out"] == "pseudo_unseen"


def test_impossible_input_is_refused(tmp_path, toy):
    evaluator = ZeroShotEvaluator(toy, get_vocabulary(toy))
    path = tmp_path / "a.png"
    record = {"sem_seg_file_name": str(path)}
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(path)
    for prediction, message in (
        (np.zeros((3, 2), np.uint8), r"a\.png has shape \(2, 3\)"),
        (np.full((2, 3), 4, np.uint8), r"a\.png holds class 4; allowed are 0-3 and 255"),
        (np.full((2, 3), -1, np.int64), "holds class -1"),
        (np.zeros((2, 3), np.float32), "not integer"),
        (np.zeros((2, 3), np.uint8), "mask_logits"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluator.process([record], [{"sem_seg": prediction}])
    Image.fromarray(np.full((2, 3), 4, np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"a\.png holds \[4\]"):
        evaluator.process([record], [{"sem_seg": np.zeros((2, 3), np.uint8)}])
    with pytest.raises(ValueError, match="none of the class names"):
        ZeroShotEvaluator(toy, Vocabulary.from_unseen(["moon"], []))
    with pytest.raises(ValueError, match="no data set named 'judged_test'"):
        ZeroShotEvaluator("judged_test", get_vocabulary(toy))


class Truth(torch.nn.Module):
    """Answers with the ground truth, one proposal for each class."""

    def forward(self, batch):
        outputs = []
        for sample in batch:
            labels = read_labels(sample["sem_seg_file_name"], "zeroshapes_val")
            masks = [labels == i for i in range(len(sample["vocabulary"]))]
            logits = torch.from_numpy(np.stack(masks)).float() * 2 - 1
            outputs.append({"sem_seg": labels, "mask_logits": logits})
        return outputs


def test_the_truth_about_zeroshapes_is_perfect(tmp_path, monkeypatch):
    zeroshapes.write_dataset(tmp_path, "val", 6, size=64, workers=1)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    catalog.register_all()
    cfg = get_cfg()
    add_alignzeg_config(cfg)
    cfg.DATASETS.TRAIN = ("zeroshapes_train",)
    cfg.DATASETS.TEST = ("zeroshapes_val",)
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.DATALOADER.NUM_WORKERS = 0
    loader = build_detection_test_loader(
        cfg, "zeroshapes_val", mapper=ZeroShotMapper(cfg, is_train=False)
    )
    evaluator = ZeroShotEvaluator("zeroshapes_val", get_vocabulary("zeroshapes_val"), str(tmp_path))
    result = inference_on_dataset(Truth(), loader, evaluator)["sem_seg"]
    for name in ("pAcc", "mIoU", "sIoU", "uIoU", "hIoU", "AR50_seen", "AR75_unseen"):
        assert result[name] == pytest.approx(100)
    assert result["unseen_to_seen"] == 0
