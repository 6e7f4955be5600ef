"""fuse_weight_norm and fold_weight_norm: torch's numbers, keys and copies; no stale weight."""

import copy
import gc
import io
import sys
import threading
import warnings
import weakref

import pytest
import torch
from support.networks import replicate
from torch import nn
from torch.nn.utils import parametrizations, parametrize, remove_weight_norm
from torch.utils.checkpoint import checkpoint

import gankernels
from gankernels.weight_norm import fuse

KINDS = {
    "hook": torch.nn.utils.weight_norm,
    "parametrization": parametrizations.weight_norm,
}


@pytest.fixture(params=list(KINDS))
def weight_norm(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's hook is deprecated
        yield KINDS[request.param]


class Vocoder(nn.Module):
    """Layers of every sort that have weight norm, with each dim."""

    def __init__(self, weight_norm):
        super().__init__()
        self.pre = weight_norm(nn.Conv1d(4, 6, 3, padding=1))
        self.up = weight_norm(nn.ConvTranspose1d(6, 5, 4, 2, padding=1))
        self.other = weight_norm(nn.Conv1d(5, 5, 3, padding=1, groups=5), dim=2)
        self.whole = weight_norm(nn.Conv1d(5, 3, 1), dim=None)
        self.plain = nn.Conv1d(3, 3, 1)
        self.post = weight_norm(nn.Linear(3, 2))

    def forward(self, x):
        x = self.up(self.pre(x).relu())
        x = self.plain(self.whole(self.other(x).tanh())).transpose(1, 2)
        return self.post(x)


def pair(weight_norm, device, dtype=torch.float64):
    """The same model twice, the second fused; and an input."""
    torch.manual_seed(3)
    plain = Vocoder(weight_norm).to(device, dtype)
    torch.manual_seed(3)
    fused = Vocoder(weight_norm).to(device, dtype)
    x = torch.randn(2, 4, 9, dtype=dtype, device=device)
    return plain, fused, gankernels.fuse_weight_norm(fused), x


def same(first, second, **tolerance):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.fixture
def calls(monkeypatch):
    """How many weights every call of the operator had."""
    found = []

    def counted(v, g, **options):
        found.append(1 if isinstance(v, torch.Tensor) else len(v))
        return weight_norm_(v, g, **options)

    weight_norm_ = fuse.weight_norm
    monkeypatch.setattr(fuse, "weight_norm", counted)
    return found


# --- numbers ------------------------------------------------------------------------------------


def test_training_is_that_of_torch(backend, weight_norm, calls):
    plain, fused, _, x = pair(weight_norm, backend)
    optimizers = [torch.optim.Adam(m.parameters(), 0.05) for m in (plain, fused)]
    for _ in range(4):
        for model, optimizer in zip((plain, fused), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        same([p.grad for p in plain.parameters()], [p.grad for p in fused.parameters()])
    same(list(plain.parameters()), list(fused.parameters()))
    assert calls == [5] * 4


def test_a_penalty_goes_through_it_twice(backend, weight_norm):
    plain, fused, _, x = pair(weight_norm, backend)
    grads = []
    for model in (plain, fused):
        inputs = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(model(inputs).square().sum(), inputs, create_graph=True)
        loss = gankernels.gradient_penalty(g)
        grads.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    found = [[g for g in x if g is not None] for x in grads]
    same(*found)


def test_second_derivatives_in_the_weights(backend, weight_norm, monkeypatch):
    """Other than torch's, whose second derivative in v takes the norm for a constant."""

    def differentiable(v, g, dim):
        return v * (g / torch.norm_except_dim(v, 2, dim))

    plain, fused, _, x = pair(weight_norm, backend)
    monkeypatch.setattr(torch, "_weight_norm", differentiable)
    monkeypatch.setattr(sys.modules["torch.nn.utils.weight_norm"], "_weight_norm", differentiable)
    found = []
    for model in (plain, fused):
        parameters = list(model.parameters())
        first = torch.autograd.grad(model(x).square().sum(), parameters, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), parameters))
    same(*found)


