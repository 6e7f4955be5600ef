"""Golden vectors: small inputs, and what gankernels computes of them in float64, for others.

``python tests/conformance/golden.py --write`` writes docs/golden.json from here; test_golden.py
computes all of it again, by the kernels, by the reference and without torch. A case is code that
leaves ``value``, a tensor or a dict of them, ``value`` among them; its names are the inputs of the
case as tensors, ``options``, and those of :func:`names_of`. Random numbers that gankernels draws
are inputs, too: ``drawn`` says in which order.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import gankernels
from gankernels import augment, losses, nn, ops, penalties, regularizers
from gankernels.ops.ada_parameters import VALUES

FILE = Path(__file__).resolve().parents[2] / "docs" / "golden.json"

#: Of all cases but those that keep something in float32.
TOLERANCE = 1e-12

READ_ME = [
    "Inputs and results of gankernels' losses, penalties, regularizers and augmentations, in",
    "float64, to check another implementation with. No random numbers are needed: those that a",
    "function draws are among the inputs. Written by tests/conformance/golden.py --write.",
    "A case has: 'name'; 'computes', the formula, and in brackets the 'notes' that belong to it;",
    "'paper'; 'call', how gankernels is called, for information; 'inputs', arrays as nested lists,",
    "of integers where the numbers are whole; and where there are any 'options', other settings;",
    "'drawn', the inputs that gankernels draws by itself; 'expected', the results; 'gradients', by",
    "these inputs, of expected.value, or of sum(cotangent * expected.value) where the inputs have",
    "a cotangent. E is the mean over all elements or samples. Images are (batch, channel, row,",
    "column). Names are those of the formulas; 'options' has other numbers in them.",
    "A result is right if it differs from all expected numbers by at most 'tolerance', that of the",
    "case where it has one, times the largest magnitude among those of the case, or 1 of zeros.",
]

NOTES = {
    "critic": "D(x) = a . tanh(W x + b) + c . x^2 for a flat sample x, x^2 elementwise. Where a "
    "is (4, 2) and c (3, 2) there are two such scores. Its gradient by x is g(x) = W^T (a * (1 - "
    "tanh(W x + b)^2)) + 2 c * x; of two scores that of their sum. Gradients by W, b, a and c go "
    "through g: second derivatives.",
    "generator": "G(z) = tanh(V z + e) for a flattened latent z.",
    "difference": "The value is that of the norms n = ||g(x)|| themselves. In the gradient n has "
    "the derivative of q, where d = g(x) / n and h = sigma sqrt(number of elements of a sample), "
    "or of a group, are held constant.",
    "logits": "s is the sigmoid; log s(x) = -log(1 + exp(-x)), computed without overflow.",
    "map": "A map (2, 3) takes centered output pixels to centered input pixels, (x, y, 1) -> (x', "
    "y'): x to the right, y down, in pixels, 0 in the middle of the image, so that column i of w "
    "is at i - (w - 1) / 2. Points are sampled from the input there.",
    "reflection": "Outside of an image pixels are reflected at the centers of border pixels, "
    "without end: -1 is 1, and n is n - 2.",
    "sym6": "With the taps h[0..11] of constants.symlet and along either axis: node n lies at "
    "half pixels, n / 2 pixels from pixel 0, U[n] = 2 sum_p h[n + 5 - 2 p] X[p] over pixels p of "
    "the reflected image. A lattice has twice as many points as the output has pixels: point m, "
    "from -5 on, is m / 2 output pixels from output pixel 0; its value P[m] is bilinear between "
    "the nodes of U around its place under the map. Output pixel k is sum_m h[m] P[2 k - 5 + m].",
    "blits": "With lossless_blits, where every output pixel lies on an input pixel and axes go to "
    "axes, pixels are copied, in place of sym6.",
    "stylegan2-ada": "The image is first padded by the batch's margins (left, right, top, bottom) "
    "by reflection. Nodes of the padded image, 2 a pixel, are U above with zeros beyond the "
    "padded image; outside of its 2 (w + left + right) by 2 (h + top + bottom) nodes there are "
    "zeros. The margins are, of the input's pixels that the image's corners (+-(w - 1) / 2, +-(h "
    "- 1) / 2) go to, ceil(clip(max over batch and corners of -x + 6 - (w - 1) / 2, 0, w - 1)), "
    "and so for x, -y and y.",
    "geometry": "The map of a transform is the product A B C ... of the 3 x 3 matrices of the "
    "columns, in this order, first two rows: xflip S(1 - 2 xflip, 1); rotate90 R(rotate90 pi / 2); "
    "xint T(-round(xint_x w), -round(xint_y h)), halves to even; scale S(1 / scale, 1 / scale); "
    "R(rotate_before); aniso S(1 / aniso, aniso); R(rotate_after); T(-xfrac_x w, -xfrac_y h). "
    "S(x, y) is diagonal, R(t) = [[cos, -sin], [sin, cos]], T(x, y) shifts. yflip, before all, is "
    "xflip <- |xflip - yflip| and rotate90 <- (rotate90 + 2 yflip) mod 4.",
    "color": "Of the pixel (r, g, b, 1): brightness adds; contrast multiplies; lumaflip I - 2 v "
    "v^T with v = (1, 1, 1, 0) / sqrt 3; hue turns by its angle about v, right-handed; saturation "
    "v v^T + (I - v v^T) saturation; applied in this order. Of one channel: the mean over rows, "
    "summed over columns, of the first three steps.",
    "bands": "A filter of 43 taps, symmetric, along x and along y, with reflection: taps k[0..21] "
    "= sum_i gain_i constants.bands[i]. The gains of a transform: from 1, for each band i with "
    "t = 1 but t_i = the column band_i: gains *= t / sqrt(sum(power t^2)), power = (10, 1, 1, 1) / "
    "13. An image whose gains are all 1 stays.",
    "noise": "Image plus its standard deviation times N(0, 1). expected.noise is what "
    "Philox4x32-10 gives for the seed, computed in float32: take it as given.",
    "cutout": "Zero where |(column + 0.5) / w - x| < size / 2 and |(row + 0.5) / h - y| < "
    "size / 2.",
    "transform": "In the order of geometry, color, bands, noise, cutout. What is not named is the "
    "identity.",
    "diff": "Of a sample's seven uniforms (b, s, c, tx, ty, cx, cy), in the policy's order. "
    "color: x += b - 0.5; x = m + 2 s (x - m), m the mean of a pixel's channels; x = M + (c + "
    "0.5) (x - M), M the mean of the image. translation: with reach r = int(side translation + "
    "0.5) the image moves so that output pixel i is input pixel i + floor(t (2 r + 1)) - r, zeros "
    "outside. cutout: l = int(side cutout + 0.5), zeros from pixel floor(u (side + 1 - l mod 2)) "
    "- floor(l / 2) on, l of them.",
}

#: Of the public names, those without a case, and why.
EXEMPT = {
    "losses.Loss": "The base class of losses of one's own: it computes nothing.",
    "penalties.check_independent_samples": "It says yes or no, and warns.",
    "augment.LABELS": "The names of the columns of Transform.labels.",
    "Transform.__getitem__": "It chooses transforms of a batch.",
    "Transform.__len__": "The number of transforms.",
    "Transform.from_state_dict": "Saved parameters.",
    "Transform.state_dict": "Saved parameters.",
    "Transform.to": "Another device.",
}
#: What else the file does not have.
OMITTED = {
    "ADAPipe.sample, ADAPipe.preview": "They are ops.ada_parameters and Transform.",
    "draws.draw_compat": "Its point is torch's generator, which others do not have.",
    "several processes": "Averages over processes need several; those of one are here.",
    "inv_scale": "Of mixed precision: the results are the same.",
    "nn but GradientNormalizer": "Its modules are the functions of penalties.",
    "spectral norms of models": "They are ops.spectral_norm, for each layer.",
    "fuse_weight_norm": "It is ops.weight_norm, for each layer.",
    "dtypes but float64": "Their results are these, rounded.",
    "NaN, infinities": "JSON has none.",
}


@dataclass(frozen=True)
class Case:
    name: str
    computes: str
    paper: str
    call: str
    inputs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    by: tuple[str, ...] = ()
    drawn: tuple[tuple[str, str], ...] = ()  # of torch's functions, and the inputs for them
    tolerance: float = TOLERANCE


CASES: list[Case] = []


def case(name: str, computes: str, paper: str, call: str, **rest: Any) -> None:
    """Add a case. ``call`` may be an expression, for value."""
    options = {k: rest.pop(k) for k in tuple(rest) if k in ("by", "drawn", "tolerance", "options")}
    if "value" not in call:
        call = f"value = {call}"
    CASES.append(Case(name, computes, paper, call, rest, **options))


# --- inputs --------------------------------------------------------------------------------------


def numbers(seed: int, *shape: int, low: float = -1.0, high: float = 1.0, digits: int = 2) -> Any:
    """Short decimals, nested as a tensor of this shape."""
    source = random.Random(seed)

    def nested(sizes: tuple[int, ...]) -> Any:
        if not sizes:
            return round(low + (high - low) * source.random(), digits)
        return [nested(sizes[1:]) for _ in range(sizes[0])]

    return nested(shape)


def normals(seed: int, *shape: int) -> Any:
    """Likewise, of about the size of normal numbers."""
    return numbers(seed, *shape, low=-2.0, high=2.0)


def tensor_of(x: Any, device: Any = None) -> Tensor:
    whole = all(isinstance(n, int) for n in flattened(x))
    return torch.tensor(x, dtype=torch.int64 if whole else torch.float64, device=device)


def flattened(x: Any) -> list[Any]:
    """All numbers of nested lists and dicts."""
    if isinstance(x, dict):
        x = list(x.values())
    return [n for y in x for n in flattened(y)] if isinstance(x, list) else [x]


# --- running -------------------------------------------------------------------------------------


def critic(W: Tensor, b: Tensor, a: Tensor, c: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.tanh(x @ W.T + b) @ a + x.square() @ c


def generator(V: Tensor, e: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: torch.tanh(z.flatten(1) @ V.T + e)


def given(*views: Tensor) -> Callable[[Tensor], Tensor]:
    """An augmentation with these results."""
    left = iter(views)
    return lambda x: next(left)


#: The columns of a transform that are 1 where nothing is done.
FACTORS = ("scale", "aniso", "contrast", "saturation", "band_0", "band_1", "band_2", "band_3")


def transform(
    *,
    seed: Tensor | None = None,
    mode: str = "ideal",
    lossless_blits: bool = True,
    color_channels: list[int] | None = None,
    **columns: Tensor,
) -> augment.Transform:
    """The transform with these columns, of the identity otherwise."""
    first = next(iter(columns.values()))
    rows = [columns.get(name, torch.full_like(first, name in FACTORS)) for name in VALUES]
    if "yflip" in columns:
        rows.append(columns["yflip"])
    groups = {"band": "imgfilter"}
    named = {name.split("_")[0] for name in columns}
    return augment.Transform.from_state_dict(
        {
            "values": torch.stack(rows, 1).double(),
            "seed": torch.zeros_like(first, dtype=torch.int64) if seed is None else seed,
            "multipliers": {groups.get(name, name): 1.0 for name in named},
            "mode": mode,
            "lossless_blits": lossless_blits,
            "color_channels": color_channels,
        }
    )


def composed(t: augment.Transform, images: Tensor, channels: int = 0) -> dict[str, Tensor]:
    """What a transform is composed to, for images of this size."""
    found = ops.ada_parameters(
        None,
        t.settings.multipliers,
        values=t.values,
        seed=t.seed,
        height=images.shape[2],
        width=images.shape[3],
        color_channels=channels,
        dtype=images.dtype,
        margins=t.settings.mode != "ideal",
    )
    wanted = ("maps", "color", "gains", "margins")
    return {k: x for k, x in found._asdict().items() if k in wanted and x is not None}


def names_of(case: Case, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """What the code of a case sees."""
    names = {
        "torch": torch, "gk": gankernels, "losses": losses, "penalties": penalties,
        "regularizers": regularizers, "ops": ops, "augment": augment, "nn": nn,
        "given": given, "transform": transform, "composed": composed, "options": case.options,
    }  # fmt: skip
    if "W" in inputs:
        names["D"] = critic(*(inputs[k] for k in ("W", "b", "a", "c")))
    if "V" in inputs:
        names["G"] = generator(inputs["V"], inputs["e"])
    return {**names, **inputs}


@contextlib.contextmanager
def drawing(case: Case, inputs: dict[str, Tensor]) -> Iterator[None]:
    """Let torch draw the inputs of a case that are ``drawn``."""
    left = list(case.drawn)

    def take(kind: str, shape: Any) -> Tensor:
        assert left, f"{case.name}: expected no more random numbers, got torch.{kind}"
        of, name = left.pop(0)
        found = inputs[name].detach().clone()
        assert (of, tuple(found.shape)) == (kind, tuple(shape)), f"{case.name}: {kind}, {shape}"
        return found

    def drawer(kind: str) -> Callable[..., Tensor]:
        def draw(*size: Any, dtype: Any = None, **_: Any) -> Tensor:
            shape = size if not size or isinstance(size[0], int) else size[0]
            return take(kind, shape).to(torch.get_default_dtype() if dtype is None else dtype)

        return draw

    def fill(x: Tensor, low: float, high: float, generator: Any = None) -> Tensor:
        return x.copy_(take("uniform_", x.shape))

    with contextlib.ExitStack() as stack:
        for kind in ("rand", "randn"):
            stack.enter_context(mock.patch.object(torch, kind, drawer(kind)))
        if any(kind == "uniform_" for kind, _ in left):
            stack.enter_context(mock.patch.object(Tensor, "uniform_", fill))
        yield
    assert not left, f"{case.name}: expected {left} to be drawn"


def compute(case: Case, device: Any = None) -> dict[str, Any]:
    """The results of a case, and their gradients, as nested lists."""
    inputs = {k: tensor_of(x, device) for k, x in case.inputs.items()}
    for name in case.by:
        inputs[name].requires_grad_()
    names = names_of(case, inputs)
    with drawing(case, inputs):
        exec(case.call, names)
    value = names["value"]
    results = value if isinstance(value, dict) else {"value": value}
    found = {"expected": {k: listed(x) for k, x in results.items()}}
    if case.by:
        total = results["value"]
        if "cotangent" in inputs:
            total = (total * inputs["cotangent"]).sum()
        grads = torch.autograd.grad(total, [inputs[name] for name in case.by])
        found["gradients"] = {k: listed(g) for k, g in zip(case.by, grads, strict=True)}
    return found


def listed(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return [listed(y) for y in x]
    return x.detach().tolist() if isinstance(x, Tensor) else x


#: What the calls of these names in code of a case go through.
_OF_TRANSFORMS = {"t": "Transform.__call__", "transform": "augment.Transform"}


def mentioned(call: str) -> set[str]:
    """The names that code of a case goes through: ``losses.hinge`` and ``losses.hinge.real``; of
    ``t``, which is a transform, Transform.__call__ and its other methods."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(call)):
        if isinstance(node, ast.Attribute):
            chain, at = [node.attr], node.value
            while isinstance(at, ast.Attribute):
                chain.insert(0, at.attr)
                at = at.value
            if isinstance(at, ast.Name):
                found.add(".".join(["Transform" if at.id == "t" else at.id, *chain]))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found |= {x for name, x in _OF_TRANSFORMS.items() if name == node.func.id}
    return found


