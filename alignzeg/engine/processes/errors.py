"""How a run can fail, the exit code of each way, and the one line a user sees."""

from __future__ import annotations

import contextlib
import shutil
import sys

# An error in the program; in the input; a value that is not finite; another process; Ctrl-C.
BUG, USER_ERROR, NON_FINITE, PEER_FAILED, INTERRUPTED = 1, 2, 3, 4, 130
# What the parts of this project raise when the user can mend it.
USER_ERRORS = (ValueError, OSError)
# How Python, PyTorch on a CPU and PyTorch on a GPU say that memory is short.
_NO_MEMORY = ("out of memory", "allocate memory", "storage size calculation overflowed")
# How PyTorch says that a loading worker found no room in /dev/shm, or died of it.
_NO_SHARED_MEMORY = ("unable to allocate shared memory", "unable to mmap", "bus error")
_WORKER_DIED = ("dataloader worker", "exited unexpectedly")


class NonFiniteError(FloatingPointError):
    """An image, feature, matching cost, loss or gradient is NaN or infinite.

    Attributes:
        agreed: whether all processes know.
    """

    def __init__(self, message: str, *, agreed: bool = True) -> None:
        super().__init__(message)
        self.agreed = agreed


class RunFailed(Exception):  # noqa: N818 (it says what happened)
    """A process that this one has started has failed.

    Attributes:
        code: exit code for the whole run.
        trace: traceback of the process that failed, or empty.
    """

    def __init__(self, message: str, code: int, trace: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.trace = trace


def one_line(text: str) -> str:
    """The text without line breaks, at most 4000 characters."""
    return " ".join(text.split())[:4000]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short."""
    said = isinstance(error, RuntimeError) and any(x in str(error).lower() for x in _NO_MEMORY)
    return said or isinstance(error, MemoryError)


def is_short_of_shared_memory(error: BaseException) -> bool:
    """Whether an error says that processes cannot hand over samples, as /dev/shm is full."""
    text = str(error).lower()
    said = all(x in text for x in _WORKER_DIED) or any(x in text for x in _NO_SHARED_MEMORY)
    return said and isinstance(error, (RuntimeError, OSError))


def is_homeless(error: BaseException) -> bool:
    """Whether an error says that a path begins with a ~ that stands for no folder here."""
    return isinstance(error, RuntimeError) and "determine home directory" in str(error)


def explain(error: BaseException) -> str:
    """One line about an error; with its type where the message does not speak for itself."""
    text = one_line(str(error))
    if is_out_of_memory(error):
        return (
            "not enough memory; lower SOLVER.IMS_PER_BATCH, ALIGNZEG.DATA.CROP_SIZE or whatever "
            f"was made large ({text[:300] or type(error).__name__})"
        )
    if is_short_of_shared_memory(error):
        room = ""
        with contextlib.suppress(OSError):
            sizes = shutil.disk_usage("/dev/shm")
            room = f" ({sizes.free / 2**20:.1f} of {sizes.total / 2**20:.1f} MiB are free)"
        return (
            f"a loading worker ended; they hand over samples in shared memory, and /dev/shm{room} "
            "may be too small: docker run --shm-size=8g, or set DATALOADER.NUM_WORKERS 0 "
            f"({text[:200]})"
        )
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if is_homeless(error):
        return (
            "a path begins with ~, which is no folder here: HOME is not set, or there is no such "
            "user; write the path in full"
        )
    encoding = sys.getfilesystemencoding()
    if isinstance(error, UnicodeError) and encoding != "utf-8":
        return f"{text}; names of files are taken for {encoding} here: set PYTHONUTF8=1"
    if text and isinstance(error, (NonFiniteError, RunFailed, *USER_ERRORS)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def exit_code(error: BaseException) -> int:
    """Of a process that ends by this error."""
    if isinstance(error, RunFailed):
        return error.code
    if isinstance(error, NonFiniteError):
        return NON_FINITE
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    short = is_out_of_memory(error) or is_short_of_shared_memory(error) or is_homeless(error)
    return USER_ERROR if short or isinstance(error, USER_ERRORS) else BUG
