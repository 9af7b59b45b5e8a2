"""Starts the processes of a run, ends them together, and tells the user what was wrong."""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

from alignzeg.engine.processes import peer_monitor, process_exit
from alignzeg.engine.processes.supervision import run_processes

# Processes of one run may start this far apart, on machines of different speed.
START_TIMEOUT = timedelta(minutes=5)


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
    """Reads the variables of torchrun or else of SLURM's srun; None without several processes.

    A --num-gpus or --num-machines above 1 means that the processes of a SLURM job are to be started
    from here, so its variables are not used.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    slurm = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    if {*names, "MASTER_ADDR", "MASTER_PORT"} <= environ.keys():
        url, per_node = "env://", environ.get("LOCAL_WORLD_SIZE", "")
    elif {*slurm} <= environ.keys() and args.num_gpus <= 1 and args.num_machines <= 1:
        names = slurm
        url = args.dist_url if args.dist_url != "auto" else slurm_url(environ)
        per_node = environ.get("SLURM_NTASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    else:
        return None
    rank, world, local_rank = (int(environ[name]) for name in names)
    # SLURM may add to the number how many machines it is for.
    match = re.match(r"\d+", per_node)
    place = DistributedEnv(rank, world, local_rank, int(match.group()) if match else world, url)
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


def launch(
    main: Callable[[argparse.Namespace], Any], args: argparse.Namespace, device: str
) -> None:
    """Calls `main(args)` in every process of the run, starting those that are not there yet.

    If one process fails or dies, all others leave within a minute, wherever they are.

    `main` is a function at the top level of a module. Processes on the CPU (MODEL.DEVICE) talk
    through gloo, also beside GPUs.

    Raises:
        ValueError: if there are fewer GPUs than processes.
        RunFailed: in the process that started the others, if one of them failed.
    """
    process_exit.follow_parent()
    env = find_distributed_env(args, os.environ)
    local = args.num_gpus if env is None else env.local_world_size
    if device.startswith("cuda") and local > torch.cuda.device_count():
        raise ValueError(
            f"{local} processes need as many GPUs, but this machine has "
            f"{torch.cuda.device_count()}; lower --num-gpus, or set MODEL.DEVICE cpu"
        )
    if local > 1:
        # Otherwise every process would use every core.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // local)))
    backend = "nccl" if device.startswith("cuda") else "gloo"
    if env is not None:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            process_exit.watch_parent(os.getppid())
        run_member(main, args, env, backend=backend, speaks=True)
    elif args.num_gpus * args.num_machines == 1:
        main(args)
    else:
        url, world, first = args.dist_url, local * args.num_machines, args.machine_rank * local
        if url == "auto":
            with socket.create_server(("127.0.0.1", 0)) as server:
                url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        envs = [DistributedEnv(first + i, world, i, local, url) for i in range(local)]
        member = partial(run_member, main, args, backend=backend, speaks=False)
        run_processes(member, envs, first)


def run_member(
    main: Callable[[argparse.Namespace], Any],
    args: argparse.Namespace,
    env: DistributedEnv,
    *,
    backend: str,
    speaks: bool,
) -> None:
    """Joins the default process group and calls `main(args)`.

    It `speaks`, and tells the user why the processes leave, unless their parent will.
    """
    if backend == "nccl":
        torch.cuda.set_device(env.local_rank)
    store, rank, world_size = next(
        dist.rendezvous(env.url, env.rank, env.world_size, timeout=START_TIMEOUT)
    )
    store.set_timeout(DEFAULT_TIMEOUT)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=DEFAULT_TIMEOUT
    )
    comm.create_local_process_group(env.local_world_size)
    comm.synchronize()
    several = env.world_size > env.local_world_size
    line = peer_monitor.connect(env.host, several_machines=several, speaks=speaks)
    try:
        main(args)
    except BaseException as error:
        peer_monitor.end(error)
        raise
    if line is not None:
        line.close()
    dist.destroy_process_group()
