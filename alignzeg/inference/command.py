"""`python -m alignzeg predict`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from alignzeg.arguments import OneLineParser
from alignzeg.data.pictures import read_rgb
from alignzeg.inference.predictor import Predictor, parse_classes
from alignzeg.structures import SYNONYM_SEPARATOR, Vocabulary

_PROPOSALS = 24


def parser() -> OneLineParser:
    """The command line."""
    result = OneLineParser(
        prog="python -m alignzeg predict",
        description="Names every pixel of pictures among any class names.",
    )
    result.add_argument("pictures", nargs="+", metavar="PICTURE")
    result.add_argument("--weights", required=True, help="checkpoint; it is all that is needed")
    result.add_argument(
        "--classes",
        required=True,
        help='such as "red star, brick, grass", or a file with one name a line',
    )
    result.add_argument("--output", default="output/predict", help="folder of the results")
    result.add_argument(
        "--reject",
        type=float,
        default=None,
        metavar="T",
        help="answer 'none of these' where the best score is below T; by default, every pixel is "
        "named",
    )
    result.add_argument(
        "--proposals", action="store_true", help=f"also write the {_PROPOSALS} surest masks"
    )
    result.add_argument("--device", default=None, help='such as "cpu" or "cuda:0"')
    result.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="over the checkpoint's config"
    )
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Predicts and writes the results.

    Args:
        argv: arguments after "predict"; by default those of the process.

    Returns:
        0, or 2 after one line that says what is wrong with the input; nothing is written then.
    """
    args = parser().parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    try:
        names = parse_classes(args.classes)
        # Names and pictures are looked at before the model is built, which takes seconds.
        first = tuple(name.split(SYNONYM_SEPARATOR)[0] for name in names)
        Vocabulary(first, (True,) * len(names))
        for picture in args.pictures:
            read_rgb(picture)
        opts = list(args.opts)
        if args.reject is not None:
            opts += ["ALIGNZEG.TEST.REJECT_BELOW", str(args.reject)]
        predictor = Predictor(args.weights, names, args.device, opts)
        work = list(zip(args.pictures, distinct_stems(args.pictures), strict=True))
        if len(work) > 1:
            work = track(work, "Predicting", console=Console(stderr=True), transient=True)
        for picture, stem in work:
            prediction = predictor(picture, proposals=_PROPOSALS if args.proposals else 0)
            files = prediction.save(args.output, stem)
            largest = list(prediction.areas.items())[:5]
            found = ", ".join(f"{n} {100 * p / prediction.labels.size:.0f} %" for n, p in largest)
            console.print(f"{picture}: {found or 'none of these'} -> {files[0]}", markup=False)
    except ValueError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0


def distinct_stems(pictures: Sequence[str]) -> list[str]:
    """A file name for each picture's results: its own stem, numbered where two would collide.

    Names that differ only in case collide too, as they do on some file systems.
    """
    stems = [Path(picture).stem for picture in pictures]
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
