"""The leak audit: silent on this project, and loud on plugins that were made to leak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers import CONFIGS

from alignzeg.__main__ import main
from alignzeg.data.changed import Relabelling, hidden_names, relabelled, renamed
from alignzeg.data.labels import read_labels, training_vocabulary
from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.engine.training import trainer
from alignzeg.registries import CRITERION_REGISTRY

AUDIT = ["audit", "--config-file", str(CONFIGS / "zeroshapes" / "alignzeg.yaml")]
SMALL = [
    *("ALIGNZEG.EXTRACTOR.LAYERS", "1"),
    *("ALIGNZEG.LOSS.NUM_POINTS", "128"),
]
HEADER = """
import numpy as np
from detectron2.data import MetadataCatalog
from alignzeg.data.labels import get_vocabulary, read_labels
from alignzeg.data.mapper import ZeroShotMapper
from alignzeg.engine.training import trainer
from alignzeg.registries import CRITERION_REGISTRY
from alignzeg.losses.criteria import MaskCriterion
"""
LEAKS = {
    # Unseen pixels get the label of a seen class.
    "labels": """
class Leaky(ZeroShotMapper):
    def _labels(self, record, size):
        labels = super()._labels(record, size).copy()
        raw = read_labels(record["sem_seg_file_name"], record["dataset_name"])
        labels[np.isin(raw, get_vocabulary(record["dataset_name"]).unseen_ids)] = 0
        return labels

trainer.ZeroShotMapper = Leaky
""",
    # A single number that depends on how many pixels are unseen.
    "count": """
class Leaky(ZeroShotMapper):
    def __call__(self, record):
        sample = super().__call__(record)
        raw = read_labels(record["sem_seg_file_name"], record["dataset_name"])
        unseen = get_vocabulary(record["dataset_name"]).unseen_ids
        sample["image"][0, 0, 0] = np.isin(raw, unseen).sum() % 256
        return sample

trainer.ZeroShotMapper = Leaky
""",
    # The unseen names are among the classes that the model is trained to tell apart.
    "vocabulary": """
class Leaky(ZeroShotMapper):
    def __call__(self, record):
        return {**super().__call__(record), "vocabulary": get_vocabulary(record["dataset_name"])}

trainer.ZeroShotMapper = Leaky
""",
    # Targets hold an id behind the last seen class.
    "ids": """
class Leaky(ZeroShotMapper):
    def __call__(self, record):
        sample = super().__call__(record)
        sample["targets"].labels[-1:] = len(sample["vocabulary"])
        return sample

trainer.ZeroShotMapper = Leaky
""",
    # A criterion that looks the unseen names up behind everybody's back.
    "names": """
@CRITERION_REGISTRY.register()
class NosyCriterion(MaskCriterion):
    def forward(self, *args):
        length = len("".join(MetadataCatalog.get("zeroshapes_val").vocabulary.names))
        return {name: value * length for name, value in super().forward(*args).items()}
""",
}
FOUND = {
    "labels": ("labels", "became another one"),
    "count": ("labels", "became another one"),
    "vocabulary": ("targets", "include the unseen"),
    "ids": ("targets", "[33], which is no seen class"),
    "names": ("names", "of step 0 was"),
}


@pytest.fixture
def opts(zeroshapes: Path, tiny_opts: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    # So that whatever a plugin puts in its place is gone after the test.
    monkeypatch.setattr(trainer, "ZeroShotMapper", ZeroShotMapper)
    return [*SMALL, *tiny_opts]


@pytest.mark.parametrize("hold_out", ["", "pseudo_unseen"])
def test_this_project_does_not_leak(opts, hold_out, tmp_path, capsys):
    words = ["ALIGNZEG.DATA.HOLD_OUT", hold_out, "DATALOADER.NUM_WORKERS", "2" if hold_out else "0"]
    assert main([*AUDIT, "--steps", "2", *opts, *words]) == 0, capsys.readouterr()
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith(("ok", "LEAK", "verdict"))]
    assert [line.split()[0] for line in lines] == ["ok"] * 4 + ["verdict:"]
    assert lines[-1].startswith("verdict: no leak")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_caught(opts, leak, tmp_path, capsys):
    plugin = tmp_path / f"leaky_{leak}.py"
    plugin.write_text(HEADER + LEAKS[leak])
    words = [*opts, "ALIGNZEG.PLUGINS", f"['{plugin}']"]
    if leak == "names":
        words += ["ALIGNZEG.CRITERIA", "['NosyCriterion', 'ClassCriterion']"]
    try:
        assert main([*AUDIT, "--steps", "1", *words]) == 1
    finally:
        CRITERION_REGISTRY._obj_map.pop("NosyCriterion", None)
    out = capsys.readouterr().out
    name, message = FOUND[leak]
    (line,) = [line for line in out.splitlines() if line.startswith(f"LEAK {name}")]
    assert message in line
    assert out.splitlines()[-1].startswith("verdict: LEAK")


def test_what_proves_nothing_is_an_error(opts, tmp_path, capsys):
    blind = tmp_path / "blind.py"
    blind.write_text(
        HEADER
        + """
@CRITERION_REGISTRY.register()
class BlindCriterion(MaskCriterion):
    def forward(self, outputs, targets, matches):
        return {"loss_blind": outputs.class_logits.pow(2).mean()}
"""
    )
    words = ["ALIGNZEG.PLUGINS", f"['{blind}']", "ALIGNZEG.CRITERIA", "['BlindCriterion']"]
    try:
        assert main([*AUDIT, "--steps", "1", *opts, *words]) == 2
    finally:
        CRITERION_REGISTRY._obj_map.pop("BlindCriterion", None)
    assert "nothing is proved" in capsys.readouterr().err
    assert main([*AUDIT, "--steps", "0", *opts]) == 2
    assert main(["audit", "--config-file", "none.yaml"]) == 2
    assert main(["audit"]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_names_and_labels_change_for_a_while_only(zeroshapes, tiny_cfg, tmp_path):
    name = "zeroshapes_train"
    seen = training_vocabulary(tiny_cfg)
    hidden = hidden_names([name], seen)
    before = MetadataCatalog.get(name), DatasetCatalog[name]
    assert len(hidden) == 9 and not hidden & {*seen.names}
    with pytest.raises(KeyError), renamed(hidden):
        for dataset in (name, "zeroshapes_val"):
            facts = MetadataCatalog.get(dataset)
            assert not hidden & {*facts.stuff_classes, *facts.vocabulary.names}
            assert not hidden & {*facts.vocabulary.prompts, *facts.benchmark.vocabulary.names}
            assert facts.vocabulary.seen == before[0].vocabulary.seen
        raise KeyError
    records = DatasetCatalog.get(name)
    chosen = frozenset(record["file_name"] for record in records[:3])
    change = Relabelling([name], seen, chosen, str(tmp_path))
    unseen = before[0].vocabulary.unseen_ids
    with relabelled(change, seen_labels=False):
        changed = DatasetCatalog.get(name)
        assert changed[3:] == records[3:]
        for old, new in zip(records[:3], changed[:3], strict=True):
            a, b = (read_labels(r["sem_seg_file_name"], name) for r in (old, new))
            places = np.isin(a, [*unseen, 255])
            assert (a[places] != b[places]).all() and np.isin(b[places], [*unseen, 255]).all()
            assert np.array_equal(a[~places], b[~places])
    assert change.changed_pixels >= change.unseen_pixels > 0
    assert (MetadataCatalog.get(name), DatasetCatalog[name]) == before
