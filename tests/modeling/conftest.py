"""Weights of a tiny classifier."""

from __future__ import annotations

import pytest
from tiny_imagenet import write_classifier


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_classifier(tmp_path_factory.mktemp("timm"))
