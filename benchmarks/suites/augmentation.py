"""Adaptive discriminator augmentation: who is measured, on which images, and the check of each."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.core.contest import (
    BACKWARD,
    BYTES_PER_ELEMENT,
    FORWARD,
    OURS,
    Case,
    Contestant,
    Traffic,
    relative_error,
    shape_name,
    tolerated,
)
from benchmarks.core.harness import Spread, spread
from benchmarks.published import stylegan2_ada
from gankernels import _library, ops, reference
from gankernels.augment import ADAPipe
from gankernels.augment.presets import PRESETS
from gankernels.reference.ada_parameters import NORMALS, UNIFORMS, Parameters
from gankernels.reference.ada_parameters import ada_parameters as reference_ada_parameters
from gankernels.reference.affine_resample import affine_resample as reference_affine_resample

MULTI_PASS, KORNIA, KORNIA_COMPILED = "multi-pass", "kornia", "kornia compiled"
TORCHVISION = "torchvision"
LABELS = {
    MULTI_PASS: "published pipeline",
    # These do not anti-alias: less work than the others'.
    KORNIA: "kornia, bilinear",
    KORNIA_COMPILED: "kornia, bilinear, compiled",
    TORCHVISION: "torchvision, one by one",
    OURS: "gankernels",
}
BILINEAR = (KORNIA, KORNIA_COMPILED, TORCHVISION)  # of geometry at p = 1 only; where installed
R1 = "R1 double backward"
PASSES = (FORWARD, BACKWARD, R1)
CHANNELS = 3
RANGE = 2.0  # of images, from -1 to 1

ACCURACY = 1e-6  # ours must be as close to float64 as that, as a share of the images' range
WRONG = 1e-3
CHECKED_SIZE = 32  # of gradients; what is computed forward is checked at its own size
SEED = 1

Pipe = Callable[[Tensor], Tensor]


@dataclass
class AugmentContestant(Contestant):
    """One way of augmenting `images`, which a critic sees, or of which `given` is a gradient."""

    pipe: Pipe
    images: Tensor
    given: Tensor
    weight: Tensor  # the critic's

    def result(self, which: str) -> Tensor:
        """The images, their gradient, or the gradient of R1's penalty in the critic's weight."""
        if which == FORWARD:
            return self.pipe(self.images)
        if which == BACKWARD:
            return torch.autograd.grad(self.pipe(self.images), self.images, self.given)[0]
        scores = (self.weight * self.pipe(self.images)).tanh().square().sum()
        (gradient,) = torch.autograd.grad(scores, self.images, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), self.weight)[0]

    def passes(self) -> dict[str, Callable[[], object]]:
        return {which: partial(self.result, which) for which in PASSES}


@dataclass(frozen=True)
class AugmentCase(Case[AugmentContestant]):
    """A batch of images, which transforms happen to them, and how often."""

    preset: str
    p: float
    batch: int
    size: int
    device: str = "cpu"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, CHANNELS, self.size, self.size

    @property
    def nbytes(self) -> int:
        return BYTES_PER_ELEMENT * math.prod(self.shape)

    @property
    def name(self) -> str:
        return f"{self.preset} at p = {self.p:g}, {shape_name(self.shape)}"

    def images(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """A leaf: every number between -1 and 1 as likely as any other."""
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(self.shape, generator=generator) * RANGE - 1
        return x.to(self.device, dtype).requires_grad_()

    def builder(self, kinds: Sequence[str]) -> Callable[[str], AugmentContestant]:
        return lambda kind: build(kind, self, pipe_of(kind, self))

    def check(self, contestant: AugmentContestant) -> float:
        return check(contestant.kind, self)

    def traffic(self, which: str) -> Traffic:
        """A read and a write for each pass of a pipe."""
        return Traffic(0, 2 * self.nbytes * (1 + PASSES.index(which)))


PLAIN_FILTERS = [
    (filter, padding_mode)
    for filter in ("bilinear", "nearest")
    for padding_mode in ("zeros", "border", "reflection")
]

GEOMETRY = tuple(AugmentCase("bg", 1.0, 16, size) for size in (64, 256))
COLOR = AugmentCase("bgc", 0.2, 8, 256)


# --- the pipes -----------------------------------------------------------------------------------


def drawn(case: AugmentCase, images: Tensor) -> Parameters:
    """What happens to the images, drawn in plain PyTorch: as gankernels does from the same seed."""
    options: Any = {"dtype": torch.float64, "device": images.device}
    uniforms = torch.rand(len(images), UNIFORMS, **options)
    normals = torch.randn(len(images), NORMALS, **options)
    return reference_ada_parameters(
        torch.full((), case.p, device=images.device),
        PRESETS[case.preset],
        uniforms=uniforms,
        normals=normals,
        height=case.size,
        width=case.size,
        color_channels=CHANNELS,
        dtype=images.dtype,
    )


def _multi_pass(case: AugmentCase, images: Tensor) -> Tensor:
    """One pass for each step, padded by the margins of the batch, as it is commonly composed."""
    found = drawn(case, images)
    assert found.maps is not None
    return stylegan2_ada.augment(images, found.maps, found.color, None, None, None, None)


def _exact(kind: str, case: AugmentCase, images: Tensor) -> Tensor:
    """What a pipe must give, one tap at a time."""
    found = drawn(case, images)
    assert found.maps is not None
    margins = None
    if kind == MULTI_PASS:
        margins = reference.batch_margins(found.maps, case.size, case.size)
    channels = () if found.color is None else range(CHANNELS)
    return reference.affine_augment(
        images, found.maps, margins=margins, color=found.color, color_channels=channels
    )


def _kornia() -> Pipe:
    """Flips and quarter turns are missing, the fractions of the shifts are uniform."""
    module = importlib.import_module("kornia.augmentation")
    pipe: Pipe = module.RandomAffine(
        degrees=180.0,
        translate=(0.125, 0.125),
        scale=(0.75, 1.33, 0.75, 1.33),
        resample="bilinear",
        padding_mode="reflection",
        align_corners=True,
        p=1.0,
    )
    return pipe


def _torchvision() -> Any:
    """As kornia's, with zeros beyond the border, and one scale for both axes."""
    module = importlib.import_module("torchvision.transforms.v2")
    return module.RandomAffine(
        180.0,
        translate=(0.125, 0.125),
        scale=(0.75, 1.33),
        interpolation=module.InterpolationMode.BILINEAR,
        fill=None,  # a number would fade out the border a second time
    )


