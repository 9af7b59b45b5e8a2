from __future__ import annotations

import json
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import CONFIGS
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from torch import nn

from alignzeg.engine import (
    AlignZegCheckpointer,
    Trainer,
    config_from_yaml,
    evaluate,
    read_checkpoint,
    setup_config,
    start_run,
    validate,
)
from alignzeg.engine.processes.errors import NonFiniteError
from alignzeg.engine.processes.launch import guarded
from alignzeg.engine.processes.placement import find_placement, parse_args, slurm_url, world_size
from alignzeg.engine.settings.reading import default_config, flat_keys
from alignzeg.engine.solver.muon import MuonWithAdamW
from alignzeg.engine.solver.optim import (
    build_lr_scheduler,
    build_optimizer,
    parameter_groups,
    scaled_lr,
)
from alignzeg.engine.start import run_line
from alignzeg.engine.training.step import StepTrainer
from alignzeg.engine.training.trainer import build_step_trainer
from alignzeg.structures import Vocabulary

ALIGNZEG = CONFIGS / "zeroshapes" / "alignzeg.yaml"
PLUGIN = Path(__file__).parent / "toy_plugin.py"


@pytest.fixture
def toy_cfg(zeroshapes: Path, tiny_opts: list[str]) -> CfgNode:
    toy = ["ALIGNZEG.PLUGINS", str(PLUGIN), "MODEL.META_ARCHITECTURE", "ToySegmenter"]
    return setup_config(ALIGNZEG, [*tiny_opts, *toy, "ALIGNZEG.TEST.RECALL", "False"])


def plain(cfg: CfgNode) -> dict:
    """A config without the difference between lists and tuples, which YAML does not know."""
    return yaml.safe_load(cfg.dump())


# ---- settings


