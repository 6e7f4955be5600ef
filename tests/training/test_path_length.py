"""PathLength against equation 4 written out with whole Jacobians in float64."""

import copy
import io
import math
import pickle

import pytest
import torch
from support import devices
from support.tensors import assert_near, drawer
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from gankernels.nn import LazyRegularizer
from gankernels.regularizers import PathLength

pytestmark = pytest.mark.usefixtures("device")

B, D, SHAPE = 3, 4, (2, 5, 3)


class Synthesis(nn.Module):
    """Images of latents (B, D), or (B, 2, D), of which each layer takes its own."""

    def __init__(self, dtype=torch.float64, shape=SHAPE):
        super().__init__()
        draw = drawer(0, torch.float64)
        self.a = nn.Parameter(draw(D, 6).to(dtype))
        self.b = nn.Parameter(draw(D, 6).to(dtype))
        self.out = nn.Parameter(draw(6, math.prod(shape)).to(dtype))
        self.shape = shape

    def forward(self, w):
        first, second = w.unbind(1) if w.dim() == 3 else (w, w)
        hidden = (first @ self.a).tanh() * (1 + (second @ self.b).sigmoid())
        return (hidden @ self.out).view(-1, *self.shape)


def seeded():
    return devices.generator(3)


def latents(*shape, dtype=torch.float64):
    return drawer(1, dtype)(*shape).requires_grad_()


def lengths(G, w, y):
    """Of every sample by itself: the Jacobian times y, layer by layer."""
    found = []
    for one, direction in zip(w, y, strict=True):
        J = torch.func.jacrev(lambda x: G(x[None])[0])(one)  # (C, ..., [layers,] D)
        product = (direction.view(-1) @ J.reshape(direction.numel(), -1)).view(one.shape)
        found.append(product.square().sum(-1).mean().sqrt())
    return torch.stack(found)


def drawn(images, generator=None):
    y = torch.randn(images.shape, generator=generator or seeded(), dtype=images.dtype)
    return y / math.sqrt(images[0, 0].numel())


@pytest.mark.parametrize("shape", [(B, D), (B, 2, D), (B, 1, D)])
@pytest.mark.parametrize("space", [(5, 3), (7,), (2, 3, 2)])
def test_is_equation_4(shape, space):
    if shape[1:2] == (1,):
        G, one = Synthesis(shape=(2, *space)), lambda w: G(w[:, 0])
    else:
        one = G = Synthesis(shape=(2, *space))
    module = PathLength(3.0, 0.25)
    w, generator, again = latents(*shape), seeded(), seeded()
    a = 0.0
    for _ in range(3):
        images = one(w)
        got = module(images, w, generator=generator)
        found = lengths(one, w, drawn(images, again))
        a += 0.25 * (found.mean().item() - a)  # moves before it is used
        expected = 3 * (found - a).square().mean()
        assert got.dtype == torch.float64
        assert_near(got, expected, torch.float32)
        assert module.mean.item() == pytest.approx(a, rel=1e-6)
        grads = torch.autograd.grad(got, list(G.parameters()))
        for g, e in zip(grads, torch.autograd.grad(expected, list(G.parameters())), strict=True):
            assert_near(g, e, torch.float32)


def test_evaluation_mode_leaves_the_mean():
    G, w = Synthesis(), latents(B, D)
    module = PathLength()
    module(G(w), w, generator=seeded())
    before = module.mean.clone()
    got = module.eval()(G(w), w, generator=seeded())
    assert torch.equal(module.mean, before)
    expected = 2 * (lengths(G, w, drawn(G(w))) - before.double()).square().mean()
    assert_near(got, expected)


