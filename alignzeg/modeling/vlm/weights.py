"""From a model's name and its weights to a loaded CLIP: what is refused, and why.

No code stored with the weights runs, and nothing is downloaded before what can be refused is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.convert import convert_state_dict
from open_clip.model import (
    CLIP,
    CLIPVisionCfg,
    _build_vision_tower,
    convert_to_custom_text_state_dict,
)
from torch import Tensor

from alignzeg.files import file_hash
from alignzeg.modeling.pretrained import UNREADABLE, reason
from alignzeg.modeling.tensor_files import differences, read_tensors, under_prefix
from alignzeg.modeling.vlm.layouts import FOLDER_FILES, from_transformers
from alignzeg.modeling.vlm.positions import take_positions
from alignzeg.modeling.vlm.preprocessing import IMAGES, Facts, completed, of_file, of_tag
from alignzeg.modeling.vlm.towers import MEANWHILE, check_regions, check_tower

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parents[2] / "assets"
# Three numbers that OpenAI's own files hold as tensors; all of its models use QuickGELU.
_OPENAI = {"input_resolution", "context_length", "vocab_size"}
# What older text towers stored, and newer ones make themselves.
_FORGOTTEN = {"text.transformer.embeddings.position_ids"}


def bundled_models() -> dict[str, Path]:
    """Names of the models this package ships, each with its JSON config."""
    return {path.stem: path for path in sorted(ASSETS.glob("*.json"))}


def _check_model(model_name: str) -> None:
    """Make the bundled configs known to open_clip and refuse an unknown model."""
    for path in bundled_models().values():
        open_clip.add_model_config(path)
    if model_name not in open_clip.list_models():
        if ":" in model_name:
            raise ValueError(
                f"ALIGNZEG.VLM.MODEL is {model_name!r}: give the model's name in open_clip, such "
                "as 'ViT-B-16', and the folder, downloaded, as ALIGNZEG.VLM.WEIGHTS"
            )
        close = [
            name for name in open_clip.list_models() if model_name[:5].lower() == name[:5].lower()
        ]
        raise ValueError(
            f"unknown CLIP model {model_name!r}: set ALIGNZEG.VLM.MODEL to one of "
            f"{sorted(bundled_models())} "
            f"or to a name of open_clip.list_models(), such as {close[:6] or ['ViT-B-16', 'RN50']}"
        )


def _refuse_activation(model_name: str, weights: str, trained: bool | None) -> None:
    """Refuse weights trained with the other activation."""
    built = bool(open_clip.get_model_config(model_name).get("quick_gelu", False))
    if trained is None or trained == built:
        return
    base = model_name.removesuffix("-quickgelu")
    fix = f"{base}-quickgelu" if trained else base
    there = fix in open_clip.list_models()
    raise ValueError(
        f"model {model_name!r} is built with {'QuickGELU' if built else 'GELU'}, but weights "
        f"{weights!r} were trained with {'QuickGELU' if trained else 'GELU'}: "
        + (f"set ALIGNZEG.VLM.MODEL to {fix!r}, or choose other weights" if there else MEANWHILE)
    )


def _tags_said(model_name: str) -> str:
    """The pretrained tags that a model can be given, as a clause."""
    base = model_name.removesuffix("-quickgelu")
    for name in (model_name, f"{base}-quickgelu", base):
        built = bool((open_clip.get_model_config(name) or {}).get("quick_gelu", False))
        tags = open_clip.list_pretrained_tags_by_model(name)
        tags = [tag for tag in tags if of_tag(name, tag)["quick_gelu"] == built]
        if tags:
            there = "" if name == model_name else f" with ALIGNZEG.VLM.MODEL {name!r}"
            return f"one of the tags {tags}{there}"
    return ""


def _weight_file(model_name: str, weights: str) -> Path:
    """The local weight file; a pretrained tag is downloaded by open_clip if it is not cached."""
    if not weights:
        path = ASSETS / f"{model_name}.safetensors"
        if model_name in bundled_models() and path.is_file():
            return path
        raise ValueError(
            f"model {model_name!r} comes without weights: set ALIGNZEG.VLM.WEIGHTS to "
            + " or to ".join(filter(None, ("a local file", _tags_said(model_name))))
        )
    if open_clip.is_pretrained_cfg(model_name, weights):
        try:
            return Path(
                open_clip.download_pretrained(open_clip.get_pretrained_cfg(model_name, weights))
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(
                f"the weights {weights!r} of {model_name!r} could not be downloaded ({error}): "
                "check the network, or set ALIGNZEG.VLM.WEIGHTS to a local file"
            ) from error
    return _local_file(model_name, weights)


def _in_folder(weights: str) -> Path:
    """The path that weights name, or the weight file in a folder as model hubs give it."""
    path = Path(weights.removeprefix("local-dir:")).expanduser()
    if not path.is_dir():
        return path
    return next((path / name for name in FOLDER_FILES if (path / name).is_file()), path)


def _local_file(model_name: str, weights: str) -> Path:
    """The weight file of a path, also of a folder as model hubs give it."""
    path = _in_folder(weights)
    if path.is_file():
        return path
    raise ValueError(
        f"ALIGNZEG.VLM.WEIGHTS is {weights!r}, which is neither a file nor a pretrained tag of "
        f"{model_name!r}; give a file" + (f" or {said}" if (said := _tags_said(model_name)) else "")
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back open_clip's warning that a model has no weights yet: they are loaded next."""
    root = logging.getLogger()

    def expected(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No pretrained weights loaded")

    root.addFilter(expected)
    try:
        yield
    finally:
        root.removeFilter(expected)


def check_clip(model_name: str, weights: str, regions: str, blocks: int) -> None:
    """Refuses a model or weights that cannot be read as asked; nothing is read or downloaded.

    Raises:
        ValueError: naming the key, its value and what to take in its place.
    """
    _check_model(model_name)
    config = open_clip.get_model_config(model_name)
    # No weights of timm's own, and no memory; random numbers are drawn for neither.
    vision = CLIPVisionCfg(**{**config["vision_cfg"], "timm_model_pretrained": False})
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            tower = _build_vision_tower(
                config["embed_dim"], vision, config.get("quick_gelu", False)
            )
    except (*UNREADABLE, AssertionError, ImportError) as error:
        raise ValueError(
            f"open_clip cannot build the image tower of {model_name!r} ({reason(error)}): "
            f"{MEANWHILE}"
        ) from error
    check_tower(tower, config["embed_dim"], model_name)
    _facts_before(model_name, weights)
    check_regions(tower, model_name, regions, blocks)


def _facts_before(model_name: str, weights: str) -> Facts:
    """What is known of weights before they are read; weights of the other GELU are refused."""
    if not weights:
        _weight_file(model_name, weights)
    facts = of_tag(model_name, weights)
    if weights and not facts:
        facts = of_file(model_name, _in_folder(weights))
    _refuse_activation(model_name, weights, facts.get("quick_gelu"))
    if weights and not open_clip.is_pretrained_cfg(model_name, weights):
        _local_file(model_name, weights)
    return facts


def load_clip(model_name: str, weights: str) -> tuple[CLIP, str]:
    """Build an open_clip model and load its weights, without running any code stored with them.

    Args:
        model_name: a name of ``open_clip.list_models()``, or a bundled one.
        weights: "" for bundled weights, a pretrained tag of the model, or a path: safetensors,
            a state_dict, a checkpoint with one in it, or a TorchScript archive such as OpenAI's;
            of any precision, with open_clip's names or those of transformers, with or without
            "module." before them; or a folder that a model hub gives.

    Returns:
        The model in evaluation mode (fp32), with the positions of the file and the preprocessing
        that belongs to its weights; and the sha256 of the file, by which older versions compared,
        or "" where they read it otherwise.

    Raises:
        ValueError: unknown model or tag, missing, unreadable or unfitting weights, or weights
            trained with the other GELU.
    """
    _check_model(model_name)
    # Before anything is downloaded.
    facts = _facts_before(model_name, weights)
    path = _weight_file(model_name, weights)
    state = _read(path, model_name)
    if state.keys() >= _OPENAI:
        facts = of_tag("ViT-B-16", "openai") | facts
        _refuse_activation(model_name, weights, True)
    facts = completed(model_name, weights, facts, bundled_models())
    images = {key: facts[key] for key in IMAGES}
    try:
        with _quiet():
            model = open_clip.create_model(
                model_name, load_weights=False, pretrained_text=False, force_preprocess_cfg=images
            )
    except (*UNREADABLE, ImportError) as error:
        raise ValueError(
            f"open_clip cannot build {model_name!r} ({reason(error)}): its text tower may need "
            f"files of the Hugging Face Hub, or the package transformers; or {MEANWHILE}"
        ) from error
    try:
        moved = _fill(model, state)
    except UNREADABLE as error:
        raise _misfit(path, model_name, error) from error
    if moved:
        logger.warning("weights %r: %s", weights, "; ".join(moved))
        model.visual.preprocess_cfg["size"] = model.visual.image_size
    otherwise = moved or facts["interpolation"] != "bicubic"
    usual = (
        tuple(facts["mean"]) == OPENAI_DATASET_MEAN and tuple(facts["std"]) == OPENAI_DATASET_STD
    )
    if otherwise or not (usual or open_clip.is_pretrained_cfg(model_name, weights)):
        return model.eval(), ""
    return model.eval(), file_hash(path)


def _read(path: Path, model_name: str) -> dict[str, Tensor]:
    try:
        return read_tensors(path)
    except UNREADABLE as error:
        raise _misfit(path, model_name, error) from error


def _misfit(path: Path, model_name: str, error: BaseException) -> ValueError:
    return ValueError(
        f"weight file {str(path)!r} cannot be loaded into {model_name!r} ({reason(error)}): it is "
        "damaged, of another model, or not plain weights; set ALIGNZEG.VLM.MODEL to the model it "
        "was saved from, or save its state_dict as safetensors"
    )


def _fill(model: CLIP, given: Mapping[str, Tensor]) -> list[str]:
    """Copies tensors into a model, from every layout that open_clip knows.

    Returns:
        What the model has taken from the file that its config says otherwise, one clause each.

    Raises:
        ValueError: naming tensors that lack, are too many or of another shape.
    """
    wanted = model.state_dict()
    made_by_itself = {name for name, _ in model.named_buffers()} - wanted.keys()
    ignored = (_OPENAI | _FORGOTTEN | made_by_itself) - wanted.keys()
    state = under_prefix(from_transformers(given), wanted.keys())
    state = {name: value for name, value in state.items() if name not in ignored}
    state = convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        if name in state and name in wanted and state[name].numel() == wanted[name].numel():
            state[name] = state[name].reshape(wanted[name].shape)
    if "logit_bias" in wanted and "logit_bias" not in state:
        # A model without one: see open_clip's issue 712.
        state["logit_bias"] = wanted["logit_bias"].new_zeros(wanted["logit_bias"].shape)
    moved = take_positions(model, state)
    problem = differences(state, model.state_dict()) or _not_finite(state)
    if problem:
        raise ValueError(problem)
    model.load_state_dict(state)
    return moved


def _not_finite(state: Mapping[str, Tensor]) -> str:
    """The first tensor that holds NaN or infinity, as a clause; nothing if none does."""
    for name, value in state.items():
        if not bool(value.isfinite().all()):
            return f"{name} holds values that are NaN or infinite"
    return ""
