"""OpenClipVLM: names, images and regions of tiny random open_clip models, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from alignzeg.config import add_alignzeg_config
from alignzeg.modeling.vlm import OpenClipVLM
from alignzeg.modeling.vlm.regions import mask_guided_tokens, patches_inside
from alignzeg.modeling.vlm.templates import TEMPLATE_SETS, resolve_templates
from alignzeg.modeling.vlm.text import encode_prompts
from alignzeg.registries import VLM_REGISTRY

TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
CONFIGS = {
    "test-vit": {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
    "test-quick": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "test-resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "test-convnext": {
        "image_size": 64,
        "timm_model_name": "convnext_atto",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random weights of every tower kind, as local files; names become known to open_clip."""
    folder = tmp_path_factory.mktemp("clip")
    paths = {}
    for name, vision in CONFIGS.items():
        config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}
        if name == "test-quick":
            config["quick_gelu"] = True
        (folder / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"{name}.json")
        torch.manual_seed(0)
        model = open_clip.create_model(name)
        for parameter in model.parameters():  # biases too, so that nothing hides behind a zero
            parameter.data += 0.02 * torch.randn_like(parameter)
        paths[name] = str(folder / f"{name}.safetensors")
        save_file(
            {key: value.contiguous() for key, value in model.state_dict().items()}, paths[name]
        )
    return paths


@pytest.fixture
def make(files: dict[str, str], tmp_path: Path):
    """Builds a VLM of one of the tiny models."""

    def build(name: str = "test-vit", **changes: object) -> OpenClipVLM:
        arguments = {
            "model_name": name,
            "weights": files[name],
            "templates": ["single"],
            "regions": "MaskGuidedTokens" if name == "test-vit" else "MaskPooling",
            "region_blocks": 2,
            "cache_dir": str(tmp_path / "cache"),
        }
        return OpenClipVLM(**{**arguments, **changes})

    return build


def some_image(height: int = 32, width: int = 32, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width) * 255


# ------------------------------------------------------------ templates
def test_template_sets() -> None:
    assert {name: len(templates) for name, templates in TEMPLATE_SETS.items()} == {
        "single": 1,
        "short": 4,
        "vild": 14,
        "imagenet": 80,
    }
    assert all(t.count("{}") == 1 for templates in TEMPLATE_SETS.values() for t in templates)
    assert resolve_templates(["single", "my {}", "single"]) == ("a photo of a {}.", "my {}")
    with pytest.raises(ValueError, match="'no slot' is neither"):
        resolve_templates(["no slot"])
    with pytest.raises(ValueError, match="no prompt templates"):
        resolve_templates([])


# ------------------------------------------------------------ text
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_embed_text_is_the_naive_loop(make, name: str) -> None:
    templates = ["a photo of a {}.", "there is the {} in the scene with many other words"]
    vlm = make(name, templates=templates)
    names = ["red star", "brick", "a much longer name of a thing"]
    tokenizer = open_clip.get_tokenizer(name)
    rows = []
    for item in names:
        prompts = [
            F.normalize(vlm.clip.encode_text(tokenizer([t.format(item)])), dim=-1)
            for t in templates
        ]
        rows.append(F.normalize(torch.cat(prompts).mean(0), dim=0))
    text = vlm.embed_text(names)
    assert text.shape == (3, vlm.embed_dim)
    assert torch.allclose(text, torch.stack(rows), atol=1e-5)
    assert not text.requires_grad


def test_context_is_cut_exactly(make) -> None:
    vlm = make()
    tokens = open_clip.get_tokenizer("test-vit")(["a", "a photo of a very long street"])
    seen = []
    handle = vlm.clip.transformer.register_forward_hook(
        lambda _m, _i, out: seen.append(out.shape[1])
    )
    short = encode_prompts(vlm.clip, tokens)
    handle.remove()
    assert seen == [int(tokens.argmax(-1).max()) + 1]
    assert torch.allclose(short, vlm.clip.encode_text(tokens), atol=1e-5)


