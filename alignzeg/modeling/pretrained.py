"""Pretrained weights of timm networks and of text encoders: where they are, and how they are read.

No code stored with the weights runs: weight files are read as plain tensors, and a package that
holds weights is located by its metadata, not imported.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from torch import Tensor, nn

from alignzeg.modeling.tensor_files import read_tensors, under_prefix

PACKAGE_PREFIX = "package:"
PRETRAINED = "pretrained"
WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
# What reading a damaged or foreign file of weights or prototypes raises.
UNREADABLE = (
    RuntimeError,
    LookupError,
    ValueError,
    OSError,
    EOFError,
    TypeError,
    AttributeError,
    StopIteration,
    pickle.UnpicklingError,
    SafetensorError,
)


@dataclass(frozen=True)
class Keys:
    """Config keys that name a network and its weights, for messages."""

    model: str
    weights: str


def reason(error: BaseException) -> str:
    """The first line of what an error says, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:600] if lines else type(error).__name__


def state_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 of names, shapes and values of tensors, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------ places
def spec_name(spec: str) -> str:
    """A short name of weights: the package, the tag, or the last part of a path."""
    return spec.removeprefix(PACKAGE_PREFIX) if PACKAGE_PREFIX in spec else Path(spec).name


def package_files(name: str, key: str) -> list[Path]:
    """Files of an installed package, found without importing it.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        distribution = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        raise ValueError(
            f"{key} is {PACKAGE_PREFIX + name!r}, and that package is not installed: "
            f"pip install alignzeg[imagenet], or pip install {name or 'a package that exists'}"
        ) from None
    found = [Path(str(file.locate())) for file in distribution.files or ()]
    return [path for path in found if path.is_file()]


def weight_file(spec: str, key: str) -> Path:
    """The local file that a weight spec names.

    That is a path, or "package:NAME" for the one weight file of an installed package. Messages name
    the config key that holds it.

    Raises:
        ValueError: if there is no such file or package, or the package has not one such file.
    """
    if not spec.startswith(PACKAGE_PREFIX):
        path = Path(os.path.expanduser(spec))
        if os.path.isfile(path) and path.suffix in WEIGHT_SUFFIXES:
            return path
        raise ValueError(
            f"{key} is {spec!r}, which is no weight file ({', '.join(WEIGHT_SUFFIXES)}); give a "
            f"file that exists, or {PACKAGE_PREFIX}NAME of an installed package"
        )
    name = spec.removeprefix(PACKAGE_PREFIX)
    found = [path for path in package_files(name, key) if path.suffix in WEIGHT_SUFFIXES]
    if len(found) != 1:
        raise ValueError(
            f"{key} is {spec!r}; the package must have one weight file and has "
            f"{[path.name for path in found]}"
        )
    return found[0]


def model_folder(spec: str, key: str, needed: Sequence[str]) -> Path:
    """The local folder that a spec names.

    That is a path, or "package:NAME" for the folder inside an installed package with the needed
    files. Messages name the config key that holds it.

    Raises:
        ValueError: if there is no such package, or no folder with these files.
    """
    folders = [Path(os.path.expanduser(spec))]
    if spec.startswith(PACKAGE_PREFIX):
        files = package_files(spec.removeprefix(PACKAGE_PREFIX), key)
        folders = sorted({path.parent for path in files if path.name == needed[0]})
    for folder in folders:
        if spec and all(os.path.isfile(folder / name) for name in needed):
            return folder
    raise ValueError(
        f"{key} is {spec!r}, which has no folder with {', '.join(needed)}; give such a folder, or "
        f"{PACKAGE_PREFIX}NAME of an installed package"
    )


# ---------------------------------------------------------------------------------------- networks
def fitted(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], in_order: bool
) -> dict[str, Tensor]:
    """Tensors of a file under the names that a network gives them.

    Where the names differ, tensors can be matched in order of definition (`in_order`).

    Raises:
        ValueError: if names, the number of tensors or a shape differ; the first is named.
    """
    if in_order and given.keys() != wanted.keys():
        if len(given) != len(wanted):
            raise ValueError(f"{len(given)} tensors, the network has {len(wanted)}")
        pairs = dict(zip(wanted, given, strict=True))
    else:
        missing = [name for name in wanted if name not in given]
        if missing:
            extra = next((f", but {name!r}" for name in given if name not in wanted), "")
            raise ValueError(
                f"no tensor {missing[0]!r}{extra}, and {len(missing) - 1} more are missing"
            )
        pairs = {name: name for name in wanted}
    for name, source in pairs.items():
        theirs, ours = tuple(given[source].shape), tuple(wanted[name].shape)
        if theirs != ours:
            raise ValueError(f"tensor {source!r} is {theirs}, the network's {name!r} is {ours}")
    return {name: given[source] for name, source in pairs.items()}


def read_weights(
    path: Path, wanted: Mapping[str, Tensor], model_name: str, keys: Keys, in_order: bool = False
) -> dict[str, Tensor]:
    """The tensors of a weight file that a network needs, read without running code stored there.

    `wanted` and `in_order` as in `fitted`; model and keys are for messages.

    Raises:
        ValueError: if the file cannot be read or does not fit.
    """
    try:
        return fitted(under_prefix(read_tensors(path), wanted), wanted, in_order)
    except UNREADABLE as error:
        raise ValueError(
            f"weight file {str(path)!r} cannot be loaded into {model_name!r} ({reason(error)}): "
            f"it is damaged, of another network, or not plain weights; set {keys.model} to the "
            f"network it was saved from, or {keys.weights} to other weights"
        ) from error


def check_model(model_name: str, keys: Keys) -> None:
    """Refuses a network that timm does not have.

    Raises:
        ValueError: naming those that are spelled alike.
    """
    if model_name and timm.is_model(model_name):
        return
    near = difflib.get_close_matches(model_name, timm.list_models(), n=4)
    raise ValueError(
        f"{keys.model} is {model_name!r}, which is no network of timm; "
        + (f"did you mean one of {near}?" if near else "take one such as 'tf_efficientnet_lite2'")
    )


def check_weights(model_name: str, weights: str, keys: Keys) -> None:
    """Refuses weights that are neither a tag of the network, a file nor an installed package.

    Nothing is downloaded or read.

    Raises:
        ValueError: naming what is wrong and the fix.
    """
    check_model(model_name, keys)
    tags = tags_of(model_name)
    if weights in ("", *tags):
        return
    if weights == PRETRAINED:
        if tags:
            return
        raise ValueError(f"{keys.weights} is {weights!r}, but timm has no weights of {model_name}")
    try:
        weight_file(weights, keys.weights)
    except ValueError as error:
        raise ValueError(f"{error}; tags of {model_name}: {tags or 'none'}") from error


def tags_of(model_name: str) -> list[str]:
    """Tags of a network's weights that timm has."""
    architecture = model_name.partition(".")[0]
    names = timm.list_pretrained(f"{architecture}.*")
    return [name.partition(".")[2] for name in names if name.partition(".")[0] == architecture]


