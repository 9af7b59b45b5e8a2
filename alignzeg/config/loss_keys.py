"""Keys of the matcher and the losses."""

from __future__ import annotations

from alignzeg.config.keys import COUNT, LEAST_0, SHARE, Key, Range, Section

MATCHER = Section(
    "The assignment of proposals to masks.",
    {
        "CLASS_COST": Key(
            0.0, "Weight of the class probability; 0 is class-agnostic.", LEAST_0, "", "ours"
        ),
        "MASK_COST": Key(5.0, "Weight of the mask cross-entropy.", LEAST_0, "", "Mask2Former"),
        "DICE_COST": Key(5.0, "Weight of the dice loss.", LEAST_0, "", "Mask2Former"),
    },
)


LOSS = Section(
    "The losses.",
    {
        "CLASS_WEIGHT": Key(
            2.0,
            "lambda_1, classification over seen classes and background.",
            LEAST_0,
            "",
            "paper",
        ),
        "BACKGROUND_WEIGHT": Key(
            0.1,
            "Weight of background proposals inside the classification loss.",
            LEAST_0,
            "",
            "MaskFormer",
        ),
        "MASK_WEIGHT": Key(5.0, "lambda_bce.", LEAST_0, "", "Mask2Former"),
        "DICE_WEIGHT": Key(5.0, "lambda_dice.", LEAST_0, "", "Mask2Former"),
        "SYNTHETIC_WEIGHT": Key(1.0, "lambda_3, synthetic features.", LEAST_0, "", "paper"),
        "DIVERSITY_WEIGHT": Key(
            0.1, "lambda_4, diversity of the background prototypes.", LEAST_0, "", "paper"
        ),
        "DIVERSITY_MARGIN": Key(
            0.2, "Cosine of two prototypes up to which it is 0.", Range(-1, 1), "cosine", "ours"
        ),
        "GENERATOR_WEIGHT": Key(
            1.0,
            "Weight of the discrepancy that teaches a GMMNSynthesizer.",
            LEAST_0,
            "",
            "ours",
        ),
        "PIXEL_BALANCE": Key(
            0.0,
            "A pixel of the PixelSegmenter weighs area^-PIXEL_BALANCE, the area of its class in "
            "the batch: 0 weighs pixels alike, 1 classes.",
            SHARE,
            "",
            "DeepLab",
        ),
        "INDICATOR_WEIGHT": Key(
            1.0, "Weight of the unseen indicator's loss.", LEAST_0, "", "paper"
        ),
        "ENHANCE_WEIGHT": Key(
            1.0, "Weight of CEL's focal binary cross-entropy.", LEAST_0, "", "ours"
        ),
        "ENHANCE_GAMMA": Key(2.0, "Its exponent.", LEAST_0, "", "RetinaNet"),
        "ENHANCE_BIAS": Key(
            -25.0,
            "Minus the class score (cosine x scale) at which it is undecided. The default fits "
            "CLIP, 100 x 0.25.",
            Range(-1e6, 1e6),
            "logits",
            "ours",
        ),
        "RANK_WEIGHT": Key(1.0, "Weight of CEL's semantic ranking.", LEAST_0, "", "ours"),
        "RANK_MARGIN": Key(
            0.05,
            "delta: by how much two classes must differ in text similarity to be compared.",
            Range(0, 2),
            "cosine",
            "ours",
        ),
        "RANK_SLOPE": Key(
            0.5, "mu: share of that difference that their scores must keep.", LEAST_0, "", "ours"
        ),
        "RANK_PAIRS": Key(64, "Most pairs of classes for each proposal.", COUNT, "pairs", "ours"),
        "NUM_POINTS": Key(
            12544,
            "Points of each mask; 0 uses every valid pixel at stride 4.",
            LEAST_0,
            "points",
            "Mask2Former",
        ),
        "OVERSAMPLE_RATIO": Key(3.0, "Points drawn for each point kept.", COUNT, "", "Mask2Former"),
        "IMPORTANCE_RATIO": Key(
            0.75, "Share of the points that are the most uncertain ones.", SHARE, "", "Mask2Former"
        ),
        "MIN_VALID_SHARE": Key(
            0.5,
            "A proposal with less than this share of its area on valid pixels gets no class loss.",
            SHARE,
            "",
            "ours",
        ),
        "IGNORE_IOU": Key(
            0.5,
            "An unmatched proposal with this IoU to a mask gets no class loss; above 1 all do.",
            LEAST_0,
            "IoU",
            "ours",
        ),
    },
)
