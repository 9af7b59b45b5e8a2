"""`alignzeg audit`: the proof that no unseen label and no unseen name reaches a loss."""

from __future__ import annotations

import argparse
import sys

from alignzeg.arguments import OneLineParser, add_config_file, add_opts, command_parser, number

CLEAN, LEAK = 0, 1


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "audit",
        "Proves on real training steps that no unseen label or name reaches a loss. "
        "Exit code 0 if none does, 1 on a leak, 2 if nothing can be proved.",
        "alignzeg audit --config-file configs/zeroshapes/alignzeg.yaml --steps 2",
    )
    add_config_file(result, required=True)
    result.add_argument(
        "--steps",
        type=number(int, 1),
        default=3,
        metavar="N",
        help="training steps of each trial; %(default)s by default",
    )
    add_opts(result)
    return result


def main(args: argparse.Namespace) -> int:
    """Prints the findings and the verdict.

    Returns:
        0 without a leak, 1 with one.

    Raises:
        ValueError: on a config that cannot run, or one on which nothing can be proved.
    """
    from alignzeg.engine import setup_config, validate
    from alignzeg.studies.leakage import audit

    cfg = setup_config(args.config_file, args.opts)
    validate(cfg)
    leaks = []
    for name, tried, leak in audit(cfg, args.steps):
        sys.stdout.write(f"{'LEAK' if leak else 'ok  '} {name:8} {leak or tried}\n")
        sys.stdout.flush()
        leaks += [name] if leak else []
    if leaks:
        sys.stdout.write(f"verdict: LEAK ({', '.join(leaks)}): what is unseen reaches a loss\n")
        return LEAK
    sys.stdout.write("verdict: no leak: no unseen label and no unseen name reaches a loss\n")
    return CLEAN
