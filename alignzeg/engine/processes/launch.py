"""Starts the processes of a run, ends them together, and tells the user what was wrong."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

from alignzeg.engine.processes import peer_monitor, process_exit
from alignzeg.engine.processes.distributed_env import DistributedEnv, find_distributed_env
from alignzeg.engine.processes.errors import (
    BUG,
    NON_FINITE,
    exit_code,
    explain,
)
from alignzeg.engine.processes.supervision import run_processes

# Processes of one run may start this far apart, on machines of different speed.
START_TIMEOUT = timedelta(minutes=5)


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
        member = partial(run_member, main, args, backend=backend, speaks=False)
        run_processes(member, local_envs(args), args.machine_rank * args.num_gpus)


def local_envs(args: argparse.Namespace) -> list[DistributedEnv]:
    """The processes that are to be started on this machine."""
    url = args.dist_url
    if url == "auto":
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    count = args.num_gpus
    return [
        DistributedEnv(
            args.machine_rank * count + index, args.num_machines * count, index, count, url
        )
        for index in range(count)
    ]


def run_member(
    main: Callable[[argparse.Namespace], Any],
    args: argparse.Namespace,
    env: DistributedEnv,
    *,
    backend: str,
    speaks: bool,
) -> None:
    """Joins the other processes and calls `main(args)`.

    It `speaks`, and tells the user why the processes leave, unless their parent will.
    """
    join_group(env, backend)
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


def join_group(env: DistributedEnv, backend: str) -> None:
    """Makes this process a member of the default process group."""
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


def complain(error: Exception) -> int:
    """Says on one line what ended this process, in one process of a run; returns the exit code."""
    code = exit_code(error)
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0:
        hint = "; a fault of the program: --debug shows where" if code == BUG else ""
        # What all processes agree on names them itself.
        one_of_many = comm.get_world_size() > 1 and code != NON_FINITE
        who = f"process {comm.get_rank()}: " if one_of_many else ""
        sys.stderr.write(f"error: {who}{explain(error)}{hint}\n")
    return code