# --- losses --------------------------------------------------------------------------------------

REAL, FAKE = [1.5, -0.3, 0.2, 2.75], [-1.75, 0.6, -0.4]
_GOODFELLOW = "Goodfellow et al. 2014, arXiv 1406.2661"
#: Of each loss with sides: the paper, the terms of real and of fake logits, the generator's.
SIDED = {
    "minimax": (_GOODFELLOW, "-E log s(real)", "-E log(1 - s(fake))", "E log(1 - s(fake))"),
    "non_saturating": (_GOODFELLOW, "-E log s(real)", "-E log(1 - s(fake))", "-E log s(fake)"),
    "least_squares": (
        "Mao et al. 2017, arXiv 1611.04076",
        *("E (real - 1)^2", "E fake^2", "E (fake - 1)^2"),
    ),
    "hinge": (
        "Lim and Ye 2017, arXiv 1705.02894",
        *("E max(0, 1 - real)", "E max(0, 1 + fake)", "-E fake"),
    ),
    "wasserstein": (
        "Arjovsky et al. 2017, arXiv 1701.07875",
        *("-E real", "E fake", "-E fake"),
    ),
}
BOTH = ("real_logits", "fake_logits")
for loss, (paper, of_real, of_fake, wanted) in SIDED.items():
    case(
        f"losses.{loss}.discriminator",
        f"{of_real} + {of_fake}  [logits]",
        paper,
        f"losses.{loss}.discriminator(real_logits, fake_logits)",
        real_logits=REAL,
        fake_logits=FAKE,
        by=BOTH,
    )
    for side, formula, logits in (
        ("real", of_real, {"real_logits": REAL}),
        ("fake", of_fake, {"fake_logits": FAKE}),
        ("generator", wanted, {"fake_logits": FAKE}),
    ):
        case(
            f"losses.{loss}.{side}",
            f"{formula}  [logits]",
            paper,
            f"losses.{loss}.{side}({next(iter(logits))})",
            **logits,
            by=tuple(logits),
        )

PAIRED = [-1.75, 0.6, -0.4, 0.9]
COMPARING = {
    "relativistic": (
        "Jolicoeur-Martineau 2018, arXiv 1807.00734; Huang et al. 2025, arXiv 2501.05441",
        "-E log s(real_i - fake_i)",
        "-E log s(fake_i - real_i)",
    ),
    "relativistic_average": (
        "Jolicoeur-Martineau 2018, arXiv 1807.00734; Wang et al. 2018, arXiv 1809.00219",
        "-E log s(real - E fake) - E log(1 - s(fake - E real))",
        "-E log s(fake - E real) - E log(1 - s(real - E fake))",
    ),
}
for loss, (paper, of_critic, of_generator) in COMPARING.items():
    fakes = PAIRED if loss == "relativistic" else FAKE
    for side, formula, order in (
        ("discriminator", of_critic, "real_logits, fake_logits"),
        ("generator", of_generator, "fake_logits, real_logits"),
    ):
        case(
            f"losses.{loss}.{side}",
            f"{formula}  [logits]",
            paper,
            f"losses.{loss}.{side}({order})",
            real_logits=REAL,
            fake_logits=fakes,
            by=BOTH,
        )
for loss in ("non_saturating", "minimax", "relativistic"):
    far = {"real_logits": [40.0, -40.0, 800.0, -800.0], "fake_logits": [-35.0, 35.0, 790.0, 25.0]}
    for side, order in (
        ("discriminator", "real_logits, fake_logits"),
        ("generator", "fake_logits, real_logits"),
    ):
        if side == "discriminator" or loss == "minimax":
            case(
                f"losses.{loss}.{side}: far logits",
                "as without, exact where exp overflows  [logits]",
                SIDED[loss][0] if loss in SIDED else COMPARING[loss][0],
                f"losses.{loss}.{side}({order})",
                **far,
                by=BOTH if side == "discriminator" else ("fake_logits",),
            )

_SMOOTHING = "Salimans et al. 2016, arXiv 1606.03498"
for loss in ("minimax", "non_saturating", "least_squares"):
    formula = (
        "E (real - real_label)^2 + E (fake - fake_label)^2"
        if loss == "least_squares"
        else "E of -label log s(x) - (1 - label) log(1 - s(x)) of real and of fake logits, added"
    )
    case(
        f"losses.{loss}.discriminator: labels",
        f"{formula}  [logits]",
        _SMOOTHING,
        f"losses.{loss}.discriminator(real_logits, fake_logits, **options)",
        real_logits=REAL,
        fake_logits=FAKE,
        options={"real_label": 0.9, "fake_label": 0.1},
        by=BOTH,
    )
    case(
        f"losses.{loss}.discriminator: labels drawn",
        f"{formula}, with a label for each logit  [logits]",
        _SMOOTHING,
        f"losses.{loss}.discriminator(real_logits, fake_logits, **options)",
        real_logits=REAL,
        fake_logits=FAKE,
        real_label_of_each=[0.75, 1.125, 0.95, 1.19],
        fake_label_of_each=[0.05, 0.3, 0.2],
        options={"real_label": (0.7, 1.2), "fake_label": (0.0, 0.3)},
        by=BOTH,
        drawn=(("uniform_", "real_label_of_each"), ("uniform_", "fake_label_of_each")),
    )
