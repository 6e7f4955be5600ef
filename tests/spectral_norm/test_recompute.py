"""Checkpointed forwards: the numbers of those that are not, bit for bit, without an option."""

import functools
import threading

import pytest
import torch
from support.networks import KINDS, states
from support.penalties import draw
from torch import nn
from torch.distributed._composable import checkpoint as composable
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

import gankernels as gk
from gankernels import losses
from gankernels import nn as gnn


@pytest.fixture(params=list(KINDS))
def kind(request):
    return KINDS[request.param]


class Part(nn.Module):
    """Two layers, one of which is called twice."""

    def __init__(self, norm, **options):
        super().__init__()
        self.a, self.b = (norm(nn.Linear(6, 6), **options) for _ in range(2))

    def forward(self, x):
        return self.b(self.a(self.a(x).tanh()).tanh()).tanh()


class Critic(nn.Module):
    """The middle part goes through ``way``."""

    def __init__(self, norm, way=None, **options):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = norm(nn.Linear(6, 6), **options), norm(nn.Linear(6, 1), **options)
        self.part, self.way = Part(norm, **options), way

    def forward(self, x):
        x = self.first(x).tanh()
        x = self.part(x) if self.way is None else self.way(self.part, x)
        return self.last(x)


def save_products(ctx, op, *args, **kwargs):
    saved = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE


def selectively(module, x):
    contexts = functools.partial(create_selective_checkpoint_contexts, save_products)
    return checkpoint(module, x, use_reentrant=False, context_fn=contexts)


def to_the_end(module, x):
    with set_checkpoint_early_stop(False):
        return checkpoint(module, x, use_reentrant=False)


def nested(module, x, reentrant=False):
    """One region around a layer, another around the rest within one around all."""

    def outer(x):
        x = checkpoint(lambda x: module.a(x).tanh(), x, use_reentrant=reentrant)
        x = module.a(x).tanh()
        return checkpoint(lambda x: module.b(x).tanh(), x, use_reentrant=reentrant)

    return checkpoint(outer, x, use_reentrant=reentrant)


def each(module, x):
    """One region around two calls of a layer, another around one."""
    x = checkpoint(lambda x: module.a(module.a(x).tanh()).tanh(), x, use_reentrant=False)
    return checkpoint(module.b, x, use_reentrant=False).tanh()


def reentrant(module, x):
    return checkpoint(module, x, use_reentrant=True)


WAYS = {
    "non-reentrant": lambda module, x: checkpoint(module, x, use_reentrant=False),
    "reentrant": reentrant,
    "selective": selectively,
    "to the end": to_the_end,
    "nested": nested,
    "nested reentrant": functools.partial(nested, reentrant=True),
    "each": each,
}
ONCE = ("reentrant", "nested reentrant", "selective")  # torch does not differentiate them twice


def train(D, forward, *, penalty=False):
    """Two steps; in each both forwards before one backward, as trainers have it."""
    optimizer, history = torch.optim.SGD(D.parameters(), 0.1), []
    for step in range(2):
        real, fake = (
            draw(5, 6, seed=2 * step + k, dtype=torch.float32).requires_grad_() for k in (0, 1)
        )
        optimizer.zero_grad()
        logits = forward(D, real), forward(D, fake)
        loss = losses.hinge.discriminator(*logits)
        if penalty:
            loss = loss + gk.r1_penalty(logits[0], real)
        loss.backward()
        history += [*(x.detach().clone() for x in (*logits, real.grad, fake.grad)), states(D)]
        optimizer.step()
    return history


def flat(values):
    if isinstance(values, dict):
        values = list(values.values())
    return [x for v in values for x in flat(v)] if isinstance(values, list) else [values]


def assert_equal(found, expected, bitwise=True):
    """To the bit, but where torch adds up gradients in another order: in reentrant regions."""
    for a, b in zip(flat(found), flat(expected), strict=True):
        assert (a is None) is (b is None)
        if bitwise:
            assert a is None or torch.equal(a, b)
        elif a is not None:
            torch.testing.assert_close(a, b)


def call(D, x):
    return D(x)


