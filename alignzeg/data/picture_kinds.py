"""Kinds of pictures that are not read, and how they become such that are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_RAW = (
    "dng cr2 cr3 crw nef nrw arw srf sr2 raf orf rw2 rwl pef ptx srw x3f 3fr fff iiq mos mrw kdc "
    "dcr erf mef gpr raw"
)
_HEIC = "convert it, as with: heif-convert IN OUT.jpg"
_UNREAD = {
    _RAW: "develop it, as with: darktable-cli IN OUT.jpg",
    "heic heif heics heifs hif avci": _HEIC,
    "jxl jxr wdp hdp": "convert it, as with: djxl IN OUT.png",
    "dcm dicom ima nii mha nrrd": "choose a window of its values and write it as 8-bit PNG",
    "npy npz mat h5 hdf5": "write the array as PNG: Image.fromarray(array).save('OUT.png')",
    "exr hdr pfm": "map its tones to 8 bits and write it as PNG",
    "psd psb xcf kra ai eps svg svgz pdf ico icns cur dds sgi pcx xbm xpm "
    "czi nd2 lif svs ndpi mrxs scn vsi fits fit fts sid ecw img": "export it as JPEG or PNG",
}
_HOW = {kind: how for kinds, how in _UNREAD.items() for kind in kinds.split()}
_BANDS = (
    "it is no TIFF, or of bands or a depth that are not read; write its colours with 8 bits, as "
    "with: gdal_translate -b 1 -b 2 -b 3 -ot Byte -scale IN OUT.tif"
)


def is_unread(path: str | Path) -> bool:
    """Whether a file is, by its name, a picture of a kind that is not read."""
    return _end(path) in _HOW


def is_raw(path: Any) -> bool:
    """Whether a file is, by its name, a camera's raw data; of these a reader finds a preview."""
    return _end(path) in _RAW.split()


def how_to_convert(path: Any, unknown: bool = False) -> str:
    """How a picture becomes one that is read; "" where that is not known.

    `unknown`: whether its content is of no kind that is read.
    """
    if unknown and _end(path) not in _HOW and isinstance(path, (str, Path)):
        with open(path, "rb") as file:
            start = file.read(12)
        if start[4:] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc"):
            return f"it is HEIC under another name; {_HEIC}"
        return _BANDS if _end(path) in ("tif", "tiff") else ""
    return _HOW.get(_end(path), "")


def _end(path: Any) -> str:
    return Path(path).suffix[1:].lower() if isinstance(path, (str, Path)) else ""
