"""What is refused before or instead of a traceback: numbers, list items, states of another kind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from helpers import CONFIGS, REPOSITORY

from alignzeg.config.document import document
from alignzeg.config.keys import Choices, Range
from alignzeg.config.reading import default_config, flat_keys
from alignzeg.config.table import ALIGNZEG as ALIGNZEG_KEYS
from alignzeg.config.values import allowed_values, validate_values
from alignzeg.engine import setup_config, validate
from alignzeg.engine.training.resume import check_kinds, misfit


def test_the_page_of_config_keys_is_that_of_the_table() -> None:
    page = (REPOSITORY / "docs" / "config.md").read_text("utf-8")
    assert page == document(), "run python -m alignzeg.config.document > docs/config.md"


def test_every_key_says_in_whole_phrases_what_it_means() -> None:
    for key, entry in ALIGNZEG_KEYS.keys("ALIGNZEG."):
        assert entry.text.endswith("."), key


def test_plugins_extend_what_a_component_may_be() -> None:
    registry = Registry("PARTS")
    choices = Choices(registry, optional=True)
    registry.register(type("Near", (), {}))
    choices.check("KEY", "")
    choices.check("KEY", "Near")
    with pytest.raises(ValueError, match=r"KEY is 'Nera', .* did you mean 'Near'\? .*\['Near'\]"):
        choices.check("KEY", "Nera")
    registry.register(type("Nera", (), {}))
    choices.check("KEY", ["Near", "Nera"])


def test_every_range_is_of_a_key_and_holds_its_default() -> None:
    assert not set(allowed_values()) - {*flat_keys(default_config())}
    validate_values(default_config())
    for path in sorted((CONFIGS / "zeroshapes").glob("*.yaml")):
        validate_values(setup_config(path))


@pytest.mark.parametrize(
    ("allowed", "good", "bad", "text"),
    [
        (Range(), (0, 0.5, 1e30), (-1, float("nan"), float("inf"), True, "1", None), "0 or more"),
        (Range(above=True), (1e-9, 1), (0, -1), "more than 0"),
        (Range(0, 1), (0, 0.3, 1), (1.1, -0.1), "0 to 1"),
        (Range(1, length=2), ([1, 2], (3, 4.5)), ([1], [0, 1], 3, [1, "x"]), "a list of 2 numbers"),
        (Range(length=0), ([0], [1, 2]), ([], [-1], "ab"), "a list of numbers, each 0 or more"),
    ],
)
def test_a_range(allowed, good, bad, text):
    assert all(allowed.holds(value) for value in good)
    assert not any(allowed.holds(value) for value in bad)
    assert str(allowed).startswith(text)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ALIGNZEG.EXTRACTOR.NUM_QUERIES", "0", "NUM_QUERIES is 0; it must be 1 or more"),
        ("ALIGNZEG.EXTRACTOR.HEADS", "5", "multiple of ALIGNZEG.EXTRACTOR.HEADS 5"),
        ("ALIGNZEG.SYNTHESIZER.RANGE", "[0.7, 0.3]", "the smaller comes first"),
        ("ALIGNZEG.ENCODER.SMALL_CHANNELS", "[8.5, 16, 24, 32]", "its numbers must be whole"),
        ("ALIGNZEG.SEMANTICS.SOURCE", "word", "'word', which is unknown; did you mean 'words'"),
        ("ALIGNZEG.RECURSION.SOURCE", "air", "SOURCE is 'air', which is unknown"),
        ("ALIGNZEG.RECURSION.USE", "all", "USE is 'all', which is unknown"),
        ("ALIGNZEG.GENERATOR.LAYOUT", "true", "LAYOUT is 'true', which is unknown"),
        (
            "ALIGNZEG.TEST.SEMANTIC_INFERENCE",
            "slow",
            "SEMANTIC_INFERENCE is 'slow', which is unknown",
        ),
        ("SOLVER.BASE_LR", "-1", "SOLVER.BASE_LR is -1.0; it must be more than 0"),
        ("DATALOADER.NUM_WORKERS", "100000", "it must be 0 to 512"),
        ("SEED", str(2**40), "SEED is 1099511627776"),
        ("ALIGNZEG.CLASSIFIER.NUM_BACKGROUND", str(2**63), "no whole number may be beyond"),
        ("INPUT.MIN_SIZE_TRAIN", f"[{2**63}]", "no whole number may be beyond"),
        ("TEST.EXPECTED_RESULTS", "[0.7, 0.3]", "TEST.EXPECTED_RESULTS lists 0.7; an entry is"),
        ("TEST.EXPECTED_RESULTS", "[['a', 'b', 1]]", "task, metric, value and tolerance"),
        ("MODEL.DEVICE", " ", "MODEL.DEVICE is ' ', which is no device of this machine"),
        ("MODEL.DEVICE", "seven", "MODEL.DEVICE is 'seven', which is no device"),
        ("MODEL.DEVICE", "meta:x", "MODEL.DEVICE is 'meta:x', which is no device"),
    ],
)
def test_a_wrong_number_is_named(tiny_cfg: CfgNode, key: str, value: str, message: str) -> None:
    opts = [*("ALIGNZEG.EXTRACTOR.HIDDEN_DIM", "32"), key, value]
    with pytest.raises(ValueError, match=f".*{message.split(';')[0].replace('[', '.')}"):
        validate(setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", opts))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ALIGNZEG.VLM.TEMPLATES", "[1]"),
        ("MODEL.PIXEL_MEAN", "['a']"),
        ("MODEL.PIXEL_MEAN", "[True, 1, 2]"),
        ("DATASETS.TRAIN", "[None]"),
        ("ALIGNZEG.LOSS.CLASS_WEIGHT", "None"),
        ("ALIGNZEG.PLUGINS", "[3]"),
        ("SOLVER.BASE_LR", str(10**400)),
    ],
)
def test_a_value_of_another_kind_is_named(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=key):
        setup_config("", [key, value])


@pytest.mark.parametrize(
    "text",
    [
        "_BASE_: b.yaml\nSEED: {}\n",
        "_BASE_: c.yaml\n",
        "_BASE_: [a]\n",
        "- 1\n",
        "3\n",
        "a: \udcad\n",
        "_BASE_: 3\n",
    ],
)
def test_a_damaged_config_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "b.yaml").write_text("SEED: 1\n")
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"c\.yaml"):
        setup_config(file)


def state() -> dict:
    return {"a": 1, "b": {"t": torch.zeros(2), "s": "x", "l": [{"n": 1.0}]}, "none": None}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda s: s.update(a="1"), "it.a is of type str instead of of type int"),
        (lambda s: s.update(a=True), "it.a is of type bool"),
        (lambda s: s.update(b=[]), "it.b is of type list instead of named entries"),
        (lambda s: s["b"].update(t=torch.zeros(3)), "it.b.t is a tensor of float32"),
        (lambda s: s["b"].update(t=torch.zeros(2).int()), "it.b.t is a tensor of int32"),
        (lambda s: s["b"].update(l=3), "it.b.l is of type int instead of a list"),
        (lambda s: s["b"]["l"][0].update(n="x"), "it.b.l.0..n is of type str"),
    ],
)
def test_a_state_of_another_kind_is_named(change, where):
    found = state()
    assert misfit(found, state(), "it") == ""
    found["more"] = object()
    del found["none"]
    assert misfit({**found, "a": 2.5}, state(), "it") == ""
    change(found)
    with pytest.raises(ValueError, match=where):
        check_kinds("x.pth", found, state())