@pytest.mark.parametrize("penalty", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_inside(kind, fused, way, penalty):
    if penalty and way in ONCE:
        pytest.skip("torch differentiates such a region once")
    found = []
    for run in (None, WAYS[way]):
        D = Critic(kind.ours, run)
        if fused:
            gk.fuse_spectral_norm(D)
        found.append(train(D, call, penalty=penalty))
    assert_equal(*found, bitwise="reentrant" not in way.split())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("way", ["non-reentrant", "reentrant", "selective"])
@pytest.mark.parametrize("inside", [None, "non-reentrant", "reentrant"])
def test_around(kind, fused, way, inside):
    if inside == "reentrant" and way != "reentrant":
        pytest.skip("torch has no reentrant region within another kind")
    found = []
    for around in (call, WAYS[way]):
        D = Critic(kind.ours, WAYS.get(inside) if around is not call else None)
        if fused:
            gk.fuse_spectral_norm(D)
        found.append(train(D, around))
    assert_equal(*found, bitwise=way != "reentrant" and inside != "reentrant")


@pytest.mark.parametrize("options", [{"guard": True}, {"max_norm": 1.0}, {"step_scoped": True}])
def test_options(kind, options):
    found = []
    for way in (None, WAYS["non-reentrant"]):
        D = Critic(kind.ours, way, **options)
        if "guard" in options:
            with torch.no_grad():
                for p in D.part.parameters():
                    p.zero_()
        found.append([train(D, call), [dict(D.named_buffers())]])
    assert_equal(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_dtypes(kind, dtype):
    """Whatever the notes are kept in: the first ones are not of the weight's dtype."""
    found = []
    for way in (None, WAYS["non-reentrant"]):
        torch.manual_seed(0)
        layer = kind.ours(nn.Linear(6, 6, dtype=dtype))
        x = draw(3, 6).to(dtype).requires_grad_()
        for _ in range(2):
            y = layer(x) if way is None else way(layer, x)
            y.abs().square().sum().backward()
        found.append([y.detach(), x.grad, states(layer)])
    assert_equal(*found)


def test_torchs_own_under_a_fused_model(kind):
    found = []
    for way in (None, WAYS["non-reentrant"]):
        D = Critic(kind.torch, way)
        gk.fuse_spectral_norm(D)
        found.append(train(D, call, penalty=True))
    assert_equal(*found)


def test_by_torch_distributed():
    """Which puts a region around a module, and no function on the stack."""
    found = []
    for wrapped in (False, True):
        D = Critic(KINDS["parametrization"].ours)
        gk.fuse_spectral_norm(D)
        if wrapped:
            composable(D.part)
        found.append(train(D, call))
    assert_equal(*found)


def test_backward_in_the_other_order(kind):
    """The first forward is recomputed first, and each finds its own u and v; the second backward
    pass of either once more."""
    found = []
    for way in (None, WAYS["non-reentrant"]):
        D = Critic(kind.ours, way)
        first, second = D(draw(5, 6, dtype=torch.float32)), D(draw(3, 6, dtype=torch.float32))
        first.sum().backward(retain_graph=True)
        second.square().sum().backward()
        first.square().sum().backward()
        found.append([first.detach(), second.detach(), states(D)])
    assert_equal(*found)


def test_evaluation_in_between(kind):
    """u and v move between a forward in eval() and its recomputation."""
    found = []
    for way in (None, WAYS["non-reentrant"]):
        D = Critic(kind.ours, way).eval()
        out = D(draw(5, 6, dtype=torch.float32))
        D.train()
        D(draw(5, 6, dtype=torch.float32))
        D.eval()
        out.sum().backward()
        found.append([out.detach(), states(D)])
    assert_equal(*found)


def test_frozen_layers(kind):
    found = []
    for way in (None, WAYS["reentrant"]):
        D = Critic(kind.ours, way)
        for p in D.part.parameters():
            p.requires_grad_(False)
        found.append(train(D, call))
    assert_equal(*found, bitwise=False)


def test_a_layer_that_the_forward_did_not_call(kind):
    D, again = Critic(kind.ours), []
    x = draw(5, 6, dtype=torch.float32).requires_grad_()
    out = checkpoint(lambda x: D.part(x) if again else x.tanh(), x, use_reentrant=True)
    again.append(True)
    with pytest.raises(RuntimeError, match=r"to have called this layer \(of shape \(6, 6\)\)"):
        out.sum().backward()


def test_notes_go_with_the_graph(kind):
    from gankernels.spectral_norm import recompute

    D = Critic(kind.ours, WAYS["non-reentrant"])
    before = len(recompute._notes)
    out = D(draw(5, 6, dtype=torch.float32))
    assert len(recompute._notes) == before + 1
    out.sum().backward()
    del out
    assert len(recompute._notes) == before


def test_other_recomputations_are_warned_of(kind):
    class Recompute(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, layer):
            ctx.layer = layer
            ctx.save_for_backward(x)
            return layer(x).detach()

        @staticmethod
        def backward(ctx, g):
            x = ctx.saved_tensors[0].detach().requires_grad_()
            with torch.enable_grad():
                ctx.layer(x).backward(g)
            return x.grad, None

    layer = kind.ours(nn.Linear(6, 6))
    out = Recompute.apply(draw(5, 6, dtype=torch.float32).requires_grad_(), layer)
    with pytest.warns(UserWarning, match="u and v move once more"):
        out.sum().backward()


def test_threads(kind):
    """A region of each thread, of one model in eval()."""
    D = Critic(kind.ours, WAYS["non-reentrant"]).eval()
    x = draw(5, 6, dtype=torch.float32)
    (expected,) = torch.autograd.grad(D(x.requires_grad_()).sum(), x)
    found = []

    def saliency():
        own = x.detach().clone().requires_grad_()
        found.append(torch.autograd.grad(D(own).sum(), own)[0])

    threads = [threading.Thread(target=saliency) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert_equal(found, [expected] * 4)


def test_lazily_regularized(kind):
    """As trainers of StyleGAN2 have it: R1 alone in some steps, through a checkpointed critic."""
    found = []
    for way in (None, WAYS["non-reentrant"]):
        D = Critic(kind.ours, way)
        gk.fuse_spectral_norm(D)
        r1 = gnn.LazyRegularizer(gnn.R1Penalty(10.0), 2)
        history = []
        for step in range(3):
            x = draw(5, 6, seed=step, dtype=torch.float32).requires_grad_()
            penalty = r1(D(x), x)
            if penalty is not None and penalty.requires_grad:
                penalty.backward()
            history.append([penalty.detach() if penalty is not None else None, states(D)])
        found.append(history)
    assert_equal(*found)
