"""From a YAML file and KEY VALUE pairs to one checked config."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.utils.file_io import PathManager

from alignzeg.arguments import check_pairs
from alignzeg.config import add_alignzeg_config
from alignzeg.config.plugins import PLUGINS_KEY, find_plugin, import_plugin
from alignzeg.config.values import flatten, new_name
from alignzeg.data.custom import setup_custom_data
from alignzeg.data.pseudo import setup_pseudo_labels

# What Detectron2 raises on a `_BASE_` that is no file name, or a section where that has a value.
_BAD_BASE = (TypeError, AttributeError, AssertionError)
# Whole numbers from here on are no floating-point numbers any more.
_LARGEST = 2**1023


def setup_config(config_file: str | Path = "", opts: Sequence[str] = ()) -> CfgNode:
    """Builds the config of a run: defaults, then the file, then the KEY VALUE pairs.

    The files listed in ALIGNZEG.PLUGINS are imported on the way. A plugin may define
    `add_config(cfg)`, which is called before anything is merged, so that its keys are known.

    Without a file there are the defaults alone.

    Returns:
        The config, not frozen. MODEL.DEVICE is "cpu" where CUDA is asked for but not there.

    Raises:
        ValueError: on a missing or malformed file, an unknown key, a value of the wrong type, an
            odd number of opts, or a plugin that cannot be imported.
    """
    pairs = [*_read_file(config_file), *_read_opts(opts)]
    folder = Path(config_file).parent if config_file else Path()
    cfg = _build(pairs, (folder, Path()))
    setup_custom_data(cfg)
    setup_pseudo_labels(cfg)
    return cfg


def config_from_yaml(
    text: str, opts: Sequence[str] = (), folder: str | Path | None = None
) -> CfgNode:
    """Builds a config from the YAML text that a checkpoint carries, then the KEY VALUE pairs.

    A key of the text may have an old name, so that older checkpoints stay of use. Plugins are
    looked for in the current folder, then in that of the checkpoint and those around it, since
    OUTPUT_DIR mostly lies below where they are.

    Raises:
        ValueError: as `setup_config`.
    """
    pairs = [(new_name(key), value) for key, value in flatten(_safe_load(text, "the config text"))]
    around = () if folder is None else (Path(folder).resolve(), *Path(folder).resolve().parents)
    return _build([*pairs, *_read_opts(opts)], (Path(), *around))


def default_config() -> CfgNode:
    """Detectron2's defaults with the keys of its DeepLab project and of this one."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_alignzeg_config(cfg)
    return cfg


def flat_keys(cfg: Mapping[str, Any]) -> list[str]:
    """All keys of a config, written with dots."""
    return [key for key, _ in flatten(cfg)]


def _build(pairs: list[tuple[str, Any]], folders: Sequence[Path]) -> CfgNode:
    cfg = default_config()
    for key, value in pairs:
        if key == PLUGINS_KEY:
            _set(cfg, key, value)
    wrong = [name for name in cfg.ALIGNZEG.PLUGINS if not isinstance(name, str)]
    if wrong:
        raise ValueError(f"{PLUGINS_KEY} lists {wrong[0]!r}; it lists Python files")
    cfg.ALIGNZEG.PLUGINS = [find_plugin(name, folders) for name in cfg.ALIGNZEG.PLUGINS]
    for file in cfg.ALIGNZEG.PLUGINS:
        plugin = import_plugin(file)
        if hasattr(plugin, "add_config"):
            plugin.add_config(cfg)
    for key, value in pairs:
        if key != PLUGINS_KEY:
            _set(cfg, key, value)
    _settle_device(cfg)
    return cfg


def require_device(name: str, key: str = "--device") -> None:
    """Refuses a device that this machine has not.

    Raises:
        ValueError: naming the device and what it could be.
    """
    device = _known_device(name, key)
    if device.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise ValueError(
            f"{key} is {name!r}, but this machine has no GPU that PyTorch can use; "
            f"give {key} cpu, or leave it out"
        )
    if (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"{key} is {name!r}, but this machine has {torch.cuda.device_count()} GPUs"
        )


