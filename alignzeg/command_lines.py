"""What the commands take, apart from what they do: nothing heavy is needed to read a command line.

Command lines of files in `tools/` stand in these files, but for `train_net.py`.
"""

from __future__ import annotations

import argparse
import os

from alignzeg.arguments import OneLineParser, number

PROPOSALS_SHOWN = 24
# What is done at once, in pixels; see `alignzeg.inference.Predictor`.
MAX_PIXELS = 2_000_000
# What is written between names that mean the same; see `alignzeg.structures.SYNONYM_SEPARATOR`.
_SYNONYMS = "sofa; couch"


def _parser(command: str, description: str) -> OneLineParser:
    return OneLineParser(prog=f"python -m alignzeg {command}", description=description)


def audit() -> OneLineParser:
    """`python -m alignzeg audit`."""
    parser = _parser(
        "audit",
        "Proves on real training steps that no unseen label or name reaches a loss. "
        "Exit code 0 if none does, 1 on a leak, 2 if nothing can be proved.",
    )
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--steps", type=int, default=3, help="training steps of each trial")
    parser.add_argument(
        "opts", nargs="*", default=[], metavar="KEY VALUE", help="on top of the config"
    )
    return parser


def compare() -> OneLineParser:
    """`python -m alignzeg compare`."""
    parser = _parser(
        "compare",
        "Names the first divergence of a run from another: config, environment, VLM, "
        "data, losses. Exit code 0 if equal, 1 if different, 2 if a folder cannot be read.",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder (OUTPUT_DIR)")
    parser.add_argument("reference", metavar="REFERENCE", help="the folder to compare with")
    parser.add_argument(
        "--tolerance",
        type=number(float, 0),
        default=0.0,
        help="relative difference of losses that counts as equal; 0, the default, is to the bit",
    )
    return parser


def doctor() -> OneLineParser:
    """`python -m alignzeg doctor`."""
    parser = _parser(
        "doctor",
        "Says what is installed, what is found, and how to mend the rest: what the demo needs, or "
        "what one config needs.",
    )
    parser.add_argument("--config-file", default="", help="look at what this config needs instead")
    parser.add_argument("--all", action="store_true", help="every package and every data set")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    return parser


def export() -> OneLineParser:
    """`python -m alignzeg export`."""
    parser = _parser("export", "Writes the weights of a checkpoint as a safetensors file.")
    parser.add_argument("weights", help="a checkpoint, such as output/model_final.pth")
    parser.add_argument("output", nargs="?", help="by default beside it, with .safetensors")
    return parser


def predict() -> OneLineParser:
    """`python -m alignzeg predict`."""
    parser = _parser("predict", "Names every pixel of images among any class names.")
    parser.add_argument("pictures", nargs="+", metavar="IMAGE")
    parser.add_argument("--weights", required=True, help="checkpoint; it is all that is needed")
    parser.add_argument(
        "--classes",
        required=True,
        help='such as "red star, brick, grass", or a file with one name a line',
    )
    parser.add_argument("--output", default="output/predict", help="folder of the results")
    parser.add_argument(
        "--reject",
        type=number(float, 0, 1),
        default=None,
        metavar="T",
        help="answer 'none of these' where the best score is below T, 0 to 1; by default, every "
        "pixel is named",
    )
    parser.add_argument(
        "--proposals", action="store_true", help=f"also write the {PROPOSALS_SHOWN} surest masks"
    )
    parser.add_argument("--device", default=None, help='such as "cpu" or "cuda:0"')
    parser.add_argument(
        "--max-pixels",
        type=number(int, 0),
        default=MAX_PIXELS,
        metavar="N",
        help=f"larger images are looked at as smaller copies of so many pixels; {MAX_PIXELS} by "
        "default, 0 is without limit",
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="over the checkpoint's config"
    )
    return parser


def replay() -> OneLineParser:
    """`python -m alignzeg replay`."""
    parser = _parser(
        "replay",
        "Makes a failed training step again, in one process, and names the first "
        "tensor that is not finite. Exit code 3 if it failed again, 0 if not.",
    )
    parser.add_argument("bundle", help="OUTPUT_DIR/crash/iteration_..._process_....pth")
    parser.add_argument(
        "opts", nargs="*", default=[], help="KEY VALUE pairs, such as MODEL.DEVICE cpu"
    )
    return parser


def significance() -> OneLineParser:
    """`python -m alignzeg significance`."""
    parser = _parser(
        "significance",
        "Bootstrap intervals over images of one evaluation, or a paired comparison of "
        "two. An evaluation is a run's folder or a per_image_*.npz file; evaluate with "
        "ALIGNZEG.TEST.SAVE_PER_IMAGE True to get one.",
    )
    parser.add_argument("evaluations", nargs="+", metavar="A [B]")
    parser.add_argument("--level", type=float, default=0.95, help="confidence level")
    parser.add_argument("--resamples", type=int, default=2000, help="of the bootstrap")
    parser.add_argument("--permutations", type=int, default=9999, help="of the paired test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", metavar="FILE", help="also write the figures there")
    return parser


def vocabulary() -> OneLineParser:
    """`python -m alignzeg vocabulary`."""
    parser = _parser(
        "vocabulary",
        "Warns of duplicate names, near-synonyms, names that are cut off, and clashes "
        "of seen and unseen names. Exit code 0 if there is nothing to say, 1 if there is.",
    )
    parser.add_argument(
        "names",
        help='"cat, dog, tree", a text file with one name a line, or a registered data set; '
        f'synonyms are written "{_SYNONYMS}", and one name alone "cat,"',
    )
    parser.add_argument(
        "--unseen", default="", help="names or a file, of classes without training masks"
    )
    parser.add_argument("--config-file", default="", help="for the VLM that reads the names")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="over the config, in turn"
    )
    return parser


def train() -> OneLineParser:
    """`tools/train_net.py`: Detectron2's command line, with a free port by default and --debug."""
    parser = OneLineParser(
        description="Trains, or evaluates with --eval-only. KEY VALUE pairs come last."
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument("--eval-only", action="store_true", help="perform evaluation only")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine")
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument(
        "--machine-rank", type=int, default=0, help="the rank of this machine (unique per machine)"
    )
    parser.add_argument(
        "--dist-url", default="auto", help="where processes meet, such as tcp://HOST:PORT"
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error in the input"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the run that is in OUTPUT_DIR, and start anew there",
    )
    parser.add_argument(
        "--allow-rescale",
        action="store_true",
        help="resume with another number of processes: same data, but not to the bit",
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read .pkl weights from anywhere, though they may run code",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    return parser


def comparison(description: str, output: str) -> OneLineParser:
    """What `tools/demo.py` and `tools/photos.py` share; `output` is the default folder."""
    parser = OneLineParser(description=description)
    parser.add_argument("--output", default=output, help="folder of everything it makes")
    parser.add_argument(
        "--iterations", type=number(int, 0), default=0, help="of each training; 0: the config"
    )
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    parser.add_argument(
        "--jobs",
        type=number(int, 1),
        default=min(2, os.cpu_count() or 1),
        help="trainings at a time, sharing the cores; two with one thread each are faster than "
        "one after the other with two",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for both trainings")
    return parser