def test_numerical_derivatives():
    G, w = Synthesis(), latents(B, 2, D)
    module = PathLength(decay=0.5)
    module(G(w), w, generator=seeded())
    module.eval()

    def penalty(a, out):
        images = torch.func.functional_call(G, {"a": a, "out": out}, (w,))
        return module(images, w, generator=seeded())

    inputs = [G.a.detach().clone().requires_grad_(), G.out.detach().clone().requires_grad_()]
    assert gradcheck(penalty, inputs)
    assert gradgradcheck(penalty, inputs)


def test_several_forwards_before_a_backward():
    G, w = Synthesis(), latents(B, D)
    module = PathLength(decay=0.5)
    sum(module(G(w), w) for _ in range(3)).backward()
    module.eval()
    value = module(G(w), w)
    module.train()(G(w), w)
    value.backward()
    assert G.out.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    """Images in half precision of latents in float32, as a generator of mixed precision has it."""
    G, w = Synthesis(torch.float32), latents(B, 2, D, dtype=torch.float32)
    images = G(w).to(dtype)
    got = PathLength()(images, w, generator=seeded())
    exact, same = Synthesis(), w.detach().double()
    found = lengths(exact, same, drawn(images.float()).to(dtype).double())
    expected = 2 * (found - 0.01 * found.mean()).square().mean()
    assert got.dtype == torch.float32
    # y is rounded to the dtype of the images, their gradient too.
    assert_near(got, expected, torch.float32 if dtype == torch.float32 else dtype)


def test_latents_in_half_precision():
    G, w = Synthesis(torch.bfloat16), latents(B, D, dtype=torch.bfloat16)
    got = PathLength()(G(w), w, generator=seeded())
    assert got.dtype == torch.float32
    got.backward()
    assert G.out.grad.dtype == torch.bfloat16


def test_scaled_gradients():
    """Float16 gradients that would be 0 without a scale."""
    scale = torch.tensor([2.0**-14])
    G, w = Synthesis(torch.float32), latents(B, D, dtype=torch.float32)
    expected = PathLength()(G(w), w, generator=seeded())
    got = PathLength()(G(w), w, generator=seeded(), inv_scale=scale)
    assert_near(got, expected.double())
    tiny = latents(B, D, dtype=torch.float32)
    scaled = PathLength()
    scaled((G(tiny) * 1e-9).half(), tiny, generator=seeded(), inv_scale=scale)
    wanted = PathLength()
    wanted(G(tiny) * 1e-9, tiny, generator=seeded())
    assert scaled.mean.item() == pytest.approx(wanted.mean.item(), rel=1e-2)


def test_autocast(device):
    G, w = Synthesis(torch.float32), latents(B, D, dtype=torch.float32)
    expected = PathLength()(G(w), w, generator=seeded())
    with torch.autocast(device.type, torch.bfloat16):
        got = PathLength()(G(w), w, generator=seeded())
    assert got.dtype == torch.float32
    assert_near(got, expected.double(), torch.bfloat16)


def test_without_a_graph():
    G, w = Synthesis(), latents(B, D)
    expected = PathLength()(G(w), w, generator=seeded())
    images = G(w)
    with torch.no_grad():
        got = PathLength()(images, w, generator=seeded())
    assert not got.requires_grad
    assert torch.equal(got, expected)


def test_a_length_of_zero_has_no_gradient():
    w = latents(2, D)
    factor = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    images = (w.sum(1) * factor).view(2, 1, 1).expand(2, 1, 6)
    PathLength()(images, w).backward()
    assert factor.grad.isfinite().all()
    assert factor.grad[0] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_lengths_do_not_reach_the_mean(bad):
    G, w = Synthesis(), latents(B, D)
    module = PathLength()
    assert not module(bad * G(w), w).isfinite()
    assert module.mean.item() == 0
    module(G(w), w, generator=seeded())
    before = module.mean.clone()
    module(bad * G(w), w)
    assert torch.equal(module.mean, before)