case(
    "losses.non_saturating.real: label",
    "E of -real_label log s(x) - (1 - real_label) log(1 - s(x))  [logits]",
    _SMOOTHING,
    "losses.non_saturating.real(real_logits, **options)",
    real_logits=REAL,
    options={"real_label": 0.9},
    by=("real_logits",),
)
_AMP = "Peng et al. 2021, arXiv 2104.02180"
case(
    "losses.least_squares.discriminator: to 1 and -1",
    "weight (E (real - 1)^2 + E (fake + 1)^2)",
    _AMP,
    "losses.least_squares.discriminator(real_logits, fake_logits, **options)",
    real_logits=REAL,
    fake_logits=FAKE,
    options={"fake_label": -1.0, "weight": 0.5},
    by=BOTH,
)
case(
    "losses.least_squares.fake: to -1",
    "E (fake + 1)^2",
    _AMP,
    "losses.least_squares.fake(fake_logits, **options)",
    fake_logits=FAKE,
    options={"fake_label": -1.0},
    by=("fake_logits",),
)
case(
    "losses.least_squares.generator: to 0",
    "E (fake - label)^2",
    "Mao et al. 2017, arXiv 1611.04076, equation 8",
    "losses.least_squares.generator(fake_logits, **options)",
    fake_logits=FAKE,
    options={"label": 0.0},
    by=("fake_logits",),
)

_SCALES = {
    "real_0": [1.5, -0.3, 0.2],
    "real_1": numbers(1, 3, 2, 2, low=-2, high=2),
    "fake_0": [-1.75, 0.6, -0.4],
    "fake_1": numbers(2, 3, 2, 2, low=-2, high=2),
}
for how, text in (("sum", "sum"), ("mean", "mean")):
    for loss in ("hinge", "relativistic_average"):
        case(
            f"losses.{loss}.discriminator: two scales, {text}",
            f"weight times the {text} over the two scales 0 and 1 of the loss of each, with means "
            "over all patches of a scale  [logits]",
            "Park et al. 2019, arXiv 1903.07291" if how == "mean" else "as without",
            f"losses.{loss}.discriminator([real_0, real_1], [fake_0, fake_1], **options)",
            **_SCALES,
            options={"scales": how, "weight": 0.5},
            by=tuple(_SCALES),
        )
case(
    "losses.non_saturating.generator: two scales, mean",
    "weight times the mean over the two scales of -E log s(fake)  [logits]",
    _GOODFELLOW,
    "losses.non_saturating.generator([fake_0, fake_1], **options)",
    fake_0=_SCALES["fake_0"],
    fake_1=_SCALES["fake_1"],
    options={"scales": "mean", "weight": 0.25},
    by=("fake_0", "fake_1"),
)

_FEATURES = {
    **{f"real_{i}": numbers(10 + i, 2, 2 + i) for i in range(3)},
    **{f"fake_{i}": numbers(20 + i, 2, 2 + i) for i in range(3)},
}
for options, formula, paper in (
    ({}, "2 sum_l E |fake_l - real_l|", "Kong et al. 2020, arXiv 2010.05646, equation 4"),
    (
        {"layers": "mean", "weight": 100.0},
        "weight / 3 sum_l E |fake_l - real_l|",
        "Zeghidour et al. 2021, arXiv 2107.03312",
    ),
    ({"norm": "l2", "weight": 0.5}, "weight sum_l E (fake_l - real_l)^2", "as without"),
):
    case(
        "losses.feature_matching" + "".join(f", {k}={x}" for k, x in options.items()),
        f"{formula}, over all three layers, E over all elements of a layer; two critics, one of "
        "two layers and one of one",
        paper,
        "losses.feature_matching([[real_0, real_1], [real_2]], [[fake_0, fake_1], [fake_2]], "
        "**options)",
        **_FEATURES,
        options=options,
        by=("fake_0", "fake_1", "fake_2"),
    )

_TOP_K = "Sinha et al. 2020, arXiv 2002.06224"
case(
    "losses.top_k: a number",
    "the k largest, the largest first",
    _TOP_K,
    "losses.top_k(fake_logits, **options)",
    fake_logits=[-1.75, 0.6, -0.4, 1.25, 0.1],
    cotangent=[0.5, -2.0, 1.5],
    options={"k": 3},
    by=("fake_logits",),
)
case(
    "losses.top_k: a part of patch maps",
    "floor(k B) samples, those of the largest mean over their patches, the largest first",
    _TOP_K,
    "losses.top_k(fake_logits, **options)",
    fake_logits=numbers(3, 5, 1, 2),
    cotangent=numbers(4, 2, 1, 2),
    options={"k": 0.5},
    by=("fake_logits",),
)
case(
    "losses.top_k: in a loss",
    "-E of the floor(k B) largest",
    _TOP_K,
    "losses.hinge.generator(losses.top_k(fake_logits, **options))",
    fake_logits=[-1.75, 0.6, -0.4, 1.25, 0.1],
    options={"k": 0.75},
    by=("fake_logits",),
)
for text, options, scale in (
    ("", {}, 1.0),
    (", at the maximum", {"weight": 0.5, "maximum": 3.0}, 0.01),
    (", no gradient of the adversarial loss", {"weight": 1.0, "eps": 0.25}, 0.0),
):
    case(
        f"losses.adaptive_weight{text}",
        "weight min(maximum, ||p|| / (||q|| + eps)), p the gradient by w of nll = sum((w - t)^2), "
        "q that of g_loss = sum(g w); defaults weight 0.8, maximum 1e4, eps 1e-4",
        "Esser et al. 2021, arXiv 2012.09841, equation 7",
        "w.requires_grad_()\n"
        "value = losses.adaptive_weight((w - t).square().sum(), (g * w).sum(), w, **options)",
        w=numbers(5, 2, 3),
        t=numbers(6, 2, 3),
        g=[[round(scale * x, 4) for x in row] for row in numbers(7, 2, 3)],
        options=options,
    )


# --- penalties -----------------------------------------------------------------------------------

CRITIC = {
    "W": numbers(30, 4, 3),
    "b": numbers(31, 4),
    "a": numbers(32, 4),
    "c": numbers(33, 3),
}
TWO_SCORES = {**CRITIC, "a": numbers(34, 4, 2), "c": numbers(35, 3, 2)}
OF_CRITIC = tuple(CRITIC)
SAMPLES = {"real": numbers(36, 4, 3, low=-2, high=2), "fake": numbers(37, 4, 3, low=-2, high=2)}
REALS, FAKES = {"real": SAMPLES["real"]}, {"fake": SAMPLES["fake"]}
EPS = [0.25, 0.9, 0.4, 0.65]
_MESCHEDER = "Mescheder et al. 2018, arXiv 1801.04406"
_FINLAY = "Finlay and Oberman 2019, arXiv 1905.11468"
_LIN = "Lin et al. 2025, arXiv 2501.08316"


def penalty(name: str, computes: str, paper: str, call: str, **rest: Any) -> None:
    """A case of the critic."""
    rest = {**CRITIC, **rest}
    rest["by"] = (*OF_CRITIC, *rest.get("by", ()))
    case(f"penalties.{name}", computes, paper, call, **rest)


penalty(
    "r1_penalty",
    "gamma / 2 E ||g(real)||^2  [critic]",
    f"{_MESCHEDER}, equation 9",
    "penalties.r1_penalty(D(real), real, **options)",
    **REALS,
    by=("real",),
    options={"gamma": 10.0},
)
penalty(
    "r1_penalty: center",
    "gamma / 2 E (||g(real)|| - center)^2  [critic]",
    _MESCHEDER,
    "penalties.r1_penalty(D(real), real, **options)",
    **REALS,
    by=("real",),
    options={"gamma": 2.0, "center": 1.0},
)
penalty(
    "r1_penalty: two scores",
    "gamma / 2 E ||g(real)||^2, g of the sum of both scores  [critic]",
    _MESCHEDER,
    "penalties.r1_penalty(D, real, **options)",
    **{**REALS, **TWO_SCORES},
    options={"gamma": 1.0},
)
penalty(
    "r1_penalty: some samples, with weights",
    "raw = E sample_weight ||g(x)||^2 over the first 2 samples, value = gamma / 2 raw  [critic]",
    _MESCHEDER,
    "value, raw = penalties.r1_penalty(D, real, sample_weight=sample_weight, **options)\n"
    'value = {"value": value, "raw": raw}',
    **REALS,
    sample_weight=[0.5, 2.0],
    by=("sample_weight",),
    options={"gamma": 3.0, "first": 2, "return_raw": True},
)
penalty(
    "r1_penalty: of each sample",
    "gamma / 2 ||g(x)||^2 of each sample  [critic]",
    _MESCHEDER,
    "penalties.r1_penalty(D, real, **options)",
    **REALS,
    cotangent=[1.0, -0.5, 0.25, 2.0],
    options={"gamma": 3.0, "reduction": "none"},
)
penalty(
    "r1_penalty: groups",
    "gamma / 2 E over pairs of rows of (the norm over both rows' g - center)^2; a score is the sum "
    "of D over a pair  [critic]",
    "Xu et al. 2019, arXiv 1907.00503",
    "penalties.r1_penalty(lambda x: D(x).view(-1, 2).sum(1), real, **options)",
    **REALS,
    options={"gamma": 3.0, "center": 0.5, "groups": 2},
)
penalty(
    "r1_penalty: groups by index",
    "gamma / 2 E over scores k of (the norm over the g of all rows with index k - center)^2; score "
    "k is the sum of D over these rows  [critic]",
    "as without",
    "scores = lambda x: x.new_zeros(2).index_add(0, index, D(x))\n"
    "value = penalties.r1_penalty(scores, real, groups=index, **options)",
    **REALS,
    index=[0, 1, 0, 0],
    options={"gamma": 3.0, "center": 0.5},
)
penalty(
    "r1_penalty: by differences",
    "gamma / 2 E (n - center)^2, q = (D(x + h d) - D(x - h d)) / (2 h)  [critic, difference]",
    _FINLAY,
    "penalties.r1_penalty(D, real, **options)",
    **REALS,
    options={"gamma": 2.0, "center": 0.5, "method": "difference", "sigma": 0.05},
)
penalty(
    "r1_penalty: by differences of given logits",
    "gamma / 2 E n^2, q = (D(x + h d) - D(x)) / h  [critic, difference]",
    _FINLAY,
    "x = real.detach().requires_grad_()\nvalue = penalties.r1_penalty(D(x), x, D=D, **options)",
    **REALS,
    options={"gamma": 2.0, "method": "difference", "sigma": 0.05},
)
penalty(
    "r1_penalty: by noise",
    "gamma / 2 E [q^2 - 2 center sqrt(pi / 2) |q| + center^2], q = (D(x + sigma noise) - D(x)) / "
    "sigma  [critic]",
    _LIN,
    "penalties.r1_penalty(D, real, **options)",
    **REALS,
    noise=normals(38, 4, 3),
    drawn=(("randn", "noise"),),
    options={"gamma": 2.0, "center": 0.5, "method": "noise", "sigma": 0.05},
)
penalty(
    "r2_penalty",
    "gamma / 2 E ||g(fake)||^2  [critic]",
    f"{_MESCHEDER}, equation 10",
    "penalties.r2_penalty(D(fake), fake, **options)",
    **FAKES,
    by=("fake",),
    options={"gamma": 10.0},
)
penalty(
    "roth_penalty",
    "gamma / 2 (E (1 - s(D(real)))^2 ||g(real)||^2 + E s(D(fake))^2 ||g(fake)||^2)  [critic]",
    "Roth et al. 2017, arXiv 1705.09367",
    "penalties.roth_penalty(D(real), D(fake), real, fake, **options)",
    **SAMPLES,
    by=("real", "fake"),
    options={"gamma": 2.0},
)
penalty(
    "r1_r2_penalty",
    "gamma / 2 (E ||g(real)||^2 + E ||g(fake)||^2)  [critic]",
    "Huang et al. 2025, arXiv 2501.05441",
    "penalties.r1_r2_penalty(D, real, fake, **options)",
    **SAMPLES,
    options={"gamma": 3.0},
)
penalty(
    "r1_r2_penalty: fewer fake samples",
    "gamma / 2 (E ||g(real)||^2 + E ||g(fake)||^2)  [critic]",
    "Huang et al. 2025, arXiv 2501.05441",
    "penalties.r1_r2_penalty(D, real, fake, **options)",
    real=SAMPLES["real"],
    fake=SAMPLES["fake"][:2],
    options={"gamma": 3.0},
)
penalty(
    "r1_r2_penalty: by differences",
    "gamma / 2 (E n^2 of real + E n^2 of fake), q = (D(x + h d) - D(x - h d)) / (2 h)  [critic, "
    "difference]",
    _FINLAY,
    "penalties.r1_r2_penalty(D, real, fake, **options)",
    **SAMPLES,
    options={"gamma": 3.0, "method": "difference", "sigma": 0.02},
)
for name, formula, paper, options in (
    (
        "wgan_gp_penalty",
        "weight E (||g(x)|| - 1)^2",
        "Gulrajani et al. 2017, arXiv 1704.00028, equation 3",
        {"weight": 10.0},
    ),
    (
        "wgan_gp_penalty: center",
        "weight E (||g(x)|| - center)^2",
        "Gulrajani et al. 2017, arXiv 1704.00028, equation 3",
        {"weight": 10.0, "center": 0.5},
    ),
    (
        "wgan_lp_penalty",
        "weight E max(0, ||g(x)|| - center)^2",
        "Petzka et al. 2018, arXiv 1709.08894",
        {"weight": 10.0, "center": 2.0},
    ),
    ("zero_centered_penalty", "weight E ||g(x)||^2", _MESCHEDER, {"weight": 10.0}),
    (
        "max_gradient_penalty",
        "weight (max over samples of ||g(x)||)^2",
        "Zhou et al. 2019, arXiv 1902.05687",
        {"weight": 10.0},
    ),
    (
        "wgan_gp_penalty: by differences",
        "weight E (n - 1)^2, q = (D(x + h d) - D(x - h d)) / (2 h) [difference]",
        _FINLAY,
        {"weight": 10.0, "method": "difference", "sigma": 0.05},
    ),
):
    penalty(
        name,
        f"{formula} at x = eps real + (1 - eps) fake  [critic]",
        paper,
        f"penalties.{name.partition(':')[0]}(D, real, fake, **options)",
        **SAMPLES,
        eps=EPS,
        drawn=(("rand", "eps"),),
        options=options,
    )
