"""Whole steps in CUDA graphs: pretended, where no GPU is needed to see what Python decides, and
real, by `make gpu-check`."""

import contextlib
import copy
from collections import Counter

import pytest
import torch
from support.capture import capturing, replay_writes
from torch import nn
from torch.profiler import ProfilerActivity, profile

import gankernels as gk
from gankernels import ema, losses, regularizers
from gankernels.nn.utils import parametrizations


def critic(device="cpu", **options):
    """Of two normalized layers, fused."""
    torch.manual_seed(0)
    norm = parametrizations.spectral_norm
    model = nn.Sequential(norm(nn.Linear(6, 12)), nn.Tanh(), norm(nn.Linear(12, 1))).to(device)
    gk.fuse_spectral_norm(model, **options)
    return model


def batch(device="cpu", seed=3):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 6, generator=draw).to(device) for _ in range(2)]


def penalized(**options):
    def build():
        model, samples = critic(), batch()
        return lambda: gk.critic_step(model, *samples, **options).loss.backward()

    return build


def r1_of_logits():
    model, (real, fake) = critic(), batch()
    real.requires_grad_()

    def step():
        logits = model(real)
        loss = losses.hinge.discriminator(logits, model(fake)) + gk.r1_penalty(logits, real)
        loss.backward()

    return step


def wgan_gp():
    model, samples = critic(), batch()
    return lambda: gk.wgan_gp_penalty(model, *samples).backward()


def scoped():
    """Two forwards of one step of the optimizer, which its graph has to begin."""
    model, (real, fake) = critic(step_scoped=True), batch()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step():
        optimizer.zero_grad()
        (model(real).mean() - model(fake).mean()).backward()
        optimizer.step()

    return step


def evaluated():
    model, (real, _) = critic(cache_eval=True).eval(), batch()

    @torch.no_grad()
    def step():
        model(real)

    return step


def clipped():
    model = nn.Linear(6, 5)
    clip = gk.SpectralNormClip(list(model.parameters())[:1], 0.5)
    return lambda: clip.step()


def averaged():
    model = critic()
    average = ema.AveragedModel(model, decay=0.5)
    average.update_parameters(model)  # the first one copies
    return lambda: average.update_parameters(model)


def orthogonal():
    w = torch.randn(5, 4, requires_grad=True)
    return lambda: gk.orthogonal_regularization([w]).backward()


def augmented():
    pipe, (real, _) = gk.augment.ADAPipe("bgc", p=0.5), torch.randn(2, 4, 3, 8, 8)
    return lambda: pipe(real)


def lecam():
    term, (real, fake) = regularizers.LeCam(), torch.randn(2, 4, 1, requires_grad=True)
    return lambda: term(real, fake).backward()


STEPS = {
    "r1": penalized(r1=1.0),
    "r1 and r2": penalized(r1=1.0, r2=1.0),
    "difference": penalized(r1=1.0, method="difference"),
    "noise": penalized(r1=1.0, method="noise"),
    **{f.__name__: f for f in (r1_of_logits, wgan_gp, clipped, averaged, orthogonal, augmented)},
    "lecam": lecam,
}
#: With a memory, which a capture must not use: how often all weights are normalized in a step that
#: remembers, and in a captured one.
REMEMBERING = {"scoped": (scoped, 1, 2), "evaluated": (evaluated, 0, 1)}
NORMALIZING = ("spectral_norm_", "spectral_normalize")


