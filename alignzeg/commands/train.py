"""`alignzeg train`: Detectron2's training command, with a free port and one-line errors.

Processes: --num-gpus N starts N of them (on the CPU where there is no GPU). torchrun and srun
start them too: `torchrun ... -m alignzeg train ...`, without --num-gpus.

SIGTERM and SIGUSR1 end the run after the current step with exit code 75: it is saved, and --resume
goes on as if it had never been stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from alignzeg.arguments import OneLineParser, add_config_file, add_opts, command_parser


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "train",
        "Trains a config. A folder that holds a training is not trained in again: --resume goes "
        "on with it, --overwrite deletes it and starts anew.",
        "alignzeg train --config-file configs/zeroshapes/alignzeg.yaml OUTPUT_DIR output/mine",
    )
    add_config_file(result)
    result.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR"
    )
    result.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the run that is in OUTPUT_DIR, and start anew there",
    )
    result.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate MODEL.WEIGHTS and train nothing, as alignzeg evaluate does",
    )
    result.add_argument(
        "--allow-rescale",
        action="store_true",
        help="resume with another number of processes: on the same data, but not to the bit",
    )
    add_processes(result)
    add_opts(result)
    return result


def add_processes(result: argparse.ArgumentParser) -> None:
    """Adds what training and evaluation say of their processes and weights."""
    result.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes to start on this machine"
    )
    result.add_argument(
        "--num-machines", type=int, default=1, metavar="N", help="the total number of machines"
    )
    result.add_argument(
        "--machine-rank", type=int, default=0, metavar="R", help="the rank of this machine, from 0"
    )
    result.add_argument(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="where the processes meet, such as tcp://HOST:PORT; by default a free local port",
    )
    result.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read .pkl weights from anywhere, though they may run code",
    )


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the words after `alignzeg train`.

    Returns:
        config_file, resume, overwrite, eval_only, allow_rescale, num_gpus, num_machines,
        machine_rank, dist_url, trust_pickle, opts.

    Raises:
        ValueError: on a wrong word. A --flag after the KEY VALUE pairs is one of the `opts`, which
            `setup_config` refuses.
    """
    return parser().parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Checks everything, then starts the processes.

    Raises:
        ValueError: on a config or a number of processes that cannot work.
        RunFailed: if one of the processes fails.
    """
    if args.overwrite and (args.resume or args.eval_only):
        raise ValueError("--overwrite starts anew; leave it out with --resume and --eval-only")
    from alignzeg import engine

    cfg = engine.setup_config(args.config_file, args.opts)
    engine.validate(
        cfg,
        world_size=engine.world_size(args),
        training=not args.eval_only,
        needs_weights=args.eval_only and not args.resume,
        trust_pickle=args.trust_pickle,
    )
    engine.check_folder(cfg, args)
    engine.launch(work, args, cfg.MODEL.DEVICE)


def work(args: argparse.Namespace) -> dict[str, Any] | None:
    """What every process does."""
    from alignzeg import engine

    cfg = engine.start_run(engine.setup_config(args.config_file, args.opts), args)
    if args.eval_only:
        return engine.evaluate(cfg, resume=args.resume, trust_pickle=args.trust_pickle)
    return engine.train(
        cfg,
        resume=args.resume,
        allow_rescale=args.allow_rescale,
        trust_pickle=args.trust_pickle,
    )
