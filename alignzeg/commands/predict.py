"""`alignzeg predict`: images and class names to label maps."""

from __future__ import annotations

import argparse
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import alignzeg
from alignzeg.arguments import (
    OneLineParser,
    add_opts,
    add_trust,
    check_pairs,
    code_allowed,
    command_parser,
    number,
    require_folder,
)

RESUMABLE = True
PROPOSALS_SHOWN = 24
_WORDS_SHOWN = 20
_CONFIG_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "predict",
        "Names every pixel of images among any class names. Results are written one by one; the "
        "same command goes on where it was stopped. A file that cannot be read is named and passed "
        "over, and the exit code is 2.",
        'alignzeg predict street.jpg --weights output/model_final.pth --classes "car, road, sky"',
    )
    _add_inputs(result)
    _add_answers(result)
    _add_overlay(result)
    add_trust(result)
    add_opts(result, alone=False)
    return result


def _add_inputs(result: OneLineParser) -> None:
    result.add_argument(
        "images",
        nargs="*",
        metavar="INPUT",
        help='an image, a folder of images, a pattern such as "photos/*.jpg", or a video',
    )
    result.add_argument(
        "--camera",
        type=number(int, 0),
        default=None,
        metavar="N",
        help="look through a camera, 0 is the first, until Ctrl-C or --frames",
    )
    result.add_argument(
        "--every",
        type=number(int, 1),
        default=1,
        metavar="N",
        help="of a video or camera, take one frame in N; %(default)s by default",
    )
    result.add_argument(
        "--frames",
        type=number(int, 1),
        default=None,
        metavar="N",
        help="take at most N frames of a video or camera; all by default",
    )


def _add_answers(result: OneLineParser) -> None:
    result.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="a checkpoint, which holds its config; nothing else is needed",
    )
    result.add_argument(
        "--classes",
        default=None,
        metavar="NAMES",
        help='class names, such as "red star, sofa; couch, grass", where a couch is a sofa, or a '
        "file with one class a line",
    )
    result.add_argument(
        "--words",
        action="store_true",
        help="only say which words the checkpoint's VLM knows; needs no images and no classes",
    )
    result.add_argument(
        "--output",
        default="output/predict",
        metavar="FOLDER",
        help="the folder of the results; %(default)s by default",
    )
    result.add_argument(
        "--overwrite", action="store_true", help="make results again that are there already"
    )
    result.add_argument(
        "--reject",
        type=number(float, 0, 1),
        default=None,
        metavar="T",
        help="answer 'none of these' where the best score is below T, 0 to 1, and write the "
        "confidence map; by default every pixel is named",
    )
    result.add_argument(
        "--confidence",
        action="store_true",
        help="also write the best score of every pixel as a grey image, white is 1",
    )
    result.add_argument(
        "--proposals",
        action="store_true",
        help=f"also write the {PROPOSALS_SHOWN} masks with the highest scores",
    )
    result.add_argument(
        "--device", default=None, help='the device, such as "cpu" or "cuda:0"; a GPU by default'
    )
    result.add_argument(
        "--max-pixels",
        type=number(int, 0),
        default=None,
        metavar="N",
        help="segment larger images at so many pixels; 2 million by default, 0 is without limit",
    )


def _add_overlay(result: OneLineParser) -> None:
    result.add_argument(
        "--opacity",
        type=number(float, 0, 1),
        default=0.55,
        metavar="A",
        help="of the label map over the image, 0 to 1; %(default)s by default",
    )
    result.add_argument(
        "--side-by-side", action="store_true", help="put the image itself at the overlay's left"
    )
    result.add_argument(
        "--color", action="store_true", help="leave the image beneath in its colours, not grey"
    )
    result.add_argument(
        "--no-names", action="store_true", help="write no class names on the regions"
    )