penalty(
    "wgan_gp_penalty: groups",
    "weight E over pairs of rows of (the norm over both rows' g - 1)^2 at x = eps real + (1 - eps) "
    "fake, one eps a pair; a score is the sum of D over a pair  [critic]",
    "Xu et al. 2019, arXiv 1907.00503",
    "penalties.wgan_gp_penalty(lambda x: D(x).view(-1, 2).sum(1), real, fake, **options)",
    **SAMPLES,
    eps=EPS[:2],
    drawn=(("rand", "eps"),),
    options={"weight": 10.0, "groups": 2},
)
penalty(
    "dragan_penalty",
    "weight E (||g(x)|| - k)^2 at x = real + 0.5 std noise, std the standard deviation of all "
    "elements of real, with n - 1; noise is uniform  [critic]",
    "Kodali et al. 2017, arXiv 1705.07215",
    "penalties.dragan_penalty(D, real, **options)",
    **REALS,
    noise=numbers(39, 4, 3, low=0),
    drawn=(("rand", "noise"),),
    options={"weight": 10.0, "k": 1.0},
)
penalty(
    "dragan_penalty: gaussian",
    "weight E (||g(x)|| - k)^2 at x = real + sqrt(scale) noise  [critic]",
    "Kodali et al. 2017, arXiv 1705.07215",
    "penalties.dragan_penalty(D, real, **options)",
    **REALS,
    noise=normals(40, 4, 3),
    drawn=(("randn", "noise"),),
    options={"weight": 10.0, "k": 1.0, "noise": "gaussian", "scale": 0.5},
)
for name, options, formula in (
    ("approx_r1_penalty", {"sigma": 0.05}, "100 E (D(x + sigma noise) - D(x))^2"),
    (
        "approx_r1_penalty: gamma",
        {"sigma": 0.05, "gamma": 2.0},
        "gamma / (2 sigma^2) E (D(x + sigma noise) - D(x))^2",
    ),
    (
        "approx_r2_penalty",
        {"sigma": 0.1, "weight": 20.0},
        "weight E (D(x + sigma noise) - D(x))^2",
    ),
):
    penalty(
        name,
        f"{formula}  [critic]",
        _LIN,
        f"penalties.{name.partition(':')[0]}(D, x, **options)",
        x=SAMPLES["fake" if "r2" in name else "real"],
        noise=normals(41, 4, 3),
        drawn=(("randn", "noise"),),
        options=options,
    )
for how in ("sum", "mean"):
    penalty(
        f"approx_r1_penalty: two scores, {how}",
        "weight E over samples of "
        f"{'the square of the sum' if how == 'sum' else 'the mean of the squares'} over both "
        "scores of D(x + sigma noise) - D(x)  [critic]",
        _LIN,
        "penalties.approx_r1_penalty(D, x, **options)",
        **TWO_SCORES,
        x=SAMPLES["real"],
        noise=normals(41, 4, 3),
        drawn=(("randn", "noise"),),
        options={"sigma": 0.1, "weight": 20.0, "heads": how},
    )
case(
    "penalties.approx_r1_penalty: of two logits",
    "weight E (noisy - clean)^2",
    _LIN,
    "penalties.approx_r1_penalty(clean, noisy, **options)",
    clean=REAL,
    noisy=[1.4, -0.35, 0.4, 2.5],
    by=("clean", "noisy"),
    options={"sigma": 0.1, "weight": 100.0},
)
case(
    "penalties.approx_r2_penalty: of two logits, gamma",
    "gamma / (2 sigma^2) E (noisy - clean)^2",
    _LIN,
    "penalties.approx_r2_penalty(clean, noisy, **options)",
    clean=REAL,
    noisy=[1.4, -0.35, 0.4, 2.5],
    by=("clean", "noisy"),
    options={"sigma": 0.1, "gamma": 4.0},
)
case(
    "penalties.consensus_penalty",
    "gamma / 2 (||p||^2 + ||q||^2), p the gradient by theta of theta^T M psi + sum(theta^4) / 4, q "
    "that by psi of -theta^T M psi + sum(psi^3)",
    "Mescheder et al. 2017, arXiv 1705.10461",
    "game = theta @ M @ psi\n"
    "both = game + theta.pow(4).sum() / 4, -game + psi.pow(3).sum()\n"
    "value = penalties.consensus_penalty(both, ([theta], [psi]), **options)",
    theta=[0.5, -1.25],
    psi=[0.75, 0.2, -0.6],
    M=numbers(42, 2, 3),
    by=("theta", "psi"),
    options={"gamma": 3.0},
)
for options, formula in (
    ({"weight": 0.01}, "weight sum over both weights of ||A A^T * (1 - I)||_F^2"),
    ({"weight": 0.01, "diagonal": True}, "weight sum over both weights of ||A A^T - I||_F^2"),
):
    case(
        f"penalties.orthogonal_regularization{': diagonal' if 'diagonal' in options else ''}",
        f"{formula}, A of the first dimension times all others",
        "Brock et al. 2019, arXiv 1809.11096, equations 3 and 2",
        "penalties.orthogonal_regularization([first, second], **options)",
        first=numbers(43, 3, 4),
        second=numbers(44, 2, 2, 1, 2),
        by=("first", "second"),
        options=options,
    )
VECTORS = {"weight": numbers(45, 3, 4), "u": [0.6, 0.0, 0.8], "v": [0.5, 0.5, -0.5, 0.5]}
_YOSHIDA = "Yoshida and Miyato 2017, arXiv 1705.10941"
case(
    "penalties.spectral_norm_regularization",
    "n times u <- A v / ||A v||, v <- A^T u / ||A^T u||; then lambda / 2 (u^T A v)^2, u and v "
    "constant; lambda is options.weight, n options.n_power_iterations",
    _YOSHIDA,
    "left, right = u.clone(), v.clone()\n"
    "value = penalties.spectral_norm_regularization([weight], [left], [right], **options)\n"
    'value = {"value": value, "u": left, "v": right}',
    **VECTORS,
    by=("weight",),
    options={"weight": 0.5, "n_power_iterations": 2},
)

