"""The drop-ins against torch, run for run: what both kinds share, then the hook's own rows."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.distributed as dist
from support.networks import (
    KINDS,
    LAYERS,
    Scale,
    assert_same,
    draw,
    loss,
    make,
    outcome,
    replicate,
    states,
    train,
    twins,
)
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import remove_spectral_norm as torch_remove
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import gankernels
from gankernels.nn.utils import remove_spectral_norm, spectral_norm

pytestmark = pytest.mark.usefixtures("device")

HOOK = KINDS["hook"]


@pytest.fixture(params=list(KINDS))
def kind(request):
    return KINDS[request.param]


def inputs(shape, dtype=torch.float32, n=3):
    return [draw(shape, seed, dtype) for seed in range(1, n + 1)]


def linear(n=7, m=5):
    return lambda: nn.Linear(n, m)


# --- the same numbers --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layer", list(LAYERS))
def test_layers_train_and_evaluate_as_torchs_do(kind, layer, dtype):
    factory, shape = LAYERS[layer]
    theirs, ours = twins(kind, factory, dtype)
    assert_same(states(ours), states(theirs), "at the start")
    xs = inputs(shape, dtype)
    assert_same(train(ours, xs), train(theirs, xs))
    theirs.eval(), ours.eval()
    assert_same(train(ours, xs), train(theirs, xs), "in eval mode")
    theirs.train(), ours.train()
    assert_same(train(ours, xs), train(theirs, xs), "back in training mode")


@pytest.mark.parametrize("layer", ["linear", "conv2d", "conv_transpose2d"])
def test_bfloat16(kind, layer):
    factory, shape = LAYERS[layer]
    theirs, ours = twins(kind, factory, torch.bfloat16)
    xs = inputs(shape, torch.bfloat16, 1)
    assert_same(train(ours, xs), train(theirs, xs), factor=2)


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex(kind, dtype):
    theirs, ours = twins(kind, linear(), dtype)
    xs = inputs((4, 7), dtype)
    assert_same(train(ours, xs), train(theirs, xs), factor=10)


@pytest.mark.parametrize("layer", ["conv2d", "conv_transpose2d"])
def test_channels_last(kind, layer):
    factory, shape = LAYERS[layer]

    def lay_out(module):
        module.to(memory_format=torch.channels_last)

    theirs, ours = twins(kind, factory, torch.float64, lay_out)
    xs = [x.contiguous(memory_format=torch.channels_last) for x in inputs(shape, torch.float64)]
    assert_same(train(ours, xs), train(theirs, xs))
    assert ours.weight.is_contiguous(memory_format=torch.channels_last)
    assert ours.weight.stride() == theirs.weight.stride()


@pytest.mark.parametrize(
    "options",
    [{"n_power_iterations": 3}, {"eps": 0.5}, {"dim": 1}, {"dim": 0}, {"dim": 2}],
    ids=str,
)
@pytest.mark.parametrize("layer", ["conv2d", "conv_transpose2d"])
def test_options_of_torch(kind, layer, options):
    factory, shape = LAYERS[layer]
    theirs, ours = twins(kind, factory, torch.float64, **options)
    xs = inputs(shape, torch.float64)
    assert_same(train(ours, xs), train(theirs, xs))


@pytest.mark.parametrize("training", [True, False])
def test_eps_larger_than_the_norms(kind, training):
    modules = twins(kind, LAYERS["conv2d"][0], torch.float64, eps=5.0)
    weights = []
    for module in modules:
        module.train(training)
        for seed in range(2):
            if kind is HOOK:
                module(draw(LAYERS["conv2d"][1], seed, torch.float64))
            weight = module.weight
            (weight * draw((8, 3, 3, 3), seed, torch.float64)).sum().backward()
            weights.append(weight)
    assert_same(weights[2:], weights[:2])
    assert_same(modules[1], modules[0])


def test_another_parameter_than_weight(kind):
    def build(way):
        torch.manual_seed(0)
        return way(nn.LSTM(3, 4), name="weight_hh_l0")

    theirs, ours = build(kind.torch), build(kind.ours)
    x = draw((5, 2, 3))
    for module in (theirs, ours):
        module(x)[0].square().sum().backward()
    assert_same(ours, theirs)


@pytest.mark.parametrize("mode", ["frozen", "no_grad", "inference_mode"])
def test_u_and_v_move_without_a_gradient(kind, mode):
    theirs, ours = twins(kind, linear())
    before = [x.clone() for x in kind.parts(ours)[1:]]
    for module in (theirs, ours):
        if mode == "frozen":
            kind.parts(module)[0].requires_grad_(False)
            assert not module(draw((4, 7))).mean().isnan()
        else:
            with getattr(torch, mode)():
                module(draw((4, 7)))
    assert_same(kind.parts(ours), kind.parts(theirs))
    assert not any(torch.equal(x, y) for x, y in zip(before, kind.parts(ours)[1:], strict=True))
    for module in (theirs, ours):
        module(draw((4, 7))).sum().backward()
    assert_same(ours, theirs)


def test_eval_moves_nothing_and_sees_the_weight_of_today(kind):
    theirs, ours = twins(kind, linear())
    for module in (theirs, ours):
        module(draw((4, 7)))
        module.eval()
    before = [x.clone() for x in kind.parts(ours)[1:]]
    for module in (theirs, ours):
        module(draw((4, 7)))
        with torch.no_grad():
            kind.parts(module)[0].mul_(2).add_(0.1)
        module(draw((4, 7))).square().sum().backward()
    assert_same(ours, theirs)
    assert_same(kind.parts(ours)[1:], before)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_bad_weight_once(kind, value):
    theirs, ours = twins(kind, linear(), torch.float64)
    outputs = []
    for module in (theirs, ours):
        weight = kind.parts(module)[0]
        good = weight.detach().clone()
        found = []
        for w in (torch.full_like(good, value), good):
            with torch.no_grad():
                weight.copy_(w)
            found.append(module(draw((4, 7), 1, torch.float64)))
        outputs.append(found)
    assert_same(outputs[1], outputs[0])
    assert_same(states(ours), states(theirs))


def test_random_draws(kind):
    ends = []
    for way in (kind.torch, kind.ours):
        module = make(way, linear())
        ends.append((torch.random.get_rng_state(), kind.parts(module)))
    assert torch.equal(ends[0][0], ends[1][0])
    assert_same(ends[1][1], ends[0][1])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_backends_give_the_same_numbers(kind, backend):
    factory, shape = LAYERS["conv_transpose2d"]
    theirs, ours = twins(kind, factory, torch.float64)
    xs = inputs(shape, torch.float64)
    with gankernels.backend(backend):
        got = train(ours, xs)
    assert_same(got, train(theirs, xs))


def test_autocast_leaves_the_weight_alone(kind):
    theirs, ours = twins(kind, linear())
    alone = copy.deepcopy(ours)
    x = draw((4, 7))
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = theirs(x), ours(x)
        assert ours.weight.dtype == torch.float32
    assert got.dtype == torch.bfloat16
    assert_same(got, expected)
    alone(x)
    if kind is HOOK:
        assert torch.equal(ours.weight, alone.weight)
    assert all(map(torch.equal, kind.parts(ours)[1:], kind.parts(alone)[1:])) or kind is not HOOK
    for module, out in ((theirs, expected), (ours, got)):
        out.float().square().sum().backward()
        assert kind.parts(module)[0].grad.dtype == torch.float32
    a, b = (kind.parts(module)[0].grad for module in (ours, theirs))
    assert (a - b).abs().max() <= 2e-2 * b.abs().max()


# --- derivatives -------------------------------------------------------------------------------


def small_net(way):
    torch.manual_seed(0)
    first = way(nn.Conv2d(2, 3, 3, padding=1).double())
    last = way(nn.Linear(3, 1).double())
    return nn.Sequential(first, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


def test_gradient_penalty(kind):
    nets = small_net(kind.torch), small_net(kind.ours)
    for net in nets:
        for _ in range(2):
            real, fake = draw((3, 2, 4, 4), 1, torch.float64), draw((3, 2, 4, 4), 2, torch.float64)
            mixed = (0.3 * real + 0.7 * fake).requires_grad_()
            slope = torch.autograd.grad(net(mixed).sum(), mixed, create_graph=True)[0]
            penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
            (net(fake).mean() - net(real).mean() + 10 * penalty).backward()
    assert_same(nets[1], nets[0])


@pytest.mark.parametrize("training", [True, False])
def test_gradient_of_the_weights_gradient(kind, training):
    modules = twins(kind, LAYERS["conv_transpose2d"][0], torch.float64)
    x = draw(LAYERS["conv_transpose2d"][1], 1, torch.float64)
    for module in modules:
        module.train(training)
        weight = kind.parts(module)[0]
        grad = torch.autograd.grad(loss(module(x)), weight, create_graph=True)[0]
        (grad * grad.cos()).sum().backward()
    assert_same(modules[1], modules[0])


def test_gradcheck(kind):
    net = small_net(kind.ours).eval()
    names, values = zip(*net.named_parameters(), strict=True)
    x = draw((2, 2, 3, 3), 1, torch.float64).requires_grad_()

    def run(x, *values):
        return torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *values), fast_mode=True)


@pytest.mark.parametrize("training", [True, False])
def test_flops_are_counted(kind, training):
    module = make(kind.ours, linear()).train(training)
    x = draw((4, 7))
    with FlopCounterMode(display=False) as counter:
        module(x).sum().backward()
    assert counter.get_total_flops() >= 2 * 4 * 7 * 5


def test_traced_by_make_fx(kind):
    theirs, ours = (module.eval() for module in twins(kind, linear()))
    x = draw((4, 7))
    graph = make_fx(lambda x: ours(x))(x)
    assert_same(graph(2 * x), theirs(2 * x))


# --- copies ------------------------------------------------------------------------------------


def through_pickle(module):
    return pickle.loads(pickle.dumps(module))


def through_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_deepcopy_trains_on_as_the_original(kind):
    ours = make(kind.ours, linear())
    twin = copy.deepcopy(ours)
    before = states(ours)
    xs = inputs((4, 7))
    got = train(twin, xs)
    assert_same(states(ours), before, "the original")
    assert_same(got, train(ours, xs))


def test_deepcopy_after_a_forward(kind):
    theirs, ours = twins(kind, linear())
    x = draw((4, 7))
    theirs(x), ours(x)
    error = outcome(lambda: copy.deepcopy(theirs))
    assert (error is not None) == (kind is HOOK)  # torch's hook cannot be copied now
    twin = copy.deepcopy(ours)
    assert kind is not HOOK or type(twin.weight) is torch.Tensor
    assert_same(train(twin, inputs((4, 7))), train(theirs, inputs((4, 7))))


@pytest.mark.parametrize("through", [through_pickle, through_file])
@pytest.mark.parametrize("after_forward", [False, True])
def test_pickle(through, after_forward):
    ours = make(HOOK.ours, linear())
    if after_forward:
        ours(draw((4, 7)))
    twin = through(ours)
    xs = inputs((4, 7))
    assert_same(train(twin, xs), train(ours, xs))
    assert list(twin.state_dict()) == list(ours.state_dict())


def test_a_parametrized_module_is_pickled_as_little_as_torchs():
    theirs, ours = twins(KINDS["parametrization"], linear())
    expected = outcome(lambda: pickle.dumps(theirs))
    assert expected is not None
    assert outcome(lambda: pickle.dumps(ours)) == expected
    alone = through_pickle(ours.parametrizations.weight[0])
    assert_same(alone(ours.parametrizations.weight.original), ours.weight)


def test_shared_memory_and_moves_of_dtype(kind):
    theirs, ours = twins(kind, linear())
    x = draw((4, 7))
    theirs(x), ours(x)
    theirs.double(), ours.double()
    assert_same(
        train(ours, inputs((4, 7), torch.float64)),
        train(theirs, inputs((4, 7), torch.float64)),
        factor=1e7,
    )


# --- state_dicts -------------------------------------------------------------------------------


def test_state_dicts_load_both_ways(kind):
    theirs, ours = twins(kind, linear())
    x = draw((4, 7))
    theirs(x), ours(x)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert set(kind.names) <= set(ours.state_dict())
    assert ours.state_dict()._metadata[""] == theirs.state_dict()._metadata[""]
    for source, way in ((theirs, kind.ours), (ours, kind.torch)):
        torch.manual_seed(7)
        target = way(nn.Linear(7, 5))
        buffers = kind.parts(target)
        target.load_state_dict(source.state_dict())
        assert all(a is b for a, b in zip(buffers, kind.parts(target), strict=True))
        assert_same(states(target), states(source))
        assert_same(train(target, inputs((4, 7))), train(copy_of(source, kind), inputs((4, 7))))


def copy_of(module, kind):
    """torch's module of the same state."""
    twin = kind.torch(nn.Linear(7, 5))
    twin.load_state_dict(module.state_dict())
    return twin


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_partial_state_dicts(kind, missing, strict):
    theirs, ours = twins(kind, linear())
    torch.manual_seed(5)
    source = kind.torch(nn.Linear(7, 5)).state_dict()
    del source[kind.names[missing]]
    source["another"] = torch.zeros(1)

    def load(module):
        result = module.load_state_dict(dict(source), strict=strict)
        assert (result.missing_keys, result.unexpected_keys) == (
            [kind.names[missing]],
            ["another"],
        )

    assert outcome(lambda: load(ours)) == outcome(lambda: load(theirs))
    assert_same(ours, theirs)