def is_file(model_name: str, weights: str) -> bool:
    """Whether weights are a file of one's own or of a package, and not timm's or random."""
    return weights not in ("", PRETRAINED, *tags_of(model_name))


def tag_in(model_name: str, weights: str) -> str:
    """The tag of timm whose name a weight file or its folder bears, the longest; none: ""."""
    if "." in model_name or not is_file(model_name, weights) or PACKAGE_PREFIX in weights:
        return ""
    path = Path(weights)
    names = [path.stem, path.parent.name]
    names += [part for part in path.parts if part.startswith("models--")]
    whole = "\n".join(names)
    found = [tag for tag in tags_of(model_name) if re.search(rf"\b{re.escape(tag)}\b", whole)]
    return max(found, key=len, default="")


def build_timm(
    model_name: str, weights: str, keys: Keys, features: bool = False, **options: object
) -> tuple[nn.Module, str]:
    """A timm network with its weights.

    Args:
        model_name: a name of ``timm.list_models()``.
        weights: "" for random ones; "pretrained" or a tag for timm's own, which are downloaded
            when first used; a .pth, .pt or .safetensors file; or "package:NAME".
        keys: for messages.
        features: build the pyramid of features (timm's `features_only`): the network is its
            attribute `model`, without a classifier, which the weights need not have then.
        options: more arguments of ``timm.create_model``.

    Returns:
        The network in evaluation mode, and the sha256 of its tensors, whatever file they were in.

    Raises:
        ValueError: for an unknown network or weights that are not there or do not fit, and where
            the network cannot be built with the options.
    """
    check_weights(model_name, weights, keys)
    downloaded = bool(weights) and not is_file(model_name, weights)
    arguments: dict[str, Any] = dict(options)
    if features:
        arguments |= {"features_only": True, "feature_cls": "getter"}
    # Of a file, too: mean and deviation are those of the tag.
    tag = weights if downloaded else tag_in(model_name, weights)
    name = f"{model_name.partition('.')[0]}.{tag}" if tag not in ("", PRETRAINED) else model_name
    try:
        network = timm.create_model(name, pretrained=downloaded, **arguments)
    except UNREADABLE as error:
        raise ValueError(
            f"timm cannot build {model_name!r} with weights {weights!r}"
            f"{f' and {options}' if options else ''} ({reason(error)}): set {keys.model} or "
            f"{keys.weights} to others"
        ) from error
    inner = network.get_submodule("model") if features else network
    if downloaded or not weights:
        return network.eval(), state_hash(inner.state_dict())
    path = weight_file(weights, keys.weights)
    needed = inner.state_dict()
    in_order = weights.startswith(PACKAGE_PREFIX)
    wanted = timm.create_model(model_name).state_dict() if features and in_order else needed
    state = read_weights(path, wanted, model_name, keys, in_order)
    inner.load_state_dict({name: state[name] for name in needed})
    return network.eval(), state_hash(inner.state_dict())
