"""A head and a criterion written from `alignzeg.contracts` alone train and answer."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from helpers import CONFIGS
from torch import Tensor, nn

from alignzeg import contracts, registries
from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.engine import Trainer, setup_config, validate
from alignzeg.structures import Outputs, Proposals

QUADRANTS = 4


class Unbiased:
    def indicate(self, embeds, region_embeds, seen_text):
        return None

    def examples(self, embeds, region_embeds, labels, text, synthetic):
        return None

    def correct(self, class_logits, unseen_logits, unseen):
        return class_logits


class QuadrantHead(nn.Module):
    """Proposes the four quarters of the image; learns one weight per proposal."""

    def __init__(self, cfg, input_shape, vlm) -> None:
        super().__init__()
        self.vlm = vlm
        self.corrector = Unbiased()
        self.background = nn.Parameter(torch.zeros(1))
        self.strength = nn.Parameter(torch.ones(QUADRANTS))

    def forward(self, image, features, text, seen_text) -> Outputs:
        batch, _, height, width = image.shape
        masks = image.new_full((batch, QUADRANTS, height // 4, width // 4), -9.0)
        rows, columns = height // 8, width // 8
        for quadrant in range(QUADRANTS):
            top, left = divmod(quadrant, 2)
            part = masks[:, quadrant, top * rows : (top + 1) * rows]
            part[..., left * columns : (left + 1) * columns] = 9.0
        masks = masks * self.strength[:, None, None]
        regions = self.vlm.embed_regions(self.vlm.encode_image(image), masks.detach())
        return Outputs(
            proposals=(Proposals(regions, masks),),
            embeds=regions,
            region_embeds=regions,
            class_logits=self.score(regions, text),
        )

    def score(self, embeds: Tensor, text: Tensor) -> Tensor:
        scores = self.vlm.logit_scale * embeds @ text.T
        return torch.cat([scores, self.background.expand(*scores.shape[:-1], 1)], dim=-1)

    def synthesize(self, region_embeds, query_embeds, labels, text):
        return None

    def correct(self, outputs: Outputs, unseen: Tensor) -> Tensor:
        """Nothing but unseen classes is left: what `unseen` says shows in the answer."""
        keep = torch.cat([unseen, unseen.new_ones(1)])
        return outputs.class_logits.masked_fill(~keep, -1e4)


class AreaCriterion(nn.Module):
    """Matched masks have the area of their targets."""

    def __init__(self, cfg) -> None:
        super().__init__()

    def forward(self, outputs, targets, matches) -> dict[str, Tensor]:
        total = 0 * outputs.class_logits.sum()
        masks = outputs.proposals[-1].mask_logits.sigmoid()
        for image, (target, match) in enumerate(zip(targets, matches[-1], strict=True)):
            wanted = target.masks[match.targets].float().mean(dim=(1, 2))
            found = masks[image, match.proposals].mean(dim=(1, 2))
            total = total + F.mse_loss(found, wanted, reduction="sum") / outputs.mask_count
        return {"loss_area": total}


@pytest.fixture
def cfg(zeroshapes, tiny_opts, monkeypatch):
    # For this test alone: other tests look at all that is registered.
    monkeypatch.setitem(registries.HEAD_REGISTRY._obj_map, "QuadrantHead", QuadrantHead)
    monkeypatch.setitem(registries.CRITERION_REGISTRY._obj_map, "AreaCriterion", AreaCriterion)
    opts = ["ALIGNZEG.HEAD.NAME", "QuadrantHead", "ALIGNZEG.CRITERIA", "['AreaCriterion']"]
    return setup_config(CONFIGS / "zeroshapes" / "baseline.yaml", [*tiny_opts, *opts])


def test_they_train_and_answer(cfg) -> None:
    validate(cfg)
    model = Trainer.build_model(cfg).train()
    mapper = ZeroShotMapper(cfg, True)
    batch = [mapper(record) for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[:3]]
    before = model.head.strength.detach().clone()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=1.0)
    losses = model(batch)
    assert set(losses) == {"loss_area"}
    losses["loss_area"].backward()
    optimizer.step()
    assert not torch.equal(model.head.strength, before)
    sample = ZeroShotMapper(cfg, False)(DatasetCatalog.get(cfg.DATASETS.TEST[0])[0])
    with torch.no_grad():
        (answer,) = model.eval()([sample])
    assert answer["sem_seg"].shape == (sample["height"], sample["width"])
    unseen = set(sample["vocabulary"].unseen_ids)
    assert set(answer["sem_seg"].unique().tolist()) <= unseen
    # A quarter of the image has one label.
    rows, columns = (edge // 4 for edge in answer["sem_seg"].shape)
    assert answer["sem_seg"][:rows, :columns].unique().numel() == 1


PAIRS = [
    (registries.VLM_REGISTRY, contracts.VLMContract),
    (registries.PROPOSAL_EXTRACTOR_REGISTRY, contracts.ExtractorContract),
    (registries.CLASSIFIER_REGISTRY, contracts.ClassifierContract),
    (registries.SYNTHESIZER_REGISTRY, contracts.SynthesizerContract),
    (registries.BIAS_CORRECTOR_REGISTRY, contracts.CorrectorContract),
    (registries.HEAD_REGISTRY, contracts.HeadContract),
    (registries.CRITERION_REGISTRY, contracts.CriterionContract),
]


@pytest.mark.parametrize(("registry", "contract"), PAIRS, ids=lambda x: getattr(x, "_name", ""))
def test_what_ships_has_the_methods_of_its_contract(registry, contract) -> None:
    """With the arguments of the contract, in its order, and no other that must be given."""
    wanted = {
        "forward" if name == "__call__" else name: list(inspect.signature(method).parameters)
        for name, method in vars(contract).items()
        if inspect.isfunction(method) and (name == "__call__" or not name.startswith("_"))
    }
    assert wanted
    for name, part in registry:
        if not part.__module__.startswith("alignzeg."):
            continue
        for method, arguments in wanted.items():
            given = inspect.signature(getattr(part, method)).parameters
            assert [*given][: len(arguments)] == arguments, f"{name}.{method}"
            rest = [given[extra] for extra in [*given][len(arguments) :]]
            assert all(x.default is not x.empty for x in rest), f"{name}.{method}"
