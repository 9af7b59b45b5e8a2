"""NaN and infinity: noticed in every step for next to nothing, traced to their origin later."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn

from alignzeg.engine.checkpoints.state import tensors_in
from alignzeg.engine.processes.errors import USER_ERRORS, explain
from alignzeg.peers import alone

# Seconds in which the other processes reach the same point, if this one has something bad to say.
AGREE_SECONDS = 20


def images_in(data: Any) -> Iterator[tuple[int, Tensor]]:
    """The images of a batch as the mapper makes it, with their positions."""
    if isinstance(data, Sequence):
        for index, item in enumerate(data):
            image = item.get("image") if isinstance(item, Mapping) else item
            if isinstance(image, Tensor):
                yield index, image


def names_in(data: Any) -> list[str]:
    """The file name of every image of a batch, "?" where there is none."""
    if not isinstance(data, Sequence):
        return []
    return [str(item.get("file_name", "?")) if isinstance(item, Mapping) else "?" for item in data]


@contextlib.contextmanager
def naming_images(model: nn.Module) -> Iterator[None]:
    """Adds to an error inside which images the model was given last.

    Raises:
        ValueError: for an error of the user.
        RuntimeError: for any other error, after it.
    """
    names: list[str] = []

    def remember(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        names[:] = names_in(arguments[0]) if arguments else []

    with model.register_forward_pre_hook(remember):
        try:
            yield
        except Exception as error:
            if not names or any(name in str(error) for name in names):
                raise
            kind = ValueError if isinstance(error, USER_ERRORS) else RuntimeError
            raise kind(f"{explain(error)}; the last image was {', '.join(names)}") from error


def is_finite(tensor: Tensor) -> Tensor:
    """() bool on the tensor's device, exact, in one pass and without a copy of the tensor."""
    if not tensor.is_floating_point() or not tensor.numel():
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    # The extremes of anything with a NaN in it are NaN.
    low, high = tensor.detach().aminmax()
    return torch.isfinite(low) & torch.isfinite(high)


