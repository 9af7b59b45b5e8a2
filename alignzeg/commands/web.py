"""`alignzeg web`: a page in the browser for one checkpoint."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import os
import socket
import sys
import tempfile
import threading
from ipaddress import ip_address
from pathlib import Path

from alignzeg.arguments import (
    OneLineParser,
    add_opts,
    add_trust,
    code_allowed,
    command_parser,
    number,
)

# Only this machine can reach it.
HOST = "127.0.0.1"
# What Gradio's own pages follow; --host goes before it.
HOST_VARIABLE = "GRADIO_SERVER_NAME"


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "web",
        "Opens a page for the browser, for this machine alone unless --host says more: drop an "
        "image, type class names, mark which were seen in training, and see what the bias "
        "correction changes. Moving its sliders does not run the network again. Ctrl-C ends it.",
        "alignzeg web --weights output/model_final.pth --port 7860",
    )
    result.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="a checkpoint, which holds its config; nothing else is needed",
    )
    result.add_argument(
        "--classes",
        default="",
        metavar="NAMES",
        help='class names to begin with, such as "red star, brick", or a file with one name a line',
    )
    result.add_argument(
        "--port",
        type=number(int, 1, 65535),
        default=7860,
        metavar="N",
        help="the port of the page; %(default)s by default",
    )
    result.add_argument(
        "--host",
        default="",
        metavar="ADDRESS",
        help="the address to listen at: 0.0.0.0 is every one of this machine, as a container "
        f"needs; by default {HOST_VARIABLE}, else {HOST}, which nobody else reaches",
    )
    result.add_argument(
        "--root-path",
        default="",
        metavar="PATH",
        help="the path that a proxy serves the page under, such as /alignzeg",
    )
    result.add_argument(
        "--share",
        action="store_true",
        help="also make a public link through Gradio's servers; anyone who has it can send images",
    )
    result.add_argument(
        "--device", default=None, help='the device, such as "cpu" or "cuda:0"; a GPU by default'
    )
    add_trust(result)
    add_opts(result)
    return result


def main(args: argparse.Namespace) -> None:
    """Serves the page until it is interrupted.

    Raises:
        ValueError: if Gradio is missing, the port is taken, or something is wrong with the input.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("alignzeg web needs Gradio, which is not installed: pip install gradio")
    host = args.host or os.environ.get(HOST_VARIABLE, "") or HOST
    require_port(args.port, host)
    if not Path(args.weights).is_file():
        raise ValueError(
            f"--weights is {args.weights!r}, which is no file; give a checkpoint such as "
            "output/model_final.pth"
        )
    from alignzeg.data.class_names import read_class_list
    from alignzeg.engine import require_device
    from alignzeg.structures import SYNONYM_SEPARATOR, Vocabulary

    names = read_class_list(args.classes) if args.classes else ()
    if names:
        # Refuses a name that is given twice.
        Vocabulary.from_unseen([name.split(SYNONYM_SEPARATOR)[0] for name in names], [])
    classes = ", ".join(names)
    if args.device:
        require_device(args.device)
    # Gradio reads these at its import: it is not to report home.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from alignzeg.inference.predictor import Predictor
    from alignzeg.web import Session
    from alignzeg.web.page import build, look
    from alignzeg.web.samples import write_examples

    session = Session(Predictor(args.weights, None, args.device, args.opts, **code_allowed(args)))
    with tempfile.TemporaryDirectory(prefix="alignzeg_web_") as folder:
        page = build(session, write_examples(Path(folder), session), classes)
        page.launch(
            server_name=host,
            server_port=args.port,
            share=args.share,
            root_path=args.root_path or None,
            quiet=True,
            prevent_thread_lock=True,
            state_session_capacity=16,
            max_file_size="64mb",
            footer_links=[],
            allowed_paths=[folder],
            **look(),
        )
        try:
            if not is_private(host):
                sys.stderr.write(
                    f"warning: the page listens at {host} and has no password: whoever "
                    f"reaches port {args.port} of this machine can send images\n"
                )
            sys.stdout.write(f"{address(host, args.port)}{args.root_path}\n")
            if sys.stdout.isatty():
                sys.stdout.write("Open this address in a browser; Ctrl-C ends it.\n")
            if page.share_url:
                sys.stdout.write(f"{page.share_url}\n")
            sys.stdout.flush()
            threading.Event().wait()
        except KeyboardInterrupt:
            sys.stdout.write("closed\n")
        finally:
            page.close(verbose=False)


def require_port(port: int, host: str = HOST) -> None:
    """Refuses a port that something else listens on, or that this user may not have.

    Raises:
        ValueError: naming the port, or an address that is not one of this machine.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(
            f"the address to listen at is {host!r}, which is none ({error.strerror or error}); "
            f"give {HOST} for this machine alone, or 0.0.0.0 (--host, {HOST_VARIABLE})"
        ) from error
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a connection that has just ended does not keep the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ValueError(
                    f"the address to listen at is {host!r}, which is not one of this machine; give "
                    f"{HOST}, or 0.0.0.0 for all it has (--host, {HOST_VARIABLE})"
                ) from error
            raise ValueError(
                f"--port is {port}, which cannot be used ({error.strerror or error}); give another"
            ) from error


def is_private(host: str) -> bool:
    """Whether nothing but this machine reaches an address; of a name, only localhost is sure."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(host: str, port: int) -> str:
    """What to open in a browser on this machine."""
    if host in ("0.0.0.0", "::", ""):
        host = HOST
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