def _one_by_one(transform: Pipe, images: Tensor) -> Tensor:
    """A call draws one transform, so each image needs one of its own."""
    return torch.stack([transform(image) for image in images])


def pipe_of(kind: str, case: AugmentCase) -> Pipe:
    """What augments a batch; it draws from torch's generator in every call."""
    if kind == OURS:
        return ADAPipe(case.preset, p=case.p).to(case.device)
    if kind == MULTI_PASS:
        return partial(_multi_pass, case)
    if (case.preset, case.p) != ("bg", 1.0):
        raise ValueError("it is entered for geometry at p = 1 only")
    if kind == TORCHVISION:
        return partial(_one_by_one, _torchvision())
    if kind == KORNIA:
        return _kornia()
    torch._dynamo.reset()
    return torch.compile(_kornia())


# --- contestants ---------------------------------------------------------------------------------


def build(
    kind: str, case: AugmentCase, pipe: Pipe, dtype: torch.dtype = torch.float32
) -> AugmentContestant:
    """A contestant whose inputs are the same in every dtype, and for every kind."""
    generator = torch.Generator().manual_seed(2)
    given = torch.randn(case.shape, generator=generator).to(case.device, dtype)
    weight = torch.randn(case.shape[1:], generator=generator)
    weight = weight.to(case.device, dtype).requires_grad_()
    return AugmentContestant(kind, pipe, case.images(dtype), given, weight)


