"""One measuring process: `python -m benchmarks.measure JOB`; JOB is JSON, so is each line out.

A process of its own because malloc's settings are read when a process starts.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import gankernels
from benchmarks import bandwidth, contestants, networks, workloads
from benchmarks.contestants import BACKWARD, LAYER, TORCH
from benchmarks.harness import interleaved

Event = dict[str, Any]
PLAIN = "plain"


def network_rows(job: Event) -> Iterator[Event]:
    """All the weights of one network: every contestant, every pass, next to the bandwidth."""
    workload = workloads.load()[job["network"]]
    weights = workloads.random_weights(workload.weights)
    started = time.perf_counter()
    entered, errors, left_out = contestants.line_up(job["kinds"], weights)
    for kind, reason in left_out.items():
        yield {"event": "left out", "network": workload.name, "kind": kind, "reason": reason}
    yield {"event": "checked", "seconds": time.perf_counter() - started}
    probes = bandwidth.probes(workload.numel)
    for which in job["passes"]:
        calls: dict[str, Callable[[], None]] = {c.kind: c.timed(which) for c in entered}
        timings = interleaved({**calls, **probes}, job["budget_s"])
        speed = bandwidth.from_timings(timings, workload.numel)
        backward = which == BACKWARD
        floor = speed.floor_seconds(workload.nbytes, backward)
        moved = bandwidth.floor_bytes(workload.nbytes, backward)
        for kind in (kind for kind in calls if kind in job.get("show", calls)):
            seconds = timings.seconds(kind)
            yield {
                "event": "row",
                "network": workload.name,
                "layers": len(workload.weights),
                "weight_bytes": workload.nbytes,
                "pass": which,
                "kind": kind,
                "seconds": seconds.to_dict(),
                "times_faster_than": {
                    other: timings.ratio(other, kind).to_dict() for other in calls
                },
                "error": errors[kind],
                "dropped": timings.dropped(kind),
                "calm": timings.calm(kind),
                "page_faults": timings.faults(kind),
                "floor_bytes": moved,
                "floor_seconds": floor,
                "bytes_per_second": moved / seconds.median,
                "read_bandwidth": speed.read,
                "copy_bandwidth": speed.copy,
            }


def layer_rows(job: Event) -> Iterator[Event]:
    """Every weight shape by itself: is the drop-in ever slower than torch's?"""
    for shape in workloads.unique_shapes()[:: job.get("every", 1)]:
        weights = workloads.random_weights([shape])
        entered, errors, left_out = contestants.line_up([TORCH, LAYER], weights)
        for kind, reason in left_out.items():
            yield {"event": "left out", "network": str(shape), "kind": kind, "reason": reason}
        if left_out:
            continue
        for which in job["passes"]:
            timings = interleaved({c.kind: c.timed(which) for c in entered}, job["budget_s"])
            yield {
                "event": "layer",
                "shape": shape,
                "weight_bytes": weights[0].nbytes,
                "pass": which,
                "torch_seconds": timings.seconds(TORCH).to_dict(),
                "our_seconds": timings.seconds(LAYER).to_dict(),
                "times_faster": timings.ratio(TORCH, LAYER).to_dict(),
                "error": errors[LAYER],
                "calm": timings.calm(LAYER) and timings.calm(TORCH),
            }


def step_rows(job: Event) -> Iterator[Event]:
    """A whole discriminator step, without spectral norm and with each kind of it."""
    network = networks.NETWORKS[job["network"]]
    batch = network.quick_batch if job["quick"] else network.batch
    generator = torch.Generator().manual_seed(0)
    real, fake = (network.inputs(batch, generator) for _ in range(2))

    def contestant(kind: str) -> Callable[[], float]:
        torch.manual_seed(0)
        model = network.build()
        call = model
        if kind != PLAIN:
            call = contestants.normalize_layers(model, networks.normalizable(model), kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        return lambda: networks.discriminator_step(call, optimizer, real, fake)

    steps: dict[str, Callable[[], float]] = {}
    losses: dict[str, float] = {}
    for kind in job["kinds"]:
        try:
            step = contestant(kind)
            losses[kind] = step()
            # per layer and fused differ from torch only by rounding: one step shows it (D(fake)
            # sees one more iteration per layer either way)
            if kind not in (PLAIN, TORCH) and TORCH in losses:
                off = abs(losses[kind] - losses[TORCH]) / abs(losses[TORCH])
                if not off <= 1e-4:
                    raise contestants.WrongResultError(f"loss is off by {off:.1e} from torch's")
            steps[kind] = step
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            yield {"event": "left out", "network": job["network"], "kind": kind, "reason": reason}
    timings = interleaved({k: _discard(s) for k, s in steps.items()}, job["budget_s"])
    for kind in steps:
        share = timings.ratio(PLAIN, kind)
        yield {
            "event": "step",
            "network": job["network"],
            "title": network.title,
            "batch": batch,
            "full_batch": network.batch,
            "kind": kind,
            "seconds": timings.seconds(kind).to_dict(),
            "share": 1 - share.median,
            "share_q25": 1 - share.q75,
            "share_q75": 1 - share.q25,
            "calm": timings.calm(kind),
        }


def _discard(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        call()

    return run


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def memory_row(job: Event) -> Iterator[Event]:
    """Peak memory of one forward, over the memory of its results W/sigma."""
    kind = job["kind"]
    small = contestants.build(kind, workloads.random_weights([(8, 8)]), [torch.ones(8, 8)])
    small.forward()  # thread pools and lazy imports are not the forward's memory
    workload = workloads.load()[job["network"]]
    entered = contestants.build(kind, workloads.random_weights(workload.weights), [])
    try:
        # Memory that was freed but kept, by us or by malloc, would serve the results and hide them.
        gc.collect()
        gankernels.empty_cache()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _status_bytes("VmRSS")
        outputs = entered.call()
        peak = _status_bytes("VmHWM") - before
    except (OSError, AttributeError, RuntimeError) as error:
        yield {"event": "left out", "network": workload.name, "kind": kind, "reason": str(error)}
        return
    yield {
        "event": "memory",
        "network": workload.name,
        "kind": kind,
        "peak_bytes": peak,
        "result_bytes": sum(output.nbytes for output in outputs),
        "largest_weight_bytes": max(output.nbytes for output in outputs),
    }


WORK: dict[str, Callable[[Event], Iterator[Event]]] = {
    "network": network_rows,
    "layers": layer_rows,
    "step": step_rows,
    "memory": memory_row,
}


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    for event in WORK[job["work"]](job):
        event |= {"allocator": job["allocator"], "threads": job["threads"]}
        print(json.dumps(event), flush=True)


if __name__ == "__main__":
    main()
