"""Pictures of every kind: the same pixels for all readers, whatever else in the file is odd."""

from __future__ import annotations

import importlib.util
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY
from icc_profiles import ADOBE_RGB, cmyk_profile, matrix_profile, to_srgb_by_hand
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from alignzeg.data.input_images import as_rgb
from alignzeg.data.pictures import check_image, picture_size, read_rgb, read_values

RGB = np.random.default_rng(0).integers(20, 230, (6, 8, 3)).astype(np.uint8)
CLEAR = np.dstack([RGB, np.where(np.indices((6, 8))[1] < 4, 255, 0).astype(np.uint8)])


def script_reader():
    spec = importlib.util.spec_from_file_location(
        "onnx_script", REPOSITORY / "projects" / "onnx" / "predict.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.picture_reader()


def exif(*entries: tuple[int, int, bytes]) -> bytes:
    table = b"".join(
        struct.pack("<HHI", tag, kind, 4 if kind == 2 else 1) + value
        for tag, kind, value in entries
    )
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4)


def save(folder: Path, name: str) -> tuple[Path, np.ndarray]:
    """A file of a kind, and the pixels that a viewer shows."""
    image, path, right = Image.fromarray(RGB), folder / name, RGB
    on_white = np.where(CLEAR[..., 3:] > 0, RGB, 255)
    if name == "clear.png":
        Image.fromarray(CLEAR).save(path)
        right = on_white
    elif name == "palette.png":
        image = image.quantize(16)
        place = int(np.asarray(image)[0, 0])
        image.save(path, transparency=place)
        right = np.asarray(image.convert("RGB")).copy()
        right[np.asarray(image) == place] = 255
    elif name == "grey_clear.png":
        Image.fromarray(CLEAR[..., [0, 3]], "LA").save(path)
        right = np.repeat(on_white[..., :1], 3, -1)
    elif name == "grey16.png":
        Image.fromarray(RGB[..., 0].astype(np.uint16) * 257).save(path)
        right = np.repeat(RGB[..., :1], 3, -1)
    elif name == "turned.webp":
        image.save(path, lossless=True, exif=exif((0x0112, 3, struct.pack("<HH", 6, 0))))
        right = np.rot90(RGB, -1)
    elif name == "cmyk.tif":
        image.convert("CMYK").save(path)
    elif name == "profile.png":
        image.save(path, icc_profile=ADOBE_RGB)
        right = to_srgb_by_hand(RGB)
    elif name == "profile_clear.png":
        Image.fromarray(CLEAR).save(path, icc_profile=ADOBE_RGB)
        right = np.where(CLEAR[..., 3:] > 0, to_srgb_by_hand(RGB), 255)
    return path, right


KINDS = (
    *("clear.png", "palette.png", "grey_clear.png", "grey16.png", "turned.webp", "cmyk.tif"),
    *("profile.png", "profile_clear.png"),
)


@pytest.mark.parametrize("name", KINDS)
def test_all_readers_see_what_a_viewer_shows(name: str, tmp_path: Path) -> None:
    path, right = save(tmp_path, name)
    found = read_rgb(path)
    assert found.shape == right.shape and abs(found.astype(int) - right).max() <= 1
    with Image.open(path) as image:
        seen = [as_rgb(str(path)), as_rgb(path.read_bytes()), as_rgb(image), script_reader()(path)]
    assert all(np.array_equal(found, other) for other in seen)
    assert picture_size(path) == check_image(path) == found.shape[:2]


TURN = (0x0112, 3, struct.pack("<HH", 6, 0))
ODD_EXIF = {
    "junk": (b"Exif\0\0\xff\xd8junkjunk", 0),
    "cut": (exif(TURN)[:15], 0),
    "a width that is text": (exif(TURN, (0x0100, 2, b"abc\0")), -1),
    "a float for a unit": (exif(TURN, (0x0128, 11, struct.pack("<f", 2))), -1),
    "a negative width": (exif(TURN, (0x0100, 9, struct.pack("<i", -5))), -1),
    "an orientation of 77": (exif((0x0112, 3, struct.pack("<HH", 77, 0))), 0),
    "an orientation that is text": (exif((0x0112, 2, b"6\0\0\0")), 0),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", ODD_EXIF)
@pytest.mark.parametrize("end", [".jpg", ".png", ".webp"])
def test_odd_exif_makes_no_picture_unreadable(name: str, end: str, tmp_path: Path) -> None:
    data, turns = ODD_EXIF[name]
    path = tmp_path / f"odd{end}"
    flat = np.full((6, 8, 3), 90, np.uint8)
    flat[:, 4:] = 200
    Image.fromarray(flat).save(path, exif=data, **({} if end == ".png" else {"quality": 100}))
    found, right = read_rgb(path), np.rot90(flat, turns)
    assert found.shape == right.shape and abs(found.astype(int) - right).max() < 40
    assert check_image(path) == right.shape[:2] == read_values(path).shape[:2]


def test_what_is_beside_the_pixels_may_be_damaged(tmp_path: Path, caplog) -> None:
    image, texts = Image.fromarray(RGB), PngInfo()
    texts.add_text("Comment", "hello")
    image.save(tmp_path / "text.png", pnginfo=texts, icc_profile=ADOBE_RGB)
    good = (tmp_path / "text.png").read_bytes()
    (tmp_path / "text.png").write_bytes(good.replace(b"hello", b"jello"))
    assert abs(read_rgb(tmp_path / "text.png").astype(int) - to_srgb_by_hand(RGB)).max() <= 1
    assert "text.png: parts of the file beside its pixels are damaged" in caplog.text
    pixels = bytearray(good)
    pixels[good.index(b"IDAT") + 20] ^= 255
    (tmp_path / "pixels.png").write_bytes(pixels)
    with pytest.raises(ValueError, match=r"pixels\.png: broken"):
        read_rgb(tmp_path / "pixels.png")
    for kind, profile in {"junk": b"junk" * 40, "cut": ADOBE_RGB[:200]}.items():
        image.save(tmp_path / f"{kind}.png", icc_profile=profile)
        assert np.array_equal(read_rgb(tmp_path / f"{kind}.png"), RGB)
        assert f"{kind}.png: its colour profile cannot be used" in caplog.text
    image.save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes() + b"more" * 9)
    assert np.array_equal(read_rgb(tmp_path / "x.png"), RGB)