GRADS = {"grads": [*numbers(46, 3, 2, 2), [[0.0, 0.0], [0.0, 0.0]]]}
_GULRAJANI = "Gulrajani et al. 2017, arXiv 1704.00028, equation 3"
case(
    "ops.gradient_penalty",
    "weight E (n_i - center)^2 of the norms n_i of each row; where a norm is 0 its gradient is 0",
    _GULRAJANI,
    "value, norms = ops.gradient_penalty(grads, **options)\n"
    'value = {"value": value, "norms": norms}',
    **GRADS,
    by=("grads",),
    options={"center": 1.0, "weight": 10.0, "return_norms": True},
)
case(
    "ops.gradient_penalty: one-sided, weights, two inputs",
    "weight sum_i sample_weight_i max(0, n_i - center)^2, n_i over both grads and others",
    "Petzka et al. 2018, arXiv 1709.08894",
    "ops.gradient_penalty([grads, others], sample_weight=sample_weight, **options)",
    **GRADS,
    others=numbers(47, 4, 3),
    sample_weight=[0.5, 1.0, 2.0, 0.25],
    by=("grads", "others", "sample_weight"),
    options={"center": 0.5, "weight": 2.0, "one_sided": True, "reduction": "sum"},
)
case(
    "ops.gradient_penalty: of each input",
    "weight E (n_i - center)^2, for grads and for others by themselves",
    _GULRAJANI,
    "ops.gradient_penalty([grads, others], **options)",
    **GRADS,
    others=numbers(47, 4, 3),
    cotangent=[1.5, -0.5],
    by=("grads", "others"),
    options={"center": 0.5, "weight": 2.0, "per_tensor": True},
)
for text, options, how in (
    ("", {}, "[critic]"),
    (
        ": by differences",
        {"method": "difference", "sigma": 0.05},
        "n^2 in place of ||g||^2, q = (D(x + h d) - D(x)) / h  [critic, difference]",
    ),
):
    case(
        f"critic_step{text}",
        "-E log s(D(real) - D(fake)) + r1 / 2 E ||g(real)||^2 + r2 / 2 E ||g(fake)||^2  "
        f"{how}  [logits]",
        "Huang et al. 2025, arXiv 2501.05441",
        "step = gk.critic_step(D, real, fake, **options)\n"
        'value = {"value": step.loss, "adversarial": step.adversarial, "r1": step.r1, '
        '"r2": step.r2}',
        **CRITIC,
        **SAMPLES,
        by=OF_CRITIC,
        options={"r1": 3.0, "r2": 1.5, **options},
    )
case(
    "nn.GradientNormalizer",
    "of each gradient in turn: square <- decay square + (1 - decay) ||grad||^2 and total <- decay "
    "total + 1 - decay, from 0; what goes on is scale grad / sqrt(square / total)",
    "Defossez et al. 2022, arXiv 2210.13438, section 3.4; by the mean square",
    "normalize = nn.GradientNormalizer(**options)\n"
    "value = []\n"
    "for gradient in gradients:\n"
    "    x = torch.zeros_like(gradient, requires_grad=True)\n"
    "    (normalize.to(x.device)(x) * gradient).sum().backward()\n"
    "    value.append(x.grad)\n"
    "value = torch.stack(value)",
    gradients=numbers(48, 3, 2, 2),
    options={"decay": 0.75, "scale": 2.0},
)


# --- spectral normalization ----------------------------------------------------------------------

_MIYATO = "Miyato et al. 2018, arXiv 1802.05957, algorithm 1"
_POWER = "n times {}; sigma = u^T A v; value = weight / sigma; u and v are constants"
_ORDERS = {
    "u_first": "u <- A v / ||A v||, v <- A^T u / ||A^T u||",
    "v_first": "v <- A^T u / ||A^T u||, u <- A v / ||A v||",
}
_NORMALIZED = (
    "left, right = u.clone(), v.clone()\n"
    "(value,), sigma = ops.spectral_norm([weight], [left], [right], **options)\n"
    'value = {"value": value, "sigma": sigma[0], "u": left, "v": right}'
)
KERNEL = {"weight": numbers(49, 2, 2, 1, 2), "u": [0.6, 0.8], "v": [0.5, 0.5, -0.5, 0.5]}
for order, step in _ORDERS.items():
    inputs, n = (VECTORS, 1) if order == "u_first" else (KERNEL, 2)
    case(
        f"ops.spectral_norm: {order}",
        f"{_POWER.format(step)}; A of the first dimension times all others",
        _MIYATO,
        _NORMALIZED,
        **inputs,
        cotangent=numbers(50, 3, 4) if order == "u_first" else numbers(50, 2, 2, 1, 2),
        by=("weight",),
        options={"n": n, "order": order},
    )
for text, bound in ((", above the bound", 0.5), (", within the bound", 50.0)):
    case(
        f"ops.spectral_norm: max_norm{text}",
        f"n times {_ORDERS['u_first']}; sigma = u^T A v; value = weight min(1, max_norm / sigma)",
        _MIYATO,
        _NORMALIZED,
        **VECTORS,
        cotangent=numbers(50, 3, 4),
        by=("weight",),
        options={"n": 1, "max_norm": bound},
    )
case(
    "ops.spectral_normalize",
    "value = weight / (u^T A v), u and v constant",
    _MIYATO,
    "(value,), sigma = ops.spectral_normalize([weight], [u], [v])\n"
    'value = {"value": value, "sigma": sigma[0]}',
    **VECTORS,
    cotangent=numbers(50, 3, 4),
    by=("weight",),
)
case(
    "ops.power_iteration_",
    f"n times {_ORDERS['u_first']}; sigma = u^T A v",
    _MIYATO,
    "found = ops.power_iteration_([weight], [u.clone()], [v.clone()], **options)\n"
    'value = {"value": found.sigma[0], "u": found.u[0], "v": found.v[0]}',
    **VECTORS,
    options={"n": 5},
)


# --- weight normalization ------------------------------------------------------------------------

for which, size in ((0, numbers(51, 3)), (None, 1.5)):
    case(
        f"ops.weight_norm: dim={which}",
        "value = g v / ||v||, the norm over "
        + ("all dimensions but the first" if which == 0 else "all dimensions"),
        "Salimans & Kingma 2016, arXiv 1602.07868, equation 2",
        "value = ops.weight_norm(v, g, **options)",
        v=numbers(52, 3, 2, 2),
        g=size,
        cotangent=numbers(53, 3, 2, 2),
        by=("v", "g"),
        options={"dim": which},
    )


# --- regularizers --------------------------------------------------------------------------------

ANCHORED = {"real_logits": REAL, "fake_logits": FAKE, "ema_real": 0.5, "ema_fake": -0.25}
_TSENG = "Tseng et al. 2021, arXiv 2104.03310"
_WITH_ANCHORS = (
    "lecam = regularizers.LeCam(**options).eval().to(real_logits.device)\n"
    "lecam.ema_real.copy_(ema_real)\n"
    "lecam.ema_fake.copy_(ema_fake)\n"
    "lecam.initialized.fill_(True)\n"
    "value = lecam(real_logits, fake_logits)"
)
case(
    "regularizers.LeCam",
    "weight (E max(0, real - ema_fake)^2 + E max(0, ema_real - fake)^2), ema constant",
    _TSENG,
    _WITH_ANCHORS,
    **ANCHORED,
    by=BOTH,
    options={"weight": 0.3},
)
case(
    "regularizers.LeCam: of means",
    "weight (max(0, E real - ema_fake)^2 + max(0, ema_real - E fake)^2), ema constant",
    _TSENG,
    _WITH_ANCHORS,
    **ANCHORED,
    by=BOTH,
    options={"weight": 0.3, "of": "means"},
)
_TRAINED = (
    "lecam = regularizers.LeCam(**options).to(reals.device)\n"
    'value = {"value": torch.stack([lecam(r, f) for r, f in zip(reals, fakes)])}\n'
    'value |= {"ema_real": lecam.ema_real, "ema_fake": lecam.ema_fake}'
)
for text, options, formula in (
    ("", {}, "the first batch sets ema to its means"),
    (", from zero", {"from_zero": True}, "ema starts at 0"),
    (", a late start", {"start": 2}, "the first batch sets ema to its means; the first 2 are 0"),
):
    case(
        f"regularizers.LeCam: in training{text}",
        "of each batch in turn, ema <- decay ema + (1 - decay) E logits, then weight (E max(0, "
        f"real - ema_fake)^2 + E max(0, ema_real - fake)^2); {formula}; ema is kept in float32",
        _TSENG,
        _TRAINED,
        reals=numbers(51, 3, 4, low=-2, high=2),
        fakes=numbers(52, 3, 3, low=-2, high=2),
        cotangent=[1.0, -0.5, 2.0],
        by=("reals", "fakes"),
        options={"weight": 0.3, "decay": 0.75, **options},
        tolerance=1e-6,
    )
case(
    "regularizers.drift_penalty",
    "weight E real^2",
    "Karras et al. 2018, arXiv 1710.10196, appendix A.1",
    "regularizers.drift_penalty(real_logits, **options)",
    real_logits=REAL,
    by=("real_logits",),
    options={"weight": 0.001},
)
_LENGTH = (
    "z.requires_grad_()\n"
    "path = regularizers.PathLength(**options).to(z.device){}\n"
    "path.mean.copy_(mean)\n"
    "value = path(G(z).view(3, 1, 2, 2), z)"
)
_STYLEGAN2 = "Karras et al. 2019, arXiv 1912.04958, equation 4"
for text, latents in (("", (3, 2)), (", layers", (3, 2, 2))):
    size = 2 if len(latents) == 2 else 4
    means = "" if len(latents) == 2 else "the root of the mean over the 2 layers of their squared "
    case(
        f"regularizers.PathLength{text}",
        f"weight E (l - mean)^2, l = {means}||J^T y||, J the Jacobian of the 2 x 2 image G(z) by "
        "z, y = noise / sqrt(4 pixels)  [generator]",
        _STYLEGAN2,
        _LENGTH.format(".eval()"),
        V=numbers(53, 4, size),
        e=numbers(54, 4),
        z=numbers(55, *latents),
        mean=0.5,
        noise=normals(56, 3, 1, 2, 2),
        by=("V", "e"),
        drawn=(("randn", "noise"),),
        options={"weight": 2.0},
    )