def test_file_and_pairs_are_merged_in_order(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("SOLVER:\n  MAX_ITER: 5\n  IMS_PER_BATCH: 4\n")
    (tmp_path / "run.yaml").write_text("_BASE_: base.yaml\nSOLVER:\n  MAX_ITER: 6\n")
    cfg = setup_config(tmp_path / "run.yaml", ["SOLVER.BASE_LR", "1", "SEED", "7"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH) == (6, 4)
    assert cfg.SOLVER.BASE_LR == 1.0 and isinstance(cfg.SOLVER.BASE_LR, float)
    assert cfg.SEED == 7


@pytest.mark.parametrize(
    ("key", "word", "value"),
    [
        ("DATASETS.TRAIN", "zeroshapes_train", ("zeroshapes_train",)),
        ("DATASETS.TRAIN", "['a', 'b']", ("a", "b")),
        ("SOLVER.BASE_LR", "1e-4", 1e-4),
        ("SOLVER.AMP.ENABLED", "true", True),
        ("MODEL.WEIGHTS", "123", "123"),
        ("ALIGNZEG.SYNTHESIZER.NAME", "", ""),
        ("ALIGNZEG.VLM.TEMPLATES", "single", ["single"]),
    ],
)
def test_words_become_the_type_of_the_default(key: str, word: str, value: object) -> None:
    node = setup_config("", [key, word])
    for part in key.split("."):
        node = node[part]
    assert node == value and type(node) is type(value)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["SOLVER.MAX_ITR", "3"],
            "unknown config key SOLVER.MAX_ITR; did you mean SOLVER.MAX_ITER?",
        ),
        (["ALIGNZEG.CLASSIFIER", "3"], "config key ALIGNZEG.CLASSIFIER is a section"),
        (["SOLVER.MAX_ITER", "many"], r"SOLVER.MAX_ITER is of type int .* got 'many'"),
        (["SOLVER.MAX_ITER", "2.5"], r"SOLVER.MAX_ITER is of type int"),
        (["SOLVER.AMP.ENABLED", "1"], r"SOLVER.AMP.ENABLED is of type bool"),
        (["SOLVER.MAX_ITER"], "come in pairs KEY VALUE, but 1 words were given"),
        (["SEED", "1", "--resume"], "--resume comes after the KEY VALUE pairs"),
        (["ALIGNZEG.PLUGINS", "no.py"], "lists 'no.py', but there is no such file"),
    ],
)
def test_wrong_pairs_are_refused(opts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        setup_config("", opts)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config file 'no.yaml' does not exist"):
        setup_config("no.yaml")
    bad = tmp_path / "bad.yaml"
    for text, message in (
        ("SOLVER: {MAX_ITER: 3", "not plain YAML"),
        ("SEED: !!python/object/apply:os.getpid []", "not plain YAML"),
        (
            "SOLVER:\n  MAXITER: 3",
            "unknown config key SOLVER.MAXITER; did you mean SOLVER.MAX_ITER",
        ),
        ("_BASE_: gone.yaml", "gone.yaml"),
    ):
        bad.write_text(text)
        with pytest.raises(ValueError, match=message):
            setup_config(bad)


def test_plugin_is_found_beside_the_config_and_brings_its_keys(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from detectron2.config import CfgNode\n"
        "def add_config(cfg):\n    cfg.MINE = CfgNode({'SIZE': 1})\n"
    )
    (tmp_path / "run.yaml").write_text("ALIGNZEG:\n  PLUGINS: [mine.py]\nMINE:\n  SIZE: 2\n")
    cfg = setup_config(tmp_path / "run.yaml", ["MINE.SIZE", "3"])
    assert cfg.MINE.SIZE == 3
    assert cfg.ALIGNZEG.PLUGINS == [str((tmp_path / "mine.py").resolve())]
    again = config_from_yaml(cfg.dump())
    assert plain(again) == plain(cfg)
    (tmp_path / "mine2.py").write_text("raise RuntimeError('oh')\n")
    with pytest.raises(ValueError, match=r"plugin .*mine2.py: RuntimeError: oh"):
        setup_config("", ["ALIGNZEG.PLUGINS", str(tmp_path / "mine2.py")])


def test_dump_of_the_defaults_reads_back() -> None:
    assert plain(config_from_yaml(default_config().dump())) == plain(setup_config())
    assert "ALIGNZEG.VLM.MODEL" in flat_keys(default_config())


def test_device_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = setup_config("", ["MODEL.DEVICE", "cuda"])
    assert cfg.MODEL.DEVICE == "cpu"
    assert "cpu (no CUDA device is available)" in run_line(cfg, 1)


# ---- validation


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.META_ARCHITECTURE", "AlignZig"], "did you mean 'AlignZeg'"),
        (["ALIGNZEG.HEAD.NAME", "x"], "ALIGNZEG.HEAD.NAME is 'x', which is unknown"),
        (["ALIGNZEG.CRITERIA", "['MaskCriterion', 'x']"], "ALIGNZEG.CRITERIA is 'x'"),
        (
            ["DATASETS.TRAIN", "x"],
            r"DATASETS.TRAIN names the unknown data set 'x'; registered: .*zeroshapes_train",
        ),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        (["MODEL.WEIGHTS", "no.pth"], "MODEL.WEIGHTS is 'no.pth', but there is no such file"),
        (
            ["SOLVER.IMS_PER_BATCH", "5", "ALIGNZEG.SOLVER.ACCUMULATE", "2"],
            "a multiple of 1 processes x ALIGNZEG.SOLVER.ACCUMULATE 2, such as 4",
        ),
        (["ALIGNZEG.SOLVER.ACCUMULATE", "0"], "ACCUMULATE is 0"),
        (["SOLVER.LR_SCHEDULER_NAME", "Poly"], "SOLVER.LR_SCHEDULER_NAME is 'Poly'"),
        (["ALIGNZEG.SOLVER.AMP_DTYPE", "half"], "AMP_DTYPE is 'half'"),
        (
            ["SOLVER.REFERENCE_WORLD_SIZE", "8", "ALIGNZEG.SOLVER.REFERENCE_BATCH", "16"],
            "both scale",
        ),
    ],
)
def test_what_cannot_run_is_refused(
    zeroshapes: Path, tiny_opts: list[str], opts: list[str], message: str
) -> None:
    cfg = setup_config(ALIGNZEG, [*tiny_opts, *opts])
    with pytest.raises(ValueError, match=message):
        validate(cfg)


def test_what_can_run_is_accepted(tiny_cfg: CfgNode) -> None:
    validate(tiny_cfg, world_size=2)
    with pytest.raises(ValueError, match="a multiple of 3 processes"):
        validate(tiny_cfg, world_size=3)
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        validate(tiny_cfg, training=False, needs_weights=True)


def test_missing_data_is_found_early(
    tiny_cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"nowhere.* does not exist.*prepare_zeroshapes"):
        validate(tiny_cfg)


# ---- optimizer and step