def test_text_cache(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = make()
    calls = []
    honest = OpenClipVLM._prototypes
    monkeypatch.setattr(OpenClipVLM, "_prototypes", lambda s, n: calls.append(n) or honest(s, n))
    first = vlm.embed_text(["cat", "dog"])
    assert torch.equal(vlm.embed_text(["cat", "dog"]), first)
    assert len(calls) == 1, "memory"
    assert torch.equal(make().embed_text(["cat", "dog"]), first)
    assert len(calls) == 1, "disk"
    vlm.embed_text(["dog", "cat"])
    make(templates=["{}"]).embed_text(["cat", "dog"])
    assert len(calls) == 3, "names and templates are in the key"
    cached = sorted((tmp_path / "cache").glob("*.safetensors"))
    assert len(cached) == 3
    for path in cached:
        path.write_bytes(path.read_bytes()[:20])
    assert torch.equal(make().embed_text(["cat", "dog"]), first)
    assert len(calls) == 4, "a damaged file is made anew"
    assert torch.equal(make().embed_text(["cat", "dog"]), first)
    assert len(calls) == 4
    assert not list((tmp_path / "cache").glob(".writing*"))


def test_other_weights_other_key(make, files: dict[str, str], tmp_path: Path) -> None:
    model = open_clip.create_model("test-vit")
    other = tmp_path / Path(files["test-vit"]).name
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, other)
    one, two = make(), make(weights=str(other))
    assert one.id == two.id
    assert one.hash != two.hash
    assert not torch.allclose(one.embed_text(["cat"]), two.embed_text(["cat"]))


def test_two_vocabularies_alternate(make) -> None:
    vlm = make()
    first, second = vlm.embed_text(["cat"]), vlm.embed_text(["dog", "cat"])
    assert torch.allclose(vlm.embed_text(["cat"]), second[1:], atol=1e-6)
    assert torch.equal(vlm.embed_text(["cat"]), first)


@pytest.mark.parametrize("names", [[], ["cat", " "]])
def test_empty_names_are_refused(make, names: list[str]) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        make().embed_text(names)


# ------------------------------------------------------------ images
@pytest.mark.parametrize(
    ("size", "grid"),
    [((32, 32), (4, 4)), ((64, 64), (4, 4)), ((40, 80), (4, 8)), ((90, 30), (12, 4))],
)
def test_vit_dense_grid_follows_the_image(
    make, size: tuple[int, int], grid: tuple[int, int]
) -> None:
    vlm = make()
    dense = vlm.embed_dense(some_image(*size))
    assert dense.shape == (2, vlm.embed_dim, *grid)
    assert dense.isfinite().all()


@pytest.mark.parametrize("name", ["test-resnet", "test-convnext"])
def test_convnets_are_dense_and_pooled(make, name: str) -> None:
    vlm = make(name)
    image = some_image(64, 128)
    encoded = vlm.encode_image(image)
    assert vlm.embed_dense(encoded).shape == (2, 24, 2, 4)
    masks = torch.randn(2, 5, 16, 32)
    regions = vlm.embed_regions(encoded, masks)
    assert torch.allclose(regions.norm(dim=-1), torch.ones(2, 5), atol=1e-5)
    assert torch.allclose(vlm.embed_regions(image, masks), regions, atol=1e-5)


def test_convnext_dense_mean_is_its_own_embedding(make) -> None:
    """Where the trunk's head is linear after the norm, one place alone gives the tower's output."""
    vlm = make("test-convnext", image_size=32)
    image = some_image(32, 32)
    dense = vlm.embed_dense(image)
    assert dense.shape[-2:] == (1, 1)
    expected = vlm.clip.visual(vlm._prepared(image))
    assert torch.allclose(dense[..., 0, 0], expected, atol=1e-4)