case(
    "regularizers.PathLength: in training",
    "as above, but first mean <- (1 - decay) mean + decay E l, a constant, kept in float32",
    _STYLEGAN2,
    _LENGTH.format("") + '\nvalue = {"value": value, "mean": path.mean}',
    V=numbers(53, 4, 2),
    e=numbers(54, 4),
    z=numbers(55, 3, 2),
    mean=0.5,
    noise=normals(56, 3, 1, 2, 2),
    by=("V", "e"),
    drawn=(("randn", "noise"),),
    options={"weight": 2.0, "decay": 0.25},
    tolerance=1e-6,
)
VIEWS = {"real_view": numbers(57, 4, 3), "fake_view": numbers(58, 4, 3)}
case(
    "regularizers.consistency_regularization",
    "weight E (D(real) - D(real_view))^2, real_view the augmented samples  [critic]",
    "Zhang et al. 2020, arXiv 1910.12027",
    "regularizers.consistency_regularization(D, real, given(real_view), **options)",
    **CRITIC,
    **REALS,
    real_view=VIEWS["real_view"],
    by=OF_CRITIC,
    options={"weight": 10.0},
)
case(
    "regularizers.consistency_regularization: two scores",
    "weight E over samples of ||D(real) - D(real_view)||^2 over both scores  [critic]",
    "Zhang et al. 2020, arXiv 1910.12027",
    "regularizers.consistency_regularization(D, real, given(real_view), **options)",
    **TWO_SCORES,
    **REALS,
    real_view=VIEWS["real_view"],
    by=OF_CRITIC,
    options={"weight": 10.0},
)
case(
    "regularizers.balanced_consistency_regularization",
    "weight_real E (D(real) - D(real_view))^2 + weight_fake E (D(fake) - D(fake_view))^2  [critic]",
    "Zhao et al. 2021, arXiv 2002.04724",
    "regularizers.balanced_consistency_regularization(\n"
    "    D, real, fake, given(real_view, fake_view), **options\n"
    ")",
    **CRITIC,
    **SAMPLES,
    **VIEWS,
    by=OF_CRITIC,
    options={"weight_real": 10.0, "weight_fake": 5.0},
)
GENERATOR = {"V": numbers(59, 3, 2), "e": numbers(60, 3), "z": numbers(61, 4, 2)}
ZCR = {"noise": normals(62, 4, 2)}
case(
    "regularizers.latent_consistency_discriminator",
    "weight E (D(G(z)) - D(G(z + std noise)))^2, G constant  [critic, generator]",
    "Zhao et al. 2021, arXiv 2002.04724",
    "regularizers.latent_consistency_discriminator(D, G, z, **options)",
    **CRITIC,
    **GENERATOR,
    **ZCR,
    by=OF_CRITIC,
    drawn=(("randn", "noise"),),
    options={"weight": 20.0, "std": 0.25},
)
case(
    "regularizers.latent_consistency_generator",
    "-weight E ||G(z) - G(z + std noise)||^2  [generator]",
    "Zhao et al. 2021, arXiv 2002.04724",
    "regularizers.latent_consistency_generator(G, z, **options)",
    **GENERATOR,
    **ZCR,
    by=("V", "e"),
    drawn=(("randn", "noise"),),
    options={"weight": 0.5, "std": 0.25},
)
_STDDEV = (
    "n = B / group_size groups, sample i in group i mod n; sqrt(biased variance over a group + "
    "eps) of each channel and pixel; its mean over pixels and the channels of each of num_channels "
    "parts is a new constant channel of the group's samples, behind the others"
)
for text, options, call in (
    ("minibatch_stddev", {"group_size": 2, "num_channels": 1, "eps": 1e-8}, "{}(x, **options)"),
    ("MinibatchStdDev", {"group_size": 2, "num_channels": 2, "eps": 1e-8}, "{}(**options)(x)"),
):
    case(
        f"regularizers.{text}",
        _STDDEV,
        "Karras et al. 2018, arXiv 1710.10196, section 3; arXiv 1912.04958",
        call.format(f"regularizers.{text}"),
        x=numbers(63, 4, 2, 1, 2),
        cotangent=numbers(64, 4, 2 + options["num_channels"], 1, 2),
        by=("x",),
        options=options,
    )
case(
    "regularizers.MinibatchDiscrimination",
    "M_i = x_i T; x_i with o_b = sum_j exp(-sum_c |M_ibc - M_jbc|) behind it, j = i included",
    "Salimans et al. 2016, arXiv 1606.03498, section 3.2",
    "layer = regularizers.MinibatchDiscrimination(3, 2, 2, dtype=torch.float64)\n"
    "value = torch.func.functional_call(layer, {'T': T}, (x,))",
    x=numbers(65, 4, 3),
    T=numbers(66, 3, 2, 2),
    cotangent=numbers(67, 4, 5),
    by=("x", "T"),
)
for options, formula, tolerance in (
    ({"schedule": "constant"}, "1", 1e-12),
    ({"schedule": "linear", "steps": 8}, "1 - 2 / 8", 1e-12),
    ({"schedule": "cosine", "steps": 8}, "(1 + cos(pi 2 / 8)) / 2, in float32", 1e-6),
):
    case(
        f"regularizers.InstanceNoise: {options['schedule']}",
        f"x + f sigma noise, f = {formula} after 2 steps",
        "Sonderby et al. 2017, arXiv 1610.04490",
        "instance = regularizers.InstanceNoise(**options).to(x.device)\n"
        "instance.step()\n"
        "instance.step()\n"
        "value = instance(x)",
        x=numbers(68, 2, 3),
        noise=normals(69, 2, 3),
        cotangent=numbers(70, 2, 3),
        by=("x",),
        drawn=(("randn", "noise"),),
        options={"sigma": 0.4, **options},
        tolerance=tolerance,
    )
case(
    "regularizers.FadingBlur",
    "sigma' = sigma (1 - seen / images); taps 2^-(i / sigma')^2 for |i| <= floor(3 sigma'), "
    "divided by their sum, along x and y, with zeros outside of the image",
    "Karras et al. 2021, arXiv 2106.12423, section 3.2",
    "blur = regularizers.FadingBlur(**options)\nblur.step(int(seen))\nvalue = blur(x)",
    x=numbers(71, 1, 1, 5, 4),
    seen=25,
    cotangent=numbers(72, 1, 1, 5, 4),
    by=("x",),
    options={"sigma": 1.0, "images": 100},
)
case(
    "regularizers.rotate_batch",
    "the batch turned by 0, then by 90, 180 and 270 degrees counterclockwise, one behind the other",
    "Chen et al. 2019, arXiv 1811.11212",
    'value, labels = regularizers.rotate_batch(x)\nvalue = {"value": value, "labels": labels}',
    x=numbers(73, 2, 1, 3, 3),
    cotangent=numbers(74, 8, 1, 3, 3),
    by=("x",),
)
case(
    "regularizers.rotation_loss",
    "weight E (log sum_k exp(logit_k) - logit of the label)",
    "Chen et al. 2019, arXiv 1811.11212",
    "regularizers.rotation_loss(rotation_logits, labels, **options)",
    rotation_logits=numbers(75, 4, 4, low=-3, high=3),
    labels=[2, 0, 3, 1],
    by=("rotation_logits",),
    options={"weight": 0.2},
)


# --- augmentation: resampling --------------------------------------------------------------------

_ADA = "Karras et al. 2020, arXiv 2006.06676, appendix B"
GRAY = {"images": numbers(80, 2, 1, 5, 4), "cotangent": numbers(81, 2, 1, 5, 4)}
SQUARE = {"images": numbers(82, 2, 1, 4, 4), "cotangent": numbers(83, 2, 1, 4, 4)}
COLORS = {"images": numbers(84, 2, 3, 1, 2), "cotangent": numbers(85, 2, 3, 1, 2)}
MAPS = [[[0.8, -0.3, 1.25], [0.45, 1.1, -0.75]], [[-1.0, 0.2, 3.45], [0.1, 0.7, 2.3]]]
RESAMPLED = {"images": numbers(86, 2, 1, 3, 4), "cotangent": numbers(87, 2, 1, 3, 4)}
_PLAIN = {
    "nearest": "of the nearest pixel, halves to even",
    "bilinear": "between the four pixels around",
}
_BEYOND = {
    "reflection": "with reflection [map, reflection]",
    "zeros": "with zeros outside of the image [map]",
    "border": "with the border pixels repeated [map]",
}
for (kernel, how), (padding, beyond) in itertools.product(_PLAIN.items(), _BEYOND.items()):
    case(
        f"ops.affine_resample: {kernel}, {padding}",
        f"the value {how}, at where inverse_maps take an output pixel, {beyond}",
        _ADA,
        "ops.affine_resample(images, inverse_maps, **options)",
        **RESAMPLED,
        inverse_maps=MAPS,
        by=("images",),
        options={"filter": kernel, "padding_mode": padding},
    )
case(
    "ops.affine_resample: nearest, halfway",
    "the value of the nearest pixel, that of an even number where two are as near, with the border "
    "pixels repeated  [map]",
    _ADA,
    "ops.affine_resample(images, inverse_maps, **options)",
    **RESAMPLED,
    inverse_maps=[[[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]], [[1.0, 0.0, -1.5], [0.0, -1.0, 0.0]]],
    by=("images",),
    options={"filter": "nearest", "padding_mode": "border"},
)
case(
    "ops.affine_resample: sym6",
    "resampling with the symlet of 12 taps  [map, reflection, sym6]",
    _ADA,
    "ops.affine_resample(images, inverse_maps)",
    **RESAMPLED,
    inverse_maps=MAPS,
    by=("images",),
)
case(
    "ops.affine_resample: sym6, another size",
    "resampling with the symlet of 12 taps to 2 rows of 3  [map, reflection, sym6]",
    _ADA,
    "ops.affine_resample(images, inverse_maps, **options)",
    images=RESAMPLED["images"],
    cotangent=numbers(88, 2, 1, 2, 3),
    inverse_maps=MAPS,
    by=("images",),
    options={"output_size": (2, 3)},
)
case(
    "ops.affine_resample: sym6, stylegan2-ada",
    "resampling with the symlet of 12 taps, with margins  [map, sym6, stylegan2-ada]",
    _ADA,
    "ops.affine_resample(images, inverse_maps, **options)",
    **RESAMPLED,
    inverse_maps=MAPS,
    by=("images",),
    options={"mode": "stylegan2-ada"},
)
case(
    "ops.affine_resample_transpose",
    "R^T grad, R the matrix of resampling with the symlet of 12 taps images of 3 rows of 4 to 2 "
    "rows of 3  [map, reflection, sym6]",
    _ADA,
    "ops.affine_resample_transpose(grad, inverse_maps, **options)",
    grad=numbers(88, 2, 1, 2, 3),
    inverse_maps=MAPS,
    cotangent=RESAMPLED["cotangent"],
    by=("grad",),
    options={"input_size": (3, 4)},
)
for corners in (False, True):
    case(
        f"maps_from_theta: align_corners={corners}",
        "theta takes output to input coordinates in which -1 and 1 are the "
        f"{'centers of the border pixels' if corners else 'edges of the image'}; the same as a "
        "map  [map]",
        "torch.nn.functional.affine_grid",
        "gk.maps_from_theta(theta, (4, 5), **options)",
        theta=MAPS,
        options={"align_corners": corners},
    )
