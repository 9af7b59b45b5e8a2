"""From a model's name and its weights to a loaded CLIP: what is refused, and why.

No code stored with the weights runs, and nothing is downloaded before what can be refused is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import open_clip
from open_clip.convert import convert_state_dict
from open_clip.model import (
    CLIP,
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from safetensors import safe_open
from torch import Tensor

from alignzeg.files import file_hash
from alignzeg.modeling.pretrained import UNREADABLE, reason
from alignzeg.modeling.tensor_files import differences, read_tensors, under_prefix
from alignzeg.modeling.vlm.layouts import FOLDER_FILES, from_transformers, said_activation

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
        close = [
            name for name in open_clip.list_models() if model_name[:5].lower() == name[:5].lower()
        ]
        raise ValueError(
            f"unknown CLIP model {model_name!r}: set ALIGNZEG.VLM.MODEL to one of "
            f"{sorted(bundled_models())} "
            f"or to a name of open_clip.list_models(), such as {close[:6] or ['ViT-B-16', 'RN50']}"
        )


def _trained_with_quick_gelu(model_name: str, weights: str) -> bool | None:
    """What is known, without opening the weights, about the activation they were trained with."""
    base = model_name.removesuffix("-quickgelu")
    family = (model_name, base, f"{base}-quickgelu")
    for name in family:
        if open_clip.is_pretrained_cfg(name, weights):
            return bool(open_clip.get_pretrained_cfg(name, weights).get("quick_gelu", False))
    path = _in_folder(Path(weights).expanduser())
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safe_open(path, framework="pt") as stream:
                said = (stream.metadata() or {}).get("quick_gelu", "").lower()
        except UNREADABLE:
            return None
        if said:
            return said == "true"
    beside = said_activation(path) if path.is_file() else None
    if beside is not None:
        return beside
    quick = {
        tag
        for name in family
        for tag in open_clip.list_pretrained_tags_by_model(name)
        if open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    }
    return True if any(tag in path.name.lower().replace("-", "_") for tag in quick) else None


def _refuse_activation(model_name: str, weights: str, trained: bool | None) -> None:
    """Refuse weights trained with the other activation."""
    built = bool(open_clip.get_model_config(model_name).get("quick_gelu", False))
    if trained is None or trained == built:
        return
    base = model_name.removesuffix("-quickgelu")
    fix = f"{base}-quickgelu" if trained else base
    raise ValueError(
        f"model {model_name!r} is built with {'QuickGELU' if built else 'GELU'}, but weights "
        f"{weights!r} were "
        f"trained with {'QuickGELU' if trained else 'GELU'}: set ALIGNZEG.VLM.MODEL to {fix!r}, "
        "or choose other weights"
    )


def _weight_file(model_name: str, weights: str) -> Path:
    """The local weight file; a pretrained tag is downloaded by open_clip if it is not cached."""
    if not weights:
        path = ASSETS / f"{model_name}.safetensors"
        if model_name in bundled_models() and path.is_file():
            return path
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        raise ValueError(
            f"model {model_name!r} comes without weights: set ALIGNZEG.VLM.WEIGHTS to a local file"
            + (f" or to one of its tags {tags}" if tags else "")
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
    path = _in_folder(Path(weights).expanduser())
    if path.is_file():
        return path
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    raise ValueError(
        f"ALIGNZEG.VLM.WEIGHTS is {weights!r}, which is neither a file nor a pretrained tag of "
        f"{model_name!r}; its tags: {tags or 'none'}"
    )


def _in_folder(path: Path) -> Path:
    """The weight file in a folder as model hubs give it; a path that is no such folder as it is."""
    if not path.is_dir():
        return path
    return next((path / name for name in FOLDER_FILES if (path / name).is_file()), path)


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


def load_clip(model_name: str, weights: str) -> tuple[CLIP, str]:
    """Build an open_clip model and load its weights, without running any code stored with them.

    Args:
        model_name: a name of ``open_clip.list_models()``, or a bundled one.
        weights: "" for bundled weights, a pretrained tag of the model, or a path: safetensors,
            a state_dict, a checkpoint with one in it, or a TorchScript archive such as OpenAI's;
            of any precision, with open_clip's names or those of transformers, with or without
            "module." before them; or a folder that a model hub gives.

    Returns:
        The model in evaluation mode (fp32) and the sha256 of its weight file.

    Raises:
        ValueError: unknown model or tag, missing, unreadable or unfitting weights, or weights
            trained with the other GELU.
    """
    _check_model(model_name)
    # Before anything is downloaded.
    _refuse_activation(model_name, weights, _trained_with_quick_gelu(model_name, weights))
    path = _weight_file(model_name, weights)
    state = _read(path, model_name)
    if state.keys() >= _OPENAI:
        _refuse_activation(model_name, weights, True)
    tag = open_clip.get_pretrained_cfg(model_name, weights) if weights else {}
    kept = {key: tag[key] for key in ("mean", "std", "interpolation") if key in tag}
    with _quiet():
        model = open_clip.create_model(
            model_name, load_weights=False, force_preprocess_cfg=kept or None
        )
    try:
        _fill(model, state)
    except UNREADABLE as error:
        raise _misfit(path, model_name, error) from error
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


def _fill(model: CLIP, given: Mapping[str, Tensor]) -> None:
    """Copies tensors into a model, from every layout that open_clip knows.

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
    try:
        resize_pos_embed(state, model)
        resize_text_pos_embed(state, model)
    except (AssertionError, RuntimeError):
        pass  # of another width, which is said next
    problem = differences(state, wanted) or _not_finite(state)
    if problem:
        raise ValueError(problem)
    model.load_state_dict(state)


def _not_finite(state: Mapping[str, Tensor]) -> str:
    """The first tensor that holds NaN or infinity, as a clause; nothing if none does."""
    for name, value in state.items():
        if not bool(value.isfinite().all()):
            return f"{name} holds values that are NaN or infinite"
    return ""
