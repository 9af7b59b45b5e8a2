"""Where a process stands among the processes of a run."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class DistributedEnv:
    """Where this process stands among processes that somebody else has started.

    Attributes:
        rank: rank of this process, over all machines.
        world_size: processes on all machines.
        local_rank: rank of this process on its machine.
        local_world_size: processes on each machine.
        url: where the processes meet.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    url: str

    @property
    def host(self) -> str:
        """Name or address of the machine of process 0."""
        if self.world_size == self.local_world_size:
            return "127.0.0.1"
        return urlsplit(self.url).hostname or os.environ["MASTER_ADDR"]


def find_distributed_env(
    args: argparse.Namespace, environ: Mapping[str, str]
) -> DistributedEnv | None:
    """Reads the variables of torchrun or, failing that, of SLURM's srun.

    A --num-gpus or --num-machines above 1 means that the processes of a SLURM job are to be started
    from here, so its variables are not used.

    Returns:
        None if there are no such processes, or only one.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= environ.keys():
        world = int(environ["WORLD_SIZE"])
        url = "env://"
        place = DistributedEnv(
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
    place = DistributedEnv(
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
    env = find_distributed_env(args, os.environ)
    if env is not None:
        return env.world_size
    if args.num_gpus < 1 or args.num_machines < 1:
        raise ValueError(
            f"--num-gpus is {args.num_gpus} and --num-machines {args.num_machines}; both must be "
            "1 or more"
        )
    if not 0 <= args.machine_rank < args.num_machines:
        raise ValueError(
            f"--machine-rank is {args.machine_rank}; with --num-machines {args.num_machines} it "
            f"can be 0 to {args.num_machines - 1}"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError("several machines need --dist-url tcp://HOST:PORT of the first machine")
    return args.num_gpus * args.num_machines
