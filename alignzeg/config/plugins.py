"""Plugins: Python files outside the package, which register components of their own."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

logger = logging.getLogger(__name__)

PLUGINS_KEY = "ALIGNZEG.PLUGINS"
# What the modules of plugins are called, before their path.
_PLUGIN = "alignzeg_plugin"
# The modules of imported plugins by what their files hold.
_CONTENTS: dict[bytes, ModuleType] = {}


def find_plugin(name: str, folders: Sequence[Path]) -> str:
    """The file of a plugin, relative to the current folder where it lies below that.

    So a checkpoint, which holds the config, says nothing about the machine that wrote it.

    Raises:
        ValueError: if it is in none of them; the message names the first two places.
    """
    places = list(dict.fromkeys(folder / name for folder in folders))
    for place in places:
        if place.is_file():
            file, here = place.resolve(), Path.cwd()
            return str(file.relative_to(here) if file.is_relative_to(here) else file)
    raise ValueError(
        f"{PLUGINS_KEY} lists {name!r}, but there is no such file; looked for "
        f"{' and '.join(str(place) for place in places[:2])}"
    )


def require_permission(listed: Sequence[object], source: str, folders: Sequence[Path]) -> None:
    """Refuses plugins that a file of somebody else lists; nobody has said that they may run.

    A file that this process has imported runs no second time, so it is let through.

    Raises:
        ValueError: naming the files and how to let them run.
    """
    for name in listed:
        places = [(folder / str(name)).resolve() for folder in folders]
        place = next((place for place in places if place.is_file()), None)
        if place is None or not (
            _module_name(place) in sys.modules or place.read_bytes() in _CONTENTS
        ):
            raise ValueError(
                f"{source} lists Python files in {PLUGINS_KEY}, {', '.join(map(str, listed))}, "
                "which would run; read them, then allow them with --trust-code (trust_code=True), "
                "or name your own with --plugins FILE (plugins=[...]), or as KEY VALUE pair "
                f"{PLUGINS_KEY} FILE"
            )


def imported_plugins() -> list[str]:
    """The files that `import_plugin` has imported in this process, in this order.

    Those that have been moved since are left out: another process cannot import them.
    """
    files = [str(m.__file__) for name, m in sys.modules.items() if name.startswith(_PLUGIN)]
    return [file for file in files if Path(file).is_file()]


def import_plugin(file: str | Path) -> ModuleType:
    """Imports a Python file once per process, which registers the components in it.

    A copy of a file that was imported is that file, as a shared folder brings one of a plugin that
    the process has trained with: a name can be registered only once.

    Raises:
        ValueError: if the import fails; the message names the file and the reason.
    """
    path = Path(file).resolve()
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    content = path.read_bytes() if path.is_file() else b""
    if content and content in _CONTENTS:
        return _CONTENTS[content]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"plugin {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"plugin {file}: {type(error).__name__}: {error}") from error
    _CONTENTS[content] = module
    logger.info("imported plugin %s", path)
    return module


def _module_name(path: Path) -> str:
    # Two files have two names: a_b.py is not a/b.py.
    return f"{_PLUGIN}_{hashlib.sha256(str(path).encode()).hexdigest()}"