case(
    "ops.affine_augment",
    "nearest resampling with zeros, then A x + offset of color (A, offset side by side), then "
    "noise of sigma, then cutout of box (x, y, size)  [map, noise, cutout]",
    _ADA,
    "value = ops.affine_augment(\n"
    "    images, inverse_maps, color=color, sigma=sigma, seed=seed, box=box, **options\n"
    ")\n"
    "nothing, one = torch.zeros_like(images), torch.ones_like(sigma)\n"
    "noise = ops.affine_augment(nothing, sigma=one, seed=seed)\n"
    'value = {"value": value, "noise": noise}',
    images=numbers(84, 2, 3, 2, 4),
    cotangent=numbers(85, 2, 3, 2, 4),
    inverse_maps=[[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], [[-1.0, 0.25, 0.0], [0.0, 1.0, 1.25]]],
    color=numbers(89, 2, 3, 4),
    sigma=[0.5, 0.0],
    seed=[1234567890123, 5],
    box=[[0.25, 0.5, 0.5], [0.9, 0.1, 0.7]],
    by=("images",),
    options={"filter": "nearest", "padding_mode": "zeros"},
    tolerance=1e-6,
)
GAINS = [[1.0, 1.0, 1.0, 1.0], [0.5, 2.0, 1.5, 0.25]]
case(
    "ops.image_filter",
    "filtered by gains  [bands, reflection]",
    _ADA,
    "ops.image_filter(images, gains)",
    **RESAMPLED,
    gains=GAINS,
    by=("images",),
)
case(
    "ops.image_filter_transpose",
    "K^T grad, K the matrix of the filter  [bands, reflection]",
    _ADA,
    "ops.image_filter_transpose(grad, gains)",
    grad=RESAMPLED["images"],
    cotangent=RESAMPLED["cotangent"],
    gains=GAINS,
    by=("grad",),
)


# --- augmentation: transforms --------------------------------------------------------------------


def transformed(
    name: str, computes: str, columns: dict[str, Any], channels: int = 0, **rest: Any
) -> None:
    """A case of a transform with these columns, and what it is composed to."""
    arguments = ", ".join([*(f"{k}={k}" for k in columns), "**options"])
    composes = not {"yflip", "noise", "cutout"} & set(columns) or channels > 0
    call = f"t = transform({arguments})\nvalue = t(images)"
    if "seed" in columns:
        call += (
            "\nnoise = ops.affine_augment("
            "torch.zeros_like(images), sigma=torch.ones_like(noise), seed=seed)"
            '\nvalue = {"value": value, "noise": noise}'
        )
    elif composes:
        call += f'\nvalue = {{"value": value, **composed(t, images, {channels})}}'
    case(f"Transform: {name}", computes, _ADA, call, **columns, **rest, by=("images",))


_GEOMETRY = "[geometry, map, sym6, reflection, blits]"
for name, columns, inputs in (
    ("xflip", {"xflip": [1, 0]}, GRAY),
    ("yflip", {"yflip": [1, 0]}, GRAY),
    ("yflip and xflip", {"xflip": [1, 1], "yflip": [1, 0], "rotate90": [1, 3]}, SQUARE),
    ("rotate90", {"rotate90": [1, 2]}, SQUARE),
    ("rotate90 of what is not square", {"rotate90": [1, 3]}, GRAY),
    ("xint", {"xint_x": [0.125, -0.375], "xint_y": [-0.2, 0.26]}, GRAY),
    ("scale", {"scale": [1.3, 0.7]}, GRAY),
    ("rotate_before", {"rotate_before": [0.4, -2.5]}, GRAY),
    ("aniso", {"aniso": [1.25, 0.8]}, GRAY),
    ("rotate_after", {"aniso": [1.25, 0.8], "rotate_after": [1.1, -0.3]}, GRAY),
    ("xfrac", {"xfrac_x": [0.11, -0.27], "xfrac_y": [0.3, 0.06]}, GRAY),
):
    transformed(
        name,
        f"images with {' and '.join(columns)} of each  {_GEOMETRY}",
        {k: [float(n) for n in x] for k, x in columns.items()},
        **inputs,
    )
WHOLE = {
    "xflip": [1.0, 0.0], "rotate90": [0.0, 3.0], "xint_x": [0.125, -0.05], "xint_y": [-0.1, 0.1],
    "scale": [1.2, 0.85], "rotate_before": [0.3, -1.9], "aniso": [0.9, 1.2],
    "rotate_after": [0.0, 0.8], "xfrac_x": [-0.07, 0.2], "xfrac_y": [0.12, 0.03],
}  # fmt: skip
transformed("all of geometry", f"images with all of these  {_GEOMETRY}", WHOLE, **GRAY)
transformed(
    "all of geometry, stylegan2-ada",
    "images with all of these  [geometry, map, sym6, stylegan2-ada]",
    WHOLE,
    **GRAY,
    options={"mode": "stylegan2-ada"},
)
transformed(
    "xflip, filtered",
    "images with xflip of each, by the filter as all else  [geometry, map, sym6, reflection]",
    {"xflip": [1.0, 0.0]},
    **GRAY,
    options={"lossless_blits": False},
)

CHROMA = {
    "brightness": [0.3, -0.15], "contrast": [1.5, 0.6], "lumaflip": [1.0, 0.0],
    "hue": [0.7, -2.2], "saturation": [0.4, 1.8],
}  # fmt: skip
for name in CHROMA:
    transformed(
        name,
        f"images with {name} of each  [color]",
        {name: CHROMA[name]},
        3,
        **COLORS,
    )
transformed("all of color", "images with all of these  [color]", CHROMA, 3, **COLORS)
transformed(
    "all of color, one channel",
    "images with all of these; hue and saturation do nothing  [color]",
    CHROMA,
    1,
    images=numbers(90, 2, 1, 2, 2),
    cotangent=numbers(91, 2, 1, 2, 2),
)
transformed(
    "color of some channels",
    "color_channels with all of these, the other channel as it is  [color]",
    CHROMA,
    3,
    images=numbers(92, 2, 4, 1, 2),
    cotangent=numbers(93, 2, 4, 1, 2),
    options={"color_channels": [0, 2, 3]},
)
for i in range(4):
    transformed(
        f"band_{i}",
        f"images with band_{i} of each  [bands, reflection]",
        {f"band_{i}": [2.5, 1.0]},
        **RESAMPLED,
    )
transformed(
    "all bands",
    "images with all of these  [bands, reflection]",
    {f"band_{i}": x for i, x in enumerate(([0.5, 1.3], [1.7, 1.0], [2.2, 0.6], [0.8, 3.0]))},
    **RESAMPLED,
)
NOISE = {"noise": [0.2, 0.5], "seed": [123456789012345, 7]}
transformed(
    "noise",
    "images plus noise (the standard deviation) times expected.noise  [noise]",
    NOISE,
    images=numbers(94, 2, 1, 3, 3),
    cotangent=numbers(95, 2, 1, 3, 3),
    tolerance=1e-6,
)
CUTOUT = {"cutout": [0.5, 0.4], "cutout_x": [0.3, 0.95], "cutout_y": [0.6, 0.1]}
transformed(
    "cutout",
    "images with a box of size cutout about (cutout_x, cutout_y) cut out  [cutout]",
    CUTOUT,
    **GRAY,
)
EVERYTHING = {
    **WHOLE, **CHROMA, **{f"band_{i}": [1.0 + 0.5 * i, 1.0] for i in range(4)}, **NOISE, **CUTOUT,
}  # fmt: skip
transformed(
    "everything",
    "images with all of these  [transform, geometry, map, sym6, reflection, color, bands, noise, "
    "cutout]",
    EVERYTHING,
    images=numbers(96, 2, 3, 3, 4),
    cotangent=numbers(97, 2, 3, 3, 4),
    tolerance=1e-6,
)
for kernel, how in (
    ("nearest", "of the nearest pixel"),
    ("bilinear", "between the four pixels around"),
    ("sym6", "with the symlet [sym6, blits]"),
):
    case(
        f"Transform.geometry: {kernel}",
        f"the geometry of all these alone, {how}, with reflection  [transform, geometry, map, "
        "reflection]",
        _ADA,
        f"t = transform({', '.join(f'{k}={k}' for k in EVERYTHING)})\n"
        "value = t.geometry(images, **options)",
        **EVERYTHING,
        images=RESAMPLED["images"],
        cotangent=RESAMPLED["cotangent"],
        by=("images",),
        options={"filter": kernel},
    )
case(
    "Transform.geometry: of integers",
    "the nearest pixels of a mask, with reflection  [transform, geometry, map, reflection]",
    _ADA,
    f"t = transform({', '.join(f'{k}={k}' for k in WHOLE)})\nvalue = t.geometry(masks)",
    **WHOLE,
    masks=[[[[7 * i + 3 * j + k for k in range(5)] for j in range(4)]] for i in range(2)],
)
LABELED = {**EVERYTHING, "yflip": [0.0, 1.0]}
case(
    "Transform.labels",
    "28 columns: xflip, yflip, cos - 1 and sin of rotate90 quarters, xint_x / 0.125, xint_y / "
    "0.125, log2 scale / 0.2, cos - 1 and sin of rotate_before, log2 aniso / 0.2, cos - 1 and sin "
    "of rotate_after, xfrac_x / 0.125, xfrac_y / 0.125, brightness / 0.2, log2 contrast / 0.5, "
    "lumaflip, cos - 1 and sin of hue, log2 saturation, log2 of the four bands, noise / 0.1, "
    "cutout / 0.5, 2 cutout_x - 1, 2 cutout_y - 1 (0 without a cutout); float32",
    "Karras et al. 2022, arXiv 2206.00364, appendix F.2",
    f"t = transform({', '.join(f'{k}={k}' for k in LABELED)})\nvalue = t.labels()",
    **LABELED,
    tolerance=1e-6,
)
case(
    "Transform.named",
    "the columns by their names, 0 or 1 where nothing is done",
    _ADA,
    "t = transform(scale=scale, xfrac_x=xfrac_x)\n"
    'value = {"value": torch.stack(list(t.named().values()), 1), **t.named()}',
    scale=[1.25, 0.5],
    xfrac_x=[0.1, -0.2],
)
DRAWS = {
    "uniforms": numbers(98, 2, 30, low=0.0),
    "normals": normals(99, 2, 12),
}
_GATES = (
    "a transform happens where its gate is below min(1, multiplier p), multipliers 1; columns of "
    "uniforms: gates of xflip, rotate90, xint, scale, rotate_before, aniso, rotate_after, xfrac, "
    "brightness, contrast, lumaflip, hue, saturation, band_0..3, noise, cutout (of either "
    "rotation 1 - sqrt(1 - p)); then values of xflip floor(2 u), rotate90 floor(4 u), xint_x and "
    "xint_y (2 u - 1) / 8, rotate_before and rotate_after (2 u - 1) pi, lumaflip floor(2 u), hue "
    "(2 u - 1) pi, cutout_x and cutout_y u, seed floor(2^53 u); columns of normals: scale 2^(0.2 "
    "n), aniso 2^(0.2 n), xfrac_x and xfrac_y n / 8, brightness 0.2 n, contrast 2^(n / 2), "
    "saturation 2^n, band_0..3 2^n, noise 0.1 |n|; cutout is 0.5"
)
_ALL_ON = "augment.PRESETS['bgcfnc']"
case(
    "ops.ada_parameters",
    f"{_GATES}; value has the columns xflip, rotate90, xint_x, xint_y, scale, rotate_before, "
    "aniso, rotate_after, xfrac_x, xfrac_y, brightness, contrast, lumaflip, hue, saturation, "
    "band_0..3, noise, cutout, cutout_x, cutout_y; then of images of 4 rows of 5  [geometry, "
    "color, bands]",
    _ADA,
    f"found = ops.ada_parameters(p, {_ALL_ON}, uniforms=uniforms, normals=normals, height=4, "
    "width=5, color_channels=3, dtype=torch.float64)\n"
    "value = {k: x for k, x in found._asdict().items() if x is not None}\n"
    'value["value"] = value.pop("values")',
    p=0.6,
    **DRAWS,
)
case(
    "augment.ADAPipe",
    f"{_GATES}; then the transform of images  [transform, geometry, map, sym6, reflection, color, "
    "bands, noise, cutout]; the bgcf preset: neither noise nor cutout",
    _ADA,
    "pipe = augment.ADAPipe('bgcf', **options).to(images.device)\nvalue = pipe(images)",
    images=numbers(100, 2, 3, 3, 3),
    cotangent=numbers(101, 2, 3, 3, 3),
    **DRAWS,
    by=("images",),
    drawn=(("rand", "uniforms"), ("randn", "normals")),
    options={"p": 0.75},
)

