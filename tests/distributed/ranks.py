"""Functions that run in several processes at once, over gloo, and what each of them returns."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

TIME_LIMIT = 900  # seconds, of all that a test file asks for at once, on a machine that is busy


def _rank(rank: int, world: int, folder: str, function: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world
    )
    try:
        result = function()
    except Exception:
        result = traceback.format_exc()
    torch.save(result, f"{folder}/rank{rank}")
    dist.barrier()  # gloo aborts where one process is gone while the other still listens
    dist.destroy_process_group()


def run(world: int, folder: Path, function: Callable[[], Any]) -> list[Any]:
    """The results of all ranks, in their order; fails with the trace of one that raised."""
    os.makedirs(folder, exist_ok=True)
    args = world, str(folder), function
    context = multiprocessing.spawn(_rank, args, nprocs=world, join=False)
    for _ in range(TIME_LIMIT):
        if context.join(timeout=1):
            break
    else:
        for process in context.processes:
            process.kill()
        pytest.fail(f"{world} processes were not done within {TIME_LIMIT} seconds")
    found = [torch.load(folder / f"rank{rank}", weights_only=False) for rank in range(world)]
    for rank, result in enumerate(found):
        if isinstance(result, str):
            pytest.fail(f"rank {rank} of {world}:\n{result}")
    return found


def assert_same(found: list[Any], case: Any, wanted: dict[str, torch.Tensor]) -> None:
    """All ranks have what one process has, up to rounding, and among them the same bits."""
    for rank in found:
        got = rank[case]
        assert not isinstance(got, str), got
        assert got.keys() == wanted.keys()
        for name, x in wanted.items():
            torch.testing.assert_close(got[name], x, rtol=1e-10, atol=1e-10)
            assert torch.equal(got[name], found[0][case][name]), f"{name} differs between ranks"
