"""Scored proposals of the images of a data set: what every correction of the bias starts from.

The network runs once per image; whatever comes after it, correction, ensemble and label maps,
follows from what is kept here. A file of it is read image by image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from numpy.typing import NDArray
from torch import Tensor

from alignzeg.data.fingerprint import data_hash, fingerprint
from alignzeg.data.labels import label_lookup, read_labels
from alignzeg.files import atomic_write, code_hash, file_hash
from alignzeg.structures import Outputs, Proposals, Vocabulary

# What the file of proposals says it is, and of which form.
_KIND, _FORM = "proposals of alignzeg", 1
_ABOUT = "about"
_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)
# Fields of `Outputs` that are tensors or None at inference.
_OUTPUTS = ("embeds", "region_embeds", "class_logits", "unseen_logits", "background")
_PROPOSALS = ("embeds", "mask_logits")
# Config keys of the correction and the ensemble.
_AFTER = (
    "ALIGNZEG.CORRECTOR.GAMMA",
    "ALIGNZEG.CORRECTOR.THRESHOLD",
    "ALIGNZEG.TEST.ENSEMBLE_SEEN",
    "ALIGNZEG.TEST.ENSEMBLE_UNSEEN",
)


@dataclass(frozen=True)
class CachedImage:
    """The scored proposals of one image, and its truth.

    Attributes:
        outputs: batch of one, final proposals only, on the model's device.
        truth: (H, W) vocabulary ids, ignore label where nothing counts.
        padded_size: height and width that the mask logits cover, in pixels.
        image_size: height and width of the network's input.
    """

    outputs: Outputs
    truth: NDArray
    padded_size: tuple[int, int]
    image_size: tuple[int, int]


@torch.no_grad()
def propose(
    model: Any, image: Tensor, vocabulary: Vocabulary
) -> tuple[Outputs, tuple[int, int], tuple[int, int]]:
    """Runs an `AlignZeg` model on one image.

    Args:
        model: in eval mode.
        image: (3, H, W) RGB, 0 to 255.
        vocabulary: the K classes that are asked for.

    Returns:
        A batch of one with the final proposals only; height and width in pixels that the mask
        logits cover; height and width of the image.

    Raises:
        ValueError: if the model looks at an image more than once (scales, flips, windows).
    """
    if not model.augmentation.single:
        raise ValueError(
            "a sweep looks at each image once; set TEST.AUG.ENABLED False and "
            "ALIGNZEG.TEST.WINDOW 0"
        )
    images = ImageList.from_tensors(
        [image.to(model.device).float()],
        model.size_divisibility,
        padding_constraints=model.backbone.padding_constraints,
    )
    outputs = model.outputs(images, vocabulary)
    keep = dataclasses.replace(outputs, proposals=outputs.proposals[-1:])
    size = (images.tensor.shape[-2], images.tensor.shape[-1])
    return keep, size, images.image_sizes[0]


def iterate_proposals(
    model: Any, loader: Iterable[list[dict[str, Any]]], dataset_name: str
) -> Iterator[CachedImage]:
    """Runs an `AlignZeg` model over a test loader and yields what the correction needs.

    Raises:
        ValueError: if the model looks at an image more than once (scales, flips, windows).
    """
    for batch in loader:
        (item,) = batch
        lookup = label_lookup(dataset_name, item["vocabulary"])
        outputs, padded, size = propose(model, item["image"], item["vocabulary"])
        truth = lookup[read_labels(item["sem_seg_file_name"], dataset_name)]
        yield CachedImage(outputs, truth, padded, size)


def origin(cfg: CfgNode, weights: str | Path, dataset_name: str) -> dict[str, str]:
    """Hashes of all that proposals follow from; keys of what comes after do not count.

    Raises:
        ValueError: if a file of the data set is missing.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([word for key in _AFTER for word in (key, 0.0)])
    cfg.merge_from_list(["OUTPUT_DIR", ""])
    return {
        "code": code_hash(),
        "plugins": " ".join(file_hash(file) for file in cfg.ALIGNZEG.PLUGINS),
        "weights": file_hash(Path(weights)),
        "data": data_hash(fingerprint([dataset_name])),
        "config": hashlib.sha256(cfg.dump().encode()).hexdigest(),
    }


def save_proposals(
    path: str | Path, images: Iterable[CachedImage], made_of: Mapping[str, Any]
) -> None:
    """Writes images to one file as they come; the file appears when it is complete.

    `made_of`, ready for JSON, says what they follow from.
    """

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            count = 0
            for count, image in enumerate(images, start=1):
                for name, values in _arrays(image).items():
                    _write_array(archive, f"{count - 1}/{name}", values)
            about = {"kind": _KIND, "form": _FORM, "images": count, "made_of": dict(made_of)}
            _write_array(archive, _ABOUT, np.array([json.dumps(about)]))

    atomic_write(path, write)


class ProposalFile(Sequence[CachedImage]):
    """The images of a file that `save_proposals` has written, each read when it is asked for.

    Attributes:
        made_of: what was said of them when they were written.
    """

    def __init__(self, path: str | Path, device: torch.device | str = "cpu") -> None:
        """Opens a file.

        Raises:
            ValueError: if it is no such file, or damaged.
        """
        self._path, self._device = str(path), device
        try:
            self._file = np.load(self._path, allow_pickle=False)
            about = json.loads(str(self._file[_ABOUT][0]))
            if (about["kind"], about["form"]) != (_KIND, _FORM):
                raise ValueError(f"it is of another form: {about['kind']!r}, {about['form']}")
            self.made_of: dict[str, Any] = about["made_of"]
            self._count = int(about["images"])
        except _DAMAGED as error:
            raise ValueError(f"{self._path!r} is no file of cached proposals ({error})") from error

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> CachedImage:  # type: ignore[override]
        if not 0 <= index < self._count:
            raise IndexError(index)
        try:
            return self._read(index)
        except _DAMAGED as error:
            raise ValueError(
                f"{self._path!r} is damaged at image {index} ({error}); delete it"
            ) from error

    def _read(self, index: int) -> CachedImage:
        prefix = f"{index}/"
        names = [name for name in self._file.files if name.startswith(prefix)]
        found = {name.removeprefix(prefix): self._file[name] for name in names}
        padded, size = ((int(high), int(wide)) for high, wide in found["sizes"])
        tensors: dict[str, Any] = {
            key: torch.from_numpy(values).to(self._device)
            for key, values in found.items()
            if key not in ("truth", "sizes")
        }
        proposals = Proposals(**{key: tensors.pop(f"proposals.{key}") for key in _PROPOSALS})
        return CachedImage(Outputs(proposals=(proposals,), **tensors), found["truth"], padded, size)


def _arrays(image: CachedImage) -> dict[str, NDArray]:
    proposals = image.outputs.proposals[-1]
    tensors = {f"proposals.{key}": getattr(proposals, key) for key in _PROPOSALS}
    tensors |= {key: getattr(image.outputs, key) for key in _OUTPUTS}
    kept = {key: value.cpu().numpy() for key, value in tensors.items() if value is not None}
    sizes = np.array([image.padded_size, image.image_size])
    return {**kept, "truth": image.truth, "sizes": sizes}


def _write_array(archive: zipfile.ZipFile, name: str, values: NDArray) -> None:
    # Large files need the longer form of an entry, which has to be chosen before its size is known.
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array(entry, np.ascontiguousarray(values), allow_pickle=False)