def test_alone_and_together_have_the_same_bits(backend, weight_norm, calls):
    """As a layer that is called outside of the model's forward computes its own weight."""
    _, fused, _, x = pair(weight_norm, backend, torch.float32)
    fused(x)
    assert calls == [5]
    with_all = fused.pre(x)
    del calls[:]
    seen = []
    handle = fused.pre.register_forward_hook(lambda module, args, output: seen.append(output))
    fused(x)
    handle.remove()
    assert torch.equal(with_all, seen[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes(weight_norm, dtype):
    plain, fused, _, x = pair(weight_norm, "cpu", dtype)
    torch.testing.assert_close(plain(x), fused(x), rtol=0.05, atol=0.05)


def test_autocast(weight_norm):
    plain, fused, _, x = pair(weight_norm, "cpu", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(plain(x), fused(x))


def test_frozen_weights(weight_norm):
    plain, fused, _, x = pair(weight_norm, "cpu")
    for model in (plain, fused):
        model.pre.requires_grad_(False)
        for name, p in model.up.named_parameters():
            p.requires_grad_(name.endswith(("_g", "original0")))
        model(x).square().sum().backward()
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_no_grad_inside_and_outside(weight_norm):
    plain, fused, _, x = pair(weight_norm, "cpu")
    with torch.no_grad():
        torch.testing.assert_close(plain(x), fused(x))
    with torch.inference_mode():
        torch.testing.assert_close(plain(x), fused(x))

    class Around(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, grad):
            with torch.set_grad_enabled(grad):
                return self.inner(x)

    model = Around(weight_norm(nn.Linear(3, 3)))
    gankernels.fuse_weight_norm(model)
    x = torch.randn(2, 3)
    assert not model(x, False).requires_grad
    with torch.no_grad():
        out = model(x, True)
    assert out.requires_grad
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_parts_of_a_forward_have_backward_passes_of_their_own(weight_norm):
    """As layer by layer: the first one frees what belongs to its part alone."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (weight_norm(nn.Linear(3, 3)) for _ in range(2))

        def forward(self, x):
            return self.a(x), self.b(x)

    torch.manual_seed(0)
    plain = Two()
    torch.manual_seed(0)
    fused = Two()
    gankernels.fuse_weight_norm(fused)
    x = torch.randn(2, 3)
    for model in (plain, fused):
        first, second = model(x)
        first.sum().backward()
        second.square().sum().backward()
    same([p.grad for p in plain.parameters()], [p.grad for p in fused.parameters()])


def test_a_layer_called_twice(weight_norm, calls):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = weight_norm(nn.Linear(3, 3))

        def forward(self, x):
            return self.a(self.a(x))

    torch.manual_seed(0)
    plain = Twice()
    torch.manual_seed(0)
    fused = Twice()
    gankernels.fuse_weight_norm(fused)
    x = torch.randn(2, 3)
    for model in (plain, fused):
        model(x).sum().backward()
    same([p.grad for p in plain.parameters()], [p.grad for p in fused.parameters()])
    assert calls == [1]


# --- never stale --------------------------------------------------------------------------------


def parameter_of(layer, which):
    names = {"g": ("weight_g", "original0"), "v": ("weight_v", "original1")}[which]
    return next(p for name, p in layer.named_parameters() if name.endswith(names))


@pytest.mark.parametrize("which", ["g", "v"])
@pytest.mark.parametrize("way", ["in place", "data", "swapped"])
def test_a_write_during_the_forward_is_seen(weight_norm, which, way):
    """By a pre-hook, which may write through .data; by another module in place."""
    plain, fused, _, x = pair(weight_norm, "cpu")

    def write(model):
        p = parameter_of(model.whole, which)
        with torch.no_grad():
            if way == "in place":
                p.mul_(3)
            elif way == "data":
                p.data.mul_(3)
            else:
                p.data = p.data * 3

    outputs = []
    for model in (plain, fused):
        model.whole.register_forward_pre_hook(lambda *_, m=model: write(m), prepend=True)
        if way == "in place":
            model.up.register_forward_hook(lambda *_, m=model: write(m))
        outputs.append([model(x).detach() for _ in range(2)])
    same(*outputs)
    assert not torch.equal(*outputs[0]) or which == "v"


@pytest.mark.parametrize("which", ["g", "v"])
@pytest.mark.parametrize("way", ["in place", "other memory", "another parameter"])
def test_a_write_by_the_forward_itself_is_seen(weight_norm, which, way):
    """After the weights were computed ahead, and without a hook that tells."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (weight_norm(nn.Linear(3, 3)) for _ in range(2))

        def forward(self, x):
            x = self.a(x)
            p = parameter_of(self.b, which)
            with torch.no_grad():
                if way == "in place":
                    p[0] = 3 * p[0] + 1
                elif way == "other memory":
                    p.data = 3 * p.data + torch.ones_like(p).cumsum(-1)
                else:
                    name, _ = next(x for x in self.b.named_parameters() if x[1] is p)
                    owner, _, name = name.rpartition(".")
                    other = 3 * p + torch.ones_like(p).cumsum(-1)
                    setattr(self.b.get_submodule(owner), name, nn.Parameter(other))
            return self.b(x)

    torch.manual_seed(0)
    plain = Net()
    torch.manual_seed(0)
    fused = Net()
    gankernels.fuse_weight_norm(fused)
    x = torch.randn(2, 3)
    for _ in range(2):
        torch.testing.assert_close(fused(x), plain(x))


@pytest.mark.parametrize("alone", [True, False])
def test_a_traceback_holds_an_interrupted_forward(weight_norm, alone):
    """And with it what was computed ahead, which nobody takes any more."""
    plain, fused, _, x = pair(weight_norm, "cpu")

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = fused.plain.register_forward_hook(interrupt)
    held = None
    try:
        fused(x)
    except KeyboardInterrupt as error:
        held = error
    handle.remove()
    assert held is not None
    assert fuse.open_frames.frames
    for model in (plain, fused):
        parameter_of(model.pre, "v").data.copy_(torch.ones(6, 4, 3))
    if alone:
        torch.testing.assert_close(fused.pre(x), plain.pre(x))
    else:
        torch.testing.assert_close(fused(x), plain(x))
        assert not fuse.open_frames.frames


def test_inference_within_and_around(weight_norm):
    """A weight of inference mode cannot be saved for a backward pass."""

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = weight_norm(nn.Linear(3, 3)).requires_grad_(False)

        def forward(self, x):
            with torch.inference_mode(False), torch.enable_grad():
                x = torch.ones(2, 3, requires_grad=True)
                (grad,) = torch.autograd.grad(self.inner(x).square().sum(), x)
                return grad

    model = Around()
    handle = gankernels.fuse_weight_norm(model)
    with torch.inference_mode():
        found = model(None)
    handle.unfuse()
    torch.testing.assert_close(found, model(None))


def test_read_without_a_gradient():
    seen = []

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = parametrizations.weight_norm(nn.Linear(3, 3))

        def forward(self, x):
            with torch.no_grad():
                seen.append(self.inner.weight.requires_grad)
            return self.inner(x)

    model = Reader()
    gankernels.fuse_weight_norm(model)
    assert model(torch.ones(1, 3)).requires_grad
    assert seen == [False]


def test_a_replica_computes_its_own(weight_norm, calls):
    """Of DataParallel: it has the hooks of the model, and parameters of its own."""
    plain, fused, _, x = pair(weight_norm, "cpu")
    torch.testing.assert_close(replicate(fused)(x), plain(x))
    assert calls == [1] * 5


def test_after_an_interrupted_forward(weight_norm):
    plain, fused, _, x = pair(weight_norm, "cpu")

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = fused.plain.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        fused(x)
    handle.remove()
    for model in (plain, fused):
        parameter_of(model.pre, "v").data.copy_(torch.ones(6, 4, 3))
    torch.testing.assert_close(plain.pre(x), fused.pre(x))
    torch.testing.assert_close(plain(x), fused(x))
    assert not fuse.open_frames.frames


def test_an_error_in_the_forward_leaves_nothing(weight_norm):
    _, fused, _, x = pair(weight_norm, "cpu")
    with pytest.raises(RuntimeError):
        fused(x[:, :2])
    assert not fuse.open_frames.frames


def test_a_backward_after_the_step_is_refused(weight_norm):
    _, fused, _, x = pair(weight_norm, "cpu")
    loss = fused(x).sum()
    with torch.no_grad():
        parameter_of(fused.pre, "v").mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_memory_goes_with_the_forward(weight_norm):
    _, fused, _, x = pair(weight_norm, "cpu")
    seen = []
    handle = fused.pre.register_forward_hook(lambda m, *_: seen.append(weakref.ref(m.weight)))
    with torch.no_grad():
        fused(x)
    handle.remove()
    if weight_norm is KINDS["hook"]:
        return  # stores the weight in the module, as torch does
    gc.collect()
    assert seen[0]() is None


def test_nothing_is_kept_for_the_next_forward(weight_norm):
    """As a replay of a CUDA graph needs it: writes that nothing counts are seen, too."""
    plain, fused, _, x = pair(weight_norm, "cpu")
    fused(x)
    for model in (plain, fused):
        for p in model.parameters():
            p.data.mul_(1.5)
    torch.testing.assert_close(fused(x), plain(x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(weight_norm, reentrant):
    """Inside a fused model and around it: the bits of a run without."""

    class Net(nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.a, self.b = (weight_norm(nn.Linear(3, 3)) for _ in range(2))
            self.inside = inside

        def forward(self, x):
            part = lambda x: self.b(self.a(x).tanh())  # noqa: E731
            return checkpoint(part, x, use_reentrant=reentrant) if self.inside else part(x)

    grads = []
    for way in ("none", "inside", "around"):
        torch.manual_seed(0)
        model = Net(way == "inside")
        gankernels.fuse_weight_norm(model)
        x = torch.randn(2, 3, requires_grad=True)
        out = checkpoint(model, x, use_reentrant=reentrant) if way == "around" else model(x)
        out.square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for found in grads[1:]:
        same(grads[0], found, rtol=0, atol=0)


def test_threads(weight_norm):
    _, fused, _, x = pair(weight_norm, "cpu")
    fused.eval()
    expected = torch.autograd.grad(fused(x).sum(), list(fused.parameters()), allow_unused=True)
    failed = []

    def work():
        for _ in range(20):
            found = torch.autograd.grad(fused(x).sum(), list(fused.parameters()), allow_unused=True)
            if any(not torch.equal(a, b) for a, b in zip(expected, found, strict=True)):
                failed.append(found)

    if weight_norm is KINDS["hook"]:
        pytest.skip("torch's hook keeps the weight in the module, which threads share")
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# --- models -------------------------------------------------------------------------------------


def test_copies_and_pickles(weight_norm, calls):
    _, fused, _, x = pair(weight_norm, "cpu")
    expected = fused(x)
    twin = copy.deepcopy(fused)
    del calls[:]
    torch.testing.assert_close(twin(x), expected)
    assert calls == [5]
    with torch.no_grad():
        parameter_of(twin.pre, "g").mul_(2)
    torch.testing.assert_close(fused(x), expected)
    assert not torch.equal(twin(x), expected)

    if weight_norm is KINDS["parametrization"]:
        return  # torch does not pickle parametrized modules
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), expected)


def test_a_copy_before_the_first_forward(weight_norm):
    plain, fused, _, x = pair(weight_norm, "cpu")
    twin = copy.deepcopy(fused)
    torch.testing.assert_close(twin(x), plain(x))
    again = copy.deepcopy(twin)  # knows hooks by the modules that have them: its own
    assert fuse.handle_of(twin)._ancestors is not None
    assert fuse.handle_of(again)._ancestors is None


def test_a_plain_weight_beside_its_own_keys_is_unexpected(weight_norm):
    _, fused, _, _ = pair(weight_norm, "cpu")
    before = parameter_of(fused.post, "v").clone()
    state = {**fused.state_dict(), "post.weight": torch.zeros(2, 3)}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*post\.weight"):
        fused.load_state_dict(state)
    assert torch.equal(parameter_of(fused.post, "v"), before)


def test_keys_load_both_ways():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for first in KINDS.values():
            saved = Vocoder(first)
            for second in KINDS.values():
                model = Vocoder(second)
                gankernels.fuse_weight_norm(model)
                keys = set(model.state_dict())
                model.load_state_dict(saved.state_dict())
                torch.testing.assert_close(model(x), saved(x))
                assert set(model.state_dict()) == keys == set(Vocoder(second).state_dict())
                folded = gankernels.fold_weight_norm(saved).state_dict()
                assert not any("weight_" in key or "original" in key for key in folded)
                again = Vocoder(second)
                gankernels.fuse_weight_norm(again)
                again.load_state_dict(folded)
                torch.testing.assert_close(again(x), saved(x))


def test_strict_loading_still_says_what_is_missing(weight_norm):
    _, fused, _, _ = pair(weight_norm, "cpu")
    state = fused.state_dict()
    key = next(key for key in state if key.startswith("pre.") and key.endswith(("_v", "original1")))
    del state[key]
    with pytest.raises(RuntimeError, match="Missing key"):
        fused.load_state_dict(state)


def test_unfuse_gives_the_model_back(weight_norm, calls):
    plain, fused, handle, x = pair(weight_norm, "cpu")
    assert repr(handle) == "FusedWeightNorm(5 weights)"
    fused(x)
    assert handle.unfuse() is fused
    del calls[:]
    assert torch.equal(plain(x), fused(x))
    assert not calls
    for a, b in zip(plain.modules(), fused.modules(), strict=True):
        kinds = [[type(h) for h in m._forward_pre_hooks.values()] for m in (a, b)]
        assert kinds[0] == kinds[1]
        assert not b._forward_hooks
    handle.unfuse()
    gankernels.fuse_weight_norm(fused)
    fused(x)
    assert calls == [5]


def test_fusing_again_finds_what_is_new(weight_norm, calls):
    _, fused, handle, x = pair(weight_norm, "cpu")
    fused.plain = weight_norm(fused.plain.double())
    assert gankernels.fuse_weight_norm(fused) is handle
    fused(x)
    assert calls == [6]


def test_a_removed_norm_stays_removed(weight_norm, calls):
    plain, fused, handle, x = pair(weight_norm, "cpu")
    if weight_norm is KINDS["hook"]:
        remove_weight_norm(fused.pre)
    else:
        parametrize.remove_parametrizations(fused.pre, "weight")
    del calls[:]
    torch.testing.assert_close(plain(x), fused(x))
    assert calls[0] == 4
    handle.unfuse()
    torch.testing.assert_close(plain(x), fused(x))


def test_beside_spectral_norm(weight_norm):
    """As in HiFi-GAN's discriminators, with both fused in either order."""
    for order in ((0, 1), (1, 0)):
        outputs = []
        for fuses in (False, True):
            torch.manual_seed(0)
            model = nn.Sequential(
                weight_norm(nn.Linear(4, 4)), parametrizations.spectral_norm(nn.Linear(4, 4))
            )
            ways = gankernels.fuse_weight_norm, gankernels.fuse_spectral_norm
            for i in order if fuses else ():
                ways[i](model)
            x = torch.ones(2, 4)
            model(x).sum().backward()
            outputs.append([model(x), *(p.grad for p in model.parameters())])
        same(*outputs)


def test_within_another_link(weight_norm):
    """A chain of parametrizations, and torch's parametrize.cached()."""

    class Doubled(nn.Module):
        def forward(self, w):
            return 2 * w

    if weight_norm is KINDS["hook"]:
        pytest.skip("of parametrizations")
    torch.manual_seed(0)
    plain = weight_norm(nn.Linear(3, 3))
    parametrize.register_parametrization(plain, "weight", Doubled())
    fused = copy.deepcopy(plain)
    gankernels.fuse_weight_norm(fused)
    x = torch.randn(2, 3)
    torch.testing.assert_close(plain(x), fused(x))
    with parametrize.cached():
        torch.testing.assert_close(plain(x), fused(x))
        torch.testing.assert_close(plain(x), fused(x))
    folded = gankernels.fold_weight_norm(fused)
    torch.testing.assert_close(plain(x), folded(x))
    assert set(folded.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_fold(weight_norm, inplace, fused):
    torch.manual_seed(0)
    model = Vocoder(weight_norm)
    if fused:
        gankernels.fuse_weight_norm(model)
    x = torch.randn(2, 4, 9)
    expected = model(x)
    parameter_of(model.pre, "v").requires_grad_(False)
    parameter_of(model.pre, "g").requires_grad_(False)
    folded = gankernels.fold_weight_norm(model, inplace=inplace)
    assert (folded is model) == inplace
    torch.testing.assert_close(folded(x), expected)
    assert isinstance(folded.up.weight, nn.Parameter)
    assert folded.up.weight.requires_grad
    assert not folded.pre.weight.requires_grad
    assert not any(m._forward_pre_hooks for m in folded.modules())
    torch.testing.assert_close(model(x), expected)


def test_two_dtypes_are_computed_in_plain_torch(weight_norm, calls):
    layer = weight_norm(nn.Linear(3, 3, bias=False))
    g, v = parameter_of(layer, "g"), parameter_of(layer, "v")
    g.data = g.data.double()
    model = nn.Sequential(layer)
    gankernels.fuse_weight_norm(model)
    x = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(model(x), x @ (g * v / v.norm(dim=1, keepdim=True)).t())
    assert not calls


def test_compiled(weight_norm):
    plain, fused, _, x = pair(weight_norm, "cpu")
    compiled = torch.compile(fused, backend="aot_eager")
    compiled(x).sum().backward()
    plain(x).sum().backward()
    same([p.grad for p in plain.parameters()], [p.grad for p in fused.parameters()])


def test_transforms(weight_norm):
    plain, fused, _, x = pair(weight_norm, "cpu")
    found = []
    for model in (plain, fused):
        parameters = dict(model.named_parameters())
        call = lambda p, m=model: torch.func.functional_call(m, p, x).square().sum()  # noqa: E731
        found.append(list(torch.func.grad(call)(parameters).values()))
    same(*found)


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        (
            nn.Linear(2, 2),
            ValueError,
            "with weight-normalized weights, got Linear",
        ),
        ("model", TypeError, "expected a torch.nn.Module, got"),
    ],
)
def test_mistakes(model, error, text):
    with pytest.raises(error, match=text):
        gankernels.fuse_weight_norm(model)


def test_folding_mistakes():
    with pytest.raises(TypeError, match="expected inplace to be True or False"):
        gankernels.fold_weight_norm(nn.Linear(2, 2), inplace=1)
    layer = nn.Linear(2, 2)
    assert torch.equal(gankernels.fold_weight_norm(layer).weight, layer.weight)