def test_resolution_and_normalisation_are_the_models_own(make) -> None:
    vlm = make()
    mean = torch.tensor(vlm.clip.visual.preprocess_cfg["mean"]).view(1, 3, 1, 1) * 255
    prepared = vlm._prepared(mean.expand(1, 3, 50, 50))
    assert prepared.shape == (1, 3, 32, 32)
    assert prepared.abs().max() < 1e-4
    assert make(image_size=48)._prepared(some_image()).shape[-2:] == (48, 48)


def test_whole_image_region_is_the_plain_class_token(make) -> None:
    """With all blocks read and all patches inside, a copy of the class token is the class token."""
    vlm = make(region_blocks=4)
    image = some_image()
    regions = vlm.embed_regions(image, torch.full((2, 1, 8, 8), 5.0))
    plain = F.normalize(vlm.clip.visual(vlm._prepared(image)), dim=-1)
    assert torch.allclose(regions[:, 0], plain, atol=1e-5)


# ------------------------------------------------------------ regions
def naive_region(vlm: OpenClipVLM, image: Tensor, inside: Tensor) -> Tensor:
    """One region at a time: the transformer itself, with an attention mask over all tokens."""
    visual = vlm.clip.visual
    tokens = visual._embeds(vlm._prepared(image))
    blocks = visual.transformer.resblocks
    for block in blocks[: -vlm.region_blocks]:
        tokens = block(tokens)
    tokens = torch.cat([tokens[:, :1], tokens], dim=1)  # the copy, the class token, the patches
    size = tokens.shape[1]
    allowed = torch.ones(size, size, dtype=torch.bool)
    allowed[1:, 0] = False  # nobody sees the copy
    allowed[0, 1] = False  # the copy sees itself, not the original
    allowed[0, 2:] = inside
    bias = torch.zeros(size, size).masked_fill(~allowed, float("-inf"))
    for block in blocks[-vlm.region_blocks :]:
        tokens = block(tokens, attn_mask=bias)
    return F.normalize(visual.ln_post(tokens[:, 0]) @ visual.proj, dim=-1)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_mask_guided_tokens_are_the_naive_loop(make, blocks: int) -> None:
    vlm = make(region_blocks=blocks)
    image, masks = some_image(), torch.randn(2, 6, 16, 16) - 1
    masks[0, 0] = -9.0
    masks[0, 0, 5, 9] = -8.0  # empty: its best patch
    inside = patches_inside(masks, (4, 4))
    assert inside[0, 0].nonzero().tolist() == [[1 * 4 + 2]]
    regions = vlm.embed_regions(image, masks)
    for b in range(2):
        for q in range(6):
            expected = naive_region(vlm, image[b : b + 1], inside[b, q])
            assert torch.allclose(regions[b, q], expected[0], atol=1e-5)


def test_patches_inside_counts_any_pixel() -> None:
    masks = torch.full((1, 1, 8, 8), -5.0)
    masks[0, 0, 3, 4] = 0.1
    assert patches_inside(masks, (2, 2)).tolist() == [[[False, True, False, False]]]
    coarse = torch.tensor([[[[5.0, -5.0], [-5.0, -5.0]]]])
    assert patches_inside(coarse, (4, 4)).sum() == 4, "masks coarser than the grid"


def test_regions_do_not_touch_each_other_or_the_patches(make) -> None:
    vlm = make()
    image, masks = some_image(), torch.randn(2, 6, 16, 16)
    encoded = vlm.encode_image(image)
    before = [state.clone() for state in encoded.states]
    together = vlm.embed_regions(encoded, masks)
    assert all(torch.equal(a, b) for a, b in zip(before, encoded.states, strict=True))
    alone = torch.cat([vlm.embed_regions(encoded, masks[:, q : q + 1]) for q in range(6)], dim=1)
    assert torch.allclose(together, alone, atol=1e-6)


