"""gradient_penalty: values, norms and gradients against float64 formulas, on every backend."""

import itertools

import pytest
import torch
from support.backends import instruction_sets
from support.tensors import DTYPES, assert_near, drawer, dtype_name

from gankernels import ops, reference


def _channels_last(x):
    return x.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()])


#: Gradients of every memory layout that critics give.
GRADIENTS = {
    "contiguous": lambda draw: draw(6, 3, 7, 5),
    "vectors": lambda draw: draw(5, 4, 8, 8),
    "channels_last": lambda draw: _channels_last(draw(5, 3, 7, 5)),
    "channels_last_3d": lambda draw: _channels_last(draw(3, 2, 3, 5, 4)),
    "permuted": lambda draw: draw(4, 5, 6, 7).permute(0, 3, 1, 2),
    "every_second_sample": lambda draw: draw(8, 3, 5)[::2],
    "later_samples": lambda draw: draw(8, 3, 11)[3:],
    "crop": lambda draw: draw(3, 2, 9, 9)[:, :, 1:-1, 2:-2],
    "expanded": lambda draw: draw(1, 13).expand(7, 13),
    "transposed": lambda draw: draw(31, 6).t(),
    "one_sample": lambda draw: draw(1, 3, 9),
    "one_element": lambda draw: draw(1, 1),
    "scalars": lambda draw: draw(17),
    "sizes_of_one": lambda draw: draw(4, 1, 5, 1),
    "nine_dims": lambda draw: draw(3, 2, 1, 2, 2, 3, 1, 2, 2),
    "odd_start": lambda draw: draw(3 * 64 + 1)[1:].view(3, 64),
    "many_samples": lambda draw: draw(1031, 3),
    "parts": lambda draw: draw(2, 32771),
    "parts_of_vectors": lambda draw: draw(2, 2 * 32768),
}
ONE = {name: lambda draw, f=f: [f(draw)] for name, f in GRADIENTS.items()}
LISTS = {
    "two_scales": lambda draw: [draw(5, 3, 8, 8), draw(5, 3, 4, 4)],
    "image_and_audio": lambda draw: [_channels_last(draw(4, 3, 6, 6)), draw(4, 1, 333), draw(4)],
    "more_than_a_table": lambda draw: [draw(3, 1 + k % 5) for k in range(70)],
}
OPTIONS = [
    {},
    {"center": 1.0, "weight": 10.0},
    {"center": 0.7, "one_sided": True, "reduction": "sum"},
    {"center": 1.0, "reduction": "none", "per_tensor": True},
    {"weight": 0.5, "per_tensor": True, "reduction": "sum"},
    {"one_sided": True, "reduction": "none", "weight": 0.0},
]


def options_name(options):
    return "-".join(f"{key}={value}" for key, value in options.items()) or "defaults"


def formula(
    grads,
    center=0.0,
    one_sided=False,
    weight=1.0,
    sample_weight=None,
    inv_scale=None,
    per_tensor=False,
    reduction="mean",
):
    """Penalty and norms, sample by sample, in plain float64."""
    batch = grads[0].shape[0]
    scale = 1.0 if inv_scale is None else inv_scale.item()
    groups = [[g] for g in grads] if per_tensor else [grads]
    norms = torch.stack(
        [
            torch.stack([torch.cat([g[i].reshape(-1) for g in group]).norm() for i in range(batch)])
            for group in groups
        ]
    )
    norms = norms * scale
    distance = norms - center
    values = weight * (distance.clamp_min(0) if one_sided else distance) ** 2
    if sample_weight is not None:
        values = values * sample_weight
    if reduction != "none":
        values = values.sum(1) / (batch if reduction == "mean" else 1)
    return (values, norms) if per_tensor else (values[0], norms[0])


