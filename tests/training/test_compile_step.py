"""A compiled step of a critic against one in eager mode."""

import copy
import functools
import sys
import warnings

import pytest
import torch
from project import documents
from support import ROOT
from support.capture import capturing
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gankernels as gk
from gankernels import _torch, losses
from gankernels._compiled.check import Compared, largest_error
from gankernels.nn.utils import parametrizations
from gankernels.nn.utils import spectral_norm as hook

pytestmark = pytest.mark.filterwarnings("error:compile_step")

D = torch.float64
#: Dynamo before torch 2.13 traces no requires_grad_(), of which most steps here have one.
OLD = torch.torch_version.TorchVersion(torch.__version__) < "2.13"
ON_ANY_TORCH = "test_what_cannot_be_compiled_has_the_numbers_of_eager_mode"


@pytest.fixture(autouse=True)
def forget_compiled_code(request):
    if OLD and request.node.name != ON_ANY_TORCH:
        pytest.skip(f"torch {torch.__version__} cannot compile requires_grad_()")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def nothing(layer):
    return layer


def linear(norm=nothing, last=True, dtype=D):
    torch.manual_seed(0)
    layers = [norm(nn.Linear(6, 12, dtype=dtype)), nn.Tanh(), norm(nn.Linear(12, 8, dtype=dtype))]
    return nn.Sequential(*layers, nn.Tanh(), norm(nn.Linear(8, 1, dtype=dtype)))


def fused(norm, **options):
    model = linear(norm)
    gk.fuse_spectral_norm(model, **options)
    return model


def batch(i, rows=6, dtype=D):
    draw = torch.Generator().manual_seed(i)
    return [torch.randn(rows, 6, dtype=dtype, generator=draw) for _ in range(2)]


def r1(model, real, fake):
    real = real.detach().requires_grad_()
    logits = model(real)
    loss = losses.non_saturating.discriminator(logits, model(fake))
    return loss + gk.r1_penalty(logits, real)


def zero_centered(model, real, fake):
    loss = losses.hinge.discriminator(model(real), model(fake))
    return loss + gk.zero_centered_penalty(model, real, fake)


def wgan_gp(model, real, fake):
    """Draws the points of its samples."""
    loss = losses.wasserstein.discriminator(model(real), model(fake))
    return loss + gk.wgan_gp_penalty(model, real, fake), loss


def step(model, real, fake, **options):
    return gk.critic_step(model, real, fake, **options)


LOSSES = {
    "r1": r1,
    "zero_centered": zero_centered,
    "wgan_gp": wgan_gp,
    "critic_step": functools.partial(step, r1=1.0, r2=0.5),
    "critic_step, difference": functools.partial(step, r1=1.0, method="difference"),
}
MODELS = {
    "plain": linear,
    "parametrization": lambda: linear(parametrizations.spectral_norm),
    "hook": lambda: linear(hook),
    "fused": lambda: fused(parametrizations.spectral_norm),
    "fused hooks": lambda: fused(hook),
    "fused, three iterations": lambda: fused(
        functools.partial(parametrizations.spectral_norm, n_power_iterations=3)
    ),
    "fused, step_scoped": lambda: fused(parametrizations.spectral_norm, step_scoped=True),
    "torch's parametrization": lambda: linear(nn.utils.parametrizations.spectral_norm),
    "torch's hook": lambda: linear(nn.utils.spectral_norm),
}
CASES = [
    *(("fused", loss) for loss in LOSSES),
    *((model, "critic_step") for model in MODELS if model != "fused"),
    ("hook", "r1"),
    ("fused hooks", "zero_centered"),
]


def value(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


def eagerly(loss, model, *samples):
    outputs = loss(model, *samples)
    value(outputs).backward()
    return value(outputs).detach()


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def assert_alike(model, twin, **tolerances):
    tolerances = tolerances or {"rtol": 1e-10, "atol": 1e-10}
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, **tolerances, msg=lambda m, n=name: f"{n}: {m}")
        assert (a.grad is None or not a.grad.any()) or b.grad is not None
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, **tolerances, msg=lambda m, n=name: n + m)
    for (name, a), b in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, **tolerances, msg=lambda m, n=name: f"{n}: {m}")


