"""The pixel classifier: its loss, what it answers, and which training images it may see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from helpers import CONFIGS, K4

from alignzeg.data.labels import get_vocabulary, read_labels, training_vocabulary, without_hidden
from alignzeg.data.mapper import ZeroShotMapper, build_targets
from alignzeg.engine import AlignZegCheckpointer, Trainer, setup_config
from alignzeg.engine.training.trainer import training_records
from alignzeg.generative.pixel_loss import pixel_cross_entropy
from alignzeg.inference import Predictor
from alignzeg.inference.checkpoint_classes import eval_vocabulary
from alignzeg.modeling.test_time_augmentation import TestTimeAugmentation
from alignzeg.structures import Vocabulary

KINDS = {
    "train": "zeroshapes_k4_train",
    "val": "zeroshapes_k4_val",
}


@pytest.fixture
def cfg(zeroshapes, tiny_opts) -> CfgNode:
    return setup_config(CONFIGS / "zeroshapes" / "pixel.yaml", [*tiny_opts, *K4])


@pytest.fixture
def model(cfg):
    return Trainer.build_model(cfg)


def inputs(cfg, training: bool) -> list[dict]:
    mapper = ZeroShotMapper(cfg, training)
    names = cfg.DATASETS.TRAIN if training else cfg.DATASETS.TEST
    return [mapper(record) for record in DatasetCatalog.get(names[0])[:3]]


def test_the_loss_is_the_cross_entropy_of_every_labelled_pixel():
    labels = torch.randint(0, 7, (2, 16, 24))
    labels[labels > 4] = 255
    labels[0, :4, :8] = 255  # cells without any label
    logits = torch.randn(2, 5, 4, 6)
    targets = [build_targets(part.numpy(), 5) for part in labels]
    each = logits.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    expected = F.cross_entropy(each, labels, ignore_index=255)
    torch.testing.assert_close(pixel_cross_entropy(logits, targets), expected)


def test_balance_weighs_a_pixel_by_the_area_of_its_class():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 255, 2]).repeat_interleave(4)[None].repeat(4, 1)
    logits = torch.randn(1, 5, 1, 8)
    each = -logits.log_softmax(dim=1)[0, :, 0]
    targets = [build_targets(labels.numpy(), 5)]
    first, second, third = each[0, :4].sum(), each[1, 4:6].sum(), each[2, 7]
    classes = pixel_cross_entropy(logits, targets, balance=1.0)
    torch.testing.assert_close(classes, (first / 4 + second / 2 + third) / 3)
    between = pixel_cross_entropy(logits, targets, balance=0.5)
    torch.testing.assert_close(between, (first / 2 + second / 2**0.5 + third) / (2 + 2**0.5 + 1))


def test_a_cell_without_a_label_has_no_influence_whatever_is_there():
    labels = torch.randint(0, 5, (8, 8))
    labels[:4, :4] = 255
    targets = [build_targets(labels.numpy(), 5)]
    logits = torch.randn(1, 5, 2, 2)
    clean = pixel_cross_entropy(logits, targets)
    logits[..., 0, 0] = torch.nan
    logits.requires_grad_()
    loss = pixel_cross_entropy(logits, targets)
    loss.backward()
    assert torch.equal(loss, clean)
    assert torch.equal(logits.grad[..., 0, 0], torch.zeros(1, 5))
    assert logits.grad.isfinite().all()


def test_without_labels_there_is_nothing_to_learn():
    logits = torch.randn(1, 5, 2, 2, requires_grad=True)
    loss = pixel_cross_entropy(logits, [build_targets(torch.full((8, 8), 255).numpy(), 5)])
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_it_answers_seen_classes_in_the_size_asked_for(cfg, model):
    samples = inputs(cfg, training=False)
    samples[0] |= {"height": 40, "width": 90}
    with torch.no_grad():
        answers = model.eval()(samples)
    vocabulary = samples[0]["vocabulary"]
    assert len(vocabulary.unseen_ids) == 4
    assert answers[0]["sem_seg"].shape == (40, 90)
    assert answers[1]["sem_seg"].shape == samples[1]["image"].shape[1:]
    for answer in answers:
        assert answer["sem_seg"].dtype == torch.uint8
        assert set(answer["sem_seg"].unique().tolist()) <= set(vocabulary.seen_ids)


def test_the_answer_is_the_most_likely_class_of_the_asked_order(cfg, model):
    sample = inputs(cfg, training=False)[0]
    with torch.no_grad():
        first = model.eval()([sample])[0]["sem_seg"].long()
        names = sample["vocabulary"].names
        backwards = Vocabulary(names[::-1], sample["vocabulary"].seen[::-1])
        second = model([{**sample, "vocabulary": backwards}])[0]["sem_seg"].long()
    assert torch.equal(first, len(names) - 1 - second)


def test_names_that_it_does_not_know_are_refused(cfg, model):
    sample = inputs(cfg, training=False)[0] | {"vocabulary": Vocabulary(("moon",), (False,))}
    with pytest.raises(ValueError, match=r"knows none of \['moon'\]; it was trained for"):
        model.eval()([sample])


def test_other_spellings_and_synonyms_are_the_trained_classes(cfg, model, caplog):
    first, second = model.seen.names[:2]
    asked = eval_vocabulary(
        [first.replace(" ", "_").upper(), f"something; {second}", "moon"], model.seen.names
    )
    assert model.scores_of(asked).tolist() == [0, 1, -1]
    model.scores_of(asked)
    (line,) = [r.getMessage() for r in caplog.records if "never answered" in r.getMessage()]
    assert line.startswith("never answered: 'moon'; this pixel classifier was trained for")


def test_images_of_unseen_classes_can_be_left_out(cfg):
    records = training_records(cfg)
    cfg.ALIGNZEG.DATA.SKIP_UNSEEN_IMAGES = True
    vocabulary = get_vocabulary(KINDS["train"])
    unseen = set(vocabulary.unseen_ids)
    clean = [
        record
        for record in records
        if not unseen & set(read_labels(record["sem_seg_file_name"], KINDS["train"]).flatten())
    ]
    assert 0 < len(clean) < len(records)
    assert training_records(cfg) == clean


def test_that_no_image_is_left_is_said(cfg):
    nothing = Vocabulary(("none of them",), (True,))
    with pytest.raises(ValueError, match="SKIP_UNSEEN_IMAGES to False"):
        without_hidden(training_records(cfg), nothing)


def plain_probs(model, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(K, H, W) softmax of the cells, interpolated to a size by PyTorch."""
    images = model.pad([image])
    probs = model.branch.classify(model.pixels(images)).softmax(dim=1)
    assert images.tensor.shape[-2:] == size, "the test needs images without padding"
    return F.interpolate(probs, size, mode="bilinear", align_corners=False)[0]


