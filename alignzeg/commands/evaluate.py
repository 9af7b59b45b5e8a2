"""`alignzeg evaluate`: `alignzeg train --eval-only` with the weights as an option."""

from __future__ import annotations

import argparse

from alignzeg.arguments import OneLineParser, add_config_file, add_opts, command_parser
from alignzeg.commands import train


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "evaluate",
        "Evaluates a checkpoint on every data set of DATASETS.TEST. The results go into "
        "OUTPUT_DIR/inference.",
        "alignzeg evaluate --config-file configs/zeroshapes/alignzeg.yaml "
        "--weights output/model_final.pth",
    )
    add_config_file(result)
    result.add_argument(
        "--weights",
        default="",
        metavar="FILE",
        help="the checkpoint to evaluate; by default MODEL.WEIGHTS of the config",
    )
    result.add_argument(
        "--resume",
        action="store_true",
        help="evaluate the last checkpoint in OUTPUT_DIR, if there is one",
    )
    train.add_processes(result)
    add_opts(result)
    return result


def main(args: argparse.Namespace) -> None:
    """Evaluates.

    Raises:
        ValueError: as `alignzeg.commands.train.main`.
    """
    weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
    given = {**vars(args), "eval_only": True, "opts": [*weights, *args.opts]}
    train.main(argparse.Namespace(**{**vars(train.parse_args([])), **given}))
