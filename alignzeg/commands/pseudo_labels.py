"""`alignzeg pseudo-labels`: regions without labels, named by the frozen VLM."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import Any

from alignzeg.arguments import (
    OneLineParser,
    add_config_file,
    add_opts,
    command_parser,
    number,
    require_folder,
)

RESUMABLE = True


def parser() -> OneLineParser:
    """The command line; a number that is not given is left to the part that it belongs to."""
    result = command_parser(
        "pseudo-labels",
        "Names regions of the pixels that no human labelled, by the frozen VLM, for a training to "
        "use. By default the names are those of the data set's unseen classes, against all of its "
        "names: what is trained on them is transductive. Run it again to go on where it stopped.",
        "alignzeg pseudo-labels --config-file configs/zeroshapes/cel.yaml "
        "--dataset zeroshapes_train --output output/pseudo_labels/zeroshapes",
    )
    own, share = argparse.SUPPRESS, number(float, 0, 1)
    add_config_file(result, required=True)
    result.add_argument(
        "--dataset",
        required=True,
        metavar="NAME",
        help="the data set to label, such as zeroshapes_train",
    )
    result.add_argument("--output", required=True, metavar="FOLDER", help="the folder to write")
    result.add_argument(
        "--weights",
        default="",
        metavar="FILE",
        help="a checkpoint of the config, whose proposals are the regions; superpixels without",
    )
    result.add_argument(
        "--words",
        metavar="NAMES",
        help="an open vocabulary in place of the unseen classes: a file, or names with commas",
    )
    for option, kind, metavar, text in (
        ("--confidence", share, "P", "the least probability of a name, 0 to 1"),
        ("--margin", share, "P", "the least lead over the second name, 0 to 1"),
        ("--min-area", number(int, 1), "N", "the least area of a region in pixels"),
        ("--scale", float, "S", "the scale of the superpixels; larger is coarser"),
        ("--min-share", share, "P", "the least share of a proposal that is unlabelled, 0 to 1"),
    ):
        result.add_argument(option, type=kind, default=own, metavar=metavar, help=text)
    result.add_argument(
        "--flips", action="store_true", help="keep a name only if the mirrored image agrees"
    )
    result.add_argument(
        "--jobs",
        type=number(int, 1),
        default=1,
        metavar="N",
        help="processes; on GPUs, one for each is best",
    )
    add_opts(result)
    return result


def main(args: argparse.Namespace) -> None:
    """Labels, and prints a summary.

    Raises:
        ValueError: as `make_pseudo_labels`.
    """
    require_folder(args.output, "--output")
    logging.basicConfig(level=logging.WARNING)
    from alignzeg.data.class_names import read_class_list
    from alignzeg.pseudo_labels import Job, make_pseudo_labels
    from alignzeg.pseudo_labels.labeller import RegionSource
    from alignzeg.pseudo_labels.region_labels import Thresholds

    def given(*names: str) -> dict[str, Any]:
        return {name: getattr(args, name) for name in names if hasattr(args, name)}

    job = Job(
        args.config_file,
        args.dataset,
        args.output,
        tuple(args.opts),
        read_class_list(args.words) if args.words else (),
        RegionSource(args.weights, **given("scale", "min_share")),
        Thresholds(flips=args.flips, **given("confidence", "margin", "min_area")),
    )
    summary = make_pseudo_labels(job, args.jobs)["summary"]
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")