def agreement(found: torch.Tensor, probs: torch.Tensor) -> None:
    """The labels are those of the best scores, up to ties in rounding."""
    chosen = probs.gather(0, found.long()[None])[0]
    torch.testing.assert_close(chosen, probs.amax(dim=0), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_label_map_is_that_of_the_interpolated_scores(cfg, model):
    """In stripes of one row, at the size of the image and at another: as with PyTorch's resize."""
    torch.nn.init.normal_(model.branch.classifier.weight)
    item = {**inputs(cfg, False)[0], "image": torch.randint(0, 256, (3, 50, 70)).byte()}
    model.eval().memory_mib = 1e-6
    for size in ((50, 70), (31, 97)):
        images = model.pad([item["image"]])
        scores = model.branch.classify(model.pixels(images))
        padded = images.tensor.shape[-2:]
        full = F.interpolate(scores, padded, mode="bilinear", align_corners=False)[..., :50, :70]
        if size != (50, 70):
            full = F.interpolate(full, size, mode="bilinear", align_corners=False)
        known = model.scores_of(item["vocabulary"])
        full = full[0, known.clamp(min=0)].masked_fill((known < 0)[:, None, None], -1e9)
        found = model([{**item, "height": size[0], "width": size[1]}])[0]["sem_seg"]
        assert found.shape == size
        assert found.unique().numel() > 1
        agreement(found, full)


@torch.no_grad()
def test_mirror_images_are_averaged(cfg, model):
    torch.nn.init.normal_(model.branch.classifier.weight)
    model.eval().augmentation = TestTimeAugmentation(flip=True)
    image = torch.randint(0, 256, (3, 64, 96)).float()
    item = {"image": image, "vocabulary": model.seen}
    mirrored = plain_probs(model, image.flip(2), (64, 96)).flip(2)
    agreement(model([item])[0]["sem_seg"], (plain_probs(model, image, (64, 96)) + mirrored) / 2)


@torch.no_grad()
def test_windows_are_looked_at_one_by_one_and_averaged_where_they_overlap(cfg, model):
    torch.nn.init.normal_(model.branch.classifier.weight)
    model.eval().augmentation = TestTimeAugmentation(window=64, stride=32)
    image = torch.randint(0, 256, (3, 64, 96)).float()
    total, count = torch.zeros(len(model.names), 64, 96), torch.zeros(64, 96)
    for left in (0, 32):
        total[:, :, left : left + 64] += plain_probs(model, image[:, :, left : left + 64], (64, 64))
        count[:, left : left + 64] += 1
    found = model([{"image": image, "vocabulary": model.seen}])[0]["sem_seg"]
    assert found.unique().numel() > 1
    agreement(found, total / count)


def test_the_config_asks_for_windows_and_scales(cfg):
    cfg.ALIGNZEG.TEST.WINDOW = 64
    cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES = True, [48, 96]
    augmentation = Trainer.build_model(cfg).augmentation
    assert (augmentation.window, augmentation.sides) == (64, (48, 96))


def test_a_feature_that_the_encoder_does_not_give_is_named(cfg):
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p2", "res5"]
    with pytest.raises(ValueError, match=r"IN_FEATURES names \['res5'\]"):
        Trainer.build_model(cfg)


def test_the_splits_are_nested():
    before: set[str] = set()
    for count in (2, 4, 6, 8, 10):
        vocabulary = get_vocabulary(f"zeroshapes_k{count}_train")
        unseen = {vocabulary.names[i] for i in vocabulary.unseen_ids}
        assert len(unseen) == count
        assert before < unseen
        assert vocabulary.names == get_vocabulary("zeroshapes_train").names
        before = unseen


def test_training_names_no_unseen_class(cfg, model):
    assert model.names == training_vocabulary(cfg).names
    losses = model.train()(inputs(cfg, training=True))
    assert list(losses) == ["loss_pixel"]
    losses["loss_pixel"].backward()
    # The two levels of the FPN that the decoder does not read.
    unread = ("backbone.fpn_output3.", "backbone.fpn_output5.")
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(name.startswith(unread) for name in idle)


@torch.no_grad()
def test_the_confidence_is_the_share_and_a_low_one_is_rejected(cfg, model):
    torch.nn.init.normal_(model.branch.classifier.weight)
    image = torch.randint(0, 256, (3, 64, 96)).float()
    item = {"image": image, "vocabulary": model.seen, "confidence": True}
    plain = model.eval()([item])[0]
    images = model.pad([image])
    scores = model.branch.classify(model.pixels(images))
    shares = F.interpolate(scores, (64, 96), mode="bilinear", align_corners=False)[0].softmax(0)
    torch.testing.assert_close(plain["confidence"], shares.amax(0))
    middle = float(plain["confidence"].median())
    model.reject_below = middle
    found = model([item])[0]["sem_seg"]
    rejected = plain["confidence"] < middle
    assert 0 < rejected.sum() < rejected.numel()
    assert (found[rejected] == 255).all()
    assert torch.equal(found[~rejected], plain["sem_seg"][~rejected])
    # Of some classes only, the share is still one among all that the classifier knows.
    two = Vocabulary(model.seen.names[:2], (True, True))
    model.reject_below = 0.0
    asked = model([item | {"vocabulary": two}])[0]["confidence"]
    torch.testing.assert_close(asked, shares[:2].amax(0))


def test_settings_of_proposals_are_said_to_be_idle(cfg, caplog):
    Trainer.build_model(cfg)
    assert "no effect" not in caplog.text
    cfg.ALIGNZEG.TEST.SYNONYMS = "max"
    cfg.ALIGNZEG.TEST.SEMANTIC_INFERENCE = "fast"
    Trainer.build_model(cfg)
    said = "SEMANTIC_INFERENCE, SYNONYMS: no effect on PixelSegmenter, which makes no proposals"
    assert said in caplog.text
    cfg.ALIGNZEG.TEST.WINDOW_STRIDE = 5
    Trainer.build_model(cfg)
    assert "WINDOW_STRIDE 5: no effect without ALIGNZEG.TEST.WINDOW" in caplog.text
    cfg.ALIGNZEG.TEST.WINDOW = 64
    Trainer.build_model(cfg)
    assert "SEMANTIC_INFERENCE fast: no effect with TEST.AUG or windows" in caplog.text


def test_a_checkpoint_of_it_has_a_confidence_and_no_proposals(cfg, model, tmp_path):
    AlignZegCheckpointer(model, str(tmp_path), config=cfg.dump()).save("pixel")
    predictor = Predictor(tmp_path / "pixel.pth", classes=list(model.seen.names))
    image = torch.randint(0, 256, (40, 60, 3)).byte().numpy()
    answer = predictor(image)
    assert answer.confidence.shape == (40, 60) and 0 < answer.confidence.max() <= 1
    known = predictor.known_words()
    assert set(known["known"]) == {word for n in model.seen.names for word in n.split()}
    assert set(known["asked"]) == set(known["known"])
    with pytest.raises(ValueError, match="PixelSegmenter names pixels without mask proposals"):
        predictor(image, proposals=3)
