"""Class lists as people type them: read as they are meant, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import alignzeg
from alignzeg.__main__ import main
from alignzeg.data.class_names import class_names, read_class_file, read_class_list
from alignzeg.structures import Vocabulary, spelling


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("grass,\nsky,\n", "line 1, 'grass,', holds a comma"),
        ("# my classes\ngrass\n", "line 1, '# my classes', begins like a comment"),
        ("grass\n\n0: sky\n", "line 3, '0: sky', begins with a number"),
        ("1. grass\n2. sky\n", "begins with a number"),
        ("0 grass\n1 sky\n", "all names carry a number, as '0 grass'"),
        ("grass: 0\nsky: 1\n", "ends with a number"),
        ("grass;lawn\nsky\n", "has a ';' without a blank"),
        ("grass; \nsky\n", "has a ';' without a blank and a name after it"),
        ("; grass\nsky\n", "has no name before a ';'"),
        ("grass, sky, red ball\n", "holds a comma"),
        ('"grass"\nsky\n', "quotation marks"),
        ("- grass\n- sky\n", "begins like an item"),
        ("['grass', 'sky']\n", "has brackets"),
        ("grass\t0\nsky\t1\n", r"U\+0009"),
        ("gra\u200bss\nsky\n", r"U\+200B"),
        ("classes.txt\nsky\n", "called like a file"),
        ("---\nsky\n", "no letter and no digit"),
        ("3 grass\n7 sky\n11 tree\n", "all names carry a number, as '3 grass'"),
        ("grass 0\nsky 1\ntree 2\n", "all names carry a number, as 'grass 0'"),
        ("grass (1)\nsky (2)\n", "all names carry a number"),
        ("grass 0 128 0\nsky 0 0 128\n", "ends with three numbers"),
        ("n01440764 tench\nn01443537 goldfish\n", "WordNet"),
        ("\u201cgrass\u201d\n\u201csky\u201d\n", "quotation marks"),
        ("names:\n  grass\n  sky\n", "ends like a heading"),
        ("name\ngrass\nsky\n", "line 1, 'name', is the heading of a table"),
        ("grass: green\nsky: blue\n", "all names hold a colon"),
        ("grass  # the lawn\nsky\n", "ends with a comment"),
        ("grass // green\nsky\n", "ends with a comment"),
        ("<li>grass</li>\n", "has brackets"),
        ("\u8349\u5730\uff1b\u5929\u7a7a\n", "without a blank"),
        ("\u8349\u5730\u3001\u5929\u7a7a\n", "holds a comma"),
        ("grass\\nsky\n", "holds a backslash"),
    ],
)
def test_odd_lists_are_refused(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "names"
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_class_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_only_looks_odd_is_kept() -> None:
    names = ["3D printer", "7", "2.5 ton truck", "St. Bernard", "crane (machine)", "thing 0"]
    assert class_names(names, "names") == tuple(names)
    assert class_names(["thing 0", "thing 1"], "names") == ("thing 0", "thing 1")
    for given in (["grass", "terminal 2"], ["sofa/couch", "tench.n.01"], ["name", "label"]):
        assert class_names(given, "names") == tuple(given)


def test_what_has_no_order_is_no_list() -> None:
    for given in ({"grass", "sky"}, {"grass": 0, "sky": 1}):
        with pytest.raises(ValueError, match="must be a list, whose order is that of the ids"):
            class_names(given, "names")


def test_a_path_that_is_no_file_is_not_a_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "lists").mkdir()
    for source in ("lists", "lists/none", "./none", "~/none", "/none", "@none", "notes.md"):
        with pytest.raises(ValueError, match="cannot read class names from"):
            read_class_list(source)
    (tmp_path / "mine.txt").write_text("grass\n")
    assert read_class_list("~/mine.txt") == ("grass",)
    assert read_class_list("sofa/couch") == ("sofa/couch",)


def test_blanks_and_letters_in_two_parts_are_one_name() -> None:
    given = ["  red   ball ", "cafe\u0301", "sofa ;  couch", "no\u00a0entry"]
    assert class_names(given, "") == ("red ball", "caf\u00e9", "sofa; couch", "no entry")


def test_a_command_line_takes_words_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("grass\n\nsofa; couch\n", encoding="utf-8-sig")
    assert read_class_list(str(path)) == ("grass", "sofa; couch")
    assert read_class_list("grass, sofa; couch ,") == ("grass", "sofa; couch")
    with pytest.raises(ValueError, match="No such file"):
        read_class_list(str(tmp_path / "other.txt"))
    with pytest.raises(ValueError, match="called like a file"):
        read_class_list(f"grass, {path}")
    with pytest.raises(ValueError, match="no class names in ' , '"):
        read_class_list(" , ")


def test_names_that_encoders_read_alike_are_one_class() -> None:
    assert spelling("Red  Ball") == spelling("red ball") and spelling("e\u0301") == "\u00e9"
    for other in ("Grass", "GRASS", "grass "):
        with pytest.raises(ValueError, match="more than once: .*'grass'"):
            Vocabulary(("grass", other), (True, True))


def test_unseen_names_may_be_written_otherwise(tmp_path: Path) -> None:
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("grass\nblue box; crate\n")
    (tmp_path / "unseen.txt").write_text("Blue Box\n")
    alignzeg.register_folder("odd_names", tmp_path)
    from alignzeg.data.labels import get_vocabulary

    assert get_vocabulary("odd_names_train").seen == (True, False)
    with pytest.raises(ValueError, match="must be a list; got the text 'grass'"):
        alignzeg.register_folder("odd_names", tmp_path, classes="grass")


def test_the_commands_refuse_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd.txt").write_text("grass,\nsky,\n")
    assert main(["vocabulary", str(tmp_path / "odd.txt")]) == 2
    assert main(["vocabulary", "grass, sky", "--unseen", str(tmp_path / "odd.txt")]) == 2
    words = ["predict", "x.png", "--weights", "x.pth", "--classes"]
    assert main([*words, str(tmp_path / "odd.txt")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all("holds a comma" in line for line in lines)
    assert main([*words, "grass, Grass, sky"]) == 2
    assert "more than once: ['Grass', 'grass']" in capsys.readouterr().err