def check(kind: str, case: AugmentCase) -> float:
    """The largest error of the images and of their gradients, against float64, at p = 1.

    It is relative to the largest number wanted. Gradients are of `CHECKED_SIZE` pixels at most.
    """
    if kind in BILINEAR:
        return _check_bilinear(kind, replace(case, batch=1))
    full = replace(case, p=1.0, batch=1)
    small = replace(full, batch=2, size=min(case.size, CHECKED_SIZE))
    errors = [_error(kind, full, FORWARD), *(_error(kind, small, which) for which in PASSES)]
    return tolerated(max(errors), WRONG, LABELS[kind])


def _error(kind: str, case: AugmentCase, which: str) -> float:
    exact = build(kind, case, partial(_exact, kind, case), torch.float64)
    actual = build(kind, case, pipe_of(kind, case))
    torch.manual_seed(SEED)
    wanted = exact.result(which).detach()
    torch.manual_seed(SEED)
    return relative_error(actual.result(which).detach(), wanted)


def _check_bilinear(kind: str, case: AugmentCase) -> float:
    """They draw other maps: those they say they drew, interpolated linearly in float64."""
    exact, padding_mode = case.images(torch.float64), "reflection"
    if kind == TORCHVISION:
        transform = _torchvision()
        torch.manual_seed(SEED)
        said = transform.make_params([case.images()[0]])
        torch.manual_seed(SEED)
        found = _one_by_one(transform, case.images()).detach()
        turn = math.radians(said["angle"])
        sine, cosine = math.sin(turn) / said["scale"], math.cos(turn) / said["scale"]
        linear = torch.tensor([[cosine, sine], [-sine, cosine]], dtype=torch.float64)
        shift = torch.tensor(said["translate"], dtype=torch.float64)
        maps = torch.cat([linear, -(linear @ shift)[:, None]], 1)[None]
        padding_mode = "zeros"
    else:
        pipe: Any = pipe_of(kind, case)
        found = pipe(case.images()).detach()
        forward = pipe.transform_matrix.double()
        last = torch.eye(3, dtype=torch.float64)
        last[:2, 2] = (case.size - 1) / 2  # centered pixels to those counted from a corner
        maps = (last.inverse() @ forward.inverse() @ last)[:, :2]
    wanted = reference_affine_resample(exact, maps, filter="bilinear", padding_mode=padding_mode)
    return tolerated(relative_error(found, wanted), WRONG, LABELS[kind])


# --- what is not a ratio -------------------------------------------------------------------------


def saved_floats(kind: str, case: AugmentCase) -> float:
    """How many float32 a sample keeps for the backward, the images themselves not counted."""
    contestant = build(kind, case, pipe_of(kind, case))
    known = {contestant.images.untyped_storage().data_ptr()}
    total = 0

    def keep(x: Tensor) -> Tensor:
        nonlocal total
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            total += storage.nbytes()
        return x

    # What is packed stays alive until the end, so that no storage is taken for another.
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = contestant.pipe(contestant.images)
    assert result.requires_grad
    return total / BYTES_PER_ELEMENT / case.batch


def processor_seconds(case: AugmentCase, budget_s: float) -> Spread:
    """Seconds that the calling thread computes for a pixel of all channels, one batch forward."""
    pixels = case.batch * case.size**2
    pipe, images = pipe_of(OURS, case), case.images().detach()
    pipe(images)
    deadline = time.perf_counter() + budget_s
    found: list[float] = []
    while time.perf_counter() < deadline or len(found) < 5:
        start = time.thread_time()
        pipe(images)
        found.append((time.thread_time() - start) / pixels)
    return spread(found)


