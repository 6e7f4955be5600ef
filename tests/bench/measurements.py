"""Made-up measurements: what a full run of the benchmarks finds, with its longest names."""

import itertools
import math

from benchmarks.core.contest import BACKWARD, FORWARD, OURS, PLAIN, shape_name
from benchmarks.core.environment import DEFAULT, TUNED
from benchmarks.core.events import (
    AUGMENTATION,
    GRADIENT_PENALTY,
    SPECTRAL_NORM,
    CompiledStep,
    Figure,
    GradientAccuracy,
    Layer,
    MethodStep,
    Reduction,
    Row,
    TrainingStep,
)
from benchmarks.core.harness import Spread
from benchmarks.suites import augmentation, critics, first_order, networks, workloads
from benchmarks.suites import gradient_penalty as penalties
from benchmarks.suites import spectral_norm as norms


def spread(median, around=0.1, count=40):
    return Spread(median, median * (1 - around), median * (1 + around), count)


def rows_of(suite, network, which, seconds, **more):
    """A row of every contestant; `seconds` by kind."""
    for kind, taken in seconds.items():
        yield Row(
            suite=suite,
            network=network,
            which=which,
            kind=kind,
            seconds=spread(taken),
            times_faster_than={other: spread(t / taken) for other, t in seconds.items()},
            **{
                "nbytes": 1 << 20,
                "allocator": TUNED,
                "threads": 2,
                "error": 1e-7,
                "floor_bytes": 1 << 22,
                "floor_seconds": 1e-4,
                "bytes_per_second": (1 << 22) / taken,
                "copy_bandwidth": 4e10,
                "form": "square().sum of all" if kind == penalties.EAGER else "",
            }
            | more,
        )


def everything():
    """What a full run finds, with its longest names; times grow from case to case."""
    found = []
    for i, workload in enumerate(workloads.load().values()):
        for which, allocator in itertools.product((FORWARD, BACKWARD), (TUNED, DEFAULT)):
            scale = 1e-3 * 1.9**i
            took = dict(zip(norms.LABELS, (4.4, 4.0, 2.2, 2.0, 1.0 + 0.1 * i), strict=True))
            took = {kind: scale * t for kind, t in took.items()}
            size = {"nbytes": workload.nbytes, "allocator": allocator}
            found += rows_of(SPECTRAL_NORM, workload.name, which, took, **size)
    for i, case in enumerate(penalties.cases()):
        took = dict(zip(penalties.LABELS, (3.0, 1.3, 1.1, 1.0), strict=True))
        took = {kind: 1e-4 * 1.4**i * t for kind, t in took.items()}
        shape = shape_name(case.shape)
        found += rows_of(
            GRADIENT_PENALTY, case.name, BACKWARD, took, shape=shape, nbytes=case.nbytes
        )
    for case in (*augmentation.GEOMETRY, augmentation.COLOR):
        for which in augmentation.PASSES:
            took = {kind: 1e-2 * (9 - i) for i, kind in enumerate(augmentation.LABELS)}
            took[OURS] = 4e-3
            found += rows_of(AUGMENTATION, case.name, which, took, nbytes=case.nbytes)
    for shape, which in itertools.product(workloads.unique_shapes(), (FORWARD, BACKWARD)):
        numel = math.prod(shape)
        found.append(
            Layer(
                suite=SPECTRAL_NORM,
                allocator=TUNED,
                threads=2,
                shape=list(shape),
                nbytes=4 * numel,
                which=which,
                torch_seconds=spread(2e-4),
                our_seconds=spread(1e-4),
                times_faster=spread(1.2 + 4 / len(str(numel))),
                error=1e-7,
                calm=True,
            )
        )
    steps = [
        (SPECTRAL_NORM, networks.NETWORKS, (PLAIN, norms.TORCH, norms.LAYER, norms.FUSED)),
        (GRADIENT_PENALTY, critics.CRITICS, critics.STEPS),
    ]
    for suite, of, kinds in steps:
        for name, network in of.items():
            for i, kind in enumerate(kinds):
                found.append(step_of(suite, name, network, kind, 0.0 if i == 0 else 0.3 / i))
    found.append(
        Reduction(
            suite=GRADIENT_PENALTY,
            network="dcgan_64",
            title="DCGAN, 64 pixels",
            batch=8,
            shares={penalties.USUAL: 0.0016, OURS: 0.0009},
        )
    )
    for i, kind in enumerate(first_order.STEPS):
        for compiled in (False, True):
            if not (compiled and kind == first_order.EXACT):
                found.append(
                    MethodStep(
                        suite=GRADIENT_PENALTY,
                        kind=kind,
                        compiled=compiled,
                        seconds=spread(0.5),
                        over_exact=spread(0.4 + 0.3 * i),
                        peak_bytes=10**8,
                        calm=True,
                    )
                )
    for critic, precision, sigma, method in itertools.product(
        first_order.CRITICS,
        (first_order.FLOAT32, first_order.BFLOAT16),
        first_order.SIGMAS,
        (first_order.DIFFERENCE, first_order.NOISE),
    ):
        found.append(
            GradientAccuracy(
                suite=GRADIENT_PENALTY,
                critic=critic,
                precision=precision,
                method=method,
                sigma=sigma,
                error=sigma * len(critic) * (100 if method == first_order.NOISE else 1) / 10,
                cosine=0.9876,
            )
        )
    for name, network in networks.NETWORKS.items():
        found.append(
            CompiledStep(
                suite=GRADIENT_PENALTY,
                network=name,
                title=network.title,
                batch=8,
                full_batch=network.batch,
                eager_seconds=spread(0.3),
                compiled_seconds=spread(0.2),
                times_faster=spread(1.5),
                first_seconds=60.0,
                calm=True,
            )
        )
    found.append(
        Figure(
            suite=AUGMENTATION,
            network="bg at p = 1, 16x3x256x256",
            kind=OURS,
            what="cycles a pixel",
            value=48.0,
        )
    )
    return found


def step_of(suite, name, network, kind, share, calm=True, around=0.1):
    return TrainingStep(
        suite=suite,
        threads=2,
        network=name,
        title=network.title,
        batch=network.quick_batch,
        full_batch=network.batch,
        kind=kind,
        seconds=spread(0.3),
        share=share,
        share_q25=share - around * abs(share) - (around - 0.1),
        share_q75=share + around * abs(share) + (around - 0.1),
        calm=calm,
    )


def report_of(found, **more):
    return {
        "mode": "quick",
        "started": "2020-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "environment": {"cpu": "some cpu", "cores": 2, "torch": "2.0"},
        "events": found,
        **more,
    }
