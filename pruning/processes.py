"""Several processes at one job: the only module that knows whether there are others.

A launcher (`accelerate launch`, `torchrun`) starts the same command several times. All processes run the
same program on the same files; they differ in three ways only: each takes its `share` of the data, sums
over the data are made `total`, and what is decided or written once is done by the main process (`once`).
In a plain run there is one process: it takes everything, and nothing is sent.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but unlisted

from pruning.errors import ProcessError

_T = TypeVar("_T")
# While one process validates or writes, the others wait; a process that dies is the launcher's business.
_PATIENCE = timedelta(days=1)


def count() -> int:
    """How many processes work together."""
    return distributed.get_world_size() if _joined() else 1


def index() -> int:
    """This process's place among them, from 0."""
    return distributed.get_rank() if _joined() else 0


def is_main() -> bool:
    """Whether this is the process that decides, writes and reports."""
    return index() == 0


def share(items: Sequence[_T]) -> Sequence[_T]:
    """What this process takes of `items`: every n-th, so that neighbours of like size are spread."""
    return items[index() :: count()]


def total(partial: Tensor) -> Tensor:
    """The sum of all processes' tensors of this shape, the same bits in each; on the tensor's device."""
    if count() == 1:
        return partial
    summed = partial.to(_meeting_device(), copy=True)
    distributed.all_reduce(summed)
    return summed.to(partial.device)


def once(work: Callable[[], _T]) -> _T:
    """What `work` gives on the main process; all others wait for it, so what it wrote is there.

    The result is pickled on its way to them. An error ends the main process, and with it the run.
    """
    if count() == 1:
        return work()
    result: list[Any] = [work() if is_main() else None]
    distributed.broadcast_object_list(result, src=0, device=_meeting_device())
    answer: _T = result[0]
    return answer


def wait() -> None:
    """Returns when all processes have come here."""
    if count() > 1:
        distributed.barrier()


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that a launcher started for the time of the block; alone, does nothing.

    Raises:
        ProcessError: another process ended while this one waited for it.
    """
    if not _launched():
        yield
        return
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)
    try:
        yield
    except RuntimeError as error:  # Gloo has no narrower one
        if isinstance(error, distributed.DistError) or "Connection closed by peer" in str(error):
            raise ProcessError(
                "another process of this run has ended (the launcher says which); the same command resumes"
            ) from error
        raise
    wait()
    gc.collect()  # a model still wrapped for the group aborts the process if it outlives it
    state.destroy_process_group()


def first_to_fail() -> bool:
    """Whether no process of this run has failed before; the first one tells, the others end quietly."""
    if not _launched():
        return True
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    return store.add("espalier/failures", 1) == 1


def _launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _meeting_device() -> torch.device:
    """Where tensors are sent from: NCCL sends from GPUs only."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
