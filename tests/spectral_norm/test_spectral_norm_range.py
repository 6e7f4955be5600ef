"""Weights with entries far from 1, guarded ones without a norm, and those of many dimensions."""

import copy

import pytest
import torch
from support.backends import instruction_sets
from support.tensors import assert_near, drawer, dtype_name
from support.weights import joined
from torch import Tensor, nn
from torch.nn.functional import normalize

import gankernels
from gankernels import ops, reference
from gankernels.nn import utils as ours
from gankernels.reference.spectral_norm import PowerIteration

THEIRS = nn.utils
FORMS = ["hook", "parametrization"]
ORDERS = ("u_first", "v_first")


def spectral_norm(of, form: str):
    return of.spectral_norm if form == "hook" else of.parametrizations.spectral_norm


def vectors(weights: list[Tensor], seed: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    draw = drawer(seed, weights[0].dtype, weights[0].device)
    u = [normalize(draw(w.shape[0]), dim=0) for w in weights]
    v = [normalize(draw(w.numel() // w.shape[0]), dim=0) for w in weights]
    return u, v


# --- range -------------------------------------------------------------------------------------

SHAPES = {
    "rows": lambda draw: draw(12, 40),
    "columns": lambda draw: draw(40, 12).t(),
    "slabs": lambda draw: draw(5, 12, 8).movedim(1, 0),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_weights_far_from_one(backend, dtype, layout, order):
    """Outputs and gradients where float32 holds them, though it holds no intermediate square."""
    for size in (1e-36, 1e-30, 1e-20, 1e-12, 1e12, 1e20, 1e30):
        w = (SHAPES[layout](drawer(0, torch.float64)) * size).to(backend, dtype)
        u, v = vectors([w])
        u64, v64 = [u[0].double()], [v[0].double()]
        for eps in (0.0, 1e-40):
            found = ops.power_iteration_([w], [u[0].clone()], [v[0].clone()], 2, eps, order)
            expected = reference.power_iteration_(
                [w.double()], [u64[0].clone()], [v64[0].clone()], 2, eps, order
            )
            for got, right in zip(_parts(found), _parts(expected), strict=True):
                assert_near(got, right, torch.float32, factor=4, what=f"{size} {eps}")
        u_new, v_new, sigma = found
        wide = [x.double() for x in (w, u_new[0], v_new[0], sigma)]
        g = drawer(2, dtype, w.device)(*w.shape)
        for given in (sigma, None):
            a = w.clone().requires_grad_()
            (got,), _ = ops.spectral_normalize([a], u_new, v_new, given)
            b = wide[0].requires_grad_()
            (right,), _ = reference.spectral_normalize(
                [b], [wide[1]], [wide[2]], None if given is None else wide[3]
            )
            assert_near(got, right, dtype, factor=4, what=f"output {size}")
            right_grad = torch.autograd.grad(right, b, g.double(), retain_graph=True)[0]
            if right_grad.abs().max() < 1e37:
                (got_grad,) = torch.autograd.grad(got, a, g)
                assert_near(got_grad, right_grad, dtype, factor=8, what=f"gradient {size}")


def _parts(found: PowerIteration) -> tuple[Tensor, ...]:
    u, v, sigma = found
    return u[0], v[0], sigma


@pytest.mark.parametrize("order", ORDERS)
def test_norms_below_eps(backend, order):
    """u and v below 1, and a scale beyond float32: W / sigma, as torch has it."""
    for size, eps in ((1e-20, 1e-12), (1e-16, 1e-12), (1e-10, 1e-4), (1e-13, 1e-4)):
        w = (drawer(0)(4, 3) * size).to(backend)
        u, v = vectors([w])
        wide = [w.double()], [u[0].double()], [v[0].double()]
        (out,), sigma = ops.spectral_norm([w], u, v, 1, eps, order)
        found = reference.power_iteration_(*wide, 1, eps, order)
        assert_near(u[0], wide[1][0], torch.float32, what=f"u {size} {eps}")
        assert_near(v[0], wide[2][0], torch.float32, what=f"v {size} {eps}")
        right = found.sigma
        # float32 holds two digits of a number of 1e-44.
        assert abs(sigma.double() - right) <= max(1e-5 * right, 1.5e-45)
        assert_near(out, w.double() / sigma.double(), torch.float32, what=f"output {size} {eps}")
        assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-4])
def test_torch_agrees(cpu_backend, form, eps, dtype):
    """Layers of every size against torch's own function, wherever that gives numbers."""
    for size in (1e-38, 1e-30, 1e-20, 1e-15, 1e-8, 1e8, 1e15, 1e20, 1e30):
        if dtype != torch.float64 and size < eps:
            continue  # it computes with what is left of subnormal numbers
        layer = nn.Linear(6, 5, bias=False)
        layer.weight = nn.Parameter((drawer(0, torch.float64)(5, 6) * size).to(dtype))
        results = []
        for of in (THEIRS, ours):
            torch.manual_seed(0)
            m = spectral_norm(of, form)(copy.deepcopy(layer), eps=eps)
            for _ in range(2):
                out = m(torch.eye(6, dtype=dtype))
            out.sum().backward()
            results.append((out.detach(), next(m.parameters()).grad))
        for a, b in zip(*results, strict=True):
            if a.isfinite().all():
                assert_near(b, a.double(), dtype, factor=40, what=f"{size}")


@pytest.mark.parametrize("form", FORMS)
def test_tiny_weights_with_a_larger_eps_are_finite(cpu_backend, form):
    for size in (3e-20, 1e-20, 1e-18):
        found = []
        for of in (THEIRS, ours):
            torch.manual_seed(0)
            layer = nn.Linear(64, 64, bias=False)
            with torch.no_grad():
                layer.weight.mul_(8 * size)
            m = spectral_norm(of, form)(layer)
            found.append(m(torch.eye(64)).detach().abs().max())
        theirs, mine = found
        assert mine.isfinite() == theirs.isfinite()
        if theirs.isfinite():
            assert 0.5 < mine / theirs < 2


# --- guard -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("poison", [0.0, float("nan"), float("inf")])
def test_guarded_vectors_recover(backend, poison, order):
    """From u and v of an old checkpoint: fixed vectors, the same on every backend."""
    draw = drawer(0, device=backend)
    weights = [draw(9, 21), draw(33, 7, 3).movedim(1, 0), draw(5, 6)]
    u = [torch.full((w.shape[0],), poison, device=backend) for w in weights]
    v = [torch.full((w.numel() // w.shape[0],), poison, device=backend) for w in weights]
    u[2], v[2] = draw(5), draw(30 // 5)
    skipped = torch.zeros(3, dtype=torch.int64, device=backend)
    wide = [[x.to(torch.float64, copy=True) for x in xs] for xs in (weights, u, v)]
    expected = reference.power_iteration_(*wide, 1, 1e-12, order, skipped=skipped.clone())
    found = ops.power_iteration_(weights, u, v, 1, 1e-12, order, skipped=skipped)
    assert_near(joined(found), joined(expected), torch.float32, factor=4)
    assert skipped.tolist() == [0, 0, 0]
    for _ in range(30):
        outputs, _ = ops.spectral_norm(weights, u, v, 1, 1e-12, order, skipped=skipped)
    for w, out in zip(weights, outputs, strict=True):
        right = w.double().flatten(1) / torch.linalg.matrix_norm(w.double().flatten(1), 2)
        assert_near(out.flatten(1), right, torch.float32, factor=1e3)


@pytest.mark.parametrize("poison", [0.0, float("nan"), float("inf")])
def test_guarded_vectors_wait(backend, poison):
    """A weight that has no norm leaves vectors from which a healthy one starts."""
    w = torch.full((4, 8), poison, device=backend)
    u, v = torch.zeros(4, device=backend), torch.zeros(8, device=backend)
    skipped = torch.zeros(1, dtype=torch.int64, device=backend)
    for k in range(2):
        (out,), sigma = ops.spectral_norm([w], [u], [v], skipped=skipped)
        assert sigma.item() == 1
        assert_near(out, w.double())
        assert skipped.item() == k + 1
        assert abs(u.norm() - 1) < 1e-6
        assert abs(v.norm() - 1) < 1e-6
    w = 3 * torch.eye(4, 8, device=backend)
    for _ in range(50):
        (out,), _ = ops.spectral_norm([w], [u], [v], skipped=skipped)
    assert abs(torch.linalg.matrix_norm(out, 2) - 1) < 1e-5
    assert skipped.item() == 2


@pytest.mark.parametrize("max_norm", [None, 2.0])
def test_guarded_evaluation(backend, max_norm):
    """A sigma that is zero or not finite is 1; the others are what they are."""
    draw = drawer(0, device=backend)
    weights = [draw(5, 7), torch.zeros(5, 7, device=backend), 3 * draw(5, 7), draw(5, 7)]
    u, v = vectors(weights)
    u[2] = torch.zeros_like(u[2])
    u[3] = torch.full_like(u[3], float("nan"))
    leaves = [w.clone().requires_grad_() for w in weights[:3]]
    for grad in (False, True):
        index = slice(3) if grad else slice(4)
        chosen = leaves if grad else weights
        got, sigma = ops.spectral_normalize(
            chosen, u[index], v[index], max_norm=max_norm, guard=True
        )
        wide = [[x.detach().double() for x in xs[index]] for xs in (weights, u, v)]
        wide[0] = [w.requires_grad_() for w in wide[0]]
        right, s = reference.spectral_normalize(*wide, max_norm=max_norm, guard=True)
        assert_near(sigma, s, torch.float32)
        assert sigma[1:].tolist() == [1] * (len(chosen) - 1)
        for a, b in zip(got, right, strict=True):
            assert_near(a, b, torch.float32)
        if grad:
            cotangents = [draw(5, 7) for _ in chosen]
            grads = torch.autograd.grad(got, chosen, cotangents)
            expected = torch.autograd.grad(right, wide[0], [x.double() for x in cotangents])
            for a, b in zip(grads, expected, strict=True):
                assert_near(a, b, torch.float32)
    _, free = ops.spectral_normalize(weights[1:2], u[1:2], v[1:2])
    assert free.item() == 0


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("options", [{}, {"step_scoped": True}, {"cache_eval": True}], ids=str)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("init", [None, 0])
@pytest.mark.parametrize("form", FORMS)
def test_a_guarded_layer_that_begins_at_zero(cpu_backend, form, init, fused, options, kernels):
    with gankernels.backend(kernels):
        layer = nn.Linear(8, 4).double()
        nn.init.zeros_(layer.weight)
        more = {} if init is None else {"init_iterations": init}
        model = nn.Sequential(spectral_norm(ours, form)(layer, guard=True, **more, **options))
        handle = gankernels.fuse_spectral_norm(model, **options) if fused else None
        average = gankernels.ema.AveragedModel(model, decay=0.5)
        x = torch.randn(2, 8).double()
        assert model(x).isfinite().all()
        assert model.eval()(x).isfinite().all()
        assert gankernels.fold_spectral_norm(model)(x).isfinite().all()
        model.train()
        weight = next(p for name, p in layer.named_parameters() if "bias" not in name)
        with torch.no_grad():
            weight.add_(3 * torch.eye(4, 8))
        for _ in range(50):
            with torch.no_grad():
                weight.add_(0)  # a step of the optimizer
            if handle is not None:
                handle.step()
            model(x)
        average.update_parameters(model)
        assert abs(torch.linalg.matrix_norm(layer.weight.detach(), 2) - 1) < 1e-9
        assert model.eval()(x).isfinite().all()
        assert gankernels.fold_spectral_norm(model)(x).isfinite().all()
        assert average.eval()(x).isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_without_guard_zero_is_what_torch_makes_of_it(cpu_backend, form):
    for mode in (True, False):
        outputs = []
        for of in (THEIRS, ours):
            layer = nn.Linear(8, 4, bias=False)
            nn.init.zeros_(layer.weight)
            outputs.append(spectral_norm(of, form)(layer).train(mode)(torch.ones(1, 8)))
        assert_near(outputs[1], outputs[0])


# --- dimensions --------------------------------------------------------------------------------

MANY = {
    "nine": lambda draw: draw(3, 2, 1, 2, 2, 1, 2, 2, 2),
    "nine, none of one": lambda draw: draw(2, 2, 3, 2, 2, 2, 2, 2, 2),
    "ten, reversed": lambda draw: draw(*[2] * 10).permute(*range(9, -1, -1)),
    "ten, two groups": lambda draw: draw(*[2] * 10).permute(0, 6, 7, 8, 9, 1, 2, 3, 4, 5),
    "twelve": lambda draw: draw(*[2] * 12),
    "twelve, other dim first": lambda draw: draw(*[2] * 12).movedim(7, 0),
    "ten, sliced": lambda draw: draw(*[2] * 9, 4)[..., ::2],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", MANY)
def test_nine_dimensions_and_more(backend, layout, order):
    weights = [MANY[layout](drawer(0, device=backend)), drawer(3, device=backend)(5, 4)]
    u, v = vectors(weights)
    wide = [[x.to(torch.float64, copy=True) for x in xs] for xs in (weights, u, v)]
    found = ops.power_iteration_(weights, u, v, 2, 1e-12, order)
    expected = reference.power_iteration_(*wide, 2, 1e-12, order)
    assert_near(joined(found), joined(expected), torch.float32, factor=4)
    u, v, _ = found
    u64, v64, _ = expected
    g, h = ([drawer(k, device=backend)(*w.shape) for w in weights] for k in (4, 5))
    results = []
    for ws, us, vs, of in ((weights, u, v, ops), (wide[0], u64, v64, reference)):
        ws = [w.detach().requires_grad_() for w in ws]
        outputs, _ = of.spectral_normalize(ws, us, vs)
        seeds = [x.to(ws[0].dtype).requires_grad_() for x in g]
        grads = torch.autograd.grad(outputs, ws, seeds, create_graph=True)
        second = torch.autograd.grad(grads, [*ws, *seeds], [x.to(ws[0].dtype) for x in h])
        results.append([*outputs, *grads, *second])
    for a, b in zip(*results, strict=True):
        assert_near(a, b, torch.float32, factor=4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", MANY)
def test_drop_ins_of_nine_dimensions_and_more(cpu_backend, layout, form):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(MANY[layout](drawer(0)))

        def forward(self, x):
            return (self.weight * x).sum()

    results = []
    for of in (THEIRS, ours, ours):
        torch.manual_seed(0)
        model = nn.Sequential(spectral_norm(of, form)(Layer(), dim=1))
        if len(results) == 2:
            gankernels.fuse_spectral_norm(model)
        for _ in range(2):
            out = model(drawer(1)(*MANY[layout](drawer(0)).shape))
        out.backward()
        results.append((out.detach(), next(model.parameters()).grad))
    for mine in results[1:]:
        for a, b in zip(results[0], mine, strict=True):
            assert_near(b, a.double(), torch.float32, factor=8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_every_nan_stays_nan_in_half_precision(backend, isa, dtype):
    """Also those whose last bits would carry into the exponent where they are rounded."""
    w = drawer(0, dtype, backend)(3, 131).requires_grad_()
    u = drawer(1, torch.float32, backend)(3)
    v = torch.full((131,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32).to(backend)
    for name in instruction_sets():
        isa(name)
        (out,), _ = ops.spectral_normalize([w], [u], [v], torch.ones(1, device=backend))
        (grad,) = torch.autograd.grad(out, w, torch.ones_like(out))
        assert grad.isnan().all(), name
