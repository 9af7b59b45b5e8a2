"""Keys of the pixel-level generative family."""

from __future__ import annotations

from alignzeg.config.keys import COUNT, LEAST_0, SHARE, Choices, Key, Range, Section

SEMANTICS = Section(
    "What a generator knows of a class.",
    {
        "SOURCE": Key(
            "vlm",
            "`vlm`: the VLM's text prototypes; `words`: WORD_VECTORS.",
            Choices(("vlm", "words")),
        ),
        "WORD_VECTORS": Key("", "A text file of GloVe, word2vec or fastText."),
    },
)


GENERATOR = Section(
    "The generator of features.",
    {
        "HIDDEN_DIM": Key(256, "Channels of the hidden layer.", COUNT, "channels", "ZS3Net"),
        "DROPOUT": Key(0.5, "Dropout there.", SHARE, "", "ZS3Net"),
        "BANDWIDTHS": Key(
            [2.0, 5.0, 10.0, 20.0, 40.0, 60.0],
            "Standard deviations of the discrepancy's Gaussian kernels.",
            Range(above=True, length=0),
            "feature units",
            "ZS3Net",
        ),
        "VLM_NORM": Key(
            0.0,
            "Length of the frozen VLM's dense embedding, which is appended to the decoder's pixel "
            "features; 0 appends none.",
            LEAST_0,
            "feature units",
            "ours",
        ),
        "SKIP": Key(
            0.0,
            "How much of the semantic vector the generator adds to that part of a feature at "
            "first; learned. 0 adds none.",
            LEAST_0,
            "feature units",
            "ours",
        ),
        "SAMPLES": Key(
            64,
            "Features of each class in a step, real and generated alike.",
            COUNT,
            "features",
            "ours",
        ),
        "BANK": Key(
            2048,
            "Features of each seen class, and of unlabelled pixels, that are kept to draw from.",
            COUNT,
            "features",
            "ours",
        ),
        "LAYOUT": Key(
            "sampled",
            "Pixels that each unseen class has in the classifier's training: `sampled` gives it as "
            "many as a seen class has, `real` those of the labels, which then are no secret.",
            Choices(("sampled", "real")),
        ),
    },
)


RECURSION = Section(
    "Rounds in which classifier and generator teach each other.",
    {
        "ROUNDS": Key(
            0, "Rounds of feedback, R; 0 is ZS3Net.", LEAST_0, "rounds", "paper: several"
        ),
        "GENERATOR_STEPS": Key(
            600,
            "Steps of the generator in round 0 and in every round of feedback. SOLVER.MAX_ITER is "
            "(ROUNDS + 1) times the sum of both.",
            COUNT,
            "steps",
            "ours",
        ),
        "CLASSIFIER_STEPS": Key(400, "Steps of the classifier, likewise.", COUNT, "steps", "ours"),
        "CONFIDENCE": Key(
            0.7,
            "Probability above which a feature of an unseen class becomes a pseudo-feature, rho.",
            SHARE,
            "probability",
            "ours",
        ),
        "WEIGHT": Key(1.0, "Weight of the ZS-MMD, kappa.", LEAST_0, "", "ours"),
        "PSEUDO": Key(
            256, "Pseudo-features of each unseen class in a round.", COUNT, "features", "ours"
        ),
        "SOURCE": Key(
            "generated",
            "Where they come from: `pixels` of the training images without a label, or "
            "`generated` features.",
            Choices(("generated", "pixels")),
        ),
        "USE": Key(
            "zs_mmd",
            "What they teach: the generator by `zs_mmd`, the classifier by `self_training`, as "
            "ZS5Net, or `both`.",
            Choices(("zs_mmd", "self_training", "both")),
        ),
    },
)
