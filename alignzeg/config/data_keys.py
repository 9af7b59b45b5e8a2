"""Keys of the data."""

from __future__ import annotations

from alignzeg.config.keys import LEAST_0, SHARE, Choices, Key, Range, Section

DATA = Section(
    "What is read, and how it is changed.",
    {
        "IGNORE_AS_NEGATIVE": Key(
            False,
            "Whether hidden pixels are negatives of every mask, as in the published peers.",
        ),
        "HOLD_OUT": Key(
            "",
            "Seen classes to hide in training, for calibration: empty or `pseudo_unseen`.",
            Choices(("pseudo_unseen",), optional=True),
        ),
        "SKIP_UNSEEN_IMAGES": Key(
            False,
            "Whether a training image in which a class is labelled that is not trained on is left "
            "out.",
            source="ZS3Net",
        ),
        "CROP_SIZE": Key(0, "Edge of the random crop; 0 takes the whole image.", LEAST_0, "pixels"),
        "CROP_MAX_CLASS_SHARE": Key(
            1.0,
            "A crop is drawn again (up to 10 times) while one class covers more than this share of "
            "its labelled pixels; 1 takes any crop.",
            Range(0, 1, above=True),
            "",
            "MaskFormer",
        ),
        "COLOR_JITTER": Key(
            True,
            "Whether brightness, contrast, saturation and hue vary at random, as in SSD.",
            source="MaskFormer",
        ),
        "CHECK_FILES": Key(
            1000,
            "Pairs of each data set, evenly spread, that are read and checked before the first "
            "step; below 0 all, as always for a data set of your own.",
            unit="pairs",
            source="ours",
        ),
        "SYNONYM_COSINE": Key(
            0.95,
            "Cosine of two text prototypes from which two classes are called near-synonyms; 1 "
            "turns that off.",
            unit="cosine",
            source="ours",
        ),
        "PSEUDO": Section(
            "Pseudo-labels, as data set <source>_pseudo for DATASETS.TRAIN.",
            {
                "ROOT": Key("", "A folder that the pseudo-labels command made."),
                "WEIGHT": Key(
                    0.5,
                    "What one of its pixels counts beside one that a human labelled.",
                    SHARE,
                    "",
                    "ours",
                ),
            },
        ),
        "OWN": Section(
            "A data set of your own, registered as <NAME>_train, _val and _test, which fill "
            "DATASETS.TRAIN and TEST where these are empty.",
            {
                "NAME": Key("", "Its name."),
                "ROOT": Key("", "The folder that holds everything, relative to the current one."),
                "IMAGES": Key("images", "Folder of images below it, with a folder for each split."),
                "LABELS": Key("labels", "Folder of label maps, likewise."),
                "CLASSES": Key([], "Class names in id order; empty: ROOT/classes.txt."),
                "UNSEEN": Key([], "Those without training masks; empty: ROOT/unseen.txt."),
                "PSEUDO_UNSEEN": Key(
                    [], "Seen classes to calibrate on; empty: ROOT/pseudo_unseen.txt."
                ),
                "IGNORE_LABEL": Key(
                    -1,
                    "Value of pixels without a class; below 0: 255, and 65535 for more than 255 "
                    "classes. Values below 0 are no class in any case.",
                    Range(-(2**31), 65535),
                ),
                "RAW_IDS": Key(
                    [],
                    "Values of the classes in the label files, in the order of CLASSES, such as "
                    "[0, 2, 5, 9]; empty: 0, 1, 2, ... without IGNORE_LABEL.",
                ),
            },
        ),
    },
)