def compiled(loss, model, **options):
    options = {"backend": "aot_eager", "strict": True, **options}
    return gk.compile_step(functools.partial(loss, model), model, **options)


# --- as in eager mode -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_training(kind, name):
    """Losses, gradients, u and v of steps with an optimizer; the last batch is a smaller one."""
    model = MODELS[kind]()
    twin = copy.deepcopy(model)
    if kind.startswith("fused"):
        gk.fuse_spectral_norm(twin, step_scoped=False)
    call = compiled(LOSSES[name], model)
    optimizers = [sgd(model), sgd(twin)]
    for i, rows in enumerate((6, 6, 6, 4)):
        torch.manual_seed(i)
        found = value(call(*batch(i, rows)))
        torch.manual_seed(i)
        torch.testing.assert_close(found, eagerly(LOSSES[name], twin, *batch(i, rows)))
        assert not found.requires_grad
        assert_alike(model, twin)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert call.graphs == 2  # one for the smaller batch
    assert call.reasons == []


def test_one_step():
    """A fused model by the fastest way to a verdict: one graph, with the second derivatives."""
    model = fused(parametrizations.spectral_norm)
    twin = copy.deepcopy(model)
    call = compiled(LOSSES["r1"], model)
    for i in range(3):  # the first is checked; .grad is added to
        torch.testing.assert_close(call(*batch(i)), eagerly(r1, twin, *batch(i)))
        assert_alike(model, twin)
    assert call.graphs == 1


def test_what_cannot_be_compiled_has_the_numbers_of_eager_mode():
    """As on a torch whose Dynamo is too old for the step."""

    def untraced(model, real, fake):
        torch._dynamo.graph_break()
        return r1(model, real, fake)

    model = linear()
    twin = copy.deepcopy(model)
    call = compiled(untraced, model, strict=False)
    for i in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = call(*batch(i))
        torch.testing.assert_close(found, eagerly(untraced, twin, *batch(i)))
        assert_alike(model, twin)
    assert call.graphs == 0
    assert call.reasons


@pytest.mark.slow
def test_inductor_draws_what_eager_mode_draws():
    model = nn.Sequential(linear(dtype=torch.float32)[:2], nn.Dropout(0.3), nn.Linear(12, 1))
    twin = copy.deepcopy(model)
    call = compiled(wgan_gp, model, backend="inductor")
    for i in range(3):
        torch.manual_seed(i)
        found, _ = call(*batch(i, dtype=torch.float32))
        after = torch.get_rng_state()
        torch.manual_seed(i)
        torch.testing.assert_close(
            found, eagerly(wgan_gp, twin, *batch(i, dtype=torch.float32)), rtol=1e-5, atol=1e-5
        )
        assert torch.equal(after, torch.get_rng_state())
        assert_alike(model, twin, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        gk.augment.ADAPipe("bgcfnc", p=0.5, yflip=1.0),
        gk.augment.DiffAugment(),
        gk.augment.APA(p=0.5),
        gk.regularizers.InstanceNoise(0.1, steps=4),
    ],
    ids=lambda function: type(function).__name__,
)
def test_what_draws_compiles_for_any_batch(function):
    """Dynamo takes no generator=None where sizes vary."""
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (3, 5):
        x = torch.randn(rows, 3, 8, 8)
        arguments = (x, x + 1) if isinstance(function, gk.augment.APA) else (x,)
        torch.manual_seed(rows)
        found = compiled(*arguments)
        torch.manual_seed(rows)
        torch.testing.assert_close(found, function(*arguments))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_autocast(backend):
    def loss(model, real, fake):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return gk.critic_step(model, real, fake, r1=1.0, r2=1.0)

    model = linear(parametrizations.spectral_norm, dtype=torch.float32)
    gk.fuse_spectral_norm(model)
    twin = copy.deepcopy(model)
    call = compiled(loss, model, backend=backend)
    for i in range(2):
        found = call(*batch(i, dtype=torch.float32))
        expected = eagerly(loss, twin, *batch(i, dtype=torch.float32))
        torch.testing.assert_close(found.loss, expected, rtol=2e-2, atol=2e-2)
        assert found.real_logits.dtype == torch.bfloat16
    assert_alike(model, twin, rtol=5e-2, atol=2e-2)