def test_state():
    G, w = Synthesis(), latents(B, D)
    module = PathLength(decay=0.5)
    module(G(w), w)
    assert set(module.state_dict()) == {"mean"}
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded = PathLength(decay=0.5)
    loaded.load_state_dict(torch.load(file))
    others = [loaded, copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    expected = module(G(w), w, generator=seeded())
    for other in others:
        assert torch.equal(other(G(w), w, generator=seeded()), expected)
        assert torch.equal(other.mean, module.mean)
    before = module.mean.clone()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(module.to(dtype).mean, before)
    assert repr(module) == "PathLength(weight=2.0, decay=0.5)"


def test_lazily():
    G, w = Synthesis(), latents(B, D)
    module, lazy = PathLength(), LazyRegularizer(PathLength(), interval=4)
    expected = module(G(w), w, generator=seeded())
    assert torch.equal(lazy(G(w), w, generator=seeded()), 4 * expected)
    for _ in range(3):
        assert not lazy.due
        assert lazy(None, None) == 0
    assert torch.equal(lazy.penalty.mean, module.mean)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda G, w: PathLength(-1.0), ValueError, "weight to be finite and not negative"),
        (lambda G, w: PathLength(decay=0), ValueError, "decay to be finite and positive"),
        (lambda G, w: PathLength(decay=1.5), ValueError, "decay to be at most 1, got 1.5"),
        (lambda G, w: PathLength(process_group=3), TypeError, "process_group to be a torch.dist"),
        (lambda G, w: PathLength()([G(w)], w), TypeError, "images to be a tensor .* got list"),
        (lambda G, w: PathLength()(G(w), [w]), TypeError, "latents to be a tensor .* got list"),
        (lambda G, w: PathLength()(G(w)[:, 0, 0], w), ValueError, r"images of shape \(B, C, H, W"),
        (lambda G, w: PathLength()(G(w), w[0]), ValueError, r"latents of shape \(B, D\) or"),
        (
            lambda G, w: PathLength()(G(w), w[:2]),
            ValueError,
            r"latents .* with B = 3, of the images, got \(2",
        ),
        (
            lambda G, w: PathLength()(G(w), w.detach()),
            ValueError,
            r"latents that require a gradient, got .*; call latents.requires_grad_\(\) before",
        ),
        (
            lambda G, w: PathLength()(G(w).detach(), w),
            ValueError,
            "images that require a gradient, got .*; give the images with their graph",
        ),
        (
            lambda G, w: PathLength()(G(w), w.clone()),
            ValueError,
            "images that depend on latents, got .*; pass the very tensor that the generator was",
        ),
        (
            lambda G, w: PathLength()(G(w), w, generator=3),
            TypeError,
            "generator to be a torch.Generator or None, got int",
        ),
        (
            lambda G, w: PathLength()(G(w), w, inv_scale=0.5),
            ValueError,
            "inv_scale to be a tensor of one element, got float",
        ),
        (
            lambda G, w: PathLength().to("meta")(G(w), w),
            ValueError,
            r"images on meta, where the moving average is, got cpu; .*\.to\(\"cpu\"\)",
        ),
    ],
    ids=range(15),
)
@devices.CPU_ONLY
def test_refuses(call, error, message):
    with pytest.raises(error, match=f"^PathLength: expected {message}"):
        call(Synthesis(), latents(B, D))


def test_refuses_before_anything_moves():
    G, w = Synthesis(), latents(B, D)
    module = PathLength()
    with pytest.raises(ValueError, match="depend"):
        module(G(w), w.clone())
    assert module.mean.item() == 0
    with torch.inference_mode(), pytest.raises(ValueError, match="outside torch"):
        module(G(w), w)


@pytest.mark.parametrize("decay", [0.51, 0.99, 1.0])
def test_a_decay_that_is_what_stays_is_told_of(decay, recwarn):
    PathLength(decay=0.5)
    assert list(recwarn) == []
    with pytest.warns(UserWarning, match=rf"share of a new batch, such as 0.01, got {decay}"):
        PathLength(decay=decay)
