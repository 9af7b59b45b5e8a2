"""`alignzeg share`: the folder of a model that others can use, with a model card."""

from __future__ import annotations

import argparse
import sys

from alignzeg.arguments import OneLineParser, add_trust, code_allowed, command_parser


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "share",
        "Makes a folder that holds all that a model needs elsewhere: weights as safetensors, "
        "config, class names, id and hash of the VLM, and a model card with the figures of its "
        "evaluations. Predictor.from_pretrained reads it, also from the Hugging Face Hub.",
        "alignzeg share output/model_final.pth output/shared "
        "--evaluation output/inference/evaluation_zeroshapes_val.json",
    )
    result.add_argument(
        "weights", metavar="WEIGHTS", help="a checkpoint, such as output/model_final.pth"
    )
    result.add_argument("folder", metavar="FOLDER", help="the folder to make, empty or not there")
    result.add_argument(
        "--evaluation",
        action="append",
        default=[],
        metavar="JSON",
        help="an evaluation of the model, for the card; may be given several times",
    )
    add_trust(result)
    return result


def main(args: argparse.Namespace) -> None:
    """Makes the folder, and lists its files.

    Raises:
        ValueError: see `save_pretrained`.
    """
    from alignzeg.sharing import save_pretrained

    allowed = code_allowed(args)
    for path in save_pretrained(args.weights, args.folder, args.evaluation, **allowed):
        sys.stdout.write(f"{path}\n")
