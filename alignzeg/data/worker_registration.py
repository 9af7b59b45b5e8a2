"""What a process has registered, for processes and loading workers that do not inherit it.

A forked process has the catalogs and plugins of its parent; a spawned one has only what importing
this package registers. Whatever is pickled for it takes `Registered` along, as the first thing that
is unpickled there.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from alignzeg.config.plugins import import_plugin, imported_plugins
from alignzeg.data.catalog import is_as_shipped
from alignzeg.data.labels import registered_names

# Name, what lists its records, and metadata.
_DataSet = tuple[str, Callable[[], Any], dict[str, Any]]


class Registered:
    """Unpickled, it imports the plugins and registers the data sets of the process it comes from.

    Pickled, it holds what is registered at that moment; a copy in the same process changes nothing.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # The plugins are unpickled first: a data set may be made of their functions.
        return _register, (_Plugins(), _data_sets())


class _Plugins:
    def __reduce__(self) -> tuple[Any, ...]:
        return _import, (imported_plugins(),)


class Carrying:
    """A function, such as a mapper, that takes along what is registered where it is pickled."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Takes the function, which is then called in its place."""
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self.function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (Registered(), self.function)


def _unpacked(_: Registered, function: Callable[..., Any]) -> Carrying:
    return Carrying(function)


def _import(files: Sequence[str]) -> None:
    for file in files:
        import_plugin(file)


def _register(_: None, data_sets: Sequence[_DataSet]) -> Registered:
    for name, records, facts in data_sets:
        if name in DatasetCatalog:
            if MetadataCatalog.get(name).as_dict() == facts:
                continue
            DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)
        DatasetCatalog.register(name, records)
        MetadataCatalog.get(name).set(**{k: v for k, v in facts.items() if k != "name"})
    return Registered()


def _data_sets() -> list[_DataSet]:
    """Every data set of ours that importing the package does not register."""
    return [
        (name, _portable(name), dict(MetadataCatalog.get(name).as_dict()))
        for name in registered_names()
        if not is_as_shipped(name)
    ]


def _portable(name: str) -> Callable[[], Any]:
    """What lists the records; what cannot be pickled, such as a lambda, is replaced by its list."""
    function = DatasetCatalog[name]
    try:
        pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError):
        try:
            return partial(_given, DatasetCatalog.get(name))
        except (ValueError, OSError) as error:
            return partial(_failed, str(error))
    return function


def _given(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [dict(record) for record in records]


def _failed(message: str) -> None:
    raise ValueError(message)