def with_gradients(function, grads, sample_weight, seed):
    """Values, norms, and the gradients of `<seed, values>` in grads and sample_weight."""
    grads = [g.detach().requires_grad_() for g in grads]
    sample_weight = None if sample_weight is None else sample_weight.detach().requires_grad_()
    values, norms = function(grads, sample_weight)
    leaves = grads if sample_weight is None else [*grads, sample_weight]
    found = torch.autograd.grad((values * seed.to(values)).sum(), leaves)
    return values.detach(), norms.detach(), found


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("options", OPTIONS, ids=options_name)
@pytest.mark.parametrize("name", [*ONE, *LISTS])
def test_values_and_gradients(backend, name, options, dtype):
    draw = drawer(1, dtype, backend)
    grads = (ONE | LISTS)[name](draw)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    batch = grads[0].shape[0]
    sample_weight = inv_scale = None
    if options.get("center"):
        sample_weight = drawer(2, wide, backend)(batch).abs()
        inv_scale = torch.full((1,), 0.75, dtype=wide, device=backend)
    exact = [g.double().cpu() for g in grads]
    shape = formula(exact, **options)[0].shape
    seed = drawer(3, torch.float64)(*shape, 1).squeeze(-1)

    def ours(g, w):
        return ops.gradient_penalty(
            g if len(g) > 1 else g[0],
            sample_weight=w,
            inv_scale=inv_scale,
            return_norms=True,
            **options,
        )

    def plain(g, w):
        return formula(
            g, sample_weight=w, inv_scale=None if inv_scale is None else inv_scale.cpu(), **options
        )

    exact_weight = None if sample_weight is None else sample_weight.double().cpu()
    values, norms, found = with_gradients(ours, grads, sample_weight, seed)
    expected = with_gradients(plain, exact, exact_weight, seed)
    assert values.dtype == norms.dtype == wide
    assert_near(values.cpu(), expected[0], what="values")
    assert_near(norms.cpu(), expected[1], what="norms")
    for g, e, f in zip([*grads, sample_weight], expected[2], found, strict=False):
        assert f.dtype == g.dtype
        assert_near(f.cpu(), e, factor=2, what="gradients")


@pytest.mark.parametrize("options", OPTIONS, ids=options_name)
@pytest.mark.parametrize("name", [*ONE, *LISTS])
def test_the_reference_is_the_formula(name, options):
    draw = drawer(1, torch.float64)
    grads = (ONE | LISTS)[name](draw)
    sample_weight = draw(grads[0].shape[0]).abs()
    inv_scale = draw(1).abs()
    given = {"sample_weight": sample_weight, "inv_scale": inv_scale, **options}
    found = reference.gradient_penalty(grads, return_norms=True, **given)
    for x, expected in zip(found, formula(grads, **given), strict=True):
        assert_near(x, expected)


@pytest.mark.parametrize("name", ["contiguous", "channels_last", "channels_last_3d", "permuted"])
def test_samples_are_read_where_they_are(backend, name):
    """No copy is made, and the gradient has the strides of what it is the gradient of."""
    g = GRADIENTS[name](drawer(1, device=backend))
    assert ops.gradient_penalty.__globals__["_samples_first"](g) is g
    g.requires_grad_()
    (found,) = torch.autograd.grad(ops.gradient_penalty(g, center=1.0), g)
    assert found.stride() == g.stride()


def test_a_large_gradient_on_several_threads(backend, threads, isa):
    g = drawer(1, device=backend)(4, 3, 256, 131).requires_grad_()
    results = []
    for count, name in itertools.product((1, 2), instruction_sets()):
        threads(count)
        isa(name)
        value, norms = ops.gradient_penalty(g, center=1.0, return_norms=True)
        results.append((name, value.detach(), norms, *torch.autograd.grad(value, g)))
    expected, _ = formula([g.detach().double().cpu()], center=1.0)
    assert_near(results[0][1].cpu(), expected)
    for first, second in itertools.combinations(results, 2):
        if first[0] == second[0] or backend.type == "cuda":  # whatever the threads
            assert all(torch.equal(a, b) for a, b in zip(first[1:], second[1:], strict=True))


@pytest.mark.parametrize(
    "shape", [(64, 3, 32, 32), (64, 3, 64, 64), (4, 3, 512, 512), (16, 1, 8192)]
)
def test_accuracy(cpu_backend, shape):
    """1e-6 of float64, where torch's own norm is up to 1e-4 off."""
    g = drawer(1)(*shape)
    for center in (0.0, 1.0):
        value, norms = ops.gradient_penalty(g, center=center, return_norms=True)
        exact, exact_norms = reference.gradient_penalty(
            g.double(), center=center, return_norms=True
        )
        assert abs(value.item() - exact.item()) <= 1e-6 * exact.item()
        assert ((norms - exact_norms).abs() <= 1e-6 * exact_norms).all()
