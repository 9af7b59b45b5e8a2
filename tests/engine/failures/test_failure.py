"""What is not finite: noticed, named, left out by option, kept in a bundle, and replayed."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from helpers import CONFIGS, REPOSITORY
from torch import nn

from alignzeg.__main__ import main as alignzeg
from alignzeg.engine import Trainer, setup_config, validate
from alignzeg.engine.checkpoints.reading import read_checkpoint
from alignzeg.engine.checkpoints.state import rng_state
from alignzeg.engine.failures.crash import Batch, from_plain, to_plain, write_bundle
from alignzeg.engine.failures.finite import is_finite, names_in, naming_images, trace
from alignzeg.engine.processes.errors import NonFiniteError
from alignzeg.engine.training.step import StepTrainer
from alignzeg.structures import Targets, Vocabulary

NAN = float("nan")
FAULTS = str(REPOSITORY / "dev" / "faults.py")


class Small(nn.Module):
    """A model of every kind of failure; a "kind" in the batch asks for one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4)))
        # The largest numbers add up to infinity.
        self.backbone.conv.weight.data.abs_().add_(1)
        self.head = nn.Linear(4, 1)
        self.seen = SimpleNamespace(names=("a", "b"))
        self.calls = 0

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        self.calls += 1
        kinds = [item.get("kind") for item in batch]
        x = self.backbone(torch.stack([item["image"].float() for item in batch]))
        poison = torch.tensor([NAN if kind == "loss" else 1.0 for kind in kinds])
        if "cost" in kinds:
            raise FloatingPointError("the mask cost of layer 0 is not finite for image b.png")
        y = self.head(x.mean((2, 3))).squeeze(1)
        if "gradient" in kinds:
            # The root of 0 is finite, its slope is not.
            y = y + (y * 0).abs().sqrt()
        return {"loss_a": (y * poison).square().mean(), "loss_b": y.abs().mean()}


def batch_of(*kinds: str) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    items = []
    for name, kind in zip("abcdef", kinds, strict=False):
        image = torch.randint(0, 255, (3, 4, 4), dtype=torch.uint8, generator=generator)
        if kind in ("image", "feature"):
            image = image.float()
            image[:, 0, 0] = NAN if kind == "image" else 3e38
        items.append({"image": image, "file_name": f"{name}.png", "kind": kind})
    return items


def run(batches: list[list[dict]], steps: int, **kwargs) -> StepTrainer:
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    trainer = StepTrainer(model, batches, optimizer, **kwargs)
    with EventStorage(0) as trainer.storage:
        for trainer.iter in range(steps):
            trainer.storage.iter = trainer.iter
            trainer.run_step()
    return trainer


CASES = [
    ("image", r"the input image of \['b.png'\] is NaN"),
    ("feature", r"the output of backbone.conv is infinite \(2 x 4 x 4 x 4, float32\) for \['b.p"),
    ("cost", r"the mask cost of layer 0 is not finite for image b.png"),
    ("loss", r"loss_a is NaN for \['a.png', 'b.png'\]"),
    ("gradient", r"the gradient of the output of head is NaN .* for \['b.png'\]"),
]


@pytest.mark.parametrize(("kind", "text"), CASES)
def test_the_first_tensor_that_is_not_finite_is_named(kind: str, text: str) -> None:
    fine, bad = batch_of("", ""), batch_of("", kind)
    if kind == "gradient":
        bad = [{**item, "kind": kind} for item in bad]
        text = text.replace(r"\['b.png'\]", r"\['a.png', 'b.png'\]")
    with pytest.raises(
        NonFiniteError, match=rf"process 0: {text}.*; iteration 1, learning rate 0.25"
    ):
        run([fine, bad, fine], 3)
    # The second of two accumulated batches.
    with pytest.raises(NonFiniteError, match=rf"process 0: {text}.*; iteration 0"):
        run([fine, bad], 1, accumulate=2)


