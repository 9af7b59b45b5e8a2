"""Features of pixels: which are kept, which are counted, which may be seen."""

from __future__ import annotations

import pytest
import torch

from alignzeg.data.labels import get_vocabulary, read_labels
from alignzeg.data.mapper import build_targets
from alignzeg.engine.training.trainer import training_records
from alignzeg.generative.feature_bank import (
    FeatureBank,
    FeatureLoader,
    Reservoir,
    count_pixels,
    labelled_cells,
)
from alignzeg.generative.generative_trainer import GenerativeTrainer
from alignzeg.generative.recursion import Schedule


def test_a_reservoir_keeps_a_uniform_sample():
    counts = torch.zeros(40)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        reservoir = Reservoir(10, generator)
        for start in range(0, 40, 4):
            reservoir.add(torch.arange(start, start + 4)[:, None])
        kept = reservoir.sample()[:, 0]
        assert len(kept.unique()) == 10
        counts[kept] += 1
    # Binomial with mean 100 and standard deviation 8.7.
    assert counts.min() > 60
    assert counts.max() < 140


def test_cells_count_where_all_their_pixels_have_one_label():
    labels = torch.full((8, 12), 255)
    labels[:4, :4] = 0
    labels[:4, 4:8] = 1
    labels[0, 4] = 0
    targets = build_targets(labels.numpy(), 2).padded((12, 12))
    cells = dict(labelled_cells(targets, (3, 3)))
    assert cells[0].nonzero().tolist() == [[0, 0]]
    assert cells[1].nonzero().tolist() == []
    # Padding is no pixel without a label.
    assert cells[-1].nonzero().tolist() == [[0, 2], [1, 0], [1, 1], [1, 2]]


def test_pixels_are_counted_with_those_of_hidden_classes(cfg):
    records = training_records(cfg)
    names = get_vocabulary("zeroshapes_train").names
    counts = count_pixels(records, names[::-1]).flip(0)
    for label in range(len(names)):
        labels = (read_labels(r["sem_seg_file_name"], r["dataset_name"]) for r in records)
        assert counts[label] == sum(int((part == label).sum()) for part in labels)


def test_a_sampled_layout_does_not_know_the_labels_of_unseen_classes(cfg, model):
    loader = GenerativeTrainer.build_train_loader(cfg)
    loader.model = model
    shares = next(iter(loader))[0]["shares"]
    seen = len(model.seen)
    assert shares.sum().item() == pytest.approx(1)
    torch.testing.assert_close(shares[seen:], shares[seen].expand(4))
    present = shares[:seen][shares[:seen] > 0]
    torch.testing.assert_close(shares[seen], present.mean())
    cfg.ALIGNZEG.GENERATOR.LAYOUT = "real"
    loader = GenerativeTrainer.build_train_loader(cfg)
    loader.model = model
    real = next(iter(loader))[0]["shares"]
    counts = count_pixels(training_records(cfg), model.names)
    torch.testing.assert_close(real, counts / counts.sum())


def test_a_batch_depends_on_its_number_alone():
    rows = torch.arange(50.0)[:, None]
    bank = FeatureBank(torch.arange(2), [rows, -rows], rows[:0], torch.ones(2) / 2)

    def loader(**changes) -> FeatureLoader:
        made = FeatureLoader(lambda _: bank, Schedule(0, 2, 2), samples=8, **{"seed": 1, **changes})
        made.model = torch.nn.Identity()
        return made

    first, again = loader(), loader()
    batches = [batch[0]["features"] for _, batch in zip(range(4), first, strict=False)]
    assert not torch.equal(batches[0], batches[1])
    # The fourth batch was handed out after it was counted.
    assert first.state_dict()["position"] == 4
    again.load_state_dict({"seed": 1, "position": 2})
    torch.rand(9)
    assert torch.equal(next(iter(again))[0]["features"], batches[2])
    assert not torch.equal(next(iter(loader(rank=1)))[0]["features"], batches[0])
