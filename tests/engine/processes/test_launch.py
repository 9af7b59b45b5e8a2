"""Processes that end together: one fails or dies, or what has started them is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import stress_failures
from forks import forked

from alignzeg.engine.processes import errors, peer_monitor, process_exit, supervision
from alignzeg.engine.processes.errors import NonFiniteError, RunFailed, exit_code, explain
from alignzeg.engine.processes.launch import DistributedEnv


@pytest.mark.parametrize(
    "cases",
    [
        ["num-gpus/cost/1", "num-gpus/kill/0", "num-gpus/evaluation-raise/1", "num-gpus/parent/0"],
        ["variables/gradient/0", "variables/exit/1", "torchrun/raise/1", "torchrun/parent/0"],
    ],
)
def test_all_leave_and_name_the_cause(tmp_path: Path, cases: list[str]) -> None:
    """A few of the ways to fail; `make soak` goes through all of them."""
    words = ["--rounds", "1", "--cases", ",".join(cases)]
    pid = forked(lambda: stress_failures.main(words), tmp_path / "stress")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    lines = (tmp_path / "stress.stdout").read_text().splitlines()
    assert code == 0, (lines, (tmp_path / "stress.stderr").read_text())
    assert [line.split()[0] for line in lines] == cases


@pytest.fixture
def hub() -> peer_monitor.PeerMonitor:
    """Process 0's end, which never ends this process but takes notes."""
    listener = socket.create_server(("127.0.0.1", 0))
    hub = peer_monitor.PeerMonitor(0, {}, listener, False)
    hub.heard = []
    hub._abort = hub.heard.append
    hub.watch("secret")
    return hub


def join(hub: peer_monitor.PeerMonitor, **message: object) -> socket.socket:
    peer = socket.create_connection(hub._listener.getsockname())
    peer.settimeout(10)
    peer.sendall(json.dumps(message).encode() + b"\n")
    return peer


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_strangers_are_turned_away(hub: peer_monitor.PeerMonitor) -> None:
    for message in (b"GET / HTTP/1.0\n", b'{"failed": "x"}\n', b"[1]\n", b"x" * 200_000):
        stranger = socket.create_connection(hub._listener.getsockname())
        stranger.settimeout(20)
        try:
            stranger.sendall(message)
            assert stranger.recv(100) == b""
        except ConnectionResetError:
            pass
    wrong = join(hub, token="guess", rank=1)
    assert wrong.recv(100) == b""
    assert hub.heard == [] and not hub._peers


def test_a_death_is_noticed_and_a_goodbye_is_none(hub: peer_monitor.PeerMonitor) -> None:
    first, second, third = (join(hub, token="secret", rank=rank) for rank in (1, 2, 3))
    wait_for(lambda: len(hub._peers) == 3)
    first.sendall(b'{"done": 1, "code": 0}\n')
    first.close()
    second.sendall(b'{"failed": "process 2: no room"}\n')
    wait_for(lambda: hub.heard)
    third.close()
    wait_for(lambda: len(hub.heard) == 2)
    assert hub.heard[0] == "process 2: no room"
    assert hub.heard[1].startswith("process 3 died without a word")


def test_a_polite_end_gives_the_others_time(
    hub: peer_monitor.PeerMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_monitor, "LEAVE_SECONDS", 0.3)
    peer = join(hub, token="secret", rank=1)
    peer.sendall(b'{"done": 1, "code": 75}\n')
    peer.close()
    wait_for(lambda: hub.heard)
    assert hub.heard == ["process 1 ended with exit code 75"]


def work(kind: str) -> None:
    if kind == "value":
        raise ValueError("bad\nfile")
    if kind == "bug":
        raise KeyError("x")
    if kind == "stop":
        raise SystemExit(75)
    if kind == "die":
        os._exit(9)
    if kind == "stuck":
        threading.Event().wait(60)


@pytest.mark.parametrize(
    ("kinds", "message", "code"),
    [
        (("fine", "value"), "process 1: bad file", 2),
        (("bug", "stuck"), "process 0: KeyError: 'x'", 1),
        (("stuck", "die"), "process 1: ended with exit code 9 without a word", 9),
    ],
)
def test_the_parent_reports_the_process_that_failed(
    kinds: tuple[str, ...], message: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "START_METHOD", "fork")
    monkeypatch.setattr(supervision, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(RunFailed) as caught:
        supervision.run_processes(work, kinds)
    assert str(caught.value) == message and caught.value.code == code
    assert ("KeyError" in caught.value.trace) == (code == 1)


def test_a_polite_end_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "START_METHOD", "fork")
    with pytest.raises(SystemExit) as caught:
        supervision.run_processes(work, ["stop", "stop"])
    assert caught.value.code == 75
    supervision.run_processes(work, ["fine", "fine"])


def test_a_process_ends_though_the_end_of_its_workers_would_raise(tmp_path: Path) -> None:
    def run() -> int:
        def raises(*_: object) -> None:
            raise RuntimeError("a worker is gone")

        class Worker(multiprocessing.get_context("fork").Process):
            def kill(self) -> None:
                super().kill()
                time.sleep(0.2)

        for _ in range(2):
            Worker(target=time.sleep, args=(60,), daemon=True).start()
        signal.signal(signal.SIGCHLD, raises)
        process_exit.exit_now(7)
        return 0

    _, status = os.waitpid(forked(run, tmp_path / "leaving"), 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert not (tmp_path / "leaving.stderr").read_text()


def test_exit_codes_and_lines() -> None:
    for error, code, line in (
        (NonFiniteError("loss is NaN"), 3, "loss is NaN"),
        (OSError(28, "disk full"), 2, "[Errno 28] disk full"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("a\n b"), 1, "ZeroDivisionError: a b"),
        (RunFailed("process 1: x", 4), 4, "process 1: x"),
    ):
        assert (exit_code(error), explain(error)) == (code, line)
    assert errors.PEER_FAILED == 4


def test_the_host_of_process_0() -> None:
    assert DistributedEnv(1, 2, 1, 2, "env://").host == "127.0.0.1"
    assert DistributedEnv(3, 4, 1, 2, "tcp://node7:29500").host == "node7"


def test_an_interrupted_parent_interrupts_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "START_METHOD", "fork")
    # Tests that run in the background may have been started deaf.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            supervision.run_processes(work, ["stuck", "stuck"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 20
