"""Checkpoints that survive: written beside the last good one, renamed when complete, found again by a restarted run.

The tensors are in the format of `torch.distributed.checkpoint`, under the original model's names, so any mesh, any plan, the
plain model, or torch's own functions read them: `dcp.load({"model": …, "optim": …}, checkpoint_id="runs/a/step-00000100")`.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict as dsd
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.optim import Optimizer

from autopar.errors import CheckpointError
from autopar.ir.plan import Plan
from autopar.runtime.run_state import RunState, random_state, random_state_of, randomness_of, set_random_state

NAME = re.compile(r"step-(\d+)")
RUN_FILE, PLAN_FILE = "run.pt", "plan.json"
logger = logging.getLogger("autopar")


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What a run continues with: `step` as it was saved, and what the user gave as `extra`."""

    step: int
    extra: Any
    path: Path


class Checkpoints:
    """The checkpoints of one run, in a folder that all hosts see. All ranks make the same calls.

    `keep`: how many complete ones stay (None: all). A process that dies while saving leaves the earlier ones as they were.

    >>> # checkpoints = autopar.Checkpoints("runs/a")
    >>> # restored = checkpoints.load(parallel, optimizer)              # None at the first start
    >>> # checkpoints.save(step, parallel, optimizer, wait=False)
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int | None = 2) -> None:
        self.folder, self.keep = Path(folder), keep
        self._pending: Future[None] | None = None
        self._group: dist.ProcessGroup | None = None

    def steps(self) -> list[int]:
        """Of the complete checkpoints, ascending."""
        found = (NAME.fullmatch(path.name) for path in (self.folder.iterdir() if self.folder.is_dir() else ()))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.folder / f"step-{step:08d}"

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        scheduler: Any = None,
        extra: Any = None,
        wait: bool = True,
    ) -> None:
        """Save after `step` steps. With `wait=False` tensors are copied to host memory and training goes on while a thread
        writes; the next `save`, or `wait`, waits for it and raises what went wrong there. Call `wait` at the end.

        `extra` is for the position in the data and the like: numbers, text, tensors, and containers of them.
        """
        self.wait()
        partial, states = self._partial(step), _gather(random_state())
        drawn = randomness_of(model)

        def begin() -> None:
            run = RunState(
                step=step,
                random_states=states,
                scheduler=None if scheduler is None else scheduler.state_dict(),
                model=None if drawn is None else drawn.state_dict(),
                extra=extra,
            ).to_bytes()
            _clear(self.folder)
            partial.mkdir(parents=True)
            (partial / RUN_FILE).write_bytes(run)
            if isinstance(plan := getattr(model, "plan", None), Plan):
                plan.save(partial / PLAN_FILE)

        _on_rank_0(begin)
        tensors = _state_of(model, optimizer)
        with _alone_is_fine():
            if wait or not dist.is_initialized():
                save(tensors, checkpoint_id=partial)
                _on_rank_0(lambda: self._commit(step))
                return
            writing = async_save(tensors, checkpoint_id=partial, process_group=self._own_group())
        assert isinstance(writing, Future)
        pending: Future[None] = Future()
        self._pending = pending
        writing.add_done_callback(lambda done: self._finish(step, done, pending))

    def wait(self) -> None:
        """Until a save that was not waited for is complete on this rank; raises what went wrong in it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            _on_rank_0(pending.result)
            pending.result()

    def load(
        self, model: nn.Module, optimizer: Optimizer | None = None, *, scheduler: Any = None, step: int | None = None
    ) -> Restored | None:
        """Load the latest complete checkpoint, or that of `step`, into the module (parallel or plain) and the optimizer.

        None if there is none. Gradients are dropped; random states are set, where the saved ones say what they must be.
        Raises CheckpointError for a checkpoint that is damaged or of another model.
        """
        self.wait()
        known: list[int] = _from_rank_0(self.steps())
        if step is None and not known:
            return None
        if step is not None and step not in known:
            raise CheckpointError(
                f"no complete checkpoint of step {step} in {self.folder}: there are those of {known or 'none'}"
            )
        path = self.path(known[-1] if step is None else step)
        run = _load(path, model, optimizer)
        if scheduler is not None and run.scheduler is not None:
            scheduler.load_state_dict(run.scheduler)
        mine = random_state_of(_rank(), _world_size(), run.random_states)
        if mine is not None:
            set_random_state(mine)
        elif _rank() == 0:
            logger.warning(
                "%s was saved by %d ranks, each with its own random numbers, and %d go on: they keep the states that they have",
                path, len(run.random_states), _world_size(),
            )  # fmt: skip
        drawn = randomness_of(model)
        if drawn is not None and run.model is not None:
            drawn.load_state_dict(run.model)
        return Restored(step=run.step, extra=run.extra, path=path)

    def _own_group(self) -> dist.ProcessGroup | None:
        """Saving in a thread must not mix its collectives with those of training."""
        if self._group is None and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")
        return self._group

    def _partial(self, step: int) -> Path:
        return self.folder / f".step-{step:08d}.partial"

    def _finish(self, step: int, writing: Future[Any], pending: Future[None]) -> None:
        try:
            writing.result()
            if _rank() == 0:
                self._commit(step)
            pending.set_result(None)
        except BaseException as error:
            pending.set_exception(error)

    def _commit(self, step: int) -> None:
        """On rank 0, once everything is written: give the folder its name, and remove those that are too many."""
        final = self.path(step)
        if final.exists():
            final.rename(self.folder / f".step-{step:08d}.replaced")
        self._partial(step).rename(final)
        _sync(self.folder)
        _clear(self.folder)
        for old in self.steps()[: -self.keep] if self.keep else ():
            shutil.rmtree(self.path(old))


