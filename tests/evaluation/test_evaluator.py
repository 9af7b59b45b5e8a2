"""The evaluator: the same counts from 1 to 4 processes, its report, and what it refuses."""

import json
import multiprocessing

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import inference_on_dataset, print_csv_format
from metric_cases import assert_same, naive_metrics
from PIL import Image
from torch.nn.functional import interpolate

from alignzeg.config import add_alignzeg_config
from alignzeg.data import catalog, zeroshapes
from alignzeg.data.benchmark import Benchmark
from alignzeg.data.labels import get_vocabulary, read_labels
from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.evaluation import (
    ZeroShotEvaluator,
    load_per_image,
)
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