def launched(step):
    """How often each of our kernels and torch's operators is called."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    return Counter(e.name for e in seen.events() if e.name.startswith(("aten::", "gankernels::")))


def kernels(counts):
    return {name: n for name, n in counts.items() if name.startswith("gankernels::")}


@pytest.mark.parametrize("name", STEPS)
def test_a_capture_has_what_every_step_has(name):
    """Nothing is left out because it was done before, and nothing is looked at on the side."""
    step = STEPS[name]()
    for _ in range(4):
        step()
    usual = launched(step)
    for _ in range(2):
        with capturing():
            assert kernels(launched(step)) == kernels(usual)
    assert kernels(launched(step)) == kernels(usual)  # nor does a capture change what follows


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_capture_remembers_nothing(name):
    """Whatever is remembered outside is done by every replay."""
    build, usual, captured = REMEMBERING[name]
    step = build()
    for _ in range(3):
        step()
    for block, expected in ((contextlib.nullcontext(), usual), (capturing(), captured)):
        with block:
            counts = kernels(launched(step))
        assert sum(counts.get(f"gankernels::{name}", 0) for name in NORMALIZING) == expected


class Graphed(nn.Module):
    """What torch.cuda.make_graphed_callables does with a module in training mode: three warm-ups, a
    capture of the forward and one of the backward pass; then replays, which run no Python of it.
    """

    def __init__(self, module, x):
        super().__init__()
        assert not module._forward_pre_hooks  # torch refuses those
        self.module, self.parameters_of = module, list(module.parameters())
        for _ in range(3):
            torch.autograd.grad(module(x).sum(), self.parameters_of)
        with capturing():
            outputs = module(x)
        with capturing():
            torch.autograd.grad(outputs.sum(), self.parameters_of)

    def forward(self, x):
        if not self.module.training:
            return self.module(x)
        # The recorded kernels: of the same memory, with no memory of Python's.
        twin = copy.deepcopy(self.module[0])
        gk.fuse_spectral_norm(twin)
        out = twin(x)
        for a, b in zip(self.module.buffers(), twin.buffers(), strict=True):
            a.data.copy_(b)
        return out


@pytest.mark.parametrize("trust", [False, True], ids=["compared", "trusted"])
def test_graphed_callables(trust):
    """Replays between evaluations, forwards without a graph, and steps of an optimizer."""
    options = {"step_scoped": True, "cache_eval": True, "trust_versions": trust}
    x = batch()[0]
    model = critic(**options)
    graphed = Graphed(nn.Sequential(model), x)
    twin = copy.deepcopy(model)
    gk.fuse_spectral_norm(twin)  # without a memory
    for i in range(3):
        torch.testing.assert_close(graphed(x), twin(x), rtol=0, atol=0)
        torch.testing.assert_close(model(x + i), twin(x + i), rtol=0, atol=0)
        with torch.no_grad():
            for m in (graphed, twin):
                m.eval()
            torch.testing.assert_close(graphed(x), twin(x), rtol=0, atol=0)
            for m in (graphed, twin):
                m.train()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            replay_writes(a, b)  # a captured step of the optimizer


def test_hooks_of_the_model_itself_are_refused_by_torch():
    """Why the model is put into another for make_graphed_callables."""
    with pytest.raises(AssertionError, match="must not have hooks registered"):
        torch.cuda.make_graphed_callables(critic(), (batch()[0],))


def test_why_not_to_fuse_what_is_graphed():
    """A replay calls no layers: the hooks of a fused model take their moves of u and v back, and
    with them those of the replay. docs/cuda-graphs.md says to fuse before."""
    model, (x, _) = critic(), batch()
    before = model.state_dict()
    before = {name: value.clone() for name, value in before.items()}

    def replay(x):
        replay_writes(*model.buffers())
        return x

    model.forward = replay
    model(x)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < "2.13",
    reason="this torch cannot compile requires_grad_()",
)
def test_a_compiled_step_within_a_capture():
    """After its first call, which is checked, it looks at nothing."""
    torch.compiler.reset()
    model, samples = critic(), batch()
    step = gk.compile_step(
        lambda *samples: gk.critic_step(model, *samples, r1=1.0), model, backend="aot_eager"
    )
    step(*samples)
    usual = launched(lambda: step(*samples))
    with capturing():
        assert launched(lambda: step(*samples)) == usual
    assert step.reasons == []


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.fixture
def gpu(request):
    if not torch.cuda.is_available() or request.config.getoption("--pretended-gpu"):
        pytest.skip("there is no GPU")
    if request.param != "cuda":
        pytest.skip("tests of a GPU")
    return request.param


on_a_gpu = pytest.mark.parametrize("gpu", ["cuda"], indirect=True)


def warm_up(step):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)


def assert_alike(model, twin):
    for (name, a), b in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


GPU_LOSSES = {
    "exact": lambda model, real, fake: gk.critic_step(model, real, fake, r1=1.0, r2=0.5).loss,
    "difference": lambda model, real, fake: (
        gk.critic_step(model, real, fake, r1=1.0, method="difference").loss
    ),
    "zero_centered": lambda model, real, fake: (
        losses.hinge.discriminator(model(real), model(fake))
        + gk.r1_r2_penalty(model, real, fake)
    ),
}  # fmt: skip


@on_a_gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("loss", GPU_LOSSES)
def test_a_captured_step_equals_eager_steps(gpu, loss, compiled):
    """Loss, penalties, gradients, u, v and the optimizer's step in one graph."""
    torch.compiler.reset()
    model, static = critic(gpu), batch(gpu)
    optimizer = torch.optim.Adam(model.parameters(), 0.01, capturable=True)

    def of(*samples):
        return GPU_LOSSES[loss](model, *samples)

    compiled_step = gk.compile_step(of, model, strict=True) if compiled else None

    def step():
        optimizer.zero_grad(set_to_none=True)
        if compiled_step is not None:
            compiled_step(*static)
        else:
            of(*static).backward()
        optimizer.step()

    warm_up(step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    twin = copy.deepcopy(model)
    other = torch.optim.Adam(twin.parameters(), 0.01, capturable=True)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(4):
        samples = batch(gpu, seed)
        for x, value in zip(static, samples, strict=True):
            x.copy_(value)
        graph.replay()
        other.zero_grad()
        GPU_LOSSES[loss](twin, *samples).backward()
        other.step()
        assert_alike(model, twin)


@on_a_gpu
@pytest.mark.parametrize("options", [{}, {"step_scoped": True, "cache_eval": True}], ids=str)
def test_graphed_callables_on_a_gpu(gpu, options):
    model = critic(gpu, **options)
    x, y = batch(gpu)
    start = copy.deepcopy(model.state_dict())
    graphed = torch.cuda.make_graphed_callables(nn.Sequential(model), (x.clone(),))
    model.load_state_dict(start)  # the warm-ups moved u and v
    twin = critic(gpu)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (model, twin)]
    for i in range(3):
        for m, call, optimizer in zip((model, twin), (graphed, twin), optimizers, strict=True):
            optimizer.zero_grad()
            call(x + i).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                m.eval()
                m(y)
                m.train()
        assert_alike(model, twin)