def _settle_device(cfg: CfgNode) -> None:
    """Refuses a device that is not there; "cpu" stands in for CUDA on a machine without."""
    name, key = cfg.MODEL.DEVICE, "MODEL.DEVICE"
    if _known_device(name, key).type == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    else:
        require_device(name, key)


def _known_device(name: str, key: str) -> torch.device:
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.empty(0, device=device).cpu()  # "meta" holds no values
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise ValueError(
            f"{key} is {name!r}, which is no device of this machine; it can be 'cpu', "
            "'cuda' or one GPU, such as 'cuda:0'"
        ) from error
    return device


def _read_file(config_file: str | Path) -> list[tuple[str, Any]]:
    if not config_file:
        return []
    if not PathManager.isfile(str(config_file)):
        what = "is a folder" if PathManager.isdir(str(config_file)) else "does not exist"
        raise ValueError(
            f"config file {str(config_file)!r} {what}; give a YAML file, such as "
            "configs/zeroshapes/alignzeg.yaml in a checkout of the repository"
        )
    try:
        loaded = CfgNode.load_yaml_with_base(str(config_file), allow_unsafe=False)
    except yaml.YAMLError as error:
        raise ValueError(
            f"config file {str(config_file)!r} is not plain YAML: {' '.join(str(error).split())}"
        ) from error
    except _BAD_BASE as error:
        raise ValueError(
            f"config file {str(config_file)!r} is empty, or does not fit its _BASE_; "
            "write keys with values into it, such as SEED: 1"
        ) from error
    except (OSError, UnicodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"config file {str(config_file)!r} cannot be read: {reason}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"config file {str(config_file)!r} holds no keys")
    return list(flatten(loaded))


def _safe_load(text: str, what: str) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{what} is not plain YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{what} holds no keys")
    return loaded


def _read_opts(opts: Sequence[str]) -> list[tuple[str, Any]]:
    check_pairs(opts)
    return list(zip(opts[0::2], opts[1::2], strict=True))


def _set(cfg: CfgNode, key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    node: Any = cfg
    for section in sections:
        node = node.get(section) if isinstance(node, CfgNode) else None
    if not isinstance(node, CfgNode) or leaf not in node:
        if new_name(key) != key:
            raise ValueError(f"config key {key} is now called {new_name(key)}")
        near = difflib.get_close_matches(key, flat_keys(cfg), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"unknown config key {key or repr(key)}{hint}")
    if isinstance(node[leaf], CfgNode):
        raise ValueError(f"config key {key} is a section; set one of {flat_keys(node[leaf])[:5]}")
    node[leaf] = _coerce(key, value, node[leaf])


def _coerce(key: str, value: Any, default: Any) -> Any:
    """The value as the type of the default, which may cost nothing but a harmless conversion."""
    word = value
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = {"true": True, "false": False, "null": None}.get(value.lower(), value)
    if default is None or type(value) in (int, float, bool) and type(value) is type(default):
        return value
    if isinstance(default, str) and isinstance(word, str):
        return word
    if isinstance(default, float) and type(value) is int and abs(value) < _LARGEST:
        return float(value)
    if isinstance(default, (list, tuple)):
        items = [value] if isinstance(value, str) else value
        if isinstance(items, (list, tuple)) and all(_fits(item, default) for item in items):
            return type(default)(items)
    raise ValueError(
        f"config key {key} is of type {type(default).__name__} (default {default!r}); "
        f"got {word!r}, which is not"
    )


def _fits(item: Any, default: Sequence[Any]) -> bool:
    """Whether an item may stand in a list beside those of the default: number, text or list."""
    if isinstance(item, bool) or (default and isinstance(default[0], bool)):
        return bool(default) and isinstance(item, bool) and isinstance(default[0], bool)
    kinds = ((int, float), (str,), (list, tuple))
    known = [kind for kind in kinds if default and isinstance(default[0], kind)]
    return isinstance(item, known[0] if known else sum(kinds, ()))
