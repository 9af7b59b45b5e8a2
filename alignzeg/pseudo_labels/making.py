"""All images of a data set, over several processes; what is there already is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tqdm import tqdm

from alignzeg.data.fingerprint import fingerprint
from alignzeg.data.labels import read_labels
from alignzeg.data.pictures import read_values
from alignzeg.data.pseudo import DESCRIPTION, file_keys, pseudo_files
from alignzeg.data.worker_registration import Registered
from alignzeg.engine import setup_config
from alignzeg.engine.processes.process_exit import watch_parent
from alignzeg.files import ATTEMPTS, atomic_write, file_hash
from alignzeg.pseudo_labels.classes import describe, find_classes
from alignzeg.pseudo_labels.labeller import Labeller, RegionSource
from alignzeg.pseudo_labels.region_labels import Thresholds
from alignzeg.pseudo_labels.summary import Tally
from alignzeg.registries import build_vlm

# What the files of a folder were made with; written before the first of them.
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Job:
    """Everything that decides what the files will be, and where they go.

    Attributes:
        config_file: YAML file of the VLM and, for proposals, of the trained model.
        dataset: a registered data set.
        output: folder to write.
        opts: KEY VALUE pairs over the config.
        words: an open vocabulary in place of the data set's unseen names.
        source: of the regions.
        thresholds: when a region is believed.
    """

    config_file: str
    dataset: str
    output: str
    opts: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    source: RegionSource = field(default_factory=RegionSource)
    thresholds: Thresholds = field(default_factory=Thresholds)

    def labeller(self, device: str = "") -> Labeller:
        """Builds what labels images, on a device other than the config's if one is given."""
        cfg = setup_config(self.config_file, self.opts)
        if device:
            cfg.MODEL.DEVICE = device
        classes = find_classes(self.dataset, cfg.ALIGNZEG.DATA.HOLD_OUT, self.words)
        return Labeller(cfg, classes, self.source, self.thresholds)


def make_pseudo_labels(job: Job, processes: int = 1) -> dict[str, Any]:
    """Labels every image that is not labelled yet, and describes the folder.

    Ended at any moment and called again, it leaves the same files. So it does whatever the number
    of processes.

    On GPUs the processes take turns among these.

    Returns:
        What `pseudo_labels.json` holds, see `alignzeg.data.pseudo`.

    Raises:
        ValueError: if the folder holds files made with other settings, or a source file is wrong.
    """
    cfg = setup_config(job.config_file, job.opts)
    classes = find_classes(job.dataset, cfg.ALIGNZEG.DATA.HOLD_OUT, job.words)
    records = DatasetCatalog.get(job.dataset)
    keys = file_keys(records)
    root = Path(job.output)
    settings = _settings(job, cfg)
    _claim(root, settings)
    todo = [
        (record, key)
        for record, key in zip(records, keys, strict=True)
        if not all(path.is_file() for path in pseudo_files(root, key))
    ]
    bar = tqdm(total=len(keys), initial=len(keys) - len(todo), desc="images", disable=None)
    with bar:
        for _ in _each(job, todo, processes, cfg.MODEL.DEVICE):
            bar.update()
    tally = Tally(job.dataset, classes, cfg.ALIGNZEG.DATA.HOLD_OUT)
    for record, key in zip(records, keys, strict=True):
        maps = (read_values(str(path)) for path in pseudo_files(root, key))
        tally.add(read_labels(record["sem_seg_file_name"], job.dataset), *maps)
    about = {
        "source": job.dataset,
        "hold_out": cfg.ALIGNZEG.DATA.HOLD_OUT,
        **describe(classes),
        "settings": settings,
        "summary": tally.report(),
    }
    _write_json(root / DESCRIPTION, about)
    return about


def _settings(job: Job, cfg: CfgNode) -> dict[str, Any]:
    """What the files depend on, as it is compared with that of an earlier call."""
    weights = job.source.weights
    vlm = cfg.ALIGNZEG.VLM
    # Regions follow from what the model sees; names and classes from the rest.
    inputs = {key: getattr(cfg.INPUT, key) for key in ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST")}
    config = {"hold_out": cfg.ALIGNZEG.DATA.HOLD_OUT, "input": inputs}
    if weights:
        model = cfg.clone()
        model.OUTPUT_DIR = model.ALIGNZEG.VLM.CACHE_DIR = ""
        config["model"] = hashlib.sha256(model.dump().encode()).hexdigest()
    return {
        "config": config,
        "vlm_hash": str(build_vlm(cfg).hash),
        "data": fingerprint([job.dataset])[job.dataset]["sha256"],
        "vlm": {key: value for key, value in vlm.items() if key != "CACHE_DIR"},
        "weights": file_hash(weights) if weights else "",
        "words": list(job.words),
        "opts": list(job.opts),
        "regions": {k: v for k, v in dataclasses.asdict(job.source).items() if k != "weights"},
        "thresholds": dataclasses.asdict(job.thresholds),
    }


def _claim(root: Path, settings: Mapping[str, Any]) -> None:
    """Notes the settings in a new folder; refuses one that was made with others."""
    path = root / SETTINGS
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        differ = sorted(key for key in settings if before.get(key) != settings[key])
        if differ:
            raise ValueError(
                f"{root} holds pseudo-labels made with other settings ({', '.join(differ)}: "
                f"{before.get(differ[0])!r}, now {settings[differ[0]]!r}); choose another --output "
                "or delete it"
            )
        return
    if root.is_dir() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty and holds no {SETTINGS}; choose another --output")
    root.mkdir(parents=True, exist_ok=True)
    _write_json(path, settings)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1) + "\n"
    atomic_write(path, text, durable=True, attempts=ATTEMPTS)


def _each(
    job: Job, todo: Sequence[tuple[Mapping[str, Any], str]], processes: int, device: str
) -> Iterator[None]:
    """Labels the images in this process, or in several; yields once for each."""
    processes = min(processes, len(todo))
    if processes <= 1:
        labeller = job.labeller() if todo else None
        for record, key in todo:
            assert labeller is not None
            labeller.write(record, job.output, key)
            yield
        return
    # Not forked: CUDA and the threads of torch do not survive it.
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    for number in range(processes):
        numbers.put(number)
    threads = max((os.cpu_count() or 1) // processes, 1)
    with ProcessPoolExecutor(
        processes,
        context,
        _start_worker,
        (Registered(), job, device, numbers, threads, os.getpid()),
    ) as pool:
        futures = [pool.submit(_work, record, key) for record, key in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


# The labeller of a worker process, and the folder it writes to.
_worker: tuple[Labeller, str] | None = None


def _start_worker(
    _: Registered, job: Job, device: str, numbers: Any, threads: int, parent: int
) -> None:
    global _worker  # noqa: PLW0603 (an initializer can hand over nothing else)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends the pool
    watch_parent(parent)
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    number = numbers.get()
    if device.startswith("cuda"):
        device = f"cuda:{number % torch.cuda.device_count()}"
    _worker = job.labeller(device), job.output


def _work(record: Mapping[str, Any], key: str) -> None:
    assert _worker is not None
    labeller, output = _worker
    labeller.write(record, output, key)
