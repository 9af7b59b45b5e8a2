"""A cost model of data-parallel training on paper: PYTHONPATH=dev python -m bench.scaling.

Bytes sent by a ring are checked against what `bench.processes` sees leave the processes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from statistics import NormalDist

GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Machine:
    """What a step costs.

    Attributes:
        step_ms: a step of one GPU alone.
        backward_share: of the step, in which gradients are exchanged beside the computation.
        gradient_bytes: of all trained parameters.
        node_gbs: GB/s that a GPU can send to others of its node.
        network_gbs: GB/s that a node can send to others.
        latency_us: of one message between nodes.
        jitter: relative standard deviation of a step between GPUs, such as by sizes of images.
    """

    step_ms: float = 223.0
    backward_share: float = 0.45
    gradient_bytes: float = 170e6
    node_gbs: float = 150.0
    network_gbs: float = 25.0
    latency_us: float = 20.0
    jitter: float = 0.03


def ring_bytes(processes: int, gradient_bytes: float) -> float:
    """Bytes that all processes of a ring send together in an all-reduce."""
    return 2 * (processes - 1) * gradient_bytes


def exchange_ms(machine: Machine, gpus: int) -> float:
    """An all-reduce in two levels: a ring in each node, and one between the nodes."""
    inside = min(gpus, GPUS_PER_NODE)
    nodes = -(-gpus // GPUS_PER_NODE)
    ms = 2 * (inside - 1) / inside * machine.gradient_bytes / machine.node_gbs / 1e6
    if nodes > 1:
        ms += 2 * (nodes - 1) / nodes * machine.gradient_bytes / machine.network_gbs / 1e6
        ms += 2 * (nodes - 1) * machine.latency_us / 1e3
    return ms


def straggler(gpus: int) -> float:
    """Expected maximum of so many standard normal values, up to a few percent."""
    if gpus == 1:
        return 0.0
    return NormalDist().inv_cdf((gpus - 0.375) / (gpus + 0.25))


def step_ms(machine: Machine, gpus: int) -> float:
    """A step of so many GPUs with the same images for each as one GPU has."""
    # The last bucket of gradients is there when the backward pass is over.
    hidden = 0.9 * machine.backward_share * machine.step_ms
    exposed = max(0.1 * exchange_ms(machine, gpus), exchange_ms(machine, gpus) - hidden)
    exposed = 0.0 if gpus == 1 else exposed
    return machine.step_ms * (1 + machine.jitter * straggler(gpus)) + exposed


def main() -> int:
    """Prints the table of docs/scaling.md."""
    machine = Machine()
    sys.stdout.write("| GPUs | exchange, ms | step, ms | efficiency |\n|--|--|--|--|\n")
    for gpus in (1, 8, 64, 512):
        step = step_ms(machine, gpus)
        exchange = exchange_ms(machine, gpus)
        share = 100 * machine.step_ms / step
        sys.stdout.write(f"| {gpus} | {exchange:.1f} | {step:.0f} | {share:.0f} % |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