def test_one_pass_serves_both(make) -> None:
    vlm = make()
    image, masks = some_image(40, 64), torch.randn(2, 3, 10, 16)
    encoded = vlm.encode_image(image)
    assert torch.equal(vlm.embed_dense(encoded), vlm.embed_dense(image))
    assert torch.equal(vlm.embed_regions(encoded, masks), vlm.embed_regions(image, masks))
    calls = []
    handle = vlm.clip.visual.conv1.register_forward_hook(lambda *_: calls.append(1))
    encoded = vlm.encode_image(image)
    vlm.embed_dense(encoded)
    vlm.embed_regions(encoded, masks)
    handle.remove()
    assert len(calls) == 1


def test_mask_pooling_is_the_naive_mean(make) -> None:
    vlm = make(regions="MaskPooling")
    image, masks = some_image(), torch.randn(2, 3, 16, 16) * 4
    masks[1, 2] = -40.0
    masks[1, 2, 0, 15] = -30.0
    dense = F.normalize(vlm.embed_dense(image), dim=1)
    regions = vlm.embed_regions(image, masks)
    for b in range(2):
        for q in range(3):
            shares = masks[b, q].sigmoid().reshape(4, 4, 4, 4).mean(dim=(1, 3))
            expected = F.normalize((dense[b] * shares).sum(dim=(1, 2)), dim=0)
            if (b, q) == (1, 2):
                expected = dense[b, :, 0, 3]
            assert torch.allclose(regions[b, q], expected, atol=1e-4)


def test_no_proposals(make) -> None:
    assert make().embed_regions(some_image(), torch.zeros(2, 0, 8, 8)).shape == (2, 0, 24)


def test_autocast_and_training_functions(make) -> None:
    vlm = make()
    image, masks = some_image(), torch.randn(2, 3, 16, 16)
    plain = vlm.embed_regions(image, masks)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = vlm.embed_regions(image, masks)
        text = vlm.embed_text(["cat"])
    assert (plain * mixed).sum(-1).min() > 0.99
    assert mixed.dtype == text.dtype == torch.float32
    states = vlm.encode_image(image).states
    inside = patches_inside(masks, (4, 4))
    query = states[0].clone().requires_grad_()
    mask_guided_tokens(vlm.clip.visual, (query, *states[1:]), inside).sum().backward()
    assert query.grad.abs().sum() > 0, "the same function trains the tiny CLIP"


@pytest.mark.parametrize(
    ("image", "masks"),
    [((2, 1, 32, 32), (2, 3, 8, 8)), ((2, 3, 32, 32), (1, 3, 8, 8)), ((2, 3, 32, 32), (2, 8, 8))],
)
def test_wrong_shapes_are_refused(make, image: tuple, masks: tuple) -> None:
    with pytest.raises(ValueError, match=r"must be \("):
        make().embed_regions(torch.zeros(image), torch.zeros(masks))


# ------------------------------------------------------------ habits
def test_frozen_and_outside_checkpoints(make) -> None:
    vlm = make()
    parent = nn.ModuleDict({"vlm": vlm, "head": nn.Linear(2, 2)})
    assert set(parent.state_dict()) == {"head.weight", "head.bias"}
    assert parent.load_state_dict(parent.state_dict(), strict=True).missing_keys == []
    assert not list(vlm.parameters())
    parent.train()
    assert not any(module.training for module in vlm.clip.modules())
    assert not any(parameter.requires_grad for parameter in vlm.clip.parameters())
    image = some_image().requires_grad_()
    assert not vlm.embed_dense(image).requires_grad
    parent.double()
    assert vlm.clip.logit_scale.dtype == torch.float64, "devices and dtypes reach the CLIP"
    assert vlm.embed_regions(image, torch.randn(2, 2, 8, 8)).isfinite().all()


def test_properties(make) -> None:
    vlm = make()
    assert vlm.embed_dim == 24
    assert 1 < vlm.logit_scale <= 100
    vlm.clip.logit_scale.data.fill_(9.0)
    assert vlm.logit_scale == 100
    assert len(vlm.hash) == 64
    assert vlm.id == "test-vit/test-vit.safetensors"


