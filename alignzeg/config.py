"""Every config key of this project: default, unit and source. All of them live under ALIGNZEG.

[paper] marks a value of the AlignZeg paper (arXiv 2404.05667), [M2F] of Mask2Former, [ours] a
choice of this project.
"""

from __future__ import annotations

from detectron2.config import CfgNode


def add_alignzeg_config(cfg: CfgNode) -> None:
    """Adds the node ALIGNZEG, with its defaults, to a Detectron2 config."""
    node = cfg.ALIGNZEG = CfgNode()
    # Python files with components of your own, imported before the model is built.
    node.PLUGINS = []
    # Loss families, by registered name.
    node.CRITERIA = ["MaskCriterion", "ClassCriterion"]
    _add_vlm(node)
    _add_encoder(node)
    _add_extractor(node)
    _add_classification(node)
    _add_losses(node)
    _add_generation(node)
    _add_data(node)
    _add_inference(node)
    _add_solver(node)
    _add_checkpoint(node)


def _add_vlm(node: CfgNode) -> None:
    vlm = node.VLM = CfgNode()
    vlm.NAME = "OpenClipVLM"
    # An open_clip model name, or "alignzeg-tiny", which this project ships.
    vlm.MODEL = "alignzeg-tiny"
    # An open_clip pretrained tag or a local weight file; empty: the weights that ship with MODEL.
    vlm.WEIGHTS = ""
    # "single", "vild" (14), "imagenet" (80), or templates of your own, each with one {}.
    vlm.TEMPLATES = ["vild"]
    # What is said for a class: "prompts", which can be several synonyms, or its "official" name.
    vlm.NAMES = "prompts"
    # MaskGuidedTokens for a ViT, MaskPooling for any tower.
    vlm.REGIONS = "MaskGuidedTokens"
    # Last blocks in which the token of a region attends to its own patches only. SAN takes the
    # last 3 of a ViT-B/16.
    vlm.REGION_BLOCKS = 3
    # Shorter side in pixels that the VLM sees; 0 is the model's own resolution.
    vlm.IMAGE_SIZE = 0
    # Text prototypes are kept here; empty: the user's cache folder.
    vlm.CACHE_DIR = ""


def _add_encoder(node: CfgNode) -> None:
    encoder = node.ENCODER = CfgNode()
    # Channels of the small encoder at strides 4, 8, 16, 32. [ours]
    encoder.SMALL_CHANNELS = [32, 64, 96, 128]
    # Swin size: tiny, small, base, large; ViT size: base, large.
    encoder.SWIN_SIZE = "tiny"
    encoder.VIT_SIZE = "base"


def _add_extractor(node: CfgNode) -> None:
    head = node.HEAD = CfgNode()
    # MaskProposalHead, or MaskQualityHead: a proposal counts by how sure its mask is, not by how
    # little it is background (CEL).
    head.NAME = "MaskProposalHead"

    extractor = node.EXTRACTOR = CfgNode()
    # MutuallyRefinedExtractor (AlignZeg) or PlainExtractor (MaskFormer).
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
    # Start every query from the pixel features at its point of a square grid. [ours]
    extractor.SEED_QUERIES = True
    # Draw masks together by likeness in the VLM's feature space. [ours]
    extractor.LIKENESS = True


def _add_classification(node: CfgNode) -> None:
    classifier = node.CLASSIFIER = CfgNode()
    classifier.NAME = "CosineClassifier"
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
    synthesizer.RANGE = [0.3, 0.7]
    # Synthetic samples per matched proposal. [ours]
    synthesizer.RATIO = 1.0

    corrector = node.CORRECTOR = CfgNode()
    # UnseenIndicator (AlignZeg), ConstantShift (the peers), NoCorrection.
    corrector.NAME = "UnseenIndicator"
    corrector.HIDDEN_DIM = 128
    # Seen cosines given to the indicator, the highest first. [ours]
    corrector.TOP_COSINES = 5
    # Lower seen scores where the unseen probability exceeds THRESHOLD (theta) ...
    corrector.THRESHOLD = 0.5
    # ... by GAMMA, in logits; 0 turns the correction off. tools/calibrate.py chooses both.
    corrector.GAMMA = 0.0
    # hard: -GAMMA above the threshold; soft: -GAMMA times the unseen probability. [ours]
    corrector.MODE = "hard"


def _add_losses(node: CfgNode) -> None:
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


def _add_generation(node: CfgNode) -> None:
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


def _add_data(node: CfgNode) -> None:
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
    # Cosine of two text prototypes from which `python -m alignzeg vocabulary`, and a warning before
    # training, call two classes near-synonyms; 1 turns that off. [ours]
    data.SYNONYM_COSINE = 0.95

    # A folder that tools/make_pseudo_labels.py made, as data set <source>_pseudo for
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


def _add_inference(node: CfgNode) -> None:
    test = node.TEST = CfgNode()
    # Exponent a of the frozen VLM's score in p^(1-a) * p_vlm^a, for seen and unseen classes;
    # 0 is the trained score alone. [ZegFormer 1/3 and 2/3; ours 0]
    test.ENSEMBLE_SEEN = 0.0
    test.ENSEMBLE_UNSEEN = 0.0
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
    # Write the confusion matrix of every image, for `python -m alignzeg significance`.
    test.SAVE_PER_IMAGE = False


def _add_solver(node: CfgNode) -> None:
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


def _add_checkpoint(node: CfgNode) -> None:
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