@pytest.mark.slow
def test_evaluation_and_frozen_parameters():
    """Settings that change after the first call are followed, and checked again."""
    model = fused(parametrizations.spectral_norm)
    twin = copy.deepcopy(model)
    call = compiled(r1, model)
    for i, change in enumerate(("train", "eval", "freeze", "train", "thaw")):
        for m in (model, twin):
            m.zero_grad()
            if change in ("train", "eval"):
                m.train(change == "train")
            else:
                m[0].requires_grad_(change == "thaw")
        torch.testing.assert_close(call(*batch(i)), eagerly(r1, twin, *batch(i)))
        assert_alike(model, twin)
        frozen = not model[0].bias.requires_grad
        assert frozen == (model[0].bias.grad is None)


@pytest.mark.slow
def test_two_critics():
    """Of several scales, in one step; one of them by its parameters."""
    models = [fused(parametrizations.spectral_norm), linear()]
    twins = copy.deepcopy(models)

    def loss(models, real, fake):
        return sum(r1(m, real, fake) for m in models)

    call = gk.compile_step(
        functools.partial(loss, models),
        [models[0], *models[1].parameters()],
        backend="aot_eager",
        strict=True,
    )
    for i in range(2):
        torch.testing.assert_close(call(*batch(i)), eagerly(loss, twins, *batch(i)))
        for model, twin in zip(models, twins, strict=True):
            assert_alike(model, twin)


def test_gradients_go_to_the_critic_alone():
    """What the function mentions beside it, such as a generator, gets none."""
    model, other = linear(), nn.Linear(6, 6, dtype=D)
    call = compiled(lambda model, real, fake: r1(model, real, other(fake)), model)
    call(*batch(0))
    assert all(p.grad is None for p in other.parameters())
    assert all(p.grad is not None for p in list(model.parameters())[:-1])


def test_hooks_of_parameters_are_called():
    model = linear()
    seen = []
    weight = model[0].weight
    weight.register_hook(lambda g: g * 2)
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    call = compiled(r1, model)
    twin = linear()
    call(*batch(0))
    eagerly(r1, twin, *batch(0))
    torch.testing.assert_close(weight.grad, 2 * twin[0].weight.grad)
    assert len(seen) == 1


def test_copies_and_states_after_a_step():
    """Weights that hooks computed are left without the graph that was used up."""
    model = linear(hook)
    call = compiled(r1, model)
    for i in range(2):
        call(*batch(i))
        model.zero_grad()
        assert_alike(copy.deepcopy(model), model)
    assert not model[0].weight.requires_grad


@pytest.mark.slow
def test_the_page_on_compiling_can_be_run(tmp_path):
    """docs/at-scale.md: fuse, wrap, compile."""
    page = (ROOT / "docs" / "at-scale.md").read_text()
    (code,) = [block for block in documents.blocks(page) if "compile_step" in block]
    critic = linear(parametrizations.spectral_norm, dtype=torch.float32)
    start = [p.detach().clone() for p in critic.parameters()]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        names = {
            "gankernels": gk,
            "DistributedDataParallel": DistributedDataParallel,
            "critic": critic,
            "optimizer": torch.optim.SGD(critic.parameters(), 0.1),
            "batches": [batch(i, dtype=torch.float32) for i in range(2)],
        }
        documents.run(code, names, "docs/at-scale.md")
    finally:
        dist.destroy_process_group()
    assert names["step"].graphs == 1
    assert names["logs"].loss.isfinite()
    pairs = zip(critic.parameters(), start, strict=True)
    assert sum(not torch.equal(a, b) for a, b in pairs) >= 5