# --- augmentation: DiffAugment, APA, the controllers ---------------------------------------------

_ZHAO = "Zhao et al. 2020, arXiv 2006.10738"
UNIFORMS = numbers(102, 2, 7, low=0.0)
for policy, shape in (
    ("color", (2, 3, 2, 2)),
    ("translation", (2, 1, 6, 5)),
    ("cutout", (2, 1, 6, 5)),
    ("color,translation,cutout", (2, 1, 4, 3)),
):
    case(
        f"augment.DiffAugment: {policy}",
        "images with the policy; translation 0.125, cutout 0.5  [diff]",
        _ZHAO,
        f"augment.DiffAugment({policy!r}, **options)(images)",
        images=numbers(103, *shape),
        cotangent=numbers(104, *shape),
        uniforms=UNIFORMS,
        by=("images",),
        drawn=(("rand", "uniforms"),),
        options={"translation": 0.125, "cutout": 0.5},
    )
case(
    "augment.DiffAugment: other shares",
    "images with translation 0.4, then cutout 0.2  [diff]",
    _ZHAO,
    "augment.DiffAugment('translation,cutout', **options)(images)",
    images=numbers(103, 2, 1, 6, 5),
    cotangent=numbers(104, 2, 1, 6, 5),
    uniforms=UNIFORMS,
    by=("images",),
    drawn=(("rand", "uniforms"),),
    options={"translation": 0.4, "cutout": 0.2},
)
for happens in (0.25, 0.75):
    case(
        f"augment.DiffAugment: p, drawn {happens}",
        "images with cutout where chance < p, else as they are  [diff]",
        "Sauer et al. 2023, arXiv 2301.09515",
        "augment.DiffAugment('cutout', **options)(images)",
        images=numbers(105, 2, 1, 2, 2),
        cotangent=numbers(106, 2, 1, 2, 2),
        uniforms=UNIFORMS,
        chance=happens,
        by=("images",),
        drawn=(("rand", "uniforms"), ("rand", "chance")),
        options={"p": 0.5},
    )
case(
    "ops.diff_augment_parameters",
    "of images of 6 rows of 5: maps, whole shifts [map]; box, center and size of the cutout in "
    "fractions of the sides; color, the matrix and offset without the part of the image's mean M, "
    "which has the offset (1 - (c + 0.5)) M: shade = 1 - (c + 0.5)  [diff]",
    _ZHAO,
    "found = ops.diff_augment_parameters(uniforms, 6, 5, color_channels=3, dtype=torch.float64)\n"
    "value = {k: x for k, x in found._asdict().items() if x is not None}\n"
    'value["value"] = value.pop("maps")',
    uniforms=UNIFORMS,
)
case(
    "augment.APA",
    "fake where chance < p, else real; no gradient to fake",
    "Jiang et al. 2021, arXiv 2111.06849",
    "augment.APA(p=0.5).to(real.device)(real, fake)",
    **SAMPLES,
    chance=[0.25, 0.75, 0.5, 0.125],
    cotangent=numbers(107, 4, 3),
    by=("real",),
    drawn=(("rand", "chance"),),
)
_CONTROL = (
    "p from 0, after each update: in every interval-th, p <- min(p_max, max(0, p + sign(r - "
    "target) n / (1000 kimg))), n the images since the last such, and r {}"
)
LOGITS = {"real_logits": [[0.5, 2.0, -1.0, 3.0], [0.25, 1.0, 0.5, 2.0], [-1.0, -0.5, 0.25, -2.0],
    [-0.1, -1.5, 0.75, 0.5], [1.0, 2.0, 3.0, 0.5], [0.75, -0.25, 1.5, 2.5]],
}  # fmt: skip
OTHERS = {
    "fake_logits": numbers(108, 6, 4, low=-2, high=1),
    "validation_logits": numbers(109, 6, 4, low=-1, high=1),
}
for metric, names, formula in (
    ("rt", (), "the mean of sign(real)"),
    ("rv", ("fake_logits", "validation_logits"), "(E real - E validation) / (E real - E fake)"),
    ("accuracy", ("fake_logits",), "0.5 + (E sign(real) - E sign(fake)) / 4"),
):
    passed = "".join(f", {k}={k}[i]" for k in names)
    case(
        f"augment.ADAController: {metric}",
        f"{_CONTROL.format(formula)}, means over all logits since; p is kept in float32; r is that "
        "of the last step",
        "Karras et al. 2020, arXiv 2006.06676, section 3",
        "controller = augment.ADAController(**options).to(real_logits.device)\n"
        "p = []\n"
        "for i in range(len(real_logits)):\n"
        f"    controller.update(real_logits[i]{passed})\n"
        "    p.append(controller.p.item())\n"
        'value = {"value": p, "r": controller.r}',
        **LOGITS,
        **{k: OTHERS[k] for k in names},
        options={"metric": metric, "target": 0.5, "interval": 2, "kimg": 0.032, "p_max": 0.375},
    )
for shape in ("fixed", "linear", "cosine"):
    share = {"fixed": "1", "linear": "t", "cosine": "(1 - cos(pi t)) / 2"}[shape]
    case(
        f"augment.ADASchedule: {shape}",
        f"p after each of 6 updates of 4 images: options.p {share}, t = min(1, images / (1000 "
        "kimg)); p is kept in float32",
        "Huang et al. 2025, arXiv 2501.05441",
        "schedule = augment.ADASchedule(None, **options).to(real_logits.device)\n"
        "p = []\n"
        "for x in real_logits:\n"
        "    schedule.update(x)\n"
        "    p.append(schedule.p.item())\n"
        'value = {"value": p}',
        **LOGITS,
        options={"shape": shape, "p": 0.3, "kimg": 0.02},
        tolerance=1e-6,
    )
case(
    "ops.ada_control_",
    "sums since the last step: for real, fake and validation logits that of signs and the count, "
    "then the images, the updates from the beginning, r of the last step; see ADAController",
    "Karras et al. 2020, arXiv 2006.06676, section 3",
    "moved, strength = state.clone(), p.float()\n"
    "ops.ada_control_(moved, strength, [real_logits], images=4, **options)\n"
    'value = {"value": strength, "state": moved[:8]}',
    state=[3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 4.0, 7.0, 0.0],
    p=0.25,
    real_logits=[0.5, 2.0, -1.0, 3.0],
    options={"target": 0.5, "interval": 4, "kimg": 0.064},
)


# --- the file ------------------------------------------------------------------------------------


def constants() -> dict[str, Any]:
    """The filters: numbers that the kernels have, too."""
    from gankernels.reference.affine_resample import SYMLET
    from gankernels.reference.image_filter import bank

    return {"symlet": list(SYMLET), "bands": bank()}


def entry(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """A case as the file has it."""
    return {
        "name": case.name,
        "computes": case.computes,
        "paper": case.paper,
        "call": case.call.removeprefix("value = ") if "\n" not in case.call else case.call,
        "inputs": case.inputs,
        **({"options": case.options} if case.options else {}),
        **({"drawn": [name for _, name in case.drawn]} if case.drawn else {}),
        **found,
        **({} if case.tolerance == TOLERANCE else {"tolerance": case.tolerance}),
    }


def head() -> dict[str, Any]:
    """What stands before the cases."""
    return {
        "read_me": READ_ME,
        "tolerance": TOLERANCE,
        "notes": NOTES,
        "constants": constants(),
        "left_out": [{"what": k, "why": x} for k, x in (*EXEMPT.items(), *OMITTED.items())],
    }


def document() -> dict[str, Any]:
    return {**head(), "cases": [entry(case, compute(case)) for case in CASES]}


def text_of(document: dict[str, Any]) -> str:
    """JSON with a line for each array, and numbers as Python's repr, which reads back exactly."""

    def line(x: Any) -> str:
        numeric = isinstance(x, list) and not isinstance(x[0], str)
        return json.dumps(x, separators=(",", ":") if numeric else None, allow_nan=False)

    def lines(x: dict[str, Any], indent: str) -> str:
        return ",\n".join(f"{indent}{json.dumps(k)}: {written(k, v, indent)}" for k, v in x.items())

    def written(name: str, x: Any, indent: str) -> str:
        if name in ("read_me", "left_out"):
            return "[\n" + ",\n".join(indent + line(y) for y in x) + "\n]"
        if name == "cases":
            return "[\n" + ",\n".join("{\n" + lines(y, "") + "\n}" for y in x) + "\n]"
        if isinstance(x, dict) and name != "options":
            return "{\n" + lines(x, indent + " ") + f"\n{indent}}}"
        return line(x)

    return "{\n" + lines(document, "") + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", required=True)
    parser.parse_args()
    FILE.write_text(text_of(document()))


if __name__ == "__main__":
    main()
