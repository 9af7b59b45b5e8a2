"""The weights of a checkpoint, and what it says about itself, as a safetensors file."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from alignzeg.engine.checkpoints.checkpoint import KEY
from alignzeg.engine.checkpoints.reading import read_checkpoint
from alignzeg.files import ATTEMPTS, atomic_write

SUFFIX = ".safetensors"


def write_safetensors(
    weights: str, output: str, about: Mapping[str, Any] | None = None
) -> tuple[int, int]:
    """Writes the model of a checkpoint, and what the checkpoint says about itself, as safetensors.

    The result can be given wherever a checkpoint can be, but for --resume: optimizer, random
    generators and the place in the data are left out.

    `about` takes the place of what the checkpoint says.

    Returns:
        How many tensors it holds, and bytes.

    Raises:
        ValueError: if the checkpoint cannot be read, or the output's name is wrong.
        OSError: if the output cannot be written.
    """
    if not output.endswith(SUFFIX):
        raise ValueError(f"the output is {output!r}; its name must end in {SUFFIX}")
    folder = os.path.dirname(output)
    if folder and not os.path.isdir(folder):
        raise ValueError(f"the output's folder {folder!r} does not exist")
    checkpoint = read_checkpoint(weights)
    model = checkpoint.get("model", checkpoint)
    if not isinstance(model, dict) or not model:
        raise ValueError(f"checkpoint {weights!r} holds no weights")
    for name, value in model.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"checkpoint {weights!r}: {name!r} is a {type(value).__name__}, not a tensor"
            )
    # The format knows no shared or strided memory.
    tensors = {name: value.detach().clone().contiguous() for name, value in model.items()}
    about = checkpoint.get(KEY) if about is None else about
    metadata = {"format": "pt"} | ({} if about is None else {KEY: json.dumps(about)})
    content = save(tensors, metadata=metadata)

    def check(path: str) -> None:
        if Path(path).read_bytes() != content:
            raise OSError(errno.EIO, "it does not read back as it was written")

    atomic_write(output, content, durable=True, check=check, attempts=ATTEMPTS)
    return len(tensors), len(content)
