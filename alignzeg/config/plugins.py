"""Plugins: Python files outside the package, which register components of their own."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType

logger = logging.getLogger(__name__)

# What the modules of plugins are called, before their path.
_PLUGIN = "alignzeg_plugin"


def imported_plugins() -> list[str]:
    """The files that `import_plugin` has imported in this process, in this order."""
    return [str(m.__file__) for name, m in sys.modules.items() if name.startswith(_PLUGIN)]


def import_plugin(file: str | Path) -> ModuleType:
    """Imports a Python file once per process, which registers the components in it.

    Raises:
        ValueError: if the import fails; the message names the file and the reason.
    """
    path = Path(file).resolve()
    name = _PLUGIN + "".join(c if c.isalnum() else "_" for c in str(path.with_suffix("")))
    if name in sys.modules:
        return sys.modules[name]
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
    logger.info("imported plugin %s", path)
    return module
