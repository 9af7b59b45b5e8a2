"""Warnings about class names, and the command that prints them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from alignzeg.__main__ import main
from alignzeg.data.labels import get_vocabulary
from alignzeg.data.lint import class_texts, lint, validate_names
from alignzeg.engine import setup_config, validate
from alignzeg.registries import build_vlm


class Plane:
    """A text encoder whose names are points of a circle; a token is a letter."""

    context_length = 9

    def __init__(self, **degrees: float) -> None:
        self.degrees = degrees

    def embed_text(self, prompts: list[str]) -> torch.Tensor:
        angles = torch.tensor([self.degrees[p.split(";")[0]] for p in prompts]).deg2rad()
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    def token_counts(self, names: list[str]) -> list[int]:
        return [len(name) for name in names]


@pytest.mark.parametrize(
    ("prompts", "unseen", "expected"),
    [
        (["cat", "dog"], ["dog"], []),
        (["tree", "cat", "tree"], [], ["duplicate: 'tree' is the name of classes 0 and 2"]),
        (
            ["Traffic Light", "cat", "traffic_light"],
            [],
            ["duplicate: 'Traffic Light' and 'traffic_light' (classes 0 and 2) differ in writing"],
        ),
        (
            ["sofa; couch", "bench; Couch"],
            [],
            ["duplicate: 'couch' is a word for the classes 'sofa' and 'bench'"],
        ),
        (["cat", "dog"], ["cow"], ["clash: unseen 'cow' is none of the classes"]),
        (["cat", "Cat"], ["Cat"], ["duplicate: 'cat' and 'Cat'", "clash: 'cat' is seen, but uns"]),
    ],
)
def test_what_the_words_alone_say(prompts: list[str], unseen: list[str], expected: list[str]):
    found = lint(prompts, unseen)
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


def test_pairs_above_the_cosine_the_closest_first():
    vlm = Plane(cat=0.0, kitten=10.0, dog=90.0, puppy=95.0, cow=180.0)
    names = ["cat", "kitten", "dog", "puppy", "cow"]
    assert lint(names, ["puppy", "cow"], vlm, 0.95) == [
        "clash: unseen 'puppy' is a near-synonym of seen 'dog' (cosine 0.996)",
        "near-synonyms: 'cat' and 'kitten' (cosine 0.985)",
    ]
    assert lint(names, ["puppy"], vlm, 0.99) == [
        "clash: unseen 'puppy' is a near-synonym of seen 'dog' (cosine 0.996)"
    ]
    assert lint(names, ["puppy"], vlm, 1.0) == []


def test_many_pairs_are_counted():
    names = [f"n{i}" for i in range(8)]
    found = lint(names, [], Plane(**{name: 2.0 * i for i, name in enumerate(names)}), 0.95)
    assert len(found) == 21
    assert found[-1] == "near-synonyms: 8 more pairs"


def test_names_that_are_one_to_the_encoder():
    vlm = Plane(cat=0.0, dog=90.0, chat=0.1, Hund=90.0, Katze=0.0, cow=180.0)
    found = lint(["cat", "dog", "chat", "Hund", "Katze", "cow"], [], vlm, 1.0)
    assert [line.split(" are ")[0] for line in found] == [
        "same: 'cat', 'chat', 'Katze'",
        "same: 'dog', 'Hund'",
    ]


def test_a_long_name_is_cut_off():
    vlm = Plane(**{"cat": 0.0, "a long name": 90.0})
    (warning,) = lint(["cat", "a long name"], [], vlm, 0.95)
    assert warning.startswith("too long: 'a long name' takes 11 tokens in the longest template")


def test_tokens_are_counted_as_the_tokenizer_cuts(tiny_cfg: CfgNode):
    vlm = build_vlm(tiny_cfg)
    short, long = vlm.token_counts(["red star", "very " * 90 + "red star"])
    assert 5 < short < vlm.context_length < long
    # Two names that differ only beyond the context are one prototype: the end really is lost.
    far = ["red " * vlm.context_length + end for end in ("star", "ring")]
    first, second = vlm.embed_text(far)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert min(vlm.token_counts(far)) > vlm.context_length


def test_a_data_set_speaks_with_its_prompts():
    prompts, unseen = class_texts(get_vocabulary("voc2012_train"))
    assert prompts[15] == "pottedplant; potted plant"
    assert unseen[0] == "pottedplant"
    assert lint(prompts, unseen) == []


def test_training_warns_of_the_names_of_its_data_sets(tiny_cfg, caplog):
    tiny_cfg.ALIGNZEG.DATA.SYNONYM_COSINE = 0.3
    with caplog.at_level(logging.WARNING):
        validate_names(tiny_cfg, build_vlm(tiny_cfg))
    assert "classes of zeroshapes_train: near-synonyms: " in caplog.text
    assert "is a near-synonym of seen" in caplog.text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    opts = ["ALIGNZEG.VLM.CACHE_DIR", str(tmp_path / "text")]
    assert main(["vocabulary", "zeroshapes_val", *opts]) == 0
    assert capsys.readouterr().out == "42 names: nothing to warn of\n"
    assert main(["vocabulary", "red star, grass, Red Star", "--unseen", "cow", *opts]) == 1
    out = capsys.readouterr().out
    assert "duplicate: 'red star' and 'Red Star'" in out
    assert "clash: unseen 'cow' is none of the classes" in out
    (tmp_path / "names.txt").write_text("red star\n\ngrass\n")
    assert main(["vocabulary", str(tmp_path / "names.txt"), *opts]) == 0
    assert "2 names" in capsys.readouterr().out
    assert main(["vocabulary", " , ", *opts]) == 2
    assert main(["vocabulary", str(tmp_path / "nothing.txt"), *opts]) == 2
    assert "cannot read class names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "hint"),
    [("zeroshape_val", "did you mean 'zeroshapes_val'? "), ("cat", "single name: 'cat,'")],
)
def test_what_is_no_list_file_or_data_set_is_refused(given, hint, capsys):
    assert main(["vocabulary", given]) == 2
    said = capsys.readouterr().err
    assert hint in said and said.count("\n") == 1


def test_words_that_the_text_encoder_never_read(tmp_path, capsys):
    opts = ["ALIGNZEG.VLM.CACHE_DIR", str(tmp_path / "text")]
    assert main(["vocabulary", "red star, cat,", *opts]) == 1
    assert "never read: alignzeg-tiny/bundled" in (said := capsys.readouterr().out)
    assert "does not know 'cat';" in said
    vlm = Plane(cat=0.0, dog=90.0)
    assert lint(["cat", "dog"], [], vlm, 0.95) == []


def test_an_unknown_data_set_is_one_hint():
    with pytest.raises(ValueError, match="did you mean 'voc2012_train'") as failure:
        get_vocabulary("voc_2012_train")
    assert len(str(failure.value)) < 300
    cfg = setup_config("", ["DATASETS.TRAIN", "('zeroshapes_trian',)"])
    with pytest.raises(ValueError, match="did you mean 'zeroshapes_train'") as failure:
        validate(cfg)
    assert len(str(failure.value)) < 300


def test_the_threshold_is_a_key():
    cfg = setup_config("", ["ALIGNZEG.DATA.SYNONYM_COSINE", "0.5"])
    assert cfg.ALIGNZEG.DATA.SYNONYM_COSINE == 0.5