def test_load_with_assign(kind):
    theirs, ours = twins(kind, linear())
    torch.manual_seed(5)
    source = kind.torch(nn.Linear(7, 5)).state_dict()
    for module in (theirs, ours):
        module.load_state_dict({k: v.clone() for k, v in source.items()}, assign=True)
    assert_same(train(ours, inputs((4, 7))), train(theirs, inputs((4, 7))))


# --- replicas, processes, checkpointing --------------------------------------------------------


def test_replicas_move_the_originals_u_and_keep_their_own_weight(kind):
    nets = small_net(kind.torch), small_net(kind.ours)
    x = draw((3, 2, 4, 4), 1, torch.float64)
    outputs = []
    for net in nets:
        first, second = replicate(net), replicate(net)
        a = first(x)
        b = second(2 * x)
        outputs.append((a, b))
        (a.sum() - b.square().sum()).backward()
    assert_same(outputs[1], outputs[0])
    assert_same(nets[1], nets[0])  # u, v and the gradients
    assert_same(nets[1](x), nets[0](x))


def _train_distributed(rank, init, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    found = {}
    for name, kind in KINDS.items():
        for whose in ("torch", "ours"):
            net = nn.parallel.DistributedDataParallel(small_net(getattr(kind, whose)))
            for step in range(2):
                real, fake = (
                    draw((3, 2, 4, 4), 10 * step + 2 * rank + k, torch.float64) for k in (0, 1)
                )
                net.zero_grad()
                (net(real).sin().mean() - net(fake).square().mean()).backward()
                with torch.no_grad():
                    for parameter in net.parameters():
                        parameter -= 0.1 * parameter.grad
            found[name, whose] = states(net.module)
    torch.save(found, f"{results}{rank}")
    dist.barrier()  # gloo aborts where one process is gone while the other still listens
    dist.destroy_process_group()


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path):
    args = f"file://{tmp_path}/init", str(tmp_path / "rank")
    context = torch.multiprocessing.spawn(_train_distributed, args, nprocs=2, join=False)
    for _ in range(60):
        if context.join(timeout=1):
            break
    else:
        for process in context.processes:
            process.kill()
        pytest.fail("the two processes were not done within a minute")
    ranks = [torch.load(f"{args[1]}{rank}") for rank in (0, 1)]
    for found in ranks:
        for name in KINDS:
            assert_same(found[name, "ours"], found[name, "torch"], name)
    assert_same(ranks[0], ranks[1])


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_is_exact_with_step_scoped(kind, reentrant):
    plain, scoped = (make(kind.ours, linear(), torch.float64, step_scoped=True) for _ in range(2))
    for step in range(2):
        x = draw((4, 7), step, torch.float64).requires_grad_()
        loss(plain(x)).backward()
        loss(checkpoint(scoped, x, use_reentrant=reentrant)).backward()
        assert_same(scoped, plain)
        for module in (plain, scoped):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= 0.1 * parameter.grad
            module.zero_grad()