# --- checked --------------------------------------------------------------------------------------


def doubled(place):
    """A backend whose graphs have one output that is twice as large."""

    def backend(graph, inputs):
        compiled = torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

        def run(*args):
            outputs = list(compiled(*args))
            outputs[place] = outputs[place] * 2
            return tuple(outputs)

        return run

    return backend


@pytest.mark.parametrize(("place", "name"), [(0, "the loss"), (1, "the gradient of 0.weight")])
def test_wrong_numbers_are_found(place, name):
    model = linear()
    twin = copy.deepcopy(model)
    call = compiled(r1, model, backend=doubled(place), strict=False)
    words = rf"compile_step: compiled, {name} is off by 9..e-01 of what eager mode has"
    with pytest.warns(UserWarning, match=words):
        found = call(*batch(0))
    torch.testing.assert_close(found, eagerly(r1, twin, *batch(0)))
    assert_alike(model, twin)
    assert len(call.reasons) == 1
    with warnings.catch_warnings():  # said once, and not compiled again
        warnings.simplefilter("error")
        torch.testing.assert_close(call(*batch(1)), eagerly(r1, twin, *batch(1)))
    assert_alike(model, twin)
    assert call.graphs == 1


def test_strictly_wrong_numbers_raise():
    model = fused(parametrizations.spectral_norm)
    twin = copy.deepcopy(model)
    call = compiled(r1, model, backend=doubled(0))
    with pytest.raises(RuntimeError, match="the loss is off by"):
        call(*batch(0))
    assert_alike(model, twin)


def test_without_the_check_nobody_looks():
    call = compiled(r1, linear(), backend=doubled(0), check=False)
    twin = linear()
    torch.testing.assert_close(call(*batch(0)), 2 * eagerly(r1, twin, *batch(0)))


def test_a_second_graph_is_checked_too():
    """Of whatever made it: here a number of Python that the function reads."""
    model, settings, graphs = linear(), {"weight": 1.0}, []

    def backend(graph, inputs):
        graphs.append(graph)
        place = doubled(0) if len(graphs) > 1 else torch._dynamo.lookup_backend("aot_eager")
        return place(graph, inputs)

    def loss(model, real, fake):
        return settings["weight"] * r1(model, real, fake)

    call = compiled(loss, model, backend=backend)
    call(*batch(0))
    settings["weight"] = 3.0
    with pytest.raises(RuntimeError, match="the loss is off by"):
        call(*batch(0))


def test_the_check_is_no_second_step():
    """u and v, running statistics, buffers of others, random numbers, arguments."""
    model = nn.Sequential(fused(parametrizations.spectral_norm)[:2], nn.BatchNorm1d(12, dtype=D))
    counter = nn.Module()
    counter.register_buffer("count", torch.zeros((), dtype=D))

    def loss(model, real, fake):
        counter.count += 1
        real.mul_(0.5)
        return model(real + torch.randn_like(real)).square().mean() - model(fake).mean()

    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    found = compiled(loss, model)(*(samples := batch(0)))
    after = torch.get_rng_state()
    assert counter.count == 1
    assert torch.equal(samples[0], batch(0)[0] * 0.5)
    torch.manual_seed(1)
    torch.testing.assert_close(found, eagerly(loss, twin, *batch(0)))
    assert torch.equal(after, torch.get_rng_state())
    assert_alike(model, twin)


def tensor(*numbers):
    return torch.tensor(numbers)


