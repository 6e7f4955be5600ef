"""Nsight Compute on seven passes: what each kernel waits for, as a process and what it says."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.core.contest import FORWARD
from benchmarks.gpu import measure
from benchmarks.gpu.plan import NO_TIME, Facts, Plan, Say, SkipStepError, StepError
from benchmarks.gpu.tools import find_tool, run, tail
from benchmarks.suites import augmentation, workloads
from benchmarks.suites.augmentation import AugmentCase
from gankernels import ops

NETWORK = "stylegan2_256"
IMAGES, TINY_IMAGES = (64, 3, 256, 256), (2, 3, 8, 8)
GRADIENTS, TINY_GRADIENTS = (64, 3, 256, 256), (2, 3, 8, 8)
LEAST_SECONDS = 15.0
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "MemoryWorkloadAnalysis_Tables",
            "InstructionStats", "LaunchStats", "Occupancy", "WarpStateStats")  # fmt: skip
#: What the table shows, by what ncu calls it; a version that does not know one leaves it empty.
FIGURES = {
    "us": ("gpu__time_duration.sum", 1e-3),
    "memory %": ("gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed", 1),
    "DRAM %": ("gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed", 1),
    "SM %": ("sm__throughput.avg.pct_of_peak_sustained_elapsed", 1),
    "warps %": ("sm__warps_active.avg.pct_of_peak_sustained_active", 1),
    "registers": ("launch__registers_per_thread", 1),
    "instructions (M)": ("smsp__inst_executed.sum", 1e-6),
    "bank conflicts (M)": ("l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum", 1e-6),
}
PLACES = ("opt/nvidia/nsight-compute/*", "usr/local/cuda*/bin", "usr/local/NVIDIA-Nsight-Compute*")
CURE = "ncu was not found: install Nsight Compute and put it on the PATH"


def passes(device: str, tiny: bool = False) -> dict[str, Callable[[], Any]]:
    """The seven, by name, ready to be called."""
    workload = measure.TINY if tiny else workloads.load()[NETWORK]
    norm = measure.fused_calls(*measure.tensors(workload.weights, device))
    gradient = torch.randn(TINY_GRADIENTS if tiny else GRADIENTS, device=device)
    penalty = measure.penalty_calls([gradient])
    images = torch.randn(TINY_IMAGES if tiny else IMAGES, device=device)
    torch.manual_seed(0)
    drawn = augmentation.drawn(AugmentCase("bgcf", 1.0, len(images), images.shape[-1]), images)
    maps, gains = drawn.maps, drawn.gains
    assert maps is not None
    assert gains is not None
    return {
        "spectral norm, forward": norm[FORWARD],
        "spectral norm, backward": norm["backward"],
        "penalty, forward": penalty[FORWARD],
        "penalty, backward": penalty["backward"],
        "resampling, forward": lambda: ops.affine_resample(images, maps),
        "resampling, backward": lambda: ops.affine_resample_transpose(images, maps),
        "image filter, forward": lambda: ops.image_filter(images, gains),
    }


def run_pass(name: str, device: str) -> None:
    """A pass between the marks that ncu is told to look at, when it is warm."""
    call = passes(device, tiny=device == "cpu")[name]
    call()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def command(ncu: str, name: str) -> list[str]:
    sections = [word for section in SECTIONS for word in ("--section", section)]
    options = ["--profile-from-start", "off", "--target-processes", "application-only"]
    options += ["--clock-control", "none", "--csv", "--page", "raw", "--print-units", "base"]
    inner = [sys.executable, "-m", "benchmarks.gpu.check", "--profiled", name]
    return [ncu, *options, *sections, *inner]


def parse(output: str) -> list[Facts]:
    """A row for each kernel of ncu's table."""
    lines = output.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        return []
    rows = []
    for found in csv.DictReader(line for line in lines[first:] if line.startswith('"')):
        if not found["ID"]:  # the units
            continue
        row: Facts = {"kernel": found["Kernel Name"].split("<")[0].split("(")[0]}
        for label, (metric, factor) in FIGURES.items():
            try:
                row[label] = float((found.get(metric) or "").replace(",", "")) * factor
            except ValueError:
                row[label] = None
        rows.append(row)
    return rows


def run_all(plan: Plan, say: Say) -> Facts:
    """Every pass under ncu, in shares of the time."""
    ncu = find_tool("ncu", *PLACES)
    if ncu is None:
        raise SkipStepError(CURE)
    facts: Facts = {"ncu": ncu, "rows": [], "no time for": []}
    wrong = []
    names = list(passes("cpu", tiny=True))
    for i, name in enumerate(names):
        seconds = plan.left() / (len(names) - i)
        if seconds < LEAST_SECONDS:
            facts["no time for"].append(name)
            continue
        say(name)
        status, output = run(command(ncu, name), seconds)
        if "ERR_NVGPUCTRPERM" in output:
            raise SkipStepError("ncu may not read the counters of this GPU: run it as root")
        found = parse(output)
        if status != 0 or not found:
            wrong.append(f"{name}: ncu ended with status {status}")
            facts["output"] = tail(output)
        facts["rows"] += [{"pass": name, **row} for row in found]
        plan.keep(facts)
    if wrong:
        raise StepError("; ".join(wrong), facts)
    if facts["no time for"]:
        raise StepError(f"{NO_TIME} for {', '.join(facts['no time for'])}", facts)
    return facts


def rehearse() -> Facts:
    """What would run, and every pass once on the CPU."""
    names = list(passes("cpu", tiny=True))
    for name in names:
        run_pass(name, "cpu")
    return {"ncu": find_tool("ncu", *PLACES) or CURE, "planned": names}