@pytest.mark.parametrize("kind", [kind for kind, _ in CASES])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_left_out_leaves_no_trace_but_its_samples(kind: str, accumulate: int) -> None:
    fine, other, bad = batch_of("", ""), batch_of("", "", "")[1:], batch_of(kind, kind)
    skipped = [bad, bad] if accumulate == 1 else [bad, fine]
    batches = [fine, other, *skipped, other, fine]
    steps = len(batches) // accumulate
    calls_left = 2 if accumulate == 1 else 1
    with_gap = run(batches, steps, accumulate=accumulate, max_skipped=calls_left)
    without = run([fine, other, other, fine], steps - calls_left, accumulate=accumulate)
    for a, b in zip(
        with_gap.model.state_dict().values(), without.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert with_gap.state_dict()["skipped"] == calls_left
    assert with_gap.storage.latest()["skipped_steps"][0] == calls_left

    again = StepTrainer(Small(), [bad], torch.optim.SGD(Small().parameters(), 0.1))
    again.load_state_dict(with_gap.state_dict())
    assert again.skipped == calls_left
    with pytest.raises(NonFiniteError):
        run([*batches[:4], bad, bad], steps, accumulate=accumulate, max_skipped=calls_left)


def test_checking_draws_no_random_numbers_and_changes_no_step() -> None:
    batch = batch_of("", "")
    trainer = run([batch] * 3, 3)
    after = rng_state()
    # Which draws its weights, and nothing else.
    model = Small()
    before = rng_state()
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"]["keys"], after["numpy"]["keys"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    for _ in range(3):
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()
    for a, b in zip(trainer.model.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_is_finite_is_exact(value: float, dtype: torch.dtype) -> None:
    # Two numbers whose sum overflows are finite.
    tensor = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(tensor)
    tensor[2, 1] = value
    assert not is_finite(tensor)
    assert is_finite(torch.zeros(0)) and is_finite(torch.ones(2, dtype=torch.uint8))


def test_nothing_in_a_healthy_model_is_named(tiny_cfg: CfgNode) -> None:
    model = Trainer.build_model(tiny_cfg).train()
    batch = next(iter(Trainer.build_train_loader(tiny_cfg)))
    assert len(names_in(batch)) == 2
    assert trace(model, batch, names_in(batch), backward=True) == ""


def test_a_batch_survives_as_plain_values() -> None:
    targets = Targets(torch.tensor([1]), torch.ones(1, 2, 2, dtype=torch.bool), torch.ones(2, 2))
    vocabulary = Vocabulary(("a", "b"), (True, False))
    batch = [{"targets": targets, "vocabulary": vocabulary, "height": 2, "file_name": "a.png"}]
    (again,) = from_plain(to_plain(batch))
    assert again["vocabulary"] == vocabulary and again["height"] == 2
    assert torch.equal(again["targets"].masks, targets.masks)
    assert again["targets"].padding is None
    with pytest.raises(ValueError, match="held a EventStorage, which a crash bundle cannot keep"):
        from_plain(to_plain([{"x": EventStorage()}]))


def test_a_bundle_that_cannot_be_written_does_not_hide_the_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    folder, facts = str(tmp_path / "file" / "crash"), {"iteration": 1, "process": 0}
    assert write_bundle(folder, "", nn.Linear(1, 1), [Batch([])], facts) == ""
    assert "no crash bundle" in caplog.text


def test_an_error_in_an_evaluation_names_the_image() -> None:
    class Picky(nn.Module):
        def forward(self, batch: list[dict]) -> None:
            raise self.error

    model = Picky()
    for error, kind, text in (
        (KeyError("x"), RuntimeError, "KeyError: 'x'; the last image was b.png"),
        (ValueError("too large"), ValueError, "too large; the last image was b.png"),
        (ValueError("b.png is torn"), ValueError, "b.png is torn$"),
    ):
        model.error = error
        with pytest.raises(kind, match=text), naming_images(model):
            model([{"file_name": "b.png"}])


@pytest.mark.parametrize("kind", ["image", "feature", "cost", "loss", "gradient"])
def test_a_failed_step_is_replayed(
    kind: str, zeroshapes: Path, tiny_opts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fault = ["ALIGNZEG.PLUGINS", FAULTS, "MODEL.META_ARCHITECTURE", "FaultyAlignZeg"]
    fault += ["FAULT.KIND", kind, "ALIGNZEG.EXTRACTOR.LAYERS", "1"]
    cfg = setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", [*tiny_opts, *fault])
    validate(cfg)
    trainer = Trainer(cfg)
    with pytest.raises(NonFiniteError, match=r"; iteration 1, .*alignzeg replay \S+$"):
        trainer.train()
    (bundle,) = (Path(cfg.OUTPUT_DIR) / "crash").glob("*.pth")
    facts = json.loads(bundle.with_suffix(".json").read_text())
    assert facts["iteration"] == 1 and len(facts["images"][0]) == 2
    content = read_checkpoint(str(bundle))
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(content["model"][name], value)
    capsys.readouterr()
    assert alignzeg(["replay", str(bundle)]) == 3
    then, now = capsys.readouterr().out.splitlines()[-2:]
    assert now.removeprefix("now:").strip() in then
    # No result is evaluated after a failure in the last step.
    assert not (Path(cfg.OUTPUT_DIR) / "inference").exists()


def test_a_file_that_is_no_bundle_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": {}}, tmp_path / "x.pth")
    assert alignzeg(["replay", str(tmp_path / "x.pth")]) == 2
    assert "is no crash bundle" in capsys.readouterr().err
    assert alignzeg(["replay", str(tmp_path / "gone.pth")]) == 2


def test_a_negative_number_of_skipped_steps_is_refused(tiny_cfg: CfgNode) -> None:
    tiny_cfg.ALIGNZEG.SOLVER.MAX_SKIPPED_STEPS = -1
    with pytest.raises(ValueError, match="MAX_SKIPPED_STEPS is -1"):
        validate(tiny_cfg)