def test_profiles_of_the_same_colours_change_nothing(tmp_path: Path) -> None:
    """To the bit, as most files hold one; others are compared with the formula."""
    every = np.arange(256, dtype=np.uint8)
    values = np.stack([every, every[::-1], np.roll(every, 99)], -1)[None]
    for name in ("sRGB", "almost"):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        profile = (
            profile.replace(b"sRGB built-in", b"other name   ") if name == "almost" else profile
        )
        Image.fromarray(values).save(tmp_path / "same.png", icc_profile=profile)
        assert np.array_equal(read_rgb(tmp_path / "same.png"), values)
    Image.fromarray(values).save(tmp_path / "adobe.jpg", "PNG", icc_profile=ADOBE_RGB)
    found = read_rgb(tmp_path / "adobe.jpg").astype(int)
    assert abs(found - to_srgb_by_hand(values)).max() <= 2 and abs(found - values).max() > 30


def test_profiles_of_grey_and_of_ink(tmp_path: Path, caplog) -> None:
    grey = np.array([[0, 128, 255]], np.uint8)
    linear = matrix_profile(gamma=1.0, grey=True)
    Image.fromarray(grey).save(tmp_path / "grey.png", icc_profile=linear)
    assert read_rgb(tmp_path / "grey.png")[0, :, 0] == pytest.approx([0, 188, 255], abs=1)
    # Half ink is L* 75, Y 0.483; as the blackest, Y 0.184, is shown as black: 0.366, sRGB 162.
    ink = Image.new("CMYK", (8, 8), (0, 0, 0, 128))
    ink.save(tmp_path / "ink.tif", icc_profile=cmyk_profile(black=50))
    assert read_rgb(tmp_path / "ink.tif")[0, 0] == pytest.approx([162] * 3, abs=2)
    Image.fromarray(RGB).save(tmp_path / "wrong.png", icc_profile=cmyk_profile(black=50))
    assert np.array_equal(read_rgb(tmp_path / "wrong.png"), RGB)
    assert "wrong.png: its colour profile cannot be used" in caplog.text


@pytest.mark.parametrize("said", [(), (0,), (1,), (2,)])
def test_a_fourth_band_is_transparency_only_where_the_file_says_so(
    said: tuple[int, ...], tmp_path: Path, caplog
) -> None:
    path = tmp_path / "bands.tif"
    Image.fromarray(CLEAR).save(path)
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<HHIH", 338, 3, 1, 2))
    data[at : at + 10] = struct.pack("<HHIH", 338 if said else 65000, 3, 1, said[0] if said else 2)
    path.write_bytes(data)
    found = read_rgb(path)
    assert np.array_equal(as_rgb(io.BytesIO(data)), found)
    assert np.array_equal(found[:, :4], RGB[:, :4])
    if said in ((1,), (2,)):
        assert (found[:, 4:] == 255).all() and not caplog.records
    else:
        assert np.array_equal(found, RGB)
        assert "bands.tif: 1 of its bands are neither colour nor transparency" in caplog.text


def test_of_several_frames_the_first_is_taken_and_said(tmp_path: Path, caplog) -> None:
    image, other = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    for name, options in {"a.webp": {"lossless": True}, "a.tif": {}, "a.png": {}}.items():
        image.save(tmp_path / name, save_all=True, append_images=[other], **options)
        assert np.array_equal(read_rgb(tmp_path / name), RGB)
        assert f"{name}: it holds several frames or pages; the first is taken" in caplog.text


def test_kinds_that_are_not_read_say_how_to_convert(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "preview.dng", "TIFF")
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(90))
    (tmp_path / "scan.dcm").write_bytes(b"DICM")
    words = {"preview.dng": "develop it", "phone.jpg": "it is HEIC", "scan.dcm": "a window of"}
    for name, word in words.items():
        with pytest.raises(ValueError, match=rf"{name}.*{word}"):
            read_rgb(tmp_path / name)
