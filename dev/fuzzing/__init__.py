"""Damaged inputs of every kind, for dev/fuzz.py."""

from fuzzing.checkpoints import checkpoint_case
from fuzzing.classes import classes_case
from fuzzing.configs import config_case
from fuzzing.images import labels_case

MAKERS = {
    "config": config_case,
    "classes": classes_case,
    "labels": labels_case,
    "checkpoint": checkpoint_case,
}
