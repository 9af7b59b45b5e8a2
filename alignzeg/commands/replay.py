"""`alignzeg replay`: a failed training step, repeated from its crash bundle."""

from __future__ import annotations

import argparse
import sys

from alignzeg.arguments import OneLineParser, add_opts, add_trust, code_allowed, command_parser


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "replay",
        "Repeats a failed training step in one process, and names the first tensor that is not "
        "finite. Exit code 3 if it failed again, 0 if not.",
        "alignzeg replay output/crash/iteration_17_process_0.pth MODEL.DEVICE cpu",
    )
    result.add_argument(
        "bundle",
        metavar="BUNDLE",
        help="the crash bundle, OUTPUT_DIR/crash/iteration_..._process_....pth",
    )
    add_trust(result)
    add_opts(result, alone=False)
    return result


def main(args: argparse.Namespace) -> int:
    """Prints why the step failed then and now.

    Returns:
        3 if the failure came back, as in the run that failed; 0 if not.

    Raises:
        ValueError: as `replay_bundle`.
    """
    from alignzeg.engine.failures.crash import replay_bundle
    from alignzeg.engine.processes.errors import NON_FINITE

    then, now = replay_bundle(args.bundle, args.opts, **code_allowed(args))
    sys.stdout.write(f"then: {then}\nnow:  {now or 'everything is finite'}\n")
    return NON_FINITE if now else 0
