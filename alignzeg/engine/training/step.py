"""The training step: several batches, mixed precision, whole-model clipping, and no NaN."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.engine import AMPTrainer
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alignzeg.engine.checkpoints.state import isolated_rng
from alignzeg.engine.failures.crash import Batch, trace_batches
from alignzeg.engine.failures.finite import Watch, names_in
from alignzeg.engine.processes import peer_monitor
from alignzeg.engine.processes.errors import NonFiniteError

logger = logging.getLogger(__name__)

# Normalisation over all processes.
SYNCHRONIZED = (nn.SyncBatchNorm, NaiveSyncBatchNorm)
# Scale of the losses below which float16 cannot be the reason for an infinite gradient.
SMALLEST_SCALE = 1.0


class StepTrainer(AMPTrainer):
    """One optimizer step over several batches, with mixed precision and whole-model clipping.

    Puts into the event storage: every loss term (mean over the step), `total_loss`,
    `[metric]grad_norm` (L2, over all parameters, before clipping), `[metric]images_per_second`
    (of all processes) and, once there are any, `skipped_steps`.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int = 1,
        images_per_step: int = 0,
        clip_norm: float = 0.0,
        amp_dtype: torch.dtype | None = None,
        max_skipped: int = 0,
        write_crash: Callable[[nn.Module, Sequence[Batch], Mapping[str, Any]], str] | None = None,
    ) -> None:
        """Takes what Detectron2's trainers take, and how to make the step.

        Args:
            model: maps a batch to a dict of losses; may be wrapped for several processes.
            data_loader: endless batches.
            optimizer: over the model's parameters.
            accumulate: batches per step; the step's gradient is the mean of theirs.
            images_per_step: over all processes, for the throughput.
            clip_norm: largest L2 norm of the whole gradient; 0 turns clipping off.
            amp_dtype: of autocast, or None for full precision.
            max_skipped: steps of the whole run that may be left out because something in them is
                not finite.
            write_crash: keeps a failed step and returns where.
        """
        device = next(p for p in model.parameters() if p.requires_grad).device
        # Only float16 can underflow; for everything else the scaler does nothing.
        underflows = amp_dtype == torch.float16 and device.type == "cuda"
        scaler = torch.amp.GradScaler(device.type, enabled=underflows)
        super().__init__(model, data_loader, optimizer, grad_scaler=scaler)
        self.accumulate = accumulate
        self.images_per_step = images_per_step
        self.clip_norm = clip_norm
        self.amp_dtype = amp_dtype
        on = amp_dtype is not None
        self._autocast = partial(torch.autocast, device.type, dtype=amp_dtype, enabled=on)
        self.max_skipped = max_skipped
        self.skipped = 0
        self.write_crash = write_crash
        self.watch = Watch(self.inner_model, device)

    @property
    def inner_model(self) -> nn.Module:
        """The model without the wrapper for several processes."""
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    def run_step(self) -> None:
        """Makes one optimizer step, or leaves it out.

        Raises:
            NonFiniteError: if an image, a feature, a matching cost, a loss or the gradient is not
                finite, in every process at once and before the weights change. With float16 the
                scaler skips steps with an infinite gradient instead.
        """
        start = self._start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        statistics = self._statistics()
        losses: dict[str, Tensor] = {}
        batches: list[Batch] = []
        data_time = 0.0
        for index in range(self.accumulate):
            fetch = time.perf_counter()
            batches.append(Batch(next(self._data_loader_iter)))
            data_time += time.perf_counter() - fetch
            terms = self._batch(batches[-1].data, last=index + 1 == self.accumulate)
            if terms is None:
                return self._refuse(batches, statistics, backward=False)
            for key, value in terms.items():
                losses[key] = losses.get(key, 0) + value
        self.grad_scaler.unscale_(self.optimizer)
        norm = self._clip()
        overflow = self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() >= SMALLEST_SCALE
        if not bool(torch.isfinite(norm)) and not overflow:
            return self._refuse(batches, statistics, backward=True)
        self.after_backward()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self._write_metrics(losses, data_time)
        storage = get_event_storage()
        seconds = time.perf_counter() - start
        storage.put_scalar("[metric]grad_norm", norm.item())
        storage.put_scalar("[metric]images_per_second", self.images_per_step / seconds)

    def _batch(self, data: Any, last: bool) -> dict[str, Tensor] | None:
        """Adds a batch's gradient; None if, in any process, something before it is not finite."""
        # Processes exchange gradients once a step, with its last batch.
        several = self.model is not self.inner_model
        quiet = self.model.no_sync() if several and not last else contextlib.nullcontext()
        with quiet:
            try:
                with self.watch.forward(data), self._autocast():
                    losses = {k: v / self.accumulate for k, v in self.model(data).items()}
            except FloatingPointError:
                if self.watch.alone:
                    raise NonFiniteError(
                        f"process {comm.get_rank()}: {self.watch.found}; iteration {self.iter}",
                        agreed=False,
                    ) from None
                return None
            self.grad_scaler.scale(sum(losses.values())).backward()
        return {key: value.detach() for key, value in losses.items()}

    def _clip(self) -> Tensor:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return nn.utils.clip_grad_norm_(parameters, self.clip_norm or float("inf"))

    def _statistics(self) -> list[tuple[Tensor, Tensor]]:
        """Running statistics, which a step that is left out must not change."""
        if self.skipped >= self.max_skipped:
            return []
        return [
            (buffer, buffer.clone())
            for module in self.inner_model.modules()
            if isinstance(module, nn.modules.batchnorm._NormBase)
            for buffer in module.buffers(recurse=False)
        ]

    def _refuse(
        self, batches: list[Batch], statistics: list[tuple[Tensor, Tensor]], *, backward: bool
    ) -> None:
        """Leaves the step out if that is allowed, in all processes alike, or raises."""
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        here = self._trace(batches, backward)
        found = [text for text in comm.all_gather(here) if text]
        culprit = bool(here) or (not found and comm.is_main_process())
        if not found:
            found = ["the gradient, which is finite in every process alone, is not in their sum"]
        message = f"{'; '.join(found)}; iteration {self.iter}, learning rate {lr:g}"
        if self.skipped < self.max_skipped:
            # The samples of the step count as used.
            for _ in range(self.accumulate - len(batches)):
                next(self._data_loader_iter)
            with torch.no_grad():
                for buffer, before in statistics:
                    buffer.copy_(before)
            if backward and self.grad_scaler.is_enabled():
                self.grad_scaler.update()
            self.skipped += 1
            get_event_storage().put_scalar("skipped_steps", self.skipped, smoothing_hint=False)
            logger.warning("step %d of %d left out: %s", self.skipped, self.max_skipped, message)
            return
        path = ""
        if culprit and self.write_crash is not None:
            facts = {
                "reason": message,
                "iteration": self.iter,
                "learning_rate": lr,
                "process": comm.get_rank(),
                "processes": comm.get_world_size(),
                "images": [names_in(batch.data) for batch in batches],
                "backward": backward,
                "amp_dtype": "" if self.amp_dtype is None else str(self.amp_dtype)[6:],
            }
            path = self.write_crash(self.inner_model, batches, facts)
        paths = [path for path in comm.all_gather(path) if path]
        hint = f"; to see it again: alignzeg replay {paths[0]}" if paths else ""
        raise NonFiniteError(f"{message}; the weights are those before this step{hint}")

    def _trace(self, batches: list[Batch], backward: bool) -> str:
        """Names the first tensor of this process that is not finite; empty if there is none."""
        if not (backward or self.watch.found):
            return ""
        who = f"process {comm.get_rank()}: "
        # Synchronized normalisation cannot be computed again without the others.
        modules = self.inner_model.modules()
        if comm.get_world_size() == 1 or not any(isinstance(m, SYNCHRONIZED) for m in modules):
            # Ten times as long as the step has taken so far.
            patience = 10 * (time.perf_counter() - self._start) + peer_monitor.LEAVE_SECONDS
            self.optimizer.zero_grad(set_to_none=True)
            with peer_monitor.limited(patience), isolated_rng():
                text = trace_batches(
                    self.inner_model, batches, backward=backward, autocast=self._autocast
                )
            if text:
                return who + text
        names = names_in(batches[-1].data)
        return "" if backward else f"{who}{self.watch.found}, in a batch of {names}"

    def state_dict(self) -> dict[str, Any]:
        """Adds how many steps were left out."""
        return {**super().state_dict(), "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores optimizer, gradient scaler and the number of steps left out."""
        super().load_state_dict(state_dict)
        self.skipped = state_dict.get("skipped", 0)
