"""A folder of files by somebody else, whose code would leave a marker if it ran."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml
from PIL import Image

MARKER = "it_ran"


class Place:
    """A folder of hostile files, whose code would leave a marker; `mine` is the user's own."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder, self.marker = folder, folder / MARKER
        (folder / "plugins").mkdir()
        self.plugin = folder / "plugins" / "x.py"
        self.plugin.write_text(f"open({str(self.marker)!r}, 'w').close()\n")
        self.mine = folder / "mine.py"
        self.mine.write_text(f"open({str(folder / 'mine_ran')!r}, 'w').close()\n")
        content = torch.load(weights, weights_only=True)
        config = yaml.safe_load(content["alignzeg"]["config"])
        config["ALIGNZEG"]["PLUGINS"] = ["plugins/x.py"]
        config["ALIGNZEG"]["VLM"]["CACHE_DIR"] = str(folder / "written")
        config["OUTPUT_DIR"] = str(folder / "written")
        self.config = yaml.safe_dump(config)
        content["alignzeg"]["config"] = self.config
        self.weights = folder / "model_final.pth"
        torch.save(content, self.weights)
        bundle = {"reason": "r", "batches": [], "rng": [], "iteration": 1, "amp_dtype": ""}
        torch.save({**content, "crash_bundle": bundle}, folder / "bundle.pth")
        (folder / "config.yaml").write_text(self.config)
        (folder / "evaluation_zeroshapes_val.json").write_text(json.dumps({"metrics": {}}))
        Image.new("RGB", (32, 32)).save(folder / "a.png")

    def check(self) -> None:
        """Nothing of theirs has run or written."""
        assert not self.marker.exists() and not (self.folder / "written").exists()
