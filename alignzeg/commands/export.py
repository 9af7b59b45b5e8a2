"""`alignzeg export`: a checkpoint as a graph for other programs, or its weights alone."""

from __future__ import annotations

import argparse
import os
import sys

from alignzeg.arguments import (
    OneLineParser,
    add_opts,
    add_trust,
    check_pairs,
    code_allowed,
    command_parser,
)

SUFFIXES = (".safetensors", ".onnx", ".pt2")


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "export",
        "Writes a checkpoint for other programs. OUTPUT ending in .onnx or .pt2: the network from "
        "an image to mask proposals, their embeddings and class scores, as ONNX or by "
        "torch.export, checked against PyTorch; the text of the class names is an input, and "
        "OUTPUT_classes.npz beside it holds that of --classes. Ending in .safetensors: the weights "
        "alone, and what the checkpoint says about itself.",
        'alignzeg export output/model_final.pth output/model.onnx --classes "red star, brick"',
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
    result.add_argument(
        "--classes",
        metavar="NAMES",
        help='class names, such as "red star, brick, grass", or a file with one name a line; by '
        "default the classes seen in training",
    )
    add_trust(result)
    add_opts(result, alone=False)
    return result


def main(args: argparse.Namespace) -> None:
    """Writes the files, and says how large they are.

    Raises:
        ValueError: see `write_safetensors` and `export_graph`.
    """
    opts = list(args.opts)
    check_pairs(opts)
    output = args.output or os.path.splitext(args.weights)[0] + SUFFIXES[0]
    suffix = os.path.splitext(output)[1]
    if suffix not in SUFFIXES:
        raise ValueError(
            f"the output is {output!r}; its name must end in one of {', '.join(SUFFIXES)}"
        )
    if suffix == SUFFIXES[0]:
        _weights(args, output, opts)
    else:
        _graph(args, output, opts)


def _weights(args: argparse.Namespace, output: str, opts: list[str]) -> None:
    if args.classes is not None or opts:
        given = "--classes" if args.classes is not None else opts[0]
        raise ValueError(
            f"{given} is for a graph, and {output!r} holds weights alone; give an output that ends "
            "in .onnx or .pt2"
        )
    from alignzeg.sharing import write_safetensors

    count, size = write_safetensors(args.weights, output)
    sys.stdout.write(f"{output}: {count} tensors, {size / 2**20:.1f} MiB\n")


def _graph(args: argparse.Namespace, output: str, opts: list[str]) -> None:
    from alignzeg.data.class_names import read_class_list
    from alignzeg.exporting import export_graph

    names = None if args.classes is None else list(read_class_list(args.classes))
    made = export_graph(args.weights, output, names, opts, **code_allowed(args))
    apart = ", ".join(f"{name} {value:.1e}" for name, value in made.differences.items())
    sys.stdout.write(f"{made.file}: {made.size / 2**20:.1f} MiB\n{made.classes}: class names\n")
    sys.stdout.write(f"largest differences from PyTorch: {apart}\n")
