"""Keys of inference, optimization and checkpoints."""

from __future__ import annotations

from alignzeg.config.keys import COUNT, LEAST_0, SHARE, Choices, Key, Section

TEST = Section(
    "From proposals to label maps, and what an evaluation reports. Several scales and mirror "
    "images are Detectron2's TEST.AUG; each scale is looked at through the windows, if there are "
    "any. With either of them SEMANTIC_INFERENCE is `exact`. Models without proposals, such as "
    "PixelSegmenter, take the windows, MEMORY_MIB, REJECT_BELOW and SAVE_PER_IMAGE, and refuse "
    "RECALL; the rest has no effect there.",
    {
        "ENSEMBLE_SEEN": Key(
            0.0,
            "Exponent a of the frozen VLM's score in p^(1-a) * p_vlm^a for seen classes; 0 is the "
            "trained score alone.",
            SHARE,
            source="ours; ZegFormer 1/3",
        ),
        "ENSEMBLE_UNSEEN": Key(
            0.0, "The same for unseen classes.", SHARE, source="ours; ZegFormer 2/3"
        ),
        "ENSEMBLE_NORMALIZED": Key(
            False,
            "Whether the classes of a proposal share what the background leaves, after the "
            "ensemble (fc-clip), or a proposal that the two scores disagree on counts less.",
            source="ZegFormer",
        ),
        "DUPLICATE_IOU": Key(
            0.5,
            "Proposals whose masks overlap with this IoU count as one; above 1 each counts.",
            LEAST_0,
            "IoU",
            "ours",
        ),
        "SEMANTIC_INFERENCE": Key(
            "exact",
            "`exact`: masks are upsampled, then multiplied by the classes; `fast`: the product at "
            "stride 4 is upsampled.",
            Choices(("exact", "fast")),
        ),
        "SYNONYMS": Key(
            "mean",
            "Score of a class with several prompts: of their `mean` embedding (ZegFormer), or the "
            "`max` of theirs (fc-clip, ODISE; what pas20b and pas21 are defined by).",
            Choices(("mean", "max")),
        ),
        "MEMORY_MIB": Key(
            32,
            "Memory that the making of a label map may take on a CPU, besides the map itself; "
            "16 times as much on a GPU.",
            COUNT,
            "MiB",
            "ours",
        ),
        "WINDOW": Key(
            0,
            "Side of square windows that an image is looked at through, one after the other, after "
            "INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST have resized it; 0 looks at it whole. ZegCLIP "
            "takes 512.",
            unit="pixels",
        ),
        "WINDOW_STRIDE": Key(
            0,
            "Step between windows; 0 is two thirds of WINDOW. ZegCLIP takes 426.",
            unit="pixels",
        ),
        "REJECT_BELOW": Key(
            0.0,
            "Pixels whose best probability mass is lower are answered 255; 0 names every pixel.",
            LEAST_0,
        ),
        "RECALL": Key(
            True, "Whether class-agnostic mask recall is measured, on proposals at full size."
        ),
        "SAVE_PER_IMAGE": Key(
            False,
            "Whether the confusion matrix of every image is written, for the significance command.",
        ),
    },
)


SOLVER = Section(
    "The optimizer and its step.",
    {
        "OPTIMIZER": Key(
            "AdamW",
            "AdamW, or Muon: PyTorch's Muon for matrices and convolution kernels, AdamW for the "
            "rest.",
            Choices(("AdamW", "Muon")),
            source="Mask2Former",
        ),
        "ACCUMULATE": Key(
            1,
            "Batches whose gradients are averaged before one optimizer step, to save memory; "
            "SOLVER.IMS_PER_BATCH stays the number of images. Losses are averaged over the masks "
            "of each batch, so a step is near to that of all images in one batch, not the same.",
            COUNT,
            "batches",
        ),
        "REFERENCE_BATCH": Key(
            0,
            "SOLVER.BASE_LR is meant for this total batch and is scaled linearly; 0 turns that "
            "off.",
            LEAST_0,
            "images",
        ),
        "BACKBONE_MULTIPLIER": Key(
            0.1,
            "Learning rate of the image encoder relative to the rest.",
            LEAST_0,
            source="ZegFormer",
        ),
        "WEIGHT_DECAY_EMBED": Key(
            0.0, "Weight decay of embeddings.", LEAST_0, source="Mask2Former"
        ),
        "AMP_DTYPE": Key(
            "float16",
            "With SOLVER.AMP.ENABLED: `float16` (CUDA only; a CPU then stays in full precision) or "
            "`bfloat16`.",
            Choices(("float16", "bfloat16")),
        ),
        "MAX_SKIPPED_STEPS": Key(
            0,
            "Steps of a run that may be left out because something in them is NaN or infinite; one "
            "more ends the run.",
            LEAST_0,
            "steps",
            "ours",
        ),
        "FIND_UNUSED_PARAMETERS": Key(
            False,
            "Whether several processes look for parameters without gradient in each step; needed "
            "by a component that leaves some unused, and slower.",
        ),
    },
)


CHECKPOINT = Section(
    "Which checkpoints are kept, and when.",
    {
        "KEEP": Key(
            0,
            "How many of the checkpoints written every SOLVER.CHECKPOINT_PERIOD stay, the newest "
            "first; 0 keeps all. model_final and model_best are not counted.",
            LEAST_0,
            "checkpoints",
        ),
        "BEST": Key(
            "",
            "Also keep the best checkpoint by this figure, as model_best.pth: `sem_seg/sIoU`; with "
            "several test sets `NAME/sem_seg/sIoU`. A choice by a figure of unseen classes is one "
            "on the test.",
        ),
        "GRACE": Key(
            30.0,
            "Between SIGTERM or SIGUSR1 and the end of the step or evaluation, after which the "
            "process is ended without saving, with exit code 128 + the signal's number.",
            LEAST_0,
            "seconds",
        ),
    },
)


TRACK = Section(
    "Where the figures of a training go beside metrics.json and TensorBoard. The packages are "
    "those of `alignzeg[track]`; their own environment variables (WANDB_MODE, MLFLOW_TRACKING_URI) "
    "say where the server is.",
    {
        "NAME": Key(
            "",
            "Weights & Biases or MLflow; empty for neither.",
            Choices(("wandb", "mlflow"), optional=True),
        ),
        "PROJECT": Key("alignzeg", "Project of wandb, experiment of MLflow."),
        "RUN": Key("", "Name of the run there; empty for that of OUTPUT_DIR."),
    },
)