# --- errors and removal, of both ---------------------------------------------------------------


class Empty(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_parameter("weight", None)


@pytest.mark.parametrize(
    "factory, options",
    [
        (linear(), {"n_power_iterations": 0}),
        (linear(), {"n_power_iterations": -2}),
        (linear(), {"name": "wait"}),
        (linear(), {"dim": 2}),
        (linear(), {"dim": -3}),
        (Empty, {}),
        (lambda: nn.LazyLinear(3), {}),
        (lambda: nn.LazyConv2d(3, 3), {}),
        (nn.ReLU, {}),
        (lambda: nn.Linear(3, 0), {}),
        (lambda: nn.Linear(0, 3), {}),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else x.__qualname__.partition(".")[0],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_errors_are_torchs(kind, factory, options):
    theirs = outcome(lambda: make(kind.torch, factory, **options))
    module = factory()
    before = list(module._parameters), dict(module._forward_pre_hooks), type(module)
    assert outcome(lambda: kind.ours(module, **options)) == theirs
    if theirs is not None:
        assert (list(module._parameters), module._forward_pre_hooks, type(module)) == before


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"max_norm": 0}, ValueError, "expected max_norm to be a positive, finite number, got 0"),
        (
            {"max_norm": -1.0},
            ValueError,
            "expected max_norm to be a positive, finite number, got -1.0",
        ),
        (
            {"max_norm": math.inf},
            ValueError,
            "expected max_norm to be a positive, finite number, got inf",
        ),
        (
            {"max_norm": math.nan},
            ValueError,
            "expected max_norm to be a positive, finite number, got nan",
        ),
        (
            {"max_norm": "2"},
            ValueError,
            "expected max_norm to be a positive, finite number, got '2'",
        ),
        ({"init_iterations": -1}, ValueError, "init_iterations of 0 or more, got -1"),
        ({"init_iterations": 1.5}, ValueError, "init_iterations of 0 or more, got 1.5"),
    ],
    ids=str,
)
def test_errors_of_our_options(kind, options, error, words):
    module = nn.Linear(3, 4)
    state = torch.random.get_rng_state()
    with pytest.raises(error, match=words):
        kind.ours(module, **options)
    assert list(dict(module.named_parameters())) == ["weight", "bias"]
    assert not list(module.buffers())
    assert not module._forward_pre_hooks
    assert torch.equal(torch.random.get_rng_state(), state)


