"""Everything around the model: settings, processes, training, checkpoints."""

from __future__ import annotations

from alignzeg.engine.checkpoint import AlignZegCheckpointer, read_checkpoint
from alignzeg.engine.launch import guarded, launch
from alignzeg.engine.placement import parse_args, world_size
from alignzeg.engine.run import evaluate, train
from alignzeg.engine.settings import config_from_yaml, import_plugin, setup_config
from alignzeg.engine.start import start_run
from alignzeg.engine.trainer import Trainer
from alignzeg.engine.validation import validate

__all__ = [
    "AlignZegCheckpointer",
    "Trainer",
    "config_from_yaml",
    "evaluate",
    "guarded",
    "import_plugin",
    "launch",
    "parse_args",
    "read_checkpoint",
    "setup_config",
    "start_run",
    "train",
    "validate",
    "world_size",
]
