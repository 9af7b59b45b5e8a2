"""From a YAML file and KEY VALUE pairs to one checked config."""

from __future__ import annotations

import ast
import difflib
import re
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
from alignzeg.config.foreign import SHARED, read_with_bases, require_names, warn_of_places
from alignzeg.config.plugins import PLUGINS_KEY, find_plugin, import_plugin, require_permission
from alignzeg.config.values import flatten, new_name

# What Detectron2 raises on a file that is no YAML or cannot be read, or with a `_BASE_` that is no
# file name or has a value where the file has a section.
_BAD_FILE = (
    *(yaml.YAMLError, OSError, UnicodeError, RecursionError),
    *(TypeError, AttributeError, AssertionError),
)
# Where something is written is for the caller to say, not for a checkpoint.
_WRITTEN = ("OUTPUT_DIR", "ALIGNZEG.VLM.CACHE_DIR")
# Whole numbers from here on are no floating-point numbers any more.
_LARGEST = 2**1023


def config_from_file(config_file: str | Path = "", opts: Sequence[str] = ()) -> CfgNode:
    """Builds a config: defaults, then the file, then the KEY VALUE pairs.

    The files listed in ALIGNZEG.PLUGINS are imported on the way. A plugin may define
    `add_config(cfg)`, which is called before anything is merged, so that its keys are known.

    The config in a shared model's folder, also as a _BASE_, is that of somebody else: its plugins
    run only if the caller's own file or the opts name them, and it does not say where something
    is written or read.

    Without a file there are the defaults alone.

    Returns:
        The config, not frozen. MODEL.DEVICE is "cpu" where CUDA is asked for but not there.

    Raises:
        ValueError: on a missing or malformed file, an unknown key, a value of the wrong type, an
            odd number of opts, or a plugin that cannot be imported.
    """
    folders = (Path(config_file).parent if config_file else Path(), Path())
    pairs, theirs = _read_file(config_file)
    own = {key for key, _ in pairs} | set(opts[0::2])
    theirs = [(key, value) for key, value in theirs if key not in own]
    source = f"a shared model's config, read for {str(config_file)!r},"
    require_names(theirs, (), source)
    _require_permission(theirs, (), source, folders)
    warn_of_places(theirs, source)
    # Those plugins that this process has imported already.
    listed = [(key, value) for key, value in theirs if key == PLUGINS_KEY]
    return _build([*listed, *pairs], opts, folders)


def config_from_yaml(
    text: str,
    opts: Sequence[str] = (),
    folder: str | Path | None = None,
    *,
    plugins: Sequence[str | Path] = (),
    trust_code: bool = False,
) -> CfgNode:
    """Builds a config from the YAML text that a checkpoint carries, then the KEY VALUE pairs.

    A key of the text may have an old name, so that older checkpoints stay of use. OUTPUT_DIR and
    the cache of the VLM are not taken from it: where something is written is for the opts to say.

    Python files that the text lists run only with `trust_code`; those that `plugins` or the opts
    name, in place of them, always do. They are looked for in the current folder, then in that of
    the checkpoint and those around it, since OUTPUT_DIR mostly lies below where they are.

    In a shared model's folder the text may name files, such as the VLM's weights, but not where
    they are.

    Raises:
        ValueError: as `config_from_file`, and on plugins that nobody has allowed.
    """
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the config text is not plain YAML: {reason}") from error
    if not isinstance(loaded, dict):
        raise ValueError("the config text holds no keys")
    pairs = [(new_name(key), value) for key, value in flatten(loaded)]
    pairs = [(key, value) for key, value in pairs if key not in _WRITTEN]
    around = () if folder is None else (Path(folder).resolve(), *Path(folder).resolve().parents)
    if folder is not None and (Path(folder) / SHARED).is_file():
        require_names(pairs, opts, f"the shared model in {str(folder)!r}")
    if plugins:
        opts = [*opts, PLUGINS_KEY, repr([str(file) for file in plugins])]
    if not trust_code:
        _require_permission(pairs, opts, "the checkpoint", (Path(), *around))
    return _build(pairs, opts, (Path(), *around))


def default_config() -> CfgNode:
    """Detectron2's defaults with the keys of its DeepLab project and of this one."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_alignzeg_config(cfg)
    return cfg


def flat_keys(cfg: Mapping[str, Any]) -> list[str]:
    """All keys of a config, written with dots."""
    return [key for key, _ in flatten(cfg)]


def require_device(name: str, key: str = "--device") -> None:
    """Refuses a device that this machine has not.

    Raises:
        ValueError: naming the device and what it could be.
    """
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.empty(0, device=device).cpu()  # "meta" holds no values
            return
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise ValueError(
            f"{key} is {name!r}, which is no device of this machine; it can be 'cpu', "
            "'cuda' or one GPU, such as 'cuda:0'"
        ) from error
    if not torch.cuda.is_available():
        raise ValueError(
            f"{key} is {name!r}, but this machine has no GPU that PyTorch can use; "
            f"give {key} cpu, or leave it out"
        )
    if (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"{key} is {name!r}, but this machine has {torch.cuda.device_count()} GPUs"
        )


def _require_permission(
    pairs: Sequence[tuple[str, Any]], opts: Sequence[str], source: str, folders: Sequence[Path]
) -> None:
    listed = dict(pairs).get(PLUGINS_KEY) or ()
    if PLUGINS_KEY not in opts[0::2]:
        names = listed if isinstance(listed, (list, tuple)) else (listed,)
        require_permission(names, source, folders)


def _build(pairs: list[tuple[str, Any]], opts: Sequence[str], folders: Sequence[Path]) -> CfgNode:
    check_pairs(opts)
    pairs = [*pairs, *zip(opts[0::2], opts[1::2], strict=True)]
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
    if re.fullmatch(r"cuda(:\d+)?", cfg.MODEL.DEVICE) and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    require_device(cfg.MODEL.DEVICE, "MODEL.DEVICE")
    return cfg


def _read_file(config_file: str | Path) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """What a file and its bases say, and what those of shared models say beyond their rights."""
    if not config_file:
        return [], []
    if not PathManager.isfile(str(config_file)):
        what = "is a folder" if PathManager.isdir(str(config_file)) else "does not exist"
        raise ValueError(
            f"config file {str(config_file)!r} {what}; give a YAML file, such as "
            "configs/zeroshapes/alignzeg.yaml in a checkout of the repository"
        )
    try:
        loaded, theirs = read_with_bases(str(config_file))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"config file {str(config_file)!r}, or its _BASE_, is not UTF-8 ({error}); save it as "
            "UTF-8"
        ) from error
    except _BAD_FILE as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"config file {str(config_file)!r} is empty, is not plain YAML, or does not fit its "
            f"_BASE_: {reason}; write keys with values into it, such as SEED: 1"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"config file {str(config_file)!r} holds no keys")
    return list(flatten(loaded)), theirs


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
        known = {_kind(item) for item in default[:1]} - {None} or {float, str, list}
        if isinstance(items, (list, tuple)) and {_kind(item) for item in items} <= known:
            return type(default)(items)
    raise ValueError(
        f"config key {key} is of type {type(default).__name__} (default {default!r}); "
        f"got {word!r}, which is not"
    )


def _kind(value: Any) -> type | None:
    """What a value in a list is: a switch, a number, a text, a list, or none of these."""
    if isinstance(value, bool):
        return bool
    kinds: dict[Any, type] = {(int, float): float, str: str, (list, tuple): list}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), None)
