"""`alignzeg export`: the weights of a checkpoint as a safetensors file."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from pathlib import Path

from alignzeg.arguments import OneLineParser, command_parser

SUFFIX = ".safetensors"


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "export",
        "Writes the weights of a checkpoint, and what it says about itself, as a safetensors file.",
        "alignzeg export output/model_final.pth",
    )
    result.add_argument(
        "weights", metavar="WEIGHTS", help="a checkpoint, such as output/model_final.pth"
    )
    result.add_argument(
        "output",
        nargs="?",
        metavar="OUTPUT",
        help="the file to write; by default beside the checkpoint, ending in .safetensors",
    )
    return result


def main(args: argparse.Namespace) -> None:
    """Writes the file, and says how large it is.

    Raises:
        ValueError: see `export`.
    """
    output = args.output or os.path.splitext(args.weights)[0] + SUFFIX
    count, size = export(args.weights, output)
    sys.stdout.write(f"{output}: {count} tensors, {size / 2**20:.1f} MiB\n")


def export(weights: str, output: str) -> tuple[int, int]:
    """Writes the model of a checkpoint, and what the checkpoint says about itself, as safetensors.

    The result can be given wherever a checkpoint can be, but for --resume: optimizer, random
    generators and the place in the data are left out.

    Args:
        weights: a checkpoint of this project, or any file with a state_dict.
        output: the file to write; ends in .safetensors.

    Returns:
        How many tensors it holds, and bytes.

    Raises:
        ValueError: if the checkpoint cannot be read, or the output's name is wrong.
        OSError: if the output cannot be written.
    """
    from safetensors.torch import save
    from torch import Tensor

    from alignzeg.engine.checkpoints.checkpoint import KEY
    from alignzeg.engine.checkpoints.reading import read_checkpoint
    from alignzeg.files import ATTEMPTS, atomic_write

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
    about = {"format": "pt"}
    if KEY in checkpoint:
        about["alignzeg"] = json.dumps(checkpoint[KEY])
    content = save(tensors, metadata=about)

    def check(path: str) -> None:
        if Path(path).read_bytes() != content:
            raise OSError(errno.EIO, "it does not read back as it was written")

    atomic_write(output, content, durable=True, check=check, attempts=ATTEMPTS)
    return len(tensors), len(content)
