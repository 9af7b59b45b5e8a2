"""One registry, one contract: every registered component is held to it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from helpers import unit

from alignzeg import add_alignzeg_config
from alignzeg.registries import (
    BIAS_CORRECTOR_REGISTRY,
    CLASSIFIER_REGISTRY,
    CRITERION_REGISTRY,
    HEAD_REGISTRY,
    PROPOSAL_EXTRACTOR_REGISTRY,
    SYNTHESIZER_REGISTRY,
    build,
)
from alignzeg.structures import Outputs, Proposals

B, Q, K, D, H, W = 2, 9, 5, 16, 64, 96


def names(registry) -> list[str]:
    found = [name for name, _ in registry]
    assert found, f"nothing is registered in {registry._name}"
    return found


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_alignzeg_config(cfg)
    node = cfg.ALIGNZEG
    node.EXTRACTOR.NUM_QUERIES = Q
    node.EXTRACTOR.HIDDEN_DIM = 32
    node.EXTRACTOR.LAYERS = 4
    node.EXTRACTOR.FFN_DIM = 32
    node.CLASSIFIER.NUM_BACKGROUND = 3
    node.CORRECTOR.GAMMA = 2.0
    return cfg


def pyramid(requires_grad: bool = False) -> tuple[dict, dict]:
    shapes = {f"p{i}": ShapeSpec(channels=8, stride=2**i) for i in range(2, 6)}
    features = {
        name: torch.randn(B, 8, H // s.stride, W // s.stride, requires_grad=requires_grad)
        for name, s in shapes.items()
    }
    return shapes, features


class FrozenStub(torch.nn.Module):
    """A VLM of random numbers, with the contract's shapes."""

    embed_dim, logit_scale = D, 10.0

    def encode_image(self, image):
        return image

    def embed_dense(self, image):
        return image.new_ones(image.shape[0], D, image.shape[2] // 8, image.shape[3] // 8)

    def embed_regions(self, image, mask_logits):
        return F.normalize(mask_logits.new_ones(*mask_logits.shape[:2], D), dim=-1)


def check_proposals(proposals: tuple[Proposals, ...], layers: int) -> None:
    assert len(proposals) == layers
    for layer in proposals:
        assert layer.mask_logits.shape == (B, Q, H // 4, W // 4)
        assert layer.embeds.shape[:2] == (B, Q)
        assert torch.isfinite(layer.mask_logits).all()


@pytest.mark.parametrize("name", names(PROPOSAL_EXTRACTOR_REGISTRY))
def test_extractor(name, cfg):
    torch.manual_seed(0)
    shapes, features = pyramid(requires_grad=True)
    extractor = build(PROPOSAL_EXTRACTOR_REGISTRY, name, cfg, shapes, D)
    proposals = extractor(features, torch.randn(B, D, 7, 12))
    check_proposals(proposals, cfg.ALIGNZEG.EXTRACTOR.LAYERS)
    sum(p.mask_logits.square().mean() for p in proposals).backward()
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in features.values())
    unused = [n for n, p in extractor.named_parameters() if p.grad is None]
    assert not unused, f"parameters that no loss reaches make DDP wait: {unused}"


@pytest.mark.parametrize("name", names(PROPOSAL_EXTRACTOR_REGISTRY))
def test_extractor_does_not_mix_images(name, cfg):
    torch.manual_seed(0)
    shapes, features = pyramid()
    dense = torch.randn(B, D, 8, 12)
    extractor = build(PROPOSAL_EXTRACTOR_REGISTRY, name, cfg, shapes, D).eval()
    together = extractor(features, dense)[-1].mask_logits
    alone = extractor({k: f[1:] for k, f in features.items()}, dense[1:])[-1].mask_logits
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_extractor_names_the_missing_stride(cfg):
    shapes, _ = pyramid()
    del shapes["p5"]
    with pytest.raises(ValueError, match=r"strides \[32\] are needed"):
        build(PROPOSAL_EXTRACTOR_REGISTRY, "PlainExtractor", cfg, shapes, D)


@pytest.mark.parametrize("embedding", ["region", "query", "both"])
@pytest.mark.parametrize("name", names(CLASSIFIER_REGISTRY))
def test_classifier(name, embedding, cfg):
    torch.manual_seed(0)
    cfg.ALIGNZEG.CLASSIFIER.EMBEDDING = embedding
    classifier = build(CLASSIFIER_REGISTRY, name, cfg, D, 10.0)
    regions, queries = unit(B, Q, D), torch.randn(B, Q, 32, requires_grad=True)
    embeds = classifier.embed(regions, queries)
    assert embeds.shape == (B, Q, D)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(B, Q))
    # What is learned from masks is learned through the query states, unless regions are read alone.
    embeds.sum().backward()
    assert (queries.grad is None) == (embedding == "region")
    unused = [n for n, p in classifier.named_parameters() if p.grad is None]
    assert unused == ["background_embeds.weight"]
    embeds = embeds.detach()
    text = unit(K, D)
    scores = classifier.score(embeds, text)
    assert scores.shape == (B, Q, K + 1)
    assert classifier.background.shape == (3, D)
    # Another vocabulary in between changes nothing: no current vocabulary is kept.
    classifier.score(embeds, unit(2, D))
    assert torch.equal(scores, classifier.score(embeds, text))
    # Classes are independent of each other before the softmax.
    assert torch.allclose(scores[..., :2], classifier.score(embeds, text[:2])[..., :2], atol=1e-5)


