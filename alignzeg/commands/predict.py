"""`alignzeg predict`: images and class names to label maps."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from alignzeg.arguments import (
    OneLineParser,
    add_opts,
    check_pairs,
    command_parser,
    number,
    require_folder,
)

PROPOSALS_SHOWN = 24
_CONFIG_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")
_IMAGE = re.compile(r".*\.(jpe?g|png|bmp|gif|tiff?|webp)", re.IGNORECASE)


def parser() -> OneLineParser:
    """The command line."""
    result = command_parser(
        "predict",
        "Names every pixel of images among any class names.",
        'alignzeg predict street.jpg --weights output/model_final.pth --classes "car, road, sky"',
    )
    result.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    result.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="a checkpoint, which holds its config; nothing else is needed",
    )
    result.add_argument(
        "--classes",
        required=True,
        metavar="NAMES",
        help='class names, such as "red star, brick, grass", or a file with one name a line',
    )
    result.add_argument(
        "--output",
        default="output/predict",
        metavar="FOLDER",
        help="the folder of the results; %(default)s by default",
    )
    result.add_argument(
        "--reject",
        type=number(float, 0, 1),
        default=None,
        metavar="T",
        help="answer 'none of these' where the best score is below T, 0 to 1; by default every "
        "pixel is named",
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
    add_opts(result, alone=False)
    return result


def main(args: argparse.Namespace) -> None:
    """Predicts and writes the results.

    Raises:
        ValueError: if something is wrong with the input; nothing is written then.
    """
    from rich.console import Console

    from alignzeg.engine.settings.reading import require_device
    from alignzeg.inference.predictor import Predictor, parse_classes
    from alignzeg.structures import SYNONYM_SEPARATOR, Vocabulary

    images, opts = split_opts([*args.images, *args.opts])
    check_pairs(opts)
    # Names, images and places are looked at before the model is built, which takes seconds.
    names = parse_classes(args.classes)
    first = tuple(name.split(SYNONYM_SEPARATOR)[0] for name in names)
    Vocabulary(first, (True,) * len(names))
    require_folder(args.output, "--output")
    if args.device:
        require_device(args.device)
    check_images(images)
    if args.reject is not None:
        opts += ["ALIGNZEG.TEST.REJECT_BELOW", str(args.reject)]
    limit = {} if args.max_pixels is None else {"max_pixels": args.max_pixels}
    predictor = Predictor(args.weights, names, args.device, opts, **limit)
    console = Console(highlight=False, soft_wrap=True)
    for image, stem in with_progress(list(zip(images, distinct_stems(images), strict=True))):
        prediction = predictor(image, proposals=PROPOSALS_SHOWN if args.proposals else 0)
        try:
            files = prediction.save(args.output, stem)
        except OSError as error:
            raise ValueError(f"--output is {args.output!r}: {error}") from error
        largest = list(prediction.areas.items())[:5]
        found = ", ".join(f"{n} {100 * p / prediction.labels.size:.0f} %" for n, p in largest)
        console.print(f"{image}: {found or 'none of these'} -> {files[0]}", markup=False)


def split_opts(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Image files, and the KEY VALUE pairs behind them, which begin at the first config key."""
    for place, word in enumerate(words):
        if _CONFIG_KEY.fullmatch(word) and not (_IMAGE.fullmatch(word) or Path(word).exists()):
            return list(words[:place]), list(words[place:])
    return list(words), []


def check_images(images: Sequence[str]) -> None:
    """Refuses what cannot be read as an image.

    Raises:
        ValueError: naming the first; for a folder, with the way to give its images.
    """
    from alignzeg.data.pictures import read_rgb

    if not images:
        raise ValueError("there is no image before the KEY VALUE pairs")
    for image in images:
        if Path(image).is_dir():
            raise ValueError(f"{image} is a folder; give its images, as in {Path(image) / '*.png'}")
        read_rgb(image)


def with_progress(work: Sequence[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """The work with its progress on a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if len(work) > 1:
        yield from track(work, "Predicting", console=console, transient=True)
        return
    for item in work:
        with console.status(f"Predicting {item[0]}"):
            yield item


def distinct_stems(images: Sequence[str]) -> list[str]:
    """A file name for each image's results: its own stem, numbered where two would collide.

    Names that differ only in case collide too, as they do on some file systems.
    """
    stems = [Path(image).stem for image in images]
    taken = {stem.lower() for stem in stems}
    used: set[str] = set()
    result = []
    for stem in stems:
        name, number = stem, 1
        while name.lower() in used or (number > 1 and name.lower() in taken):
            number += 1
            name = f"{stem}_{number}"
        used.add(name.lower())
        result.append(name)
    return result