class Watch:
    """Whether everything in a forward pass was finite, in all processes."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        """Watches the losses and, if the model has a `backbone`, the features.

        The model is not wrapped: the processes agree before a wrapper around it learns that there
        are losses, as it may then begin to exchange gradients.
        """
        self._device = device
        self._true = torch.ones((), dtype=torch.bool, device=device)
        self._watching = False
        self._fine: dict[str, Tensor] = {}
        self._broken = ""
        # A group of its own: what the model exchanges is never taken for an answer.
        self._group = dist.new_group(backend="gloo") if comm.get_world_size() > 1 else None
        # Whether the other processes have not answered.
        self.alone = False
        # What was not finite in this process, in the last forward pass.
        self.found = ""
        backbone = getattr(model, "backbone", None)
        if isinstance(backbone, nn.Module):
            backbone.register_forward_hook(self._see_features)
        model.register_forward_hook(self._see_losses, always_call=True)

    @contextlib.contextmanager
    def forward(self, data: Any) -> Iterator[None]:
        """Watches the forward pass inside; floating-point images of the batch are checked.

        Raises:
            FloatingPointError: in all processes, if something was not finite in one.
        """
        for index, image in images_in(data):
            # Whole numbers, as the mapper makes them, cost nothing here.
            if image.is_floating_point() and not bool(is_finite(image)):
                self._broken = self._broken or f"the input image {names_in(data)[index]}"
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def _see_features(self, _: nn.Module, __: Any, features: Any) -> None:
        if self._watching:
            for key, tensor in tensors_in(features):
                self._add(f"the feature backbone{key}", tensor)

    def _see_losses(self, _: nn.Module, __: Any, losses: Mapping[str, Tensor] | None) -> None:
        if not self._watching:
            return
        error = sys.exc_info()[1] if losses is None else None
        if isinstance(error, FloatingPointError):
            self._broken = self._broken or str(error)
        elif losses is None:
            # Any other error ends all processes; see `peer_monitor`.
            return
        else:
            for key, value in losses.items():
                self._add(key, value)
        if not self._agree() and error is None:
            raise FloatingPointError(self.found or "something is not finite in another process")

    def _add(self, name: str, tensor: Tensor) -> None:
        self._fine[name] = is_finite(tensor).to(self._device) & self._fine.get(name, self._true)

    def _agree(self) -> bool:
        """Whether all was well in every process; to be called by all of them. Starts anew."""
        fine = bool(torch.stack([*self._fine.values(), self._true]).all())
        flag = torch.tensor([int(bool(self._broken) or not fine)])
        bad = [] if fine else [name for name, good in self._fine.items() if not bool(good)]
        self.found = self._broken or (f"{', '.join(bad)}: not finite" if bad else "")
        self._fine, self._broken = {}, ""
        if self._group is not None:
            work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
            # The others may wait for this process somewhere else, if the model itself talks.
            limit = time.monotonic() + AGREE_SECONDS
            while self.found and not work.is_completed():
                if time.monotonic() > limit:
                    self.alone = True
                    return False
                time.sleep(0.01)
            work.wait()
        return not bool(flag)


def trace(
    model: nn.Module,
    data: Any,
    names: Sequence[str],
    *,
    backward: bool,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> str:
    """Computes a batch again and names the first tensor that is not finite; empty if all are.

    A model that exchanges something in a step asks `alignzeg.peers.world_size` with how many.

    The model's weights and gradients stay as they are; the random generators and the running
    statistics of normalisation layers do not.

    `names` are the files of the batch's images; `backward` also looks at the gradients, if
    everything else is finite; `autocast` makes the context of the forward pass.
    """
    for index, image in images_in(data):
        if not bool(is_finite(image)):
            return f"the input image of {names[index : index + 1]} {_kind(image)}"
    probe = _Probe(names)
    with alone(), contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if module is not model:
                look = functools.partial(probe.see, name)
                hooks.enter_context(module.register_forward_hook(look))
        try:
            with autocast():
                losses = model(data)
        except FloatingPointError as error:
            return f"{probe.first}; then {error}" if probe.first else str(error)
        bad = {key: value for key, value in losses.items() if not bool(is_finite(value))}
        if bad:
            terms = ", ".join(f"{key} {_kind(value)}" for key, value in bad.items())
            return f"{probe.first}; then {terms}" if probe.first else f"{terms} for {list(names)}"
        if probe.first or not backward:
            return probe.first
        _look_at_gradients(model, sum(losses.values()), probe)
    return probe.first


def _look_at_gradients(model: nn.Module, loss: Any, probe: _Probe) -> None:
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # Not `backward`, which would set off the exchange between the processes.
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    found = [pair for pair in zip(named, gradients, strict=True) if pair[1] is not None]
    bad = [pair for pair in found if not bool(is_finite(pair[1]))]
    if bad:
        name, gradient = bad[-1]
        more = f", and of {len(bad) - 1} other parameters" if len(bad) > 1 else ""
        probe.note(f"the gradient of {name}", gradient, per_image=False, more=more)


class _Probe:
    """Remembers the first tensor that is not finite, of those that modules return."""

    def __init__(self, names: Sequence[str]) -> None:
        self.first = ""
        self._names = list(names)

    def see(self, name: str, _: nn.Module, __: Any, output: Any) -> None:
        for key, tensor in tensors_in(output):
            what = f"the output of {name}{key}"
            self.note(what, tensor)
            if tensor.requires_grad:
                tensor.register_hook(functools.partial(self.note, f"the gradient of {what}"))

    def note(self, what: str, tensor: Tensor, *, per_image: bool = True, more: str = "") -> None:
        """Keeps it if it is not finite and the first of its kind."""
        if self.first or bool(is_finite(tensor)):
            return
        names = self._names
        if per_image and tensor.ndim and len(tensor) == len(names):
            fine = tensor.detach().isfinite().reshape(len(names), -1).all(1)
            names = [name for name, good in zip(names, fine.tolist(), strict=True) if not good]
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        kind = str(tensor.dtype).removeprefix("torch.")
        self.first = f"{what}{more} {_kind(tensor)} ({shape}, {kind}) for {names}"


def _kind(tensor: Tensor) -> str:
    return "is NaN" if bool(tensor.isnan().any()) else "is infinite"
