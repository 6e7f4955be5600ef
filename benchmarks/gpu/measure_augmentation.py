"""Times of augmentation, against the published pipeline in plain PyTorch and torch's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.core.contest import (
    BACKWARD,
    FORWARD,
    OURS,
    Case,
    Traffic,
    line_up,
    reason_of,
    relative_error,
    tolerated,
)
from benchmarks.gpu.exact import Captured
from benchmarks.gpu.measure import (
    AUGMENT_GRAPH,
    GPU_LABELS,
    GRID,
    PUBLISHED,
    PUBLISHED_COMPILED,
    affordable,
    interleaved,
    timed_row,
)
from benchmarks.gpu.plan import Facts, Plan, Say
from benchmarks.suites import augmentation
from benchmarks.suites.augmentation import AugmentCase, AugmentContestant, Pipe, drawn, pipe_of
from gankernels.reference.affine_resample import affine_resample

KINDS = (PUBLISHED, GRID, OURS, PUBLISHED_COMPILED)
PASSES = (FORWARD, BACKWARD)
CASES = (
    AugmentCase("bg", 1.0, 64, 256),
    AugmentCase("bgc", 0.2, 64, 256),
    AugmentCase("bgcfnc", 0.6, 64, 64),
    AugmentCase("bg", 1.0, 16, 1024),
)
TINY = (AugmentCase("bgc", 1.0, 2, 16),)


def _grid(case: AugmentCase, images: Tensor) -> Tensor:
    """torch's own resampling, bilinear: it is not anti-aliased, so it does less."""
    maps = drawn(replace(case, preset="bg"), images).maps
    assert maps is not None
    # The centers of the border pixels lie at -1 and 1, and there it reflects, as we do.
    theta = torch.cat([maps[:, :, :2], maps[:, :, 2:] * (2 / (case.size - 1))], 2)
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, "bilinear", "reflection", align_corners=True)


@dataclass(frozen=True)
class GpuCase(Case[AugmentContestant]):
    """A batch of images, and the pipes that augment it."""

    case: AugmentCase

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def nbytes(self) -> int:
        return self.case.nbytes

    def traffic(self, which: str) -> Traffic:
        return self.case.traffic(which)

    def pipe(self, kind: str) -> Pipe:
        published = pipe_of(augmentation.MULTI_PASS, self.case)
        if kind == OURS:
            return pipe_of(OURS, self.case)
        if kind == GRID:
            return partial(_grid, self.case)
        return torch.compile(published) if kind == PUBLISHED_COMPILED else published

    def builder(self, kinds: Sequence[str]) -> Callable[[str], AugmentContestant]:
        return lambda kind: augmentation.build(kind, self.case, self.pipe(kind))

    def check(self, contestant: AugmentContestant) -> float:
        """Ours and the published pipeline against float64; torch's own against linear sampling."""
        if contestant.kind == GRID:
            return self._check_grid()
        kind = OURS if contestant.kind == OURS else augmentation.MULTI_PASS
        return augmentation.check(kind, self.case)

    def _check_grid(self) -> float:
        case = replace(self.case, preset="bg", batch=2, size=min(self.case.size, 64))
        images = case.images().detach()
        torch.manual_seed(augmentation.SEED)
        found = _grid(case, images)
        torch.manual_seed(augmentation.SEED)
        maps = drawn(case, images).maps
        assert maps is not None
        wanted = affine_resample(images.double(), maps.double(), filter="bilinear")
        return tolerated(relative_error(found, wanted), augmentation.WRONG, GPU_LABELS[GRID])


def benchmark(plan: Plan, say: Say) -> Facts:
    """Every batch: values checked, then (unless dry) timed, parameters drawn in every call."""
    rows: list[Facts] = []
    left_out: list[Facts] = []
    for cpu_case in TINY if plan.dry_run else CASES:
        case = GpuCase(replace(cpu_case, device=plan.device))
        name = case.name
        kinds, missing = affordable(KINDS, plan)
        say(name)
        entered, errors, failed = line_up(case, kinds)
        missing |= failed
        for which in PASSES:
            calls = {contestant.kind: contestant.timed(which) for contestant in entered}
            if not plan.dry_run and OURS in calls:
                try:
                    calls[AUGMENT_GRAPH] = _captured(calls[OURS])
                    errors[AUGMENT_GRAPH] = errors[OURS]
                except Exception as error:
                    missing[AUGMENT_GRAPH] = reason_of(error)
            say(f"{name}, {which}")
            timings = None if plan.dry_run else interleaved(calls)
            for kind in calls:
                row = timed_row(name, which, kind, timings, PUBLISHED)
                rows.append(row | {"error": errors[kind]})
        left_out += [{"network": name, "kind": k, "reason": why} for k, why in missing.items()]
        torch._dynamo.reset()
        plan.keep({"rows": rows, "left_out": left_out})
    return {"rows": rows, "left_out": left_out}


def _captured(call: Callable[[], Any]) -> Callable[[], None]:
    return Captured(lambda: {"images": [call().detach()]}).replay