# --- the hook's own ----------------------------------------------------------------------------


def test_hook_starts_with_random_unit_vectors():
    theirs, ours = twins(HOOK, linear())
    assert torch.equal(ours.weight_u, theirs.weight_u)
    assert torch.equal(ours.weight_v, theirs.weight_v)
    torch.manual_seed(0)
    nn.Linear(7, 5)
    u, v = torch.randn(5), torch.randn(7)
    assert_same([ours.weight_u, ours.weight_v], [u / u.norm(), v / v.norm()])
    assert torch.equal(ours.weight, ours.weight_orig)
    assert not isinstance(ours.weight, nn.Parameter)


def test_hook_takes_a_vector_as_a_column():
    theirs, ours = twins(HOOK, lambda: Scale(6), torch.float64)
    assert ours.weight_v.shape == (1,)
    xs = inputs((4, 6), torch.float64)
    assert_same(train(ours, xs), train(theirs, xs))


def test_hook_refuses_a_negative_dim_as_torch_does():
    results = [
        outcome(lambda way=way: make(way, LAYERS["conv2d"][0], dim=-1))
        for way in (HOOK.torch, HOOK.ours)
    ]
    assert results[0] is not None
    assert results[0][0] is RuntimeError
    assert results[1] == results[0]


def test_hook_refuses_a_second_one_on_the_same_weight():
    words = "Cannot register two spectral_norm hooks on the same parameter weight"
    for first in (HOOK.torch, HOOK.ours):
        for second in (HOOK.torch, HOOK.ours):
            with pytest.raises(RuntimeError, match=words):
                second(first(nn.Linear(3, 4)))


