"""Tiny trees in the official formats."""

from __future__ import annotations

import official_trees
import pytest


@pytest.fixture
def voc_tree(tmp_path):
    return official_trees.voc_tree(tmp_path)