@pytest.mark.parametrize("name", names(SYNTHESIZER_REGISTRY))
@pytest.mark.parametrize("labels", [[0, 1, 1, 3], [2, 2], [4], []])
def test_synthesizer(name, labels, cfg):
    torch.manual_seed(0)
    synthesizer = build(SYNTHESIZER_REGISTRY, name, cfg, D)
    embeds = unit(len(labels), D).requires_grad_()
    made = synthesizer(embeds, torch.tensor(labels, dtype=torch.long), unit(K, D))
    samples = len(made.embeds)
    assert made.embeds.shape == (samples, D)
    assert made.prototypes.shape[1] == D
    assert made.targets.shape == (samples,)
    if samples:
        assert made.targets.max() < len(made.prototypes)
        torch.testing.assert_close(made.prototypes.norm(dim=-1), torch.ones(samples))
        if made.embeds.requires_grad:
            made.embeds.sum().backward()
    assert (samples > 0) == (len(set(labels)) > 1)


@pytest.mark.parametrize("name", names(BIAS_CORRECTOR_REGISTRY))
def test_corrector(name, cfg):
    torch.manual_seed(0)
    corrector = build(BIAS_CORRECTOR_REGISTRY, name, cfg, D, 10.0)
    # Fewer seen classes than cosines that the indicator would like, and more.
    for seen in (2, 9):
        unseen_logits = corrector.indicate(unit(B, Q, D), unit(B, Q, D), unit(seen, D))
        assert unseen_logits is None or unseen_logits.shape == (B, Q)
    scores = torch.randn(B, Q, K + 1)
    unseen = torch.tensor([False, True, False, False, True])
    corrected = corrector.correct(scores, unseen_logits, unseen)
    assert corrected.shape == scores.shape
    # Neither unseen classes nor the background are touched, and no seen score rises.
    kept = torch.cat([unseen, torch.tensor([True])])
    assert torch.equal(corrected[..., kept], scores[..., kept])
    assert (corrected <= scores).all()
    nobody = torch.zeros(K, dtype=torch.bool)
    assert torch.equal(corrector.correct(scores, unseen_logits, nobody), scores)


@pytest.mark.parametrize("name", names(BIAS_CORRECTOR_REGISTRY))
@pytest.mark.parametrize("count", [0, 6])
def test_examples_of_a_corrector(name, count, cfg):
    torch.manual_seed(0)
    corrector = build(BIAS_CORRECTOR_REGISTRY, name, cfg, D, 10.0)
    embeds, regions = unit(count, D).requires_grad_(), unit(count, D)
    examples = corrector.examples(embeds, regions, torch.arange(count) % K, unit(K, D), None)
    if examples is None:
        assert not list(corrector.parameters())
        return
    logits, unseen = examples
    assert logits.shape == unseen.shape and unseen.dtype == torch.bool
    logits.sum().backward()
    assert all(p.grad is not None for p in corrector.parameters())
    assert embeds.grad is None  # the indicator must not shape the embedding


@pytest.mark.parametrize("space", ["input", "embedding"])
@pytest.mark.parametrize("embedding", ["region", "query", "both"])
@pytest.mark.parametrize("name", names(HEAD_REGISTRY))
def test_head(name, embedding, space, cfg):
    torch.manual_seed(0)
    cfg.ALIGNZEG.CLASSIFIER.EMBEDDING = embedding
    cfg.ALIGNZEG.SYNTHESIZER.SPACE = space
    shapes, features = pyramid()
    head = build(HEAD_REGISTRY, name, cfg, shapes, FrozenStub())
    text, seen_text = unit(K, D), unit(3, D)
    outputs = head(torch.rand(B, 3, H, W) * 255, features, text, seen_text)
    assert isinstance(outputs, Outputs)
    check_proposals(outputs.proposals, cfg.ALIGNZEG.EXTRACTOR.LAYERS)
    assert outputs.class_logits.shape == (B, Q, K + 1)
    assert outputs.unseen_logits.shape == (B, Q)
    queries = outputs.proposals[-1].embeds[0]
    synthetic = head.synthesize(outputs.region_embeds[0], queries, torch.arange(Q) % 3, text)
    for embeds in (synthetic.embeds, synthetic.region_embeds):
        assert embeds.shape == (len(synthetic.targets), D)
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(len(embeds)))
    assert synthetic.logits.shape == (len(synthetic.targets), K + 1 + len(synthetic.targets))


def test_unknown_component_lists_the_known(cfg):
    with pytest.raises(ValueError, match="no CRITERION named 'Nonsense'.*MaskCriterion"):
        build(CRITERION_REGISTRY, "Nonsense", cfg)