def over_grid_sample(
    filter: str, padding_mode: str, case: AugmentCase, which: str, budget_s: float
) -> Spread:
    """The time of a plain filter over that of `affine_grid` and `grid_sample`, turn by turn."""
    images, given = case.images(), torch.ones(case.shape)
    torch.manual_seed(SEED)
    maps = drawn(case, images).maps
    assert maps is not None
    # Centered pixels to theta's, from -1 to 1: of square images the translation alone changes.
    theta = maps.float()
    theta[:, :, 2] *= 2 / (case.size - 1)

    options: Any = {"filter": filter, "padding_mode": padding_mode}

    def ours(x: Tensor) -> Tensor:
        return ops.affine_resample(x, maps, **options)

    def theirs(x: Tensor) -> Tensor:
        grid = F.affine_grid(theta, list(x.shape), align_corners=True)
        return F.grid_sample(x, grid, filter, padding_mode, align_corners=True)

    if filter == "bilinear":  # nearest pixels hang on roundings of the grid
        error = relative_error(ours(images).detach(), theirs(images).detach())
        tolerated(error, WRONG, f"{filter}, {padding_mode}")

    def seconds(resample: Pipe) -> float:
        start = time.perf_counter()
        result = resample(images if which == BACKWARD else images.detach())
        if which == BACKWARD:
            torch.autograd.grad(result, images, given)
        return time.perf_counter() - start

    seconds(ours), seconds(theirs)
    return _turns(lambda: seconds(ours), lambda: seconds(theirs), budget_s)


def transpose_over_forward(case: AugmentCase, budget_s: float) -> Spread:
    """The time of the transpose of geometry over that of its forward pass."""
    images = case.images().detach()
    torch.manual_seed(SEED)
    maps = drawn(case, images).maps
    assert maps is not None
    forward = partial(ops.affine_resample, images, maps)
    transpose = partial(ops.affine_resample_transpose, images, maps)
    forward(), transpose()
    return _turns(partial(_seconds, transpose), partial(_seconds, forward), budget_s)


def operators(case: AugmentCase) -> dict[str, Callable[[], object]]:
    """The operators whose kernels have loops of their own for an instruction set, on `case`."""
    images = case.images().detach()
    torch.manual_seed(SEED)
    maps = drawn(case, images).maps
    assert maps is not None
    gains = torch.rand(case.batch, 4, generator=torch.Generator().manual_seed(SEED))
    resample = partial(ops.affine_resample, images, maps)
    weight, u, v = torch.randn(512, 4608), torch.randn(512), torch.randn(4608)
    return {
        "affine_resample": resample,
        "affine_resample_transpose": partial(ops.affine_resample_transpose, images, maps),
        "affine_resample, bilinear": partial(resample, filter="bilinear"),
        "affine_resample, nearest": partial(resample, filter="nearest"),
        "image_filter": partial(ops.image_filter, images, gains),
        "gradient_penalty": partial(ops.gradient_penalty, images),
        "spectral_norm": partial(ops.spectral_norm, [weight], [u], [v]),
    }


def wider_over_narrower(operator: Callable[[], object], budget_s: float) -> Spread | None:
    """The time with AVX-512 over that with AVX2, where the processor has both."""
    kernels: Any = _library._C
    if not {"avx2", "avx512"} <= set(kernels.isas()):
        return None

    def seconds(isa: str) -> float:
        kernels.set_isa(isa)
        operator()
        return _seconds(operator)

    try:
        return _turns(partial(seconds, "avx512"), partial(seconds, "avx2"), budget_s)
    finally:
        kernels.set_isa("")


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _turns(one: Callable[[], float], other: Callable[[], float], budget_s: float) -> Spread:
    """The ratios of seconds that were measured one behind the other."""
    deadline = time.perf_counter() + budget_s
    found: list[float] = []
    while time.perf_counter() < deadline or len(found) < 5:
        found.append(one() / other())
    return spread(found)


def accuracy(size: int, batch: int) -> float:
    """The largest error of geometry at p = 1 in float32, as a share of the images' range.

    Against the multi-pass pipeline in float64, sample by sample with margins that suffice.
    """
    case = AugmentCase("bg", 1.0, batch, size)
    images = case.images().detach()
    torch.manual_seed(SEED)
    maps = drawn(case, images).maps
    assert maps is not None
    margins = stylegan2_ada.required_margins(maps, size, size)
    found = ops.affine_resample(images, maps).double()
    worst = 0.0
    for i in range(batch):
        exact = stylegan2_ada.geometry(images[i : i + 1].double(), maps[i : i + 1], margins[i])
        worst = max(worst, float((found[i] - exact[0]).abs().max()))
    return worst / RANGE
