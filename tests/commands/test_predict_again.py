"""`alignzeg predict` goes on after a stop, and does again what has changed."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from predict_cases import index, scene

from alignzeg.inference import Prediction, Predictor


def test_a_stopped_run_goes_on_without_redoing_one(
    ask, photos: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    looked: list[int] = []
    predict = Predictor._predict

    def stopping(self: Predictor, *words: object) -> Prediction:
        if len(looked) == 3:
            raise KeyboardInterrupt
        looked.append(1)
        return predict(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "_predict", stopping)
        assert ask(photos) == 130
    assert "run the same command to go on" in capsys.readouterr().err
    out = tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert len([*out.rglob("*_labels.png")]) == 3 == len(index(tmp_path))
    # What was cut off while it was written has no JSON.
    (out / "d_labels.png").write_bytes(b"half")

    def counting(self: Predictor, *words: object) -> Prediction:
        looked.append(2)
        return predict(self, *words)

    monkeypatch.setattr(Predictor, "_predict", counting)
    assert ask(photos) == 0
    assert looked == [1, 1, 1, 2, 2]
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in before if before[path] != after[path]} == {"predictions.json"}
    assert Image.open(out / "d_labels.png").size == (40, 40)
    assert len(index(tmp_path)) == 5


def test_what_has_changed_is_done_again(ask, photos: Path, capsys) -> None:
    def counted(*words: str) -> str:
        assert ask(photos, *words) == 0
        return capsys.readouterr().out.splitlines()[-1]

    assert counted().startswith("5 predicted ->")
    Image.fromarray(scene(9)).save(photos / "a.png")
    assert counted().startswith("1 predicted, 4 there already ->")
    assert counted().startswith("0 predicted, 5 there already ->")
    assert counted("--opacity", "0.3").startswith("5 predicted ->")
    assert counted("--opacity", "0.3", "--overwrite").startswith("5 predicted ->")
    assert counted("--opacity", "0.3", "--reject", "0.5").startswith("5 predicted ->")


def test_a_label_map_that_is_gone_is_made_again(ask, photos: Path, tmp_path: Path, capsys) -> None:
    assert ask(photos) == 0
    (tmp_path / "out" / "c_labels.png").unlink()
    capsys.readouterr()
    assert ask(photos) == 0
    assert "1 predicted, 4 there already" in capsys.readouterr().out
    assert (tmp_path / "out" / "c_labels.png").is_file()


def test_an_image_that_is_too_large_is_named(ask, photos: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # half of what is refused
    assert ask(photos / "a.png") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "a.png: it has more than 1,400 pixels; make it smaller, or cut it into parts"
    )


def test_all_there_needs_no_model(ask, photos: Path, monkeypatch) -> None:
    assert ask(photos) == 0

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was built")

    monkeypatch.setattr(Predictor, "__init__", never)
    assert ask(photos) == 0
