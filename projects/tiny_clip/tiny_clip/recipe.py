"""The numbers that made the bundled tiny CLIP."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What makes one tiny CLIP; the defaults are those of the committed weights.

    Attributes:
        steps: optimiser steps.
        batch: pictures per step.
        windows: crops per picture.
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon.
        weight_decay: on matrices of the towers.
        warmup: steps of linear warm-up.
        region_blocks: last blocks that the crop's class token runs through.
        pool_scenes: pre-rendered scenes.
        seed: of weights, windows and captions; scenes come from the stream "clip".
        shape_weight: weight of the captions that name the shape alone.
        colour_weight: weight of the captions that name the colour alone.
        dense_weight: weight of the same loss on the mean patch feature of the crop.
        whole_weight: weight of whole pictures with a caption naming several things.
        processes: processes of one thread; they share the batch.
        init: weight file to go on from; empty starts afresh.
        minutes: stop, with the schedule ended, after this much wall time; 0 means never.
    """

    steps: int = 3760
    batch: int = 16
    windows: int = 12
    lr: float = 1e-3
    muon_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: int = 100
    region_blocks: int = 3
    pool_scenes: int = 5000
    seed: int = 7
    shape_weight: float = 1.0
    colour_weight: float = 0.1
    dense_weight: float = 0.25
    whole_weight: float = 0.05
    minutes: float = 0.0
    processes: int = 2
    init: str = ""
