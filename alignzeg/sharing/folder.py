"""A shared model: a folder or a repository of a hub, with all that `Predictor` needs.

model.safetensors   the weights, with the config and the VLM's hash in the header
alignzeg.json       format, seen classes, VLM id and hash, SHA-256 of every other file
config.yaml         the config, without paths of the machine that trained it
vocabulary.txt      the class names, one a line, as `--classes` takes them
README.md           the model card
plugins/            Python files of ALIGNZEG.PLUGINS, if the model needs any
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignzeg import __version__
from alignzeg.arguments import require_folder
from alignzeg.config.foreign import NEEDED, PLACES, SHARED
from alignzeg.config.plugins import PLUGINS_KEY, find_plugin, require_permission
from alignzeg.engine.checkpoints.reading import read_about, read_checkpoint
from alignzeg.engine.checkpoints.state import weights_hash
from alignzeg.files import atomic_write, file_hash
from alignzeg.sharing.card import model_card, read_evaluation
from alignzeg.sharing.weights import write_safetensors

FORMAT = 1
WEIGHTS, ABOUT, CONFIG, NAMES, CARD = (
    *("model.safetensors", SHARED, "config.yaml", "vocabulary.txt", "README.md"),
)
PLUGINS = "plugins"
# Names that alignzeg.json may list.
_LISTED = re.compile(
    rf"{PLUGINS}/[^/\\\0]+\.py|" + "|".join(map(re.escape, (WEIGHTS, CONFIG, NAMES, CARD)))
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Pretrained:
    """A shared model that was found and checked.

    Attributes:
        weights: its weight file, as `Predictor` takes it.
        opts: KEY VALUE pairs that go with it.
    """

    weights: Path
    opts: tuple[str, ...] = ()


def save_pretrained(
    weights: str | Path,
    folder: str | Path,
    evaluations: Sequence[str | Path] = (),
    *,
    plugins: Sequence[str | Path] = (),
    trust_code: bool = False,
) -> list[Path]:
    """Makes the folder of a model from its checkpoint.

    Files of an earlier call in the folder are replaced. Evaluations, `evaluation_<data set>.json`
    files of the same model, go into the model card.

    Python files that the checkpoint lists come along only with `trust_code`: it could list any file
    of this machine. `plugins` of the caller's own take their place.

    Returns:
        The files written.

    Raises:
        ValueError: if the checkpoint or an evaluation cannot be read, a plugin is missing or not
            allowed, two have one name, or the folder holds something else or a link; nothing is
            written then.
        OSError: if a file cannot be written.
    """
    weights, folder = str(weights), require_folder(folder, "the folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ABOUT).is_file():
        raise ValueError(
            f"the folder {str(folder)!r} holds other files; give one that is empty or not there"
        )
    links = [path for path in folder.rglob("*") if path.is_symlink()] if folder.is_dir() else ()
    if links:
        raise ValueError(f"{str(links[0])!r} is a link; give a folder without any, or a new one")
    about = read_about(weights)
    config = yaml.safe_load(about["config"])
    known = weights_hash(read_checkpoint(weights)["model"]) if evaluations else ""
    results = [read_evaluation(path, about["seen"], known, config) for path in evaluations]
    around = Path(weights).resolve().parents
    listed = _get(config, PLUGINS_KEY) or ()
    if not trust_code and not plugins:
        require_permission(listed, f"the checkpoint {weights!r}", (Path(), *around))
    found = [Path(find_plugin(str(name), (Path(), *around))) for name in plugins or listed]
    if len({path.name for path in found}) < len(found):
        raise ValueError(f"two plugins have one name: {list(map(str, found))}; rename one")
    names = list(dict.fromkeys([*about["seen"], *(n for result in results for n in result.names)]))
    about = {**about, "config": yaml.safe_dump(_portable(config, found), sort_keys=True)}
    about.pop("data", None)
    texts = {CONFIG: about["config"], NAMES: "\n".join(names) + "\n"}
    texts[CARD] = model_card(about, _portable(config, found), names, results)
    texts |= {f"{PLUGINS}/{path.name}": path.read_text(encoding="utf-8") for path in found}
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / PLUGINS, ignore_errors=True)
    write_safetensors(weights, str(folder / WEIGHTS), about)
    for name, text in texts.items():
        atomic_write(folder / name, text)
    said = {key: about[key] for key in ("seen", "vlm_id", "vlm_hash")}
    said |= {"format": FORMAT, "library": f"alignzeg {__version__}"}
    # The card may be written on.
    hashed = (WEIGHTS, *(name for name in texts if name not in (CARD, NAMES)))
    said["sha256"] = {name: file_hash(folder / name) for name in hashed}
    atomic_write(folder / ABOUT, json.dumps(said, indent=1, ensure_ascii=False) + "\n")
    return [folder / name for name in (WEIGHTS, *texts, ABOUT)]


def locate(
    source: str | Path, *, revision: str | None = None, trust_code: bool = False
) -> Pretrained:
    """Finds a shared model and checks that it is whole.

    The source is a folder of `save_pretrained`, or the id of a repository on the Hugging Face Hub,
    such as "user/model", whose revision is downloaded. `trust_code` lets Python files run that the
    model brings.

    Raises:
        ValueError: if it is neither, a file is missing or another than was saved, or it brings
            code that is not trusted; the message names it.
    """
    folder = _folder(str(source), revision)
    said = _read_about(folder)
    hashes = said["sha256"]
    for name, wanted in hashes.items():
        _require_inside(folder, name)
        if not (folder / name).is_file():
            raise ValueError(f"the model in {str(folder)!r} has no {name}; get it again, whole")
        if file_hash(folder / name) != wanted:
            raise ValueError(
                f"{str(folder / name)!r} is not the file that {ABOUT} was written for: its SHA-256 "
                "differs; get the model again, whole"
            )
    inside = read_about(str(folder / WEIGHTS))
    for key, what in (("vlm_hash", "VLM hash"), ("vlm_id", "VLM"), ("seen", "seen classes")):
        if inside[key] != said[key]:
            raise ValueError(
                f"{str(folder / ABOUT)!r} gives the {what} as {said[key]!r}, its weights were "
                f"trained with {inside[key]!r}; get the model again, whole"
            )
    plugins = [str(folder / name) for name in hashes if name.startswith(f"{PLUGINS}/")]
    listed = _get(yaml.safe_load(inside["config"]), PLUGINS_KEY) or ()
    if not trust_code and (plugins or listed):
        require_permission([*plugins, *listed], f"the model in {str(folder)!r}", ())
    return Pretrained(folder / WEIGHTS, (PLUGINS_KEY, repr(plugins)) if plugins else ())


def _folder(source: str, revision: str | None) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not _HUB_ID.fullmatch(source):
        raise ValueError(
            f"{source!r} is neither a folder that `alignzeg share` made nor an id on the Hugging "
            "Face Hub, such as user/model"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = [WEIGHTS, ABOUT, CONFIG, NAMES, CARD, f"{PLUGINS}/*.py"]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
    # Of its own errors some are OSError, some ValueError, and those of the network neither.
    except (OSError, HFValidationError, RuntimeError) as error:
        raise ValueError(
            f"there is no folder {source!r}, and it could not be downloaded from the Hugging Face "
            f"Hub ({type(error).__name__}); check the id, the network and, if it is private, your "
            "token"
        ) from error


def _read_about(folder: Path) -> dict[str, Any]:
    file = folder / ABOUT
    if not file.is_file():
        raise ValueError(
            f"the folder {str(folder)!r} has no {ABOUT}; give one that `alignzeg share` made"
        )
    _require_inside(folder, ABOUT)
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        version, hashes = said["format"], said["sha256"]
        fits = isinstance(version, int) and isinstance(hashes, dict) and WEIGHTS in hashes
        fits = fits and {"seen", "vlm_id", "vlm_hash"} <= said.keys()
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{str(file)!r} cannot be read: {error}; get the model again") from error
    if not fits or not all(map(_LISTED.fullmatch, hashes)):
        raise ValueError(f"{str(file)!r} is not what `alignzeg share` writes; get the model again")
    if version > FORMAT:
        raise ValueError(
            f"{str(file)!r} has format {version}; this version of alignzeg reads up to {FORMAT}: "
            "upgrade it"
        )
    return said


def _require_inside(folder: Path, name: str) -> None:
    """Refuses a link that leads out of a shared folder."""
    around = folder.resolve()
    # The Hub's cache keeps the files beside the folder of links that it gives.
    homes = [around, *([around.parents[1] / "blobs"] if around.parent.name == "snapshots" else [])]
    place = (folder / name).resolve()
    if not any(map(place.is_relative_to, homes)):
        raise ValueError(
            f"{str(folder / name)!r} is a link to {str(place)!r}, out of the model's folder; put "
            "the file itself there"
        )


def _portable(config: Mapping[str, Any], plugins: Iterable[Path]) -> dict[str, Any]:
    """A config without places of this machine."""
    result = json.loads(json.dumps(config))
    for key, value in PLACES.items():
        _set(result, key, value)
    for key in NEEDED:
        # The name alone, by which the user knows which file to get.
        if value := _get(result, key):
            _set(result, key, re.split(r"[/\\]", str(value).rstrip("/\\"))[-1])
    _set(result, PLUGINS_KEY, [f"{PLUGINS}/{path.name}" for path in plugins])
    return result


def _get(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    node: Any = config
    for part in sections:
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict) and leaf in node:
        node[leaf] = value