def test_from_config(files: dict[str, str], tmp_path: Path) -> None:
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_alignzeg_config(cfg)
    node = cfg.ALIGNZEG.VLM
    node.MODEL, node.WEIGHTS, node.CACHE_DIR = "test-vit", files["test-vit"], str(tmp_path)
    node.TEMPLATES, node.REGION_BLOCKS, node.IMAGE_SIZE = ["vild"], 2, 64
    vlm = VLM_REGISTRY.get("OpenClipVLM")(cfg)
    assert (len(vlm.templates), vlm.region_blocks, vlm.image_size) == (14, 2, 64)


# ------------------------------------------------------------ errors
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name": "ViT-Z-99"}, "unknown CLIP model 'ViT-Z-99'"),
        ({"weights": "no-such-tag"}, "'no-such-tag', which is neither a file nor a pretrained tag"),
        ({"weights": ""}, "'test-vit' comes without weights"),
        ({"regions": "Crops"}, r"REGIONS is 'Crops'.*MaskGuidedTokens"),
        ({"region_blocks": 9}, "REGION_BLOCKS is 9.*choose 1 to 4"),
        ({"templates": ["x"]}, "template 'x'"),
        ({"image_size": -1}, "IMAGE_SIZE is -1"),
    ],
)
def test_bad_settings(make, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize("name", ["test-resnet", "test-convnext"])
def test_mask_guided_tokens_need_a_vit(make, name: str) -> None:
    with pytest.raises(ValueError, match="set ALIGNZEG.VLM.REGIONS to MaskPooling"):
        make(name, regions="MaskGuidedTokens")


def test_wrong_and_damaged_weight_files(make, files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be loaded into 'test-vit'"):
        make(weights=files["test-resnet"])
    whole = Path(files["test-vit"]).read_bytes()
    for name, data in [
        ("short.safetensors", whole[:4000]),
        ("empty.pt", b""),
        ("noise.pt", b"abc" * 99),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}.*damaged"):
            make(weights=str(tmp_path / name))


def test_pickled_code_is_not_run(make, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match="trap.pt"):
        make(weights=str(tmp_path / "trap.pt"))
    assert not (tmp_path / "ran").exists()


def test_plain_checkpoints_load(make, files: dict[str, str], tmp_path: Path) -> None:
    model = open_clip.create_model("test-vit", pretrained=files["test-vit"])
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "a.pt"
    )
    same = make(weights=str(tmp_path / "a.pt")).embed_dense(torch.ones(1, 3, 32, 32))
    assert torch.allclose(same, make().embed_dense(torch.ones(1, 3, 32, 32)))


@pytest.mark.parametrize(
    ("model", "weights", "fix"),
    [
        ("ViT-B-32", "openai", "'ViT-B-32-quickgelu'"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", "'ViT-B-32'"),
        ("RN50", "rn50-openai.pt", "'RN50-quickgelu'"),
    ],
)
def test_activation_mismatch_before_any_download(
    monkeypatch: pytest.MonkeyPatch, model: str, weights: str, fix: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    with pytest.raises(ValueError, match=f"GELU.*set ALIGNZEG.VLM.MODEL to {fix}"):
        OpenClipVLM(model_name=model, weights=weights)


def test_activation_in_a_files_metadata(make, tmp_path: Path) -> None:
    model = open_clip.create_model("test-vit")
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, tmp_path / "w.safetensors", metadata={"quick_gelu": "true"})
    with pytest.raises(ValueError, match="QuickGELU"):
        make(weights=str(tmp_path / "w.safetensors"))
    make("test-quick")


def test_failed_download_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    with pytest.raises(ValueError, match="could not be downloaded.*no route to host"):
        OpenClipVLM(model_name="ViT-B-32", weights="laion2b_s34b_b79k")
