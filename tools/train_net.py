#!/usr/bin/env python
"""Trains a config, or evaluates a checkpoint with --eval-only.

    python tools/train_net.py --config-file configs/zeroshapes/alignzeg.yaml [KEY VALUE ...]

Processes: --num-gpus N starts N of them (on the CPU where there is no GPU); torchrun and srun work
too, without --num-gpus.

A folder with a training is not trained in again: --resume goes on, --overwrite starts anew.

SIGTERM and SIGUSR1 end the run after the step at hand with exit code 75: it is saved, and --resume
goes on as if it had never been stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from alignzeg import engine


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """What every process does."""
    cfg = engine.start_run(engine.setup_config(args.config_file, args.opts), args)
    if args.eval_only:
        return engine.evaluate(cfg, resume=args.resume, trust_pickle=args.trust_pickle)
    return engine.train(
        cfg,
        resume=args.resume,
        allow_rescale=args.allow_rescale,
        trust_pickle=args.trust_pickle,
    )


def start(args: argparse.Namespace) -> None:
    """Checks everything, then starts the processes."""
    cfg = engine.setup_config(args.config_file, args.opts)
    engine.validate(
        cfg,
        world_size=engine.world_size(args),
        training=not args.eval_only,
        needs_weights=args.eval_only and not args.resume,
        trust_pickle=args.trust_pickle,
    )
    engine.check_folder(cfg, args)
    engine.launch(main, args, cfg.MODEL.DEVICE)


if __name__ == "__main__":
    sys.exit(
        engine.guarded(
            lambda: start(engine.parse_args()),
            debug="--debug" in sys.argv or bool(os.environ.get("ALIGNZEG_DEBUG")),
        )
    )