@pytest.mark.parametrize(
    ("pair", "figure"),
    [
        ((tensor(3.0, 4.0), tensor(3.0, 4.0)), None),
        ((tensor(3.0, 4.5), tensor(3.0, 4.0)), 0.1),
        ((tensor(float("nan")), tensor(1.0)), float("inf")),
        ((tensor(1.0), tensor(float("inf"))), float("inf")),
        ((tensor(float("inf"), 1.0), tensor(float("inf"), 1.0)), None),
        ((None, tensor(1.0)), float("inf")),
        ((tensor(0.0), None), None),
        ((tensor(1.0), None), float("inf")),
        ((None, None), None),
        ((tensor(1.0, 1.0), tensor(1.0)), float("inf")),
        ((tensor(1e-9), tensor(0.0)), float("inf")),
    ],
)
def test_figures(pair, figure):
    error = largest_error([Compared("it", *pair)])
    assert (error is None) == (figure is None)
    assert error is None or error.figure == pytest.approx(figure)


def test_rounding_of_a_gradient_that_cancels_is_no_error():
    pairs = [
        Compared("weight", tensor(1.0), tensor(1.0)),
        Compared("bias", tensor(1e-8), tensor(-1e-8)),
    ]
    assert largest_error(pairs, 1e-2).figure < 1e-5
    assert largest_error(pairs).figure == pytest.approx(2)


# --- what stops it --------------------------------------------------------------------------------


def decides(model, real, fake):
    loss = r1(model, real, fake)
    if loss > 0:
        loss = loss * 2
    return loss


def reads(model, real, fake):
    loss = r1(model, real, fake)
    return loss * len(str(loss.item()))


def draws(model, real, fake):
    generator = torch.Generator().manual_seed(0)
    return gk.dragan_penalty(model, real, generator=generator) + model(fake).mean()


def says(model, real, fake):
    loss = r1(model, real, fake)
    print(loss)
    return loss


def goes_backward(model, real, fake):
    r1(model, real, fake).backward()
    return model(fake).mean()


STOPPED = {
    decides: "at line .* of test_compile_step.py: if loss > 0:; decide by torch.where",
    reads: "at line .* of test_compile_step.py: .*; decide by torch.where",
    draws: "at line .*; pass generator=None",
    says: r"at line .*: print\(loss\); log from what the step returns",
}


@pytest.mark.parametrize("loss", STOPPED)
def test_what_stops_it_is_said_once(loss):
    """And the numbers are those of eager mode, as the words say."""
    model = fused(parametrizations.spectral_norm)
    twin = copy.deepcopy(model)
    call = compiled(loss, model, strict=False)
    words = f"torch cannot compile this .*{STOPPED[loss]}"
    with pytest.warns(UserWarning, match=words) as caught:
        found = call(*batch(0))
    assert caught[0].filename == __file__
    torch.testing.assert_close(found, eagerly(loss, twin, *batch(0)))
    torch.testing.assert_close(call(*batch(1)), eagerly(loss, twin, *batch(1)))  # without a warning
    assert len(call.reasons) == 1
    assert_alike(model, twin)


@pytest.mark.parametrize("loss", STOPPED)
def test_strictly_it_raises(loss):
    model = fused(parametrizations.spectral_norm)
    twin = copy.deepcopy(model)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match=STOPPED[loss]):
        compiled(loss, model)(*batch(0))
    assert torch.equal(state, torch.get_rng_state())
    assert_alike(model, twin)


def test_after_some_failures_nothing_is_tried():
    model = linear()
    call = compiled(decides, model, strict=False)
    with pytest.warns(UserWarning, match="decide by"):
        call(*batch(0, 2))
    for rows in range(3, 9):
        call(*batch(0, rows))
    assert len(call.reasons) == 1
    assert len(call._eager) == 3