def test_hook_on_two_parameters_of_a_module():
    def build(way):
        torch.manual_seed(0)
        return way(way(nn.Bilinear(3, 4, 5)), name="bias")

    theirs, ours = build(HOOK.torch), build(HOOK.ours)
    for module in (theirs, ours):
        module(draw((2, 3)), draw((2, 4))).square().sum().backward()
    assert_same(ours, theirs)
    assert ours.state_dict()._metadata[""] == theirs.state_dict()._metadata[""]
    assert ours.state_dict()._metadata[""]["spectral_norm"] == {
        "weight.version": 1,
        "bias.version": 1,
    }
    for module in (theirs, ours):
        torch_remove(module, "bias")
        module(draw((2, 3)), draw((2, 4)))
    assert_same(states(ours), states(theirs))


def test_hook_keeps_repr_and_metadata():
    theirs, ours = twins(HOOK, linear())
    assert repr(ours) == repr(theirs)
    metadata = ours.state_dict()._metadata[""]
    assert metadata == {"version": 1, "spectral_norm": {"weight.version": 1}}


def legacy(version):
    """A state_dict of the time before v was in it."""
    torch.manual_seed(3)
    module = HOOK.torch(nn.Linear(7, 5))
    for _ in range(200):
        module(draw((4, 7)))
    state = module.state_dict()
    del state["weight_v"]
    state["weight"] = module.weight.detach().clone()
    if version is None:
        del state._metadata
    else:
        state._metadata[""]["spectral_norm"]["weight.version"] = version
    return state, module


