"""The generator and its schedule: what it learns about classes that it has never seen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import CONFIGS

from alignzeg.engine import setup_config, validate
from alignzeg.generative.recursion import Phase, Schedule
from alignzeg.losses.mmd import weighted_mmd
from alignzeg.modeling.generator import GMMNGenerator

BANDWIDTHS = (2.0, 5.0, 10.0, 20.0)
SIDE, DIM = 4, 16


class Toy:
    """Classes of two attributes each; a class's features are normal around a known mean."""

    def __init__(self) -> None:
        first, second = torch.eye(SIDE).repeat_interleave(SIDE, 0), torch.eye(SIDE).repeat(SIDE, 1)
        self.semantics = F.normalize(torch.cat([first, second], dim=1), dim=1)
        self.means = 3 * torch.cat([first, second], dim=1) @ torch.randn(2 * SIDE, DIM)
        # Each attribute is held out once: every one of them is seen in other classes.
        self.unseen = torch.arange(SIDE) * (SIDE + 1)
        self.seen = torch.tensor([i for i in range(SIDE**2) if i not in self.unseen.tolist()])

    def features(self, classes: torch.Tensor, count: int) -> torch.Tensor:
        return self.means[classes][:, None] + torch.randn(len(classes), count, DIM)

    def accuracy(self, generator: GMMNGenerator) -> float:
        """Share of the features made for held-out classes that are nearest to their own mean."""
        with torch.no_grad():
            made = generator(self.semantics[self.unseen], 100)
        nearest = torch.cdist(made, self.means.expand(len(made), -1, -1)).argmin(dim=-1)
        return (nearest == self.unseen[:, None]).float().mean().item()


def test_features_of_held_out_classes_lie_where_theirs_would():
    toy = Toy()
    generator = GMMNGenerator(semantic_dim=2 * SIDE, feature_dim=DIM, hidden_dim=128, dropout=0.5)
    assert toy.accuracy(generator) <= 0.4
    optimizer = torch.optim.AdamW(generator.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(400):
        made = generator(toy.semantics[toy.seen], 24)
        loss = weighted_mmd(made, toy.features(toy.seen, 24), None, BANDWIDTHS).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert toy.accuracy(generator) >= 0.8


def test_it_makes_as_many_different_features_as_asked_for():
    generator = GMMNGenerator(semantic_dim=5, feature_dim=7, hidden_dim=8, dropout=0.0)
    made = generator(torch.randn(2, 3, 5), 4)
    assert made.shape == (2, 3, 4, 7)
    assert not torch.allclose(made[..., 0, :], made[..., 1, :])
    # The noise is all that differs.
    torch.manual_seed(3)
    first = generator(torch.ones(3, 5), 4)
    torch.manual_seed(3)
    assert torch.equal(generator(torch.ones(3, 5), 4), first)


def test_rounds_are_generator_steps_and_then_classifier_steps():
    schedule = Schedule(rounds=2, generator_steps=2, classifier_steps=1)
    assert schedule.steps == 9
    assert [schedule.at(step) for step in range(5)] == [
        Phase(0, True, True),
        Phase(0, True, False),
        Phase(0, False, False),
        Phase(1, True, True),
        Phase(1, True, False),
    ]
    assert schedule.at(8) == Phase(2, False, False)


@pytest.mark.parametrize(
    ("key", "value"), [("ROUNDS", "-1"), ("GENERATOR_STEPS", "0"), ("CLASSIFIER_STEPS", "0")]
)
def test_a_schedule_without_steps_is_refused(key, value):
    config = CONFIGS / "zeroshapes" / "transductive_recursive.yaml"
    with pytest.raises(ValueError, match=rf"RECURSION\.{key} is {value}; it must be \d or more"):
        validate(setup_config(config, [f"ALIGNZEG.RECURSION.{key}", value]))
