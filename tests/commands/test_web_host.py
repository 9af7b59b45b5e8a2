"""Where `alignzeg web` listens: an address of its own, the variable, and what is refused."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from helpers import REPOSITORY

from alignzeg.__main__ import main
from alignzeg.commands.web import address, is_private, parser, require_port


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("host", "private", "opened"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:80"),
        ("127.0.0.2", True, "http://127.0.0.2:80"),
        ("localhost", True, "http://localhost:80"),
        ("::1", True, "http://[::1]:80"),
        ("0.0.0.0", False, "http://127.0.0.1:80"),
        ("::", False, "http://127.0.0.1:80"),
        ("10.0.0.7", False, "http://10.0.0.7:80"),
        ("my.machine", False, "http://my.machine:80"),
    ],
)
def test_who_can_reach_it_and_how(host: str, private: bool, opened: str) -> None:
    assert is_private(host) is private
    assert address(host, 80) == opened


def test_a_taken_port_is_taken_at_its_address_only() -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        require_port(port, "127.0.0.1")
        for host in ("127.0.0.2", "0.0.0.0"):
            with pytest.raises(ValueError, match=f"--port is {port}, which cannot be used"):
                require_port(port, host)


@pytest.mark.parametrize("host", ["203.0.113.9", "no such host"])
def test_an_address_of_no_machine_here_is_refused_first(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["web", "--weights", str(tmp_path / "none.pth")]
    assert main([*words, "--host", host]) == 2
    said = capsys.readouterr().err
    monkeypatch.setenv("GRADIO_SERVER_NAME", host)
    assert main(words) == 2
    assert capsys.readouterr().err == said
    assert repr(host) in said and "0.0.0.0" in said and len(said.splitlines()) == 1
    # What is said goes before the variable: then it is the weights that are missing.
    assert main([*words, "--host", "127.0.0.1", "--port", str(free_port())]) == 2
    assert "none.pth" in capsys.readouterr().err


def test_the_page_is_for_this_machine_unless_asked() -> None:
    words = parser().parse_args(["--weights", "x"])
    assert (words.host, words.root_path) == ("", "")


def test_it_listens_where_it_is_told_and_warns(tiny_weights: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "alignzeg", "web", "--weights", str(tiny_weights)]
    with subprocess.Popen(
        [*command, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "GRADIO_SERVER_NAME": "0.0.0.0",
        },
        cwd=tmp_path,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            assert process.stdout and process.stderr
            ready, _, _ = select.select([process.stdout], [], [], 300)
            assert ready, "the page did not start"
            assert process.stdout.readline().strip() == f"http://127.0.0.1:{port}"
            # Any address of this machine reaches it; this one only where all are listened at.
            for host in ("127.0.0.1", "127.0.0.9"):
                socket.create_connection((host, port), 5).close()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert "warning: the page listens at 0.0.0.0 and has no password" in (
                process.stderr.read()
            )
        finally:
            process.kill()