def main(args: argparse.Namespace) -> int:
    """Predicts and writes the results.

    Returns:
        0, or 2 if a file could not be read; the others are done then.

    Raises:
        ValueError: if something is wrong with the command line; nothing is written then.
    """
    from PIL import Image
    from rich.console import Console

    from alignzeg.engine import require_device
    from alignzeg.inference.predictor import MAX_PIXELS, Predictor, parse_classes
    from alignzeg.inference.results import ResultFolder
    from alignzeg.inference.run import Run, outcome, with_progress
    from alignzeg.inference.sources import find_sources
    from alignzeg.structures import SYNONYM_SEPARATOR, Vocabulary

    # What is too large for Pillow is an error, which names the file; what is nearly so is read.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    (words, opts), allowed = split_opts([*args.images, *args.opts]), code_allowed(args)
    check_pairs(opts)
    if args.device:
        require_device(args.device)
    said, shown = Console(highlight=False, soft_wrap=True), Console(stderr=True)
    if args.words:
        with shown.status("Loading the model"):
            predictor = Predictor(args.weights, None, args.device, opts, **allowed)
        said.print(_known(predictor.known_words()), markup=False)
        return 0
    # Names, images and places are looked at before the model is built, which takes seconds.
    _require_inputs(args, words)
    names = parse_classes(args.classes)
    Vocabulary.from_unseen([name.split(SYNONYM_SEPARATOR)[0] for name in names], [])
    require_folder(args.output, "--output")
    sources = find_sources(words, args.output)
    _require_frames(args, any(source.is_video for source in sources))
    if args.reject is not None:
        opts += ["ALIGNZEG.TEST.REJECT_BELOW", str(args.reject)]
    limit = MAX_PIXELS if args.max_pixels is None else args.max_pixels

    def build() -> Predictor:
        with shown.status("Loading the model"):
            predictor = Predictor(args.weights, names, args.device, opts, limit, **allowed)
        if args.proposals:
            predictor.require_proposals()
        said.print(_known(predictor.known_words()), markup=False)
        return predictor

    style = {"opacity": args.opacity, "grey": not args.color, "names": not args.no_names}
    style["side_by_side"] = args.side_by_side
    wanted: dict[str, Any] = {
        "proposals": PROPOSALS_SHOWN if args.proposals else 0,
        "confidence": args.confidence or args.reject is not None,
        "style": style,
    }
    asked = {"classes": names, "opts": opts, "max_pixels": limit, **allowed, **wanted}
    results = ResultFolder(args.output, {**_settings(args.weights), **asked}, args.overwrite)
    # What is wrong with a single file is the error itself.
    single = len(sources) == 1
    run = Run(
        build,
        results,
        say=lambda line: said.print(line, markup=False),
        warn=lambda line: (
            None if single else shown.print(line, markup=False, highlight=False, soft_wrap=True)
        ),
        progress=with_progress(shown),
        every=args.every,
        limit=args.frames or 0,
        **wanted,
    )
    try:
        run.files(sources)
        if args.camera is not None:
            run.camera(args.camera)
    finally:
        # Of a command that is refused there is nothing to list.
        if run.done or run.kept or results.failed:
            results.write_index({"weights": args.weights, "classes": names})
    said.print(outcome(run), markup=False)
    if results.failed and single:
        (reason,) = results.failed.values()
        fix = "" if ";" in reason else "; give an image such as PNG or JPEG, or a video"
        raise ValueError(f"{reason}{fix}")
    if results.failed:
        raise ValueError(
            f"{len(results.failed)} of {len(sources)} files could not be read, the others are "
            f"done: {', '.join([*results.failed][:5])}{', ...' if len(results.failed) > 5 else ''}"
        )
    return 0


def split_opts(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Images, and the KEY VALUE pairs behind them, which begin at the first config key."""
    from alignzeg.inference.sources import is_media

    for place, word in enumerate(words):
        if _CONFIG_KEY.fullmatch(word) and not (is_media(word) or Path(word).exists()):
            return list(words[:place]), list(words[place:])
    return list(words), []


def _require_inputs(args: argparse.Namespace, words: Sequence[str]) -> None:
    if args.classes is None:
        raise ValueError('--classes is missing; give class names, as in --classes "car, road, sky"')
    if not words and args.camera is None:
        raise ValueError("there is nothing to look at; give images, folders, videos or --camera 0")
    if words and args.camera is not None:
        raise ValueError(f"--camera {args.camera} and {words[0]} cannot go together; give one")
    empty = next((word for word in words if not word.strip()), None)
    if empty is not None:
        raise ValueError(f"one of the images is {empty!r}; give the name of a file")


def _require_frames(args: argparse.Namespace, moving: bool) -> None:
    """Refuses options about frames where there are none."""
    given = {"--frames": args.frames, "--every": None if args.every == 1 else args.every}
    for option, value in given.items():
        if value is not None and not moving and args.camera is None:
            raise ValueError(f"{option} {value} is for videos and cameras; leave it out")


def _settings(weights: str) -> dict[str, Any]:
    """The version and the identity of the weights, as far as it is cheap to know."""
    try:
        status = os.stat(weights)
    except OSError:
        return {}
    identity = [os.path.abspath(weights), status.st_size, status.st_mtime_ns]
    return {"version": alignzeg.__version__, "weights": identity}


def _known(about: dict[str, Any]) -> str:
    """One line about the words that a VLM knows."""
    vlm, known = about["vlm"], about["known"]
    if known is None:
        return f"{vlm} keeps no list of the words that it was trained with; any name may be asked"
    if about["asked"] is None:
        return f"{vlm} knows {len(known)} words: {', '.join(known)}"
    found = [word for word in about["asked"] if word in known]
    line = f"{vlm} knows {len(found)} of {len(about['asked'])} words"
    shown = ", ".join(found[:_WORDS_SHOWN]) + (", ..." if len(found) > _WORDS_SHOWN else "")
    return f"{line}: {shown}" if found else line
