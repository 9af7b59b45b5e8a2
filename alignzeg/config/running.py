"""Keys of data, inference, optimization and checkpoints. Marks as in `alignzeg.config`."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_data(node: CfgNode) -> None:
    """What is read, and how it is changed."""
    data = node.DATA = CfgNode()
    # Treat hidden pixels as negatives of every mask, as the published peers do.
    data.IGNORE_AS_NEGATIVE = False
    # Seen classes to hide in training, for calibration: "" or "pseudo_unseen".
    data.HOLD_OUT = ""
    # Leave out every training picture in which a class is labelled that is not trained on. [ZS3Net]
    data.SKIP_UNSEEN_IMAGES = False
    # Random crop edge in pixels; 0 takes the whole image.
    data.CROP_SIZE = 0
    # A crop is drawn again (up to 10 times) while one class covers more than this share of its
    # labelled pixels; 1 takes any crop. [MaskFormer: 1]
    data.CROP_MAX_CLASS_SHARE = 1.0
    # Random brightness, contrast, saturation and hue, as SSD. [MaskFormer: on]
    data.COLOR_JITTER = True
    # Pairs of each data set, evenly spread, that are read and checked before the first step; below
    # 0 all, as always for a data set of your own. [ours]
    data.CHECK_FILES = 1000
    # Cosine of two text prototypes from which `alignzeg vocabulary`, and a warning before
    # training, call two classes near-synonyms; 1 turns that off. [ours]
    data.SYNONYM_COSINE = 0.95

    # A folder that `alignzeg pseudo-labels` made, as data set <source>_pseudo for
    # DATASETS.TRAIN, and what one of its pixels counts beside one that a human labelled. [ours]
    data.PSEUDO = CfgNode()
    data.PSEUDO.ROOT = ""
    data.PSEUDO.WEIGHT = 0.5

    # A data set of your own, see alignzeg/data/own.py and docs/own_data.md: registered as
    # <NAME>_train, _val and _test, which fill DATASETS.TRAIN and TEST where these are empty.
    own = data.OWN = CfgNode()
    own.NAME = ""
    # The folder that holds everything, relative to the current one.
    own.ROOT = ""
    # Folders of pictures and label maps below it; each holds one folder for each split.
    own.IMAGES = "images"
    own.LABELS = "labels"
    # Class names in id order, and those without training masks; empty: ROOT/classes.txt,
    # ROOT/unseen.txt and ROOT/pseudo_unseen.txt.
    own.CLASSES = []
    own.UNSEEN = []
    own.PSEUDO_UNSEEN = []
    # Value of pixels without a class; -1: 255, and 65535 for more than 255 classes.
    own.IGNORE_LABEL = -1


def add_inference(node: CfgNode) -> None:
    """From proposals to label maps, and what an evaluation reports."""
    test = node.TEST = CfgNode()
    # Exponent a of the frozen VLM's score in p^(1-a) * p_vlm^a, for seen and unseen classes;
    # 0 is the trained score alone. [ZegFormer 1/3 and 2/3; ours 0]
    test.ENSEMBLE_SEEN = 0.0
    test.ENSEMBLE_UNSEEN = 0.0
    # Whether the classes of a proposal share what the background leaves, after the ensemble, or a
    # proposal that the two scores disagree on counts less. [ZegFormer: false; fc-clip: true]
    test.ENSEMBLE_NORMALIZED = False
    # Proposals whose masks overlap with this IoU share one vote; above 1 each has its own. [ours]
    test.COPY_IOU = 0.5
    # "exact": upsample masks, then classes x masks; "fast": the product at stride 4, then upsample.
    test.FOLD = "exact"
    # Score of a class with several prompts: of their "mean" embedding (ZegFormer), or the "max" of
    # theirs (fc-clip, ODISE; what pas20b and pas21 are defined by).
    test.SYNONYMS = "mean"
    # Memory that one stripe of rows may take in the fold, MiB. [ours]
    test.FOLD_MIB = 32
    # Side in pixels of square windows that a picture is looked at through, one after the other,
    # after INPUT.MIN_SIZE_TEST; 0 looks at it whole. For high resolution. [ZegCLIP: 512]
    test.WINDOW = 0
    # Step between windows in pixels; 0 is two thirds of WINDOW. [ZegCLIP: 426]
    test.WINDOW_STRIDE = 0
    # Several scales and mirror images: Detectron2's TEST.AUG; each scale is looked at through the
    # windows, if there are any. With either of them FOLD is "exact".
    # Pixels whose best probability mass is lower are answered 255; 0 names every pixel.
    test.REJECT_BELOW = 0.0
    # Report class-agnostic mask recall; it needs every proposal at full size.
    test.RECALL = True
    # Write the confusion matrix of every image, for `alignzeg significance`.
    test.SAVE_PER_IMAGE = False


def add_solver(node: CfgNode) -> None:
    """The optimizer and its step."""
    solver = node.SOLVER = CfgNode()
    # AdamW, or Muon: PyTorch's Muon for matrices and convolution kernels, AdamW for the rest.
    # [M2F: AdamW]
    solver.OPTIMIZER = "AdamW"
    # Batches summed before one optimizer step; SOLVER.IMS_PER_BATCH stays the total batch.
    solver.ACCUMULATE = 1
    # SOLVER.BASE_LR is meant for this total batch and is scaled linearly; 0 turns that off.
    solver.REFERENCE_BATCH = 0
    # Learning rate of the image encoder relative to the rest. [ZegFormer: 0.1]
    solver.BACKBONE_MULTIPLIER = 0.1
    # Weight decay of embeddings. [M2F: 0]
    solver.WEIGHT_DECAY_EMBED = 0.0
    # With SOLVER.AMP.ENABLED: float16 (CUDA only; a CPU then stays in full precision) or bfloat16.
    solver.AMP_DTYPE = "float16"
    # Steps of a run that may be left out because something in them is NaN or infinite; one more
    # ends the run. [ours]
    solver.MAX_SKIPPED_STEPS = 0
    # Let several processes look for parameters without gradient in each step; needed by a component
    # that leaves some unused, and slower.
    solver.FIND_UNUSED_PARAMETERS = False


def add_checkpoint(node: CfgNode) -> None:
    """Which checkpoints are kept, and when."""
    checkpoint = node.CHECKPOINT = CfgNode()
    # How many of the checkpoints written every SOLVER.CHECKPOINT_PERIOD stay, the newest first; 0
    # keeps all. model_final and model_best are not counted.
    checkpoint.KEEP = 0
    # Also keep the best checkpoint by this figure, as model_best.pth: "sem_seg/sIoU"; with several
    # test sets "NAME/sem_seg/sIoU". A choice by a figure of unseen classes is one on the test.
    checkpoint.BEST = ""
    # Seconds between SIGTERM or SIGUSR1 and the end of the step or evaluation, after which the
    # process is ended without saving, with exit code 128 + the signal's number.
    checkpoint.GRACE = 30.0