@pytest.mark.parametrize(
    ("batch", "reference", "lr"),
    [(16, 0, 0.1), (16, 16, 0.1), (8, 16, 0.05), (64, 16, 0.4), (1, 16, 0.00625)],
)
def test_learning_rate_scales_with_the_batch(batch: int, reference: int, lr: float) -> None:
    assert scaled_lr(0.1, batch, reference) == pytest.approx(lr)
    cfg = setup_config(
        "",
        ["SOLVER.BASE_LR", "0.1", "SOLVER.IMS_PER_BATCH", str(batch)]
        + ["ALIGNZEG.SOLVER.REFERENCE_BATCH", str(reference)],
    )
    assert build_optimizer(cfg, nn.Linear(2, 2)).param_groups[0]["lr"] == pytest.approx(lr)
    assert f"learning rate {lr:g} " in run_line(cfg, 1)


def test_poly_schedule_is_its_closed_form() -> None:
    opts = ["SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.MAX_ITER", "20"]
    cfg = setup_config("", [*opts, "SOLVER.WARMUP_ITERS", "4", "SOLVER.WARMUP_FACTOR", "0.1"])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    top = 2 * (1 - 4 / 20) ** 0.9
    warm = [0.2 + (top - 0.2) * i / 4 for i in range(4)]
    poly = [2 * (1 - i / 20) ** 0.9 for i in range(4, 20)]
    assert rates == pytest.approx(warm + poly)


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.linear = nn.Linear(4, 4)
        self.normed_but_linear = nn.Linear(4, 4)
        self.scale = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.queries = nn.Embedding(5, 4)
        self.prototypes = nn.Parameter(torch.zeros(3, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.shared = self.linear


def test_groups_go_by_the_type_of_the_module() -> None:
    model = Parts()
    groups = parameter_groups(
        model,
        lr=1.0,
        backbone_multiplier=0.1,
        weight_decay=0.5,
        weight_decay_norm=0.3,
        weight_decay_bias=0.2,
        weight_decay_embed=0.4,
    )
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        "backbone.0.weight": (0.1, 0.5),
        "backbone.0.bias": (0.1, 0.2),
        "backbone.1.weight": (0.1, 0.3),
        "backbone.1.bias": (0.1, 0.3),
        "linear.weight": (1.0, 0.5),
        "linear.bias": (1.0, 0.2),
        "normed_but_linear.weight": (1.0, 0.5),
        "normed_but_linear.bias": (1.0, 0.2),
        "scale.weight": (1.0, 0.3),
        "scale.bias": (1.0, 0.3),
        "attention.in_proj_weight": (1.0, 0.5),
        "attention.in_proj_bias": (1.0, 0.2),
        "attention.out_proj.weight": (1.0, 0.5),
        "attention.out_proj.bias": (1.0, 0.2),
        "queries.weight": (1.0, 0.4),
        "prototypes": (1.0, 0.4),
    }
    assert sum(len(g["params"]) for g in groups) == len(found)
    matrices = {names[id(p)] for g in groups if g["matrix"] for p in g["params"]}
    assert matrices == {
        "backbone.0.weight",
        "linear.weight",
        "normed_but_linear.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    }


def _muon_groups(kernel: nn.Parameter, bias: nn.Parameter) -> list[dict]:
    return [
        {"params": [kernel], "lr": 0.1, "weight_decay": 0.5, "matrix": True},
        {"params": [bias], "lr": 0.01, "weight_decay": 0.0, "matrix": False},
    ]


def test_muon_moves_a_kernel_along_all_its_directions_alike() -> None:
    torch.manual_seed(0)
    kernel, bias = nn.Parameter(torch.zeros(4, 2, 1, 3)), nn.Parameter(torch.zeros(4))
    u, _ = torch.linalg.qr(torch.randn(4, 4))
    v, _ = torch.linalg.qr(torch.randn(6, 6))
    # The gradient's directions differ a thousandfold in size; the step's must not.
    sizes = torch.tensor([1.0, 0.1, 0.01, 0.001])
    kernel.grad = (u * sizes @ v[:, :4].T).reshape(kernel.shape)
    bias.grad = torch.tensor([1.0, -2.0, 3.0, -4.0])
    MuonWithAdamW(_muon_groups(kernel, bias)).step()
    moved = -kernel.detach().reshape(4, 6)
    # Brought to AdamW's scale: 0.2 * sqrt(longer side) times the learning rate. Five Newton-Schulz
    # steps bring singular values near 1, not to it (Muon's published range is about 0.7 to 1.2),
    # and those of a thousandth not quite so far.
    singular = torch.linalg.svdvals(moved) / (0.1 * 0.2 * 6**0.5)
    assert (singular[:3] > 0.6).all() and (singular < 1.3).all() and singular[3] > 0.2
    assert torch.linalg.svdvals(kernel.grad.reshape(4, 6))[3] < 0.002
    alignment = (u.T @ moved @ v[:, :4]).diag()
    assert (alignment > 0).all()
    # AdamW's first step is the learning rate, against the sign.
    torch.testing.assert_close(bias.detach(), torch.tensor([-0.01, 0.01, -0.01, 0.01]))


def test_muon_obeys_schedulers_and_resumes_bit_for_bit() -> None:
    def make(state: dict | None = None) -> tuple[list[nn.Parameter], MuonWithAdamW]:
        torch.manual_seed(1)
        parameters = [nn.Parameter(torch.randn(4, 2, 3, 3)), nn.Parameter(torch.randn(4))]
        optimizer = MuonWithAdamW(_muon_groups(*parameters))
        if state is not None:
            for parameter, value in zip(parameters, state["parameters"], strict=True):
                parameter.data.copy_(value)
            optimizer.load_state_dict(state["optimizer"])
        return parameters, optimizer

    def steps(parameters: list[nn.Parameter], optimizer: MuonWithAdamW, which: range) -> None:
        for index in which:
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (index + 1)
            torch.manual_seed(index)
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape)
            optimizer.step()

    whole, optimizer = make()
    steps(whole, optimizer, range(6))
    first, optimizer = make()
    steps(first, optimizer, range(3))
    state = {"parameters": [p.detach().clone() for p in first], "optimizer": optimizer.state_dict()}
    second, optimizer = make(state)
    steps(second, optimizer, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))

    still, optimizer = make()
    before = [p.detach().clone() for p in still]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for parameter in still:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, still, strict=True))


