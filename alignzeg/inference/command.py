"""`python -m alignzeg predict`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from alignzeg.arguments import require_folder
from alignzeg.command_lines import PROPOSALS_SHOWN
from alignzeg.command_lines import predict as parser
from alignzeg.data.pictures import read_rgb
from alignzeg.engine.settings.reading import require_device
from alignzeg.inference.predictor import Predictor, parse_classes
from alignzeg.structures import SYNONYM_SEPARATOR, Vocabulary


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
        # Names, images and places are looked at before the model is built, which takes seconds.
        names = parse_classes(args.classes)
        first = tuple(name.split(SYNONYM_SEPARATOR)[0] for name in names)
        Vocabulary(first, (True,) * len(names))
        require_folder(args.output, "--output")
        if args.device:
            require_device(args.device)
        check_pictures(args.pictures)
        opts = list(args.opts)
        if args.reject is not None:
            opts += ["ALIGNZEG.TEST.REJECT_BELOW", str(args.reject)]
        predictor = Predictor(args.weights, names, args.device, opts, args.max_pixels)
        work = list(zip(args.pictures, distinct_stems(args.pictures), strict=True))
        for picture, stem in shown(work):
            prediction = predictor(picture, proposals=PROPOSALS_SHOWN if args.proposals else 0)
            try:
                files = prediction.save(args.output, stem)
            except OSError as error:
                raise ValueError(f"--output is {args.output!r}: {error}") from error
            largest = list(prediction.areas.items())[:5]
            found = ", ".join(f"{n} {100 * p / prediction.labels.size:.0f} %" for n, p in largest)
            console.print(f"{picture}: {found or 'none of these'} -> {files[0]}", markup=False)
    except ValueError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0


def check_pictures(pictures: Sequence[str]) -> None:
    """Refuses what cannot be read as an image.

    Raises:
        ValueError: naming the first; for a folder, with the way to give its images.
    """
    for picture in pictures:
        if Path(picture).is_dir():
            raise ValueError(
                f"{picture} is a folder; give its images, as in {Path(picture) / '*.png'}"
            )
        read_rgb(picture)


def shown(work: Sequence[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """The work with its progress on a terminal."""
    console = Console(stderr=True)
    if len(work) > 1:
        yield from track(work, "Predicting", console=console, transient=True)
        return
    for item in work:
        with console.status(f"Predicting {item[0]}"):
            yield item


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
