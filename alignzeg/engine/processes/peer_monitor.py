"""One process fails or dies: all others leave within seconds, and say why.

Every process keeps one TCP connection to process 0. The kernel closes it when a process ends, by
whatever cause, so a death is noticed at once and never by mistake: a slow process keeps its
connection, which a heartbeat or a short time-out of the process group could not tell from a dead
one. A process that fails says so in its last line. A thread watches each connection, as the main
thread may be waiting for a dead process inside a collective operation, and leaves by `os._exit`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import ipaddress
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist

from alignzeg.engine.processes.errors import BUG, NON_FINITE, NonFiniteError, explain, one_line
from alignzeg.engine.processes.process_exit import LEAVE_SECONDS, force_exit_later, later, leave

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 60
# Seconds within which the death of another process is known that made an operation fail here.
NEWS_SECONDS = 3
_LONGEST_LINE = 1 << 16


class PeerMonitor:
    """This process's end; process 0 also holds the other ends."""

    def __init__(
        self,
        rank: int,
        peers: dict[socket.socket, int],
        listener: socket.socket | None,
        speaks: bool,
    ) -> None:
        """See `connect`; `peers` has the connection to process 0 or, on process 0, nothing yet."""
        self.rank = rank
        self._speaks = speaks
        self._speaker = 0
        self._peers = peers
        self._listener = listener
        self._done: set[int] = set()
        self._lock = threading.RLock()
        self.leaving = False
        self._token = ""
        # A forked worker of a data loader must not keep the connections of a dead process open.
        os.register_at_fork(after_in_child=self._forget)

    def watch(self, token: str = "") -> None:
        """Starts the threads; on process 0 they take whoever knows the token for a process."""
        self._token = token
        if self._listener is not None:
            _start(self._accept, self._listener)
        for peer in self._peers:
            _start(self._listen, peer)

    def fail(self, reason: str) -> None:
        """Tells all others why this process fails; it has LEAVE_SECONDS to leave by itself."""
        with self._lock:
            if self.leaving:
                return
            self.leaving = True
            force_exit_later()
            self._send({"failed": f"process {self.rank}: {one_line(reason)}"})

    def close(self, code: int = 0) -> None:
        """Tells the peers that this end is no failure; after another code than 0 they end, too."""
        with self._lock:
            if self.leaving:
                return
            self.leaving = True
            self._send({"done": self.rank, "code": code})

    def _send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        for peer in list(self._peers):
            with contextlib.suppress(OSError):
                peer.sendall(line)

    def _forget(self) -> None:
        self.leaving = True
        for end in (*self._peers, *([self._listener] if self._listener else [])):
            # Not `close`, which would wait for the file of the thread that reads.
            os.close(end.detach())
        self._peers = {}

    def _accept(self, listener: socket.socket) -> None:
        while True:
            peer, _ = listener.accept()
            keep_alive(peer)
            _start(self._listen, peer)

    def _listen(self, peer: socket.socket) -> None:
        """Takes what a process says, line by line, and notices when it is gone."""
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError), peer:
            with peer.makefile("rb") as lines:
                while line := lines.readline(_LONGEST_LINE):
                    self._take(peer, dict(json.loads(line)))
        rank = self._peers.pop(peer, None)
        if rank is not None and rank not in self._done:
            # One process speaks for all: process 0, and where that has gone, process 1.
            self._speaker = int(rank == 0)
            self._abort(
                f"process {rank} died without a word: killed from outside, out of memory, or a "
                "crash in compiled code"
            )

    def _take(self, peer: socket.socket, message: dict[str, Any]) -> None:
        if peer not in self._peers:
            # A stranger does not know the token.
            token = str(message.get("token")).encode()
            if not secrets.compare_digest(token, self._token.encode()):
                raise ValueError("a stranger")
            with self._lock:
                self._peers[peer] = int(message["rank"])
        if "done" in message:
            rank, code = int(message["done"]), int(message["code"])
            self._done.add(rank)
            if code:
                later(LEAVE_SECONDS, self._abort, f"process {rank} ended with exit code {code}")
        if "failed" in message:
            self._abort(str(message["failed"]))

    def _abort(self, reason: str) -> None:
        """Ends this process because of another one, unless it is about to end anyway."""
        with self._lock:
            # Process 0 hands the news on.
            self._send({"failed": reason})
            if self.leaving:
                return
            leave(reason, aloud=self._speaks and self.rank == self._speaker)


def _start(act: Callable[[socket.socket], None], end: socket.socket) -> None:
    threading.Thread(target=act, args=(end,), name="peer_monitor", daemon=True).start()


_current: PeerMonitor | None = None


def connect(host: str, *, several_machines: bool, speaks: bool) -> PeerMonitor | None:
    """Ties all processes of the default group together; to be called by all of them.

    If it `speaks`, one of the processes that leave because of another one writes an error to the
    user; they all write one to the log. Returns None if process 0 cannot be reached, which is
    logged: then a dead process is noticed by the time-out of the process group only.
    """
    global _current
    rank = dist.get_rank()
    listener = None
    if rank == 0:
        listener = _listener(host, several_machines)
    facts: list[Any] = [listener.getsockname()[1] if listener else 0, secrets.token_hex(16)]
    dist.broadcast_object_list(facts)
    port, token = facts
    peers = {}
    if rank != 0:
        try:
            peer = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        except OSError as error:
            logger.warning(
                "process %d cannot reach process 0 at %s, port %d (%s): if one of them dies, the "
                "other notices it late",
                *(rank, host, port, error),
            )
            return None
        peer.settimeout(None)
        keep_alive(peer)
        peer.sendall(json.dumps({"token": token, "rank": rank}).encode() + b"\n")
        peers[peer] = 0
    _current = PeerMonitor(rank, peers, listener, speaks)
    _current.watch(token)
    return _current


def _listener(host: str, several_machines: bool) -> socket.socket:
    """At the address that the others know; at all where that is not one of this machine's own."""
    with contextlib.suppress(OSError, ValueError):
        address = socket.gethostbyname(host)
        if not several_machines or not ipaddress.ip_address(address).is_loopback:
            return socket.create_server((address, 0), backlog=1024)
    return socket.create_server(("", 0), backlog=1024)


def end(error: BaseException) -> None:
    """Tells the other processes, if there are any, how this one ends, as soon as that is known.

    A RuntimeError may be the effect of another process's end; then this one first waits for the
    news, which ends it.
    """
    if _current is None or _current.leaving:
        return
    if isinstance(error, SystemExit):
        _current.close(error.code if isinstance(error.code, int) else BUG)
    elif isinstance(error, NonFiniteError) and error.agreed:
        # Each process says so.
        _current.close(NON_FINITE)
        force_exit_later()
    else:
        if isinstance(error, RuntimeError):
            time.sleep(NEWS_SECONDS)
        _current.fail(explain(error))


def keep_alive(connection: socket.socket) -> None:
    """Lets the kernel close a connection to a machine that has gone, after about 30 seconds."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Ends this process if what is inside takes longer, and there are others that wait for it."""
    if _current is None:
        yield
        return
    force_exit_later(seconds)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