def test_errors_of_the_function_are_its_own():
    """Raised as in eager mode, and nothing has moved, though a forward pass was over."""
    model = fused(parametrizations.spectral_norm)
    twin = copy.deepcopy(model)

    def loss(model, real, fake):
        model(real)
        torch.randn(3)
        raise KeyError("mine")

    state = torch.get_rng_state()
    for strict in (True, False):
        with pytest.raises(KeyError, match="mine") as caught:
            compiled(loss, model, strict=strict)(*batch(0))
        assert caught.value.__context__ is None
    assert torch.equal(state, torch.get_rng_state())
    assert_alike(model, twin)
    with pytest.raises(ValueError, match="expected real to require a gradient"):
        compiled(lambda m, real, fake: gk.r1_penalty(m(real), real), model)(*batch(0))
    assert_alike(model, twin)


def test_a_torch_that_cannot(monkeypatch):
    module = sys.modules["gankernels.compile_step"]  # the package has the function by this name
    monkeypatch.setattr(module, "can_trace_autograd_ops", lambda: False)
    model, twin = linear(), linear()
    with pytest.raises(RuntimeError, match=r"trace_autograd_ops.*take a later one"):
        compiled(r1, model)
    with pytest.warns(UserWarning, match=r"trace_autograd_ops.*runs in eager mode"):
        call = compiled(r1, model, strict=False)
    torch.testing.assert_close(call(*batch(0)), eagerly(r1, twin, *batch(0)))
    assert_alike(model, twin)
    assert call.graphs == 0


def test_the_setting_is_for_the_step_alone():
    assert not _torch.traces_autograd_ops()
    seen = []

    def backend(graph, inputs):
        seen.append(_torch.traces_autograd_ops())
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled(r1, linear(), backend=backend)(*batch(0))
    assert seen == [True]
    assert not _torch.traces_autograd_ops()


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (TypeError, "expected loss to be callable", {"loss": torch.zeros(())}),
        (TypeError, "expected critic to be a module", {"critic": 3}),
        (TypeError, "got a list with str", {"critic": ["D"]}),
        (ValueError, "at least one module", {"critic": []}),
        (ValueError, "which are leaves", {"critic": torch.ones(2, requires_grad=True) * 2}),
        (TypeError, "check to be True or False", {"check": None}),
        (TypeError, "strict to be True or False", {"strict": 1}),
        (TypeError, "dynamic to be True or False", {"dynamic": 1}),
        (ValueError, "list_backends", {"backend": "indoctor"}),
        (TypeError, "the name of one, or a function", {"backend": 3}),
    ],
)
def test_bad_arguments(error, words, change):
    arguments = {"loss": lambda: 0, "critic": linear(), **change}
    with pytest.raises(error, match=f"compile_step: .*{words}"):
        gk.compile_step(**arguments)


@pytest.mark.parametrize(
    ("error", "words", "result"),
    [
        (TypeError, "expected the function to return the loss", lambda m, x: {"loss": m(x).mean()}),
        (TypeError, "expected the function to return the loss", lambda m, x: ()),
        (ValueError, "a loss of one element, got float64 of shape", lambda m, x: m(x)),
        (ValueError, "a loss with a graph", lambda m, x: m(x).mean().detach()),
    ],
    ids=["dict", "nothing", "scores", "detached"],
)
def test_bad_losses(error, words, result):
    call = compiled(lambda m, real, fake: result(m, real), linear())
    with pytest.raises(error, match=f"compile_step: .*{words}"):
        call(*batch(0))


def test_calls_without_gradients_are_refused():
    model = linear()
    call = compiled(r1, model)
    for block in (torch.no_grad(), torch.inference_mode()):
        with block, pytest.raises(RuntimeError, match="expected gradients to be enabled"):
            call(*batch(0))
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="parameters that require a gradient"):
        call(*batch(0))


def test_the_first_call_in_a_capture_is_refused():
    """What is checked is compared on the host, which a graph cannot do."""
    model = fused(parametrizations.spectral_norm)
    twin = copy.deepcopy(model)
    call = compiled(r1, model)
    with capturing(), pytest.raises(RuntimeError, match=r"before the capture.*as a warm-up"):
        call(*batch(0))
    assert_alike(model, twin)
