"""Everything around the model: settings, processes, training, checkpoints."""

from __future__ import annotations

from alignzeg import registration  # noqa: F401 (what a config may name)
from alignzeg.config.plugins import import_plugin
from alignzeg.config.reading import config_from_yaml, require_device
from alignzeg.engine.checkpoints.checkpoint import AlignZegCheckpointer
from alignzeg.engine.checkpoints.reading import read_checkpoint
from alignzeg.engine.processes.launch import launch, world_size
from alignzeg.engine.run import check_folder, evaluate, start_run, train
from alignzeg.engine.settings import setup_config, validate
from alignzeg.engine.training.trainer import Trainer

__all__ = [
    "AlignZegCheckpointer",
    "Trainer",
    "check_folder",
    "config_from_yaml",
    "evaluate",
    "import_plugin",
    "launch",
    "read_checkpoint",
    "require_device",
    "setup_config",
    "start_run",
    "train",
    "validate",
    "world_size",
]