def _state_of(model: nn.Module, optimizer: Optimizer | None) -> dict[str, Any]:
    """Tensors to write. An optimizer that has not run has no state, though torch gives it one to ask for its names."""
    if optimizer is None:
        return {"model": dsd.get_model_state_dict(model)}
    has_run = bool(optimizer.state)
    weights, state = dsd.get_state_dict(model, optimizer)
    if not has_run:
        optimizer.state.clear()
        state["state"] = {}
    return {"model": weights, "optim": state}


def _room_for(model: nn.Module, optimizer: Optimizer | None) -> dict[str, Any]:
    """Tensors to load into. With gradients at hand torch would make no room for the state of a new optimizer."""
    if optimizer is None:
        return {"model": dsd.get_model_state_dict(model)}
    optimizer.zero_grad(set_to_none=True)
    weights, state = dsd.get_state_dict(model, optimizer)
    return {"model": weights, "optim": state}


def _load(path: Path, model: nn.Module, optimizer: Optimizer | None) -> RunState:
    try:
        run = RunState.from_bytes((path / RUN_FILE).read_bytes())
        metadata = FileSystemReader(path).read_metadata()
    except Exception as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}): load an earlier one with step=") from error
    tensors = _room_for(model, optimizer)
    _require_same_model(path, tensors["model"], metadata)
    if optimizer is not None:
        _only_saved(tensors["optim"]["state"], metadata)
        if not any(key.startswith("optim.") for key in metadata.state_dict_metadata):
            raise CheckpointError(f"{path} was saved without an optimizer: load it without one")
    try:
        with _alone_is_fine():
            load(tensors, checkpoint_id=path)
    except (CheckpointException, RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read, load an earlier one with step=: {error}") from error
    if optimizer is None:
        dsd.set_model_state_dict(model, tensors["model"])
    else:
        options = dsd.StateDictOptions(strict=False)
        dsd.set_state_dict(
            model, optimizer, model_state_dict=tensors["model"], optim_state_dict=tensors["optim"], options=options
        )
    return run


def _require_same_model(path: Path, wanted: Mapping[str, Any], metadata: Metadata) -> None:
    """Raise CheckpointError, naming the first difference, unless the saved tensors are those of the model."""
    saved = {k.removeprefix("model."): v for k, v in metadata.state_dict_metadata.items() if k.startswith("model.")}
    for name, tensor in wanted.items():
        if name not in saved:
            raise CheckpointError(f"{path} is of another model: it has no {name}")
        there = saved[name]
        if isinstance(there, TensorStorageMetadata) and there.size != tensor.shape:
            raise CheckpointError(f"{path} is of another model: {name} is {list(there.size)} there, {list(tensor.shape)} here")
    if more := [name for name in saved if name not in wanted]:
        raise CheckpointError(f"{path} is of another model: it has {more[0]}, which this one has not")


def _only_saved(state: dict[str, Any], metadata: Metadata) -> None:
    """Leave out optimizer state that was never saved: a parameter that got no gradient has none."""
    for name in list(state):
        if not any(f"optim.state.{name}.{key}" in metadata.state_dict_metadata for key in state[name]):
            del state[name]


def _clear(folder: Path) -> None:
    """Remove what saves that were cut off have left."""
    for pattern in (".step-*.partial", ".step-*.replaced"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)


def _sync(folder: Path) -> None:
    """Make renames in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _alone_is_fine() -> warnings.catch_warnings[None]:
    """torch warns of a checkpoint in a single process without a process group, which is meant here."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _on_rank_0(do: Callable[[], object]) -> None:
    """Others wait; an error there is raised everywhere."""
    error: Exception | None = None
    if _rank() == 0:
        try:
            do()
        except Exception as raised:
            error = raised
    if (error := _from_rank_0(error)) is not None:
        raise error


def _gather(mine: Any) -> list[Any]:
    """One from each rank, on rank 0."""
    if not dist.is_initialized():
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(mine, everyone if dist.get_rank() == 0 else None)
    return everyone


def _from_rank_0(mine: Any) -> Any:
    if not dist.is_initialized():
        return mine
    box = [mine]
    dist.broadcast_object_list(box, src=0)
    return box[0]
