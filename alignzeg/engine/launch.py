"""Command line, processes, and what a user sees when something is wrong."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.multiprocessing import ProcessRaisedException

logger = logging.getLogger(__name__)

USER_ERROR, INTERRUPTED = 2, 130
# What the parts of this project raise when the user can mend it.
USER_ERRORS = (ValueError, OSError)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """Lets `guarded` report a wrong command line like every other user error."""
        raise ValueError(f"{message}; see --help")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads Detectron2's command line, with a free port by default and --debug.

    Args:
        argv: words after the program's name; those of this process by default.

    Returns:
        config_file, resume, eval_only, num_gpus, num_machines, machine_rank, dist_url, debug, opts.

    Raises:
        ValueError: on a wrong word, or a --flag after the KEY VALUE pairs, which would be lost.
    """
    parser = _Parser(
        parents=[_without_help(default_argument_parser(epilog=" "))],
        description="Trains, or evaluates with --eval-only. KEY VALUE pairs come last.",
    )
    parser.set_defaults(dist_url="auto")
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error in the input"
    )
    args = parser.parse_args(argv)
    for word in args.opts:
        if word.startswith("--"):
            raise ValueError(
                f"{word} comes after the KEY VALUE pairs and would be ignored; put it before them"
            )
    return args


def _without_help(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    # A parent parser must not bring its own -h.
    for option in ("-h", "--help"):
        del parser._option_string_actions[option]
    parser._remove_action(next(a for a in parser._actions if a.dest == "help"))
    return parser


@dataclass(frozen=True)
class Placement:
    """Where this process stands among processes that somebody else has started.

    Attributes:
        rank: of this process, over all machines.
        world_size: processes on all machines.
        local_rank: of this process on its machine.
        local_world_size: processes on each machine.
        url: where the processes meet.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    url: str


def find_placement(args: argparse.Namespace, environ: Mapping[str, str]) -> Placement | None:
    """Reads the variables of torchrun or, failing that, of SLURM's srun.

    Args:
        args: a --num-gpus or --num-machines above 1 means that the processes of a SLURM job are to
            be started from here, so its variables are not used.
        environ: environment variables.

    Returns:
        None if there are no such processes, or only one.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= environ.keys():
        world = int(environ["WORLD_SIZE"])
        url = "env://"
        place = Placement(
            int(environ["RANK"]),
            world,
            int(environ["LOCAL_RANK"]),
            int(environ.get("LOCAL_WORLD_SIZE", world)),
            url,
        )
        return place if world > 1 else None
    slurm = {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"} <= environ.keys()
    if not slurm or args.num_gpus > 1 or args.num_machines > 1:
        return None
    world = int(environ["SLURM_NTASKS"])
    per_node = environ.get("SLURM_NTASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    match = re.match(r"\d+", per_node)
    place = Placement(
        int(environ["SLURM_PROCID"]),
        world,
        int(environ["SLURM_LOCALID"]),
        int(match.group()) if match else world,
        args.dist_url if args.dist_url != "auto" else slurm_url(environ),
    )
    return place if world > 1 else None


def slurm_url(environ: Mapping[str, str]) -> str:
    """The first host of the job, and a port that follows from the job's number."""
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "127.0.0.1")
    host = re.sub(r"\[(\d+)[^]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])
    port = 20000 + int(environ.get("SLURM_JOB_ID", "0")) % 10000
    return f"tcp://{environ.get('MASTER_ADDR', host)}:{environ.get('MASTER_PORT', port)}"


def world_size(args: argparse.Namespace) -> int:
    """Processes of the whole run.

    Raises:
        ValueError: if the machines or their processes cannot be as asked.
    """
    placement = find_placement(args, os.environ)
    if placement is not None:
        return placement.world_size
    if args.num_gpus < 1 or args.num_machines < 1:
        raise ValueError("--num-gpus and --num-machines must be 1 or more")
    if not 0 <= args.machine_rank < args.num_machines:
        raise ValueError(
            f"--machine-rank is {args.machine_rank}; with --num-machines {args.num_machines} it "
            f"can be 0 to {args.num_machines - 1}"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError("several machines need --dist-url tcp://HOST:PORT of the first machine")
    return args.num_gpus * args.num_machines


def launch(
    main: Callable[[argparse.Namespace], Any], args: argparse.Namespace, device: str
) -> None:
    """Calls `main(args)` in every process of the run, starting those that are not there yet.

    Args:
        main: a function at the top level of a module.
        args: what `parse_args` returned.
        device: MODEL.DEVICE; processes on the CPU talk through gloo, also beside GPUs.

    Raises:
        ValueError: if there are fewer GPUs than processes.
    """
    placement = find_placement(args, os.environ)
    local = args.num_gpus if placement is None else placement.local_world_size
    if device.startswith("cuda") and local > torch.cuda.device_count():
        raise ValueError(
            f"{local} processes need as many GPUs, but this machine has "
            f"{torch.cuda.device_count()}; lower --num-gpus, or set MODEL.DEVICE cpu"
        )
    if local > 1:
        # Otherwise every process would use every core.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // local)))
    if placement is not None:
        join_group(placement, "nccl" if device.startswith("cuda") else "gloo")
        try:
            main(args)
        finally:
            dist.destroy_process_group()
        return
    if local > 1 and not device.startswith("cuda"):
        # Detectron2 chooses NCCL wherever a started process sees a GPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    detectron2_launch(
        main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (args,)
    )


def join_group(placement: Placement, backend: str) -> None:
    """Makes this process a member of a group that torchrun or SLURM has started."""
    if backend == "nccl":
        torch.cuda.set_device(placement.local_rank)
    dist.init_process_group(
        backend,
        init_method=placement.url,
        rank=placement.rank,
        world_size=placement.world_size,
        timeout=DEFAULT_TIMEOUT,
    )
    comm.create_local_process_group(placement.local_world_size)
    comm.synchronize()


def guarded(run: Callable[[], Any], *, debug: bool = False) -> int:
    """Runs a command and turns an error of the user into one line.

    Args:
        run: the whole command.
        debug: let the traceback through.

    Returns:
        Exit code: 0, 2 for an error of the user, 130 if interrupted.
    """
    try:
        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except USER_ERRORS as error:
        if debug:
            raise
        return _complain(str(error))
    except ProcessRaisedException as error:
        # The traceback of the process that failed first ends with the error's type and message.
        kinds = "|".join(kind.__name__ for kind in (*USER_ERRORS, FileNotFoundError))
        found = re.search(rf"^(?:{kinds}): (.*)\Z", error.msg.strip(), re.MULTILINE | re.DOTALL)
        if debug or found is None:
            raise
        return _complain(found.group(1))
    return 0


def _complain(message: str) -> int:
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0:
        sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return USER_ERROR