def test_muon_refuses_vectors_and_the_state_of_another_optimizer() -> None:
    kernel, bias = nn.Parameter(torch.zeros(4, 2)), nn.Parameter(torch.zeros(4))
    with pytest.raises(ValueError, match=r"two or more dimensions; got \[\(4,\)\]"):
        MuonWithAdamW([{"params": [bias], "lr": 0.1, "weight_decay": 0.0, "matrix": True}])
    other = torch.optim.AdamW([kernel, bias]).state_dict()
    with pytest.raises(ValueError, match="ALIGNZEG.SOLVER.OPTIMIZER"):
        MuonWithAdamW(_muon_groups(kernel, bias)).load_state_dict(other)


class Toy(nn.Module):
    """Mean over a batch of numbers of a loss that is not linear in the weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        y = self.net(torch.stack(batch))
        return {"loss_a": (y - 1).square().mean(), "loss_b": F.softplus(y).mean()}


def step(accumulate: int, per_batch: int, **kwargs) -> tuple[StepTrainer, dict[str, float]]:
    images = list(torch.randn(8, 6, generator=torch.Generator().manual_seed(3)))
    batches = [images[i : i + per_batch] for i in range(0, 8, per_batch)]
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = StepTrainer(
        model, batches, optimizer, accumulate=accumulate, images_per_step=8, **kwargs
    )
    trainer.iter = 0
    with EventStorage(0) as storage:
        trainer.run_step()
        return trainer, {k: v for k, (v, _) in storage.latest().items()}


@pytest.mark.parametrize(("accumulate", "per_batch"), [(2, 4), (4, 2), (8, 1)])
def test_accumulation_changes_nothing_but_the_memory(accumulate: int, per_batch: int) -> None:
    whole, metrics = step(1, 8)
    parts, partial = step(accumulate, per_batch)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)
    for key in ("loss_a", "loss_b", "total_loss", "[metric]grad_norm"):
        assert partial[key] == pytest.approx(metrics[key], rel=1e-5)
    assert partial["[metric]images_per_second"] > 0


def test_the_whole_gradient_is_clipped() -> None:
    free, metrics = step(1, 8)
    clipped, same = step(1, 8, clip_norm=0.01)
    norm = metrics["[metric]grad_norm"]
    assert norm > 0.01 and same["[metric]grad_norm"] == pytest.approx(norm)
    for a, b in zip(free.model.parameters(), clipped.model.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad * 0.01 / norm, rtol=1e-4, atol=1e-9)


def test_bfloat16_runs_on_the_cpu_and_float16_does_not_start(
    toy_cfg: CfgNode, caplog: pytest.LogCaptureFixture
) -> None:
    full, exact = step(1, 8)
    low, rough = step(1, 8, amp_dtype=torch.bfloat16)
    assert rough["total_loss"] == pytest.approx(exact["total_loss"], rel=0.02)
    assert rough["total_loss"] != exact["total_loss"]
    assert all(p.dtype == torch.float32 for p in low.model.parameters())
    toy_cfg.SOLVER.AMP.ENABLED = True
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert build_step_trainer(toy_cfg, model, [], optimizer).amp_dtype is None
    assert "float16 needs CUDA" in caplog.text
    toy_cfg.ALIGNZEG.SOLVER.AMP_DTYPE = "bfloat16"
    assert build_step_trainer(toy_cfg, model, [], optimizer).amp_dtype == torch.bfloat16


# ---- a run of the trainer


def test_toy_trains_logs_saves_and_resumes(toy_cfg: CfgNode) -> None:
    toy_cfg.SEED = -1
    toy_cfg.SOLVER.MAX_ITER = 21
    validate(toy_cfg)
    cfg = start_run(toy_cfg, parse_args(["--config-file", str(ALIGNZEG)]))
    assert cfg.SEED >= 0
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    output = Path(cfg.OUTPUT_DIR)
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    metrics = {key: value for line in lines for key, value in line.items()}
    expected = {"loss_pixel", "loss_size", "total_loss", "lr", "eta_seconds", "[metric]grad_norm"}
    assert {*expected, "[metric]images_per_second"} <= metrics.keys()
    assert list(output.glob("events.out.tfevents.*"))
    assert f"SEED: {cfg.SEED}" in (output / "config.yaml").read_text()
    log = (output / "log.txt").read_text()
    assert "total batch 2 = 1 processes x 2 images x 1 accumulated" in log.splitlines()[0]
    assert f"seed {cfg.SEED}" in log.splitlines()[0]

    saved = read_checkpoint(str(output / "model_final.pth"))
    assert saved["alignzeg"]["vlm_id"] == "toy" and saved["alignzeg"]["vlm_hash"] == "0123"
    assert saved["alignzeg"]["seen"] == list(trainer.model.seen.names)
    assert plain(config_from_yaml(saved["alignzeg"]["config"])) == plain(cfg)

    longer = cfg.clone()
    longer.defrost()
    longer.SOLVER.MAX_ITER = 22
    resumed = Trainer(longer)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 21
    torch.testing.assert_close(resumed.model.state_dict(), saved["model"])
    resumed.train()
    assert resumed.iter == 22

    longer.MODEL.WEIGHTS = str(output / "model_final.pth")
    results = evaluate(longer)
    assert 0 <= results["sem_seg"]["mIoU"] <= 100


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(toy_cfg: CfgNode) -> None:
    toy_cfg.TOY.FAIL_AT = 2
    trainer = Trainer(toy_cfg)
    weights = {}

    class Remember(HookBase):
        def after_step(self) -> None:
            weights.update({k: v.clone() for k, v in trainer.model.state_dict().items()})

    trainer.register_hooks([Remember()])
    with pytest.raises(
        NonFiniteError,
        match=r"loss_pixel: not finite, in a batch of .*\.png.*; iteration 1, learning rate",
    ):
        trainer.train()
    torch.testing.assert_close(dict(trainer.model.state_dict()), weights)


def test_a_checkpoint_of_something_else_is_refused(toy_cfg: CfgNode, tmp_path: Path) -> None:
    model = Trainer.build_model(toy_cfg)
    AlignZegCheckpointer(model, str(tmp_path), config=toy_cfg.dump()).save("good")
    good = str(tmp_path / "good.pth")
    checkpointer = AlignZegCheckpointer(model, strict=True)
    checkpointer.load(good)

    seen = model.seen
    for attribute, value, message in (
        ("id", "ViT-B-16", "trained with the VLM 'toy', the config asks for 'ViT-B-16'"),
        ("hash", "4567", "their hash was 0123, here it is 4567"),
    ):
        model.vlm = type("OtherVLM", (type(model.vlm),), {attribute: value})()
        with pytest.raises(ValueError, match=message):
            checkpointer.load(good)
        model.vlm = type(model.vlm).__base__()
    names = ("violet whale", *seen.names[1:])
    model.seen = Vocabulary(names, seen.seen)
    with pytest.raises(
        ValueError, match=rf"only there: \['{seen.names[0]}'\], only here: \['violet whale'\]"
    ):
        checkpointer.load(good)
    model.seen = Vocabulary(seen.names[::-1], seen.seen)
    with pytest.raises(ValueError, match="the order differs"):
        checkpointer.load(good)
    model.seen = seen
    checkpointer.load(good)

    model.conv = nn.Conv2d(3, len(seen) + 1, 1)
    with pytest.raises(ValueError, match=r"do not fit the model .*2 of another shape \(conv"):
        checkpointer.load(good)
    AlignZegCheckpointer(model).load(good)


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch bombed",))


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "alignzeg": Bomb()}, "bomb.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Bomb()))
    checkpointer = AlignZegCheckpointer(Toy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("bomb.pth", "text.pth", "pickle.pth"):
            with pytest.raises(ValueError, match=f"checkpoint '{name}'"):
                checkpointer.load(name)
    assert not (tmp_path / "bombed").exists()
    with pytest.raises(ValueError, match="does not exist"):
        read_checkpoint("gone.pth")


# ---- processes


def test_the_command_line_is_that_of_detectron2() -> None:
    with pytest.raises(ValueError, match="--num-gpus"):
        parse_args(["--num-gpus", "two"])
    args = parse_args(["--eval-only", "ALIGNZEG.CORRECTOR.GAMMA", "-1"])
    assert args.opts == ["ALIGNZEG.CORRECTOR.GAMMA", "-1"] and args.dist_url == "auto"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num-gpus", "0"], "must be 1 or more"),
        (["--num-machines", "2", "--machine-rank", "2"], "it can be 0 to 1"),
        (["--num-machines", "2"], "need --dist-url"),
    ],
)
def test_impossible_machines_are_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        world_size(parse_args(argv))


def test_torchrun_and_slurm_are_recognised() -> None:
    one, many = parse_args([]), parse_args(["--num-gpus", "4"])
    torchrun = {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "h",
        "MASTER_PORT": "1",
    }
    place = find_placement(one, torchrun)
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (5, 8, 1, 4)
    assert find_placement(one, {**torchrun, "WORLD_SIZE": "1"}) is None

    slurm = {
        "SLURM_PROCID": "5",
        "SLURM_NTASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_TASKS_PER_NODE": "4(x2)",
        "SLURM_JOB_NODELIST": "gpu[07-08,11],big3",
        "SLURM_JOB_ID": "1230042",
    }
    place = find_placement(one, slurm)
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (5, 8, 1, 4)
    assert place.url == "tcp://gpu07:20042"
    assert slurm_url({**slurm, "SLURM_JOB_NODELIST": "n1,n2", "MASTER_PORT": "9"}) == "tcp://n1:9"
    assert find_placement(many, slurm) is None
    assert find_placement(one, {}) is None


def test_errors_of_the_user_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ValueError("a\nb")

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert guarded(fail) == 2
    assert capsys.readouterr().err == "error: a b\n"
    assert guarded(interrupt) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert guarded(lambda: None) == 0
    with pytest.raises(ValueError, match="a\nb"):
        guarded(fail, debug=True)
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0, debug=True)
    assert guarded(lambda: 1 / 0) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ZeroDivisionError: division by zero; ") and "--debug" in line
    assert line.count("\n") == 1
    for size in (10**15, 2**62):
        assert guarded(lambda size=size: torch.empty(size)) == 2
        assert "not enough memory; lower" in capsys.readouterr().err


def test_every_config_is_valid(zeroshapes: Path) -> None:
    files = sorted(p for p in (CONFIGS / "zeroshapes").glob("*.yaml"))
    assert len(files) >= 3
    for file in files:
        cfg = setup_config(file)
        if cfg.ALIGNZEG.DATA.PSEUDO.ROOT:
            # Valid but for its pseudo-labels, which test_configs makes first.
            with pytest.raises(
                ValueError, match="holds no pseudo_labels.json.*--dataset zeroshapes_train"
            ):
                validate(cfg)
        else:
            validate(cfg)
