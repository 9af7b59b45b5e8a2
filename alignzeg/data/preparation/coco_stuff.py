"""COCO-Stuff 164K; its official label files (0 to 181, 255 unlabelled) are used as they are.

Source: Caesar, Uijlings, Ferrari, CVPR 2018. 11 of the 182 values have no class and do not occur.
"""

from __future__ import annotations

from alignzeg.data.preparation.recipe import Archive, Plan, Recipe, Request, need

_IMAGES = "http://images.cocodataset.org/zips/"
LABEL_ARCHIVE = Archive(
    name="stuffthingmaps_trainval2017.zip",
    source="http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/"
    "stuffthingmaps_trainval2017.zip (not stuff_trainval2017.zip, which lacks the things)",
    folder="coco/stuffthingmaps",
    wanted=("train2017/", "val2017/"),
)
IMAGE_ARCHIVES = {
    split: Archive(f"{split}2017.zip", f"{_IMAGES}{split}2017.zip", "coco", (f"{split}2017/",))
    for split in ("train", "val")
}


def plan(request: Request) -> Plan:
    """Nothing is written; missing folders are named."""
    for split in request.splits:
        folder = f"{split}2017"
        need(request.root / "coco" / folder, IMAGE_ARCHIVES[split], request)
        need(request.root / "coco/stuffthingmaps" / folder, LABEL_ARCHIVE, request)
    return Plan()


RECIPE = Recipe(
    name="coco_stuff",
    about="COCO-Stuff 164K (coco_stuff, coco_stuff171)",
    archives=(LABEL_ARCHIVE, *IMAGE_ARCHIVES.values()),
    plan=plan,
    benchmarks=("coco_stuff",),
)