@pytest.mark.parametrize("version", [None, 0])
def test_hook_upgrades_legacy_state_dicts(version):
    theirs, ours = twins(HOOK, linear())
    for module in (theirs, ours):
        state, source = legacy(version)
        module.load_state_dict(state)
    assert_same(ours, theirs)
    ours.eval(), theirs.eval()
    ours(draw((4, 7))), theirs(draw((4, 7)))
    assert_same(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.weight, source.weight.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("missing", ["weight", "weight_orig", "weight_u"])
def test_hook_takes_incomplete_legacy_state_dicts_as_torch_does(missing, strict):
    modules = twins(HOOK, linear())
    results = []
    for module in modules:
        state, _ = legacy(None)
        del state[missing]

        def load(module=module, state=state):
            results.append(module.load_state_dict(state, strict=strict))

        results.append(outcome(load))
    assert results[: len(results) // 2] == results[len(results) // 2 :]
    assert_same(modules[1], modules[0])


@pytest.mark.parametrize("whose", ["torch", "ours"])
@pytest.mark.parametrize("by", [torch_remove, remove_spectral_norm])
@pytest.mark.parametrize("forward", [False, True])
def test_hook_is_removed_by_either_function(whose, by, forward):
    expected = make(HOOK.torch, linear())
    module = make(getattr(HOOK, whose), linear())
    if forward:
        expected(draw((4, 7))), module(draw((4, 7)))
    old, u = module.weight_orig, module.weight_u.clone()
    torch_remove(expected)
    vector = module.weight_u
    assert by(module) is module
    assert_same(states(module), states(expected))
    assert torch.equal(vector, u)  # nothing moved
    assert module.weight is not old
    assert isinstance(module.weight, nn.Parameter)
    assert vars(module).keys() == vars(expected).keys()
    assert not module._forward_pre_hooks
    assert not module._state_dict_hooks

    assert_same(train(module, inputs((4, 7))), train(expected, inputs((4, 7))))


@pytest.mark.parametrize("whose", ["torch", "ours"])
def test_a_removed_hook_lets_the_state_dict_be_loaded(whose):
    """torch's own leaves a hook behind that asks for u and v."""
    module = make(getattr(HOOK, whose), linear())
    remove_spectral_norm(module)
    assert not module._load_state_dict_pre_hooks
    module.load_state_dict(module.state_dict())


def test_hook_removed_where_there_is_none():
    errors = [outcome(lambda f=f: f(nn.Linear(3, 4))) for f in (torch_remove, remove_spectral_norm)]
    assert errors[0] == errors[1]
    assert errors[0][0] is ValueError
    module = spectral_norm(nn.Linear(3, 4), guard=True)
    remove_spectral_norm(module)
    assert not list(module.buffers())
    spectral_norm(module)  # and again


def test_hook_lets_its_attributes_be_set():
    theirs, ours = twins(HOOK, linear())
    for module in (theirs, ours):
        (hook,) = module._forward_pre_hooks.values()
        hook.n_power_iterations, hook.eps = 4, 0.3
    assert_same(train(ours, inputs((4, 7))), train(theirs, inputs((4, 7))))


def test_hook_weight_is_an_ordinary_tensor_to_its_users():
    theirs, ours = twins(HOOK, linear())
    theirs(draw((4, 7))), ours(draw((4, 7)))
    weight = ours.weight
    assert type(weight * 2) is torch.Tensor
    assert type(weight.detach()) is torch.Tensor
    assert weight.requires_grad
    assert not weight.is_leaf
    assert_same(
        torch.autograd.grad(weight.sin().sum(), ours.weight_orig),
        torch.autograd.grad(theirs.weight.sin().sum(), theirs.weight_orig),
    )


# --- mixed precision ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("options", [{}, {"guard": True}, {"step_scoped": True}])
def test_vectors_stay_float32_beside_half_weights(kind, dtype, fused, options):
    """As mixed precision of FSDP leaves them, which casts parameters: the products are of the half
    weights, u and v lose nothing."""
    module = make(kind.ours, linear(), dtype, **options)
    exact = make(kind.ours, linear(), torch.float32)
    weight, u, v = kind.parts(module)
    with torch.no_grad():
        for mine, other in zip(kind.parts(exact), (weight, u, v), strict=True):
            mine.copy_(other)
    for m in module.modules():
        for name, x in m._buffers.items():
            m._buffers[name] = x.float() if x.is_floating_point() else x
    if fused:
        gankernels.fuse_spectral_norm(module, **options)
    x = draw((4, 7), 1, dtype)
    for _ in range(1 if "step_scoped" in options else 3):
        out = module(x)
        exact(x.float())
    out.float().square().sum().backward()
    _, u, v = kind.parts(module)
    assert u.dtype == v.dtype == torch.float32
    for mine, other in zip((u, v), kind.parts(exact)[1:], strict=True):
        torch.testing.assert_close(mine, other)
    module.eval()
    exact.eval()
    torch.testing.assert_close(module(x), exact(x.float()).to(dtype), rtol=2e-2, atol=2e-2)
    found, expected = (gankernels.spectral_norms(m).product for m in (module, exact))
    torch.testing.assert_close(found, expected)
    folded = gankernels.fold_spectral_norm(module)
    assert_same(folded(x), module(x))
    assert weight.grad.dtype == dtype
    assert torch.isfinite(weight.grad).all()
