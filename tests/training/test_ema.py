"""AveragedModel against averages of W / sigma taken by hand."""

import copy
import inspect
import pickle

import pytest
import torch
from support import devices
from support.networks import CRITIC_LABELS, KINDS, WAYS, batch, critic, loss, make
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel as TorchAveragedModel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gankernels import fold_spectral_norm, fuse_spectral_norm
from gankernels.ema import AveragedModel, decay_for_half_life

pytestmark = pytest.mark.usefixtures("device")

MIX = ["torch_hook", "ours_parametrization", "ours_hook", "torch_parametrization"]
CASES = {
    **{way: ([way], {}, False) for way in WAYS},
    "mix": (MIX, {}, False),
    **{f"{way}_fused": ([way], {}, True) for way in WAYS},
    "mix_fused_with_options": (MIX, {"step_scoped": True, "cache_eval": True, "guard": True}, True),
}


@pytest.fixture(params=list(CASES))
def model(request):
    ways, options, is_fused = CASES[request.param]
    found = critic(*ways)
    if is_fused:
        fuse_spectral_norm(found, **options)
    return found


def step(model: nn.Module, optimizer: torch.optim.Optimizer, i: int) -> None:
    optimizer.zero_grad()
    (loss(model(batch(2 * i))) - 2 * loss(model(batch(2 * i + 1)))).backward()
    optimizer.step()


def plain_by_hand(model: nn.Module) -> dict[str, torch.Tensor]:
    """The critic's parameters, W / (u . W v) where it is normalized."""
    tensors = {n: t.detach().clone() for n, t in model.state_dict().items()}
    found = {}
    for label in CRITIC_LABELS:
        path = label.removesuffix(".weight")
        (kind,) = (k for k in KINDS.values() if f"{path}.{k.names[0]}" in tensors)
        weight, u, v = (tensors.pop(f"{path}.{name}") for name in kind.names)
        rows = weight.transpose(0, 1) if path == "up" else weight
        found[label] = weight / (u @ rows.reshape(len(u), -1) @ v)
    return {**found, **tensors}


def assert_equal_tensors(got, expected, atol=1e-12):
    assert set(got) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name].detach(), value, rtol=0, atol=atol, msg=name)


def naive_average(model: nn.Module, decay: float) -> TorchAveragedModel:
    """torch's own, with a copy of the network that can be made."""
    return TorchAveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def test_averages_what_the_network_used(model):
    decay, expected = 0.7, None
    average, naive = AveragedModel(model, decay=decay), naive_average(model, decay)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for i in range(5):
        step(model, optimizer, i)
        average.update_parameters(model)
        naive.update_parameters(model)
        now = plain_by_hand(model)
        if expected is None:
            expected = now
        else:
            expected = {k: decay * expected[k] + (1 - decay) * now[k] for k in now}
        assert_equal_tensors(dict(average.module.named_parameters()), expected)
    wrong = dict(fold_spectral_norm(naive.module).named_parameters())
    for label in CRITIC_LABELS:  # far outside of rounding
        assert (wrong[label] - expected[label]).abs().max() > 1e-3, label
    assert_equal_tensors({"bias": wrong["first.bias"]}, {"bias": expected["first.bias"]})


def test_the_first_update_copies_and_the_training_model_stays_as_it_is(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    average = AveragedModel(model, decay=0.7)
    step(model, optimizer, 0)
    before = copy.deepcopy(model.state_dict())
    tensors = [*model.parameters(), *model.buffers()]
    versions, modes = [t._version for t in tensors], [m.training for m in model.modules()]
    rng = torch.get_rng_state()
    average.update_parameters(model)
    assert_equal_tensors(dict(average.module.named_parameters()), plain_by_hand(model))
    assert_equal_tensors(model.state_dict(), before, atol=0)
    assert [t._version for t in tensors] == versions
    assert [m.training for m in model.modules()] == modes
    assert all(modes)
    assert torch.equal(torch.get_rng_state(), rng)
    step(model, optimizer, 1)  # u and v moved: the model still is in training mode
    u_or_v = [k for k in before if k.endswith(("_u", "_v"))]
    assert len(u_or_v) == 2 * len(CRITIC_LABELS)
    assert all(not torch.equal(model.state_dict()[k], before[k]) for k in u_or_v)


def test_gives_the_outputs_of_eval(model):
    step(model, torch.optim.Adam(model.parameters(), lr=0.05), 0)
    average = AveragedModel(model, decay=0.999)
    average.update_parameters(model)
    x = batch(9)
    for _ in range(2):  # u and v do not move
        torch.testing.assert_close(average(x), model.eval()(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fold_spectral_norm(model)(x), average(x), rtol=1e-12, atol=1e-12)


def test_what_the_average_is(model):
    average = AveragedModel(model, decay=0.999)
    assert isinstance(average, TorchAveragedModel)
    assert average.module.training == model.training
    assert all(p.requires_grad for p in average.parameters())
    assert set(average.state_dict()) == {"n_averaged"} | {
        f"module.{k}" for k in fold_spectral_norm(model).state_dict()
    }
    plain = {"weight", "bias"}
    assert all(k.rsplit(".", 1)[1] in plain for k in average.module.state_dict())


def test_state_dict_round_trip(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    average = AveragedModel(model, decay=0.7)
    for i in range(2):
        step(model, optimizer, i)
        average.update_parameters(model)
    other = AveragedModel(model, decay=0.7)
    other.load_state_dict(average.state_dict())
    assert other.n_averaged == 2
    step(model, optimizer, 2)
    for one in (average, other):
        one.update_parameters(model)
    assert_equal_tensors(other.state_dict(), average.state_dict(), atol=0)


def test_fusing_and_unfusing_in_between():
    model = critic(*MIX)
    average, twin = AveragedModel(model, decay=0.7), AveragedModel(model, decay=0.7)
    expected = copy.deepcopy(model)
    handle = fuse_spectral_norm(model)
    average.update_parameters(model)
    handle.unfuse()
    average.update_parameters(model)
    twin.update_parameters(expected)
    twin.update_parameters(expected)
    assert_equal_tensors(average.state_dict(), twin.state_dict())


class Rotated(nn.Module):
    def forward(self, weight):
        return weight @ torch.linspace(-1, 1, weight.shape[1] ** 2).to(weight).view(-1, 4)


def assert_autocast_changes_nothing(model: nn.Module, device: str) -> None:
    average, expected = AveragedModel(model, decay=0.999), AveragedModel(model, decay=0.999)
    expected.update_parameters(model)
    with torch.autocast(device, dtype=torch.bfloat16):
        average.update_parameters(model)
    assert_equal_tensors(average.state_dict(), expected.state_dict(), atol=0)


@devices.CPU_ONLY
@pytest.mark.parametrize("way", ["torch_parametrization", "ours_parametrization"])
def test_autocast_changes_nothing(way):
    module = make(WAYS[way], lambda: nn.Linear(4, 3))
    parametrize.register_parametrization(module, "weight", Rotated())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.weight.dtype == torch.bfloat16
    assert_autocast_changes_nothing(module, "cpu")


# Autocast knows mv on GPUs only.
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("way", list(WAYS))
def test_autocast_changes_nothing_on_a_gpu(way):
    assert_autocast_changes_nothing(critic(way, dtype=torch.float32), "cuda")


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_keeps_the_dtype(way, dtype):
    model = critic(way, dtype=dtype)
    for _ in range(20):  # u and v of the hooks begin at random, with sigma near zero
        model(batch(dtype=dtype))
    average = AveragedModel(model, decay=0.5)
    average.update_parameters(model)
    average.update_parameters(model)
    assert all(p.dtype == dtype for p in average.parameters())
    wanted = plain_by_hand(model.double())
    close = 1e-5 if dtype == torch.float32 else 2e-2
    got = {k: p.double() for k, p in average.module.named_parameters()}
    assert_equal_tensors(got, wanted, atol=close)


def test_coefficient():
    model = critic("ours_parametrization")
    fuse_spectral_norm(model, max_norm=1e6)  # above every sigma: the weights as they are
    average = AveragedModel(model, decay=0.999)
    average.update_parameters(model)
    original = model.first.parametrizations.weight.original
    assert torch.equal(average.module.first.weight, original)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("way", ["torch_parametrization", "ours_parametrization"])
@pytest.mark.parametrize("order", ["norm_first", "norm_last", "twice"])
def test_other_parametrizations(way, order):
    def prepare(module):
        if order != "norm_first":
            parametrize.register_parametrization(module, "weight", Doubled())

    module = make(WAYS[way], lambda: nn.Linear(4, 3), torch.float64, prepare)
    if order != "norm_last":
        parametrize.register_parametrization(module, "weight", Doubled())
    average = AveragedModel(module, decay=0.999)
    average.update_parameters(module)
    assert_equal_tensors(average.module.state_dict(), fold_spectral_norm(module).state_dict())
    assert all(m.training for m in module.modules())


def test_a_parametrization_of_another_kind_stays():
    module = parametrize.register_parametrization(nn.Linear(4, 3), "weight", Doubled())
    average, torchs = AveragedModel(module, decay=0.7), naive_average(module, 0.7)
    for _ in range(2):
        with torch.no_grad():
            module.parametrizations.weight.original.mul_(3)
        average.update_parameters(module)
        torchs.update_parameters(module)
    assert_equal_tensors(average.state_dict(), torchs.state_dict(), atol=0)


def test_vectors():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.arange(1.0, 5.0))

    module = nn.Sequential(make(WAYS["ours_parametrization"], Scale))
    average = AveragedModel(module, decay=0.999)
    average.update_parameters(module)
    w = torch.arange(1.0, 5.0)
    assert_equal_tensors(dict(average.module.named_parameters()), {"0.weight": w / w.norm()}, 1e-6)


def test_shared_modules():
    shared = make(WAYS["ours_hook"], lambda: nn.Linear(4, 4), torch.float64)
    module = nn.Sequential(shared, nn.Tanh(), shared)
    module(torch.ones(1, 4, dtype=torch.float64))
    average = AveragedModel(module, decay=0.999)
    average.update_parameters(module)
    assert average.module[0] is average.module[2]
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(average(x), module.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["torch_parametrization", "ours_parametrization"])
def test_a_buffer(way):
    module = nn.Linear(3, 2, dtype=torch.float64)
    del module.weight
    module.register_buffer("weight", torch.arange(6.0, dtype=torch.float64).view(2, 3))
    WAYS[way](module)
    average = AveragedModel(module, decay=0.5)
    for _ in range(2):
        module.parametrizations.weight.original[0].add_(1)
        average.update_parameters(module)
    assert set(dict(average.module.named_buffers())) == {"weight"}
    # Copied, as torch's average does with buffers.
    assert_equal_tensors(average.module.state_dict(), fold_spectral_norm(module).state_dict())


@pytest.mark.parametrize("way", ["torch_hook", "ours_hook"])
def test_a_weight_shared_with_a_layer_without_normalization(way):
    first = make(WAYS[way], lambda: nn.Linear(4, 4), torch.float64)
    second = nn.Linear(4, 4, dtype=torch.float64)
    second.weight = next(p for n, p in first.named_parameters() if "orig" in n)
    module = nn.Sequential(first, second)
    average = AveragedModel(module, decay=0.999)
    with torch.no_grad():
        second.weight.add_(1)
    average.update_parameters(module)
    assert_equal_tensors(average.module.state_dict(), fold_spectral_norm(module).state_dict())
    assert torch.equal(average.module[1].weight, second.weight)


# --- without spectral normalization --------------------------------------------------------------


def plain_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )


@pytest.mark.parametrize("decay", [0.0, 0.7, 0.999, 1.0])
def test_is_torchs_without_spectral_normalization(decay):
    model = plain_network()
    average = AveragedModel(model, decay=decay)
    torchs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for i in range(4):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 6, 6) + i).square().mean().backward()
        optimizer.step()
        average.update_parameters(model)
        torchs.update_parameters(model)
        assert_equal_tensors(average.state_dict(), torchs.state_dict(), atol=0)
    assert torch.equal(average.module[1].running_mean, model[1].running_mean)  # copied
    assert average.module[1].num_batches_tracked == 4


def test_default_decay():
    model = nn.Linear(1, 1, bias=False)
    average = AveragedModel(model, decay=0.999)
    nn.init.ones_(model.weight)
    average.update_parameters(model)
    nn.init.zeros_(model.weight)
    average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(0.999)


# --- half-life -----------------------------------------------------------------------------------


def test_half_life():
    assert decay_for_half_life(10_000, 10_000) == 0.5
    assert decay_for_half_life(10_000, 64) == pytest.approx(0.5 ** (64 / 10_000), rel=1e-15)
    # The same after the same number of images, whatever the batch.
    for size in (10, 50, 250):
        assert decay_for_half_life(1000, size) ** (2000 / size) == pytest.approx(0.25)


def test_average_by_half_life():
    model = nn.Linear(1, 1, bias=False)
    average = AveragedModel(model, half_life=100, batch=25)
    nn.init.ones_(model.weight)
    average.update_parameters(model)
    nn.init.zeros_(model.weight)
    for _ in range(4):
        average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(0.5)


def test_rampup_of_the_half_life():
    """StyleGAN2-ADA's schedule (training_loop.py), by its own formula."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    average = AveragedModel(model, half_life=100, batch=32, rampup=0.05)
    average.update_parameters(model)
    expected = 0.0
    for step in range(1, 101):  # the half-life of 100 images is reached in step 63
        nn.init.constant_(model.weight, 1 + 0.01 * step)
        average.update_parameters(model)
        beta = 0.5 ** (32 / max(min(100, 0.05 * 32 * step), 1e-8))
        expected = beta * expected + (1 - beta) * (1 + 0.01 * step)
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-12)


# --- ramp-up and start ----------------------------------------------------------------------------


def averaged(values, **options):
    """The averages after each of these weights."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    average, found = AveragedModel(model, **options), []
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        found.append(average.module.weight.item())
    return found


VALUES = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0, -5.0, 3.0]


def by_hand(decay_at, start=1):
    """Copies until start, then averages with the decay after as many averages."""
    found = []
    for k, value in enumerate(VALUES):
        n = k + 1 - start
        decay = decay_at(n) if n > 0 else 0.0
        found.append(decay * found[-1] + (1 - decay) * value if n > 0 else value)
    return pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize("start", [0, 1, 4, 100])
def test_rampup_of_the_decay(start):
    """TensorFlow's, until it reaches the decay, which here is in the fifth average."""
    assert (1 + 5) / (10 + 5) == 0.4
    expected = by_hand(lambda n: min(0.4, (1 + n) / (10 + n)), max(start, 1))
    assert averaged(VALUES, decay=0.4, rampup=10, start=start) == expected


@pytest.mark.parametrize("start", [1, 3])
def test_start(start):
    assert averaged(VALUES, decay=0.7, start=start) == by_hand(lambda n: 0.7, start)
    by_images = averaged(VALUES, half_life=8, batch=4, start=start)
    assert by_images == by_hand(lambda n: 0.5**0.5, start)
    grown = averaged(VALUES, half_life=8, batch=4, rampup=0.5, start=start)
    assert grown == by_hand(lambda n: 0.5 ** (4 / min(8, 0.5 * 4 * n)), start)
    # Without a decay all count alike, from the last copy on.
    assert averaged(VALUES, start=start) == by_hand(lambda n: n / (n + 1), start)


def test_start_copies_buffers_too():
    model = plain_network()
    average = AveragedModel(model, decay=0.9, start=3, use_buffers=True)
    for i in range(4):
        model(torch.randn(2, 3, 6, 6) + i)
        before = average.module[1].running_mean.clone()
        average.update_parameters(model)
        now = model[1].running_mean
        expected = now if i < 3 else 0.9 * before + 0.1 * now
        torch.testing.assert_close(average.module[1].running_mean, expected)


@pytest.mark.parametrize(
    "options",
    [{"decay": 0.9, "rampup": 10, "start": 3}, {"half_life": 64, "batch": 4, "rampup": 0.5}],
    ids=["decay", "half_life"],
)
def test_schedules_go_on(options):
    """From a state_dict, a copy and a pickle."""
    model = plain_network()

    def update(*averages):
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p)
        for average in averages:
            average.update_parameters(model)

    average = AveragedModel(model, **options)
    for _ in range(5):
        update(average)
    loaded = AveragedModel(model, **options)
    loaded.load_state_dict(average.state_dict())
    others = [loaded, copy.deepcopy(average), pickle.loads(pickle.dumps(average))]
    for _ in range(3):
        update(average, *others)
        for other in others:
            assert_equal_tensors(other.state_dict(), average.state_dict(), atol=0)


def test_schedules_read_nothing_back():
    """The number of updates that torch hands over is on the weights' device: a GPU would wait."""
    average = AveragedModel(plain_network(), half_life=8, batch=4, rampup=0.5, start=2)
    weights = [p.detach().clone() for p in average.module.parameters()]
    for updates in (1, 5):
        average.multi_avg_fn.updates = updates
        average.multi_avg_fn(weights, weights, None)


def test_loads_into_the_plain_class():
    model = plain_network()
    average = AveragedModel(model, decay=0.5)
    for _ in range(2):
        model(torch.randn(2, 3, 6, 6))
        average.update_parameters(model)
    plain = plain_network()
    plain.load_state_dict(average.module.state_dict())
    assert_equal_tensors(plain.state_dict(), average.module.state_dict(), atol=0)


def test_loads_into_a_class_that_normalizes(model):
    average = AveragedModel(model, decay=0.5)
    average.update_parameters(model)
    folded = fold_spectral_norm(copy.deepcopy(model))
    nn.init.zeros_(next(folded.parameters()))
    folded.load_state_dict(average.module.state_dict())
    assert_equal_tensors(folded.state_dict(), average.module.state_dict(), atol=0)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"decay": 1.1}, ValueError, "decay to be at most 1, got 1.1"),
        ({"decay": -0.1}, ValueError, "decay to be finite and not negative, got -0.1"),
        ({"decay": float("nan")}, ValueError, "decay to be finite .* got nan"),
        ({"decay": "0.9"}, TypeError, "decay to be a number, got str"),
        ({"half_life": 100}, ValueError, "half_life, in images, together with batch, got only"),
        ({"batch": 100}, ValueError, "half_life, in images, together with batch, got only"),
        ({"decay": 0.9, "half_life": 9, "batch": 1}, ValueError, "decay or half_life, got both"),
        ({"rampup": 0.05}, ValueError, "rampup together with decay, or with .*, got it alone"),
        ({"decay": 0.9, "rampup": 0.05}, ValueError, "rampup to be above 1 with decay, got 0.05"),
        ({"decay": 0.9, "rampup": True}, TypeError, "rampup to be a number, got bool"),
        ({"decay": 0.9, "start": -1}, ValueError, "start to be at least 0, got -1"),
        ({"start": 2.0}, TypeError, "start to be an integer, got float"),
        ({"start": True}, TypeError, "start to be an integer, got bool"),
        (
            {"start": 2, "avg_fn": lambda a, b, n: a},
            ValueError,
            "decay, half_life or start, or a function that averages, got both",
        ),
        ({"half_life": 9, "batch": 1, "rampup": "1"}, TypeError, "rampup to be a number, got str"),
        ({"half_life": 9, "batch": 1, "rampup": 0}, ValueError, "rampup to be finite and positive"),
    ],
)
def test_refuses_options(options, error, message):
    with pytest.raises(error, match=f"^AveragedModel: expected {message}"):
        AveragedModel(nn.Linear(1, 1), **options)


def test_refuses_what_is_no_module():
    with pytest.raises(TypeError, match=r"^AveragedModel: expected a torch.nn.Module, got list"):
        AveragedModel([nn.Linear(1, 1)])


@pytest.mark.parametrize("bad", [0, -1, float("inf"), float("nan")])
def test_refuses_half_lives(bad):
    with pytest.raises(ValueError, match=r"^decay_for_half_life: expected half_life_images to be"):
        decay_for_half_life(bad, 1)
    with pytest.raises(
        ValueError, match=r"^decay_for_half_life: expected batch to be finite and p"
    ):
        decay_for_half_life(1, bad)
    with pytest.raises(ValueError, match=r"^decay_for_half_life: expected half_life_images"):
        AveragedModel(nn.Linear(1, 1), half_life=bad, batch=1)
    with pytest.raises(TypeError, match=r"^decay_for_half_life: expected batch to be a number"):
        decay_for_half_life(1, "1")


def mean_of_three(weights, value, count):
    return weights + (value - weights) / (count + 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"device": "cpu"},
        {"avg_fn": mean_of_three},
        {"multi_avg_fn": get_ema_multi_avg_fn(0.6)},
        {"use_buffers": True},
        {"multi_avg_fn": get_ema_multi_avg_fn(0.6), "use_buffers": True},
    ],
    ids=lambda options: "-".join(options) or "default",
)
def test_a_drop_in_for_torchs(options, training):
    """Of a network without spectral normalization: every option, mode, key and number."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train(training)
    model[2].bias.requires_grad_(False)
    ours, torchs = AveragedModel(model, **options), TorchAveragedModel(model, **options)
    for _ in range(4):
        model(torch.randn(6, 5))
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p)
        ours.update_parameters(model)
        torchs.update_parameters(model)
    assert_equal_tensors(ours.state_dict(), torchs.state_dict(), atol=0)
    for a, b in zip(ours.modules(), torchs.modules(), strict=True):
        assert a.training == b.training
    for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert a.requires_grad == b.requires_grad
    again = AveragedModel(model, **options)
    again.load_state_dict(torchs.state_dict())
    assert_equal_tensors(again.state_dict(), torchs.state_dict(), atol=0)


def test_takes_torchs_arguments_in_their_order():
    ours = list(inspect.signature(AveragedModel.__init__).parameters)
    torchs = list(inspect.signature(TorchAveragedModel.__init__).parameters)
    assert ours[: len(torchs)] == torchs


def test_weights_count_alike_by_default():
    model = critic("ours_hook")
    average, seen = AveragedModel(model), []
    for i in range(3):
        step(model, torch.optim.Adam(model.parameters(), lr=0.05), i)
        average.update_parameters(model)
        seen.append(plain_by_hand(model))
    mean = {k: torch.stack([x[k] for x in seen]).mean(0) for k in seen[0] if "num" not in k}
    got = {k: v for k, v in average.module.state_dict().items() if k in mean}
    assert_equal_tensors(got, mean)


@pytest.mark.parametrize("name", ["avg_fn", "multi_avg_fn"])
def test_one_way_to_average(name):
    with pytest.raises(
        ValueError, match=r"^AveragedModel: expected decay, half_life or start, or "
    ):
        AveragedModel(nn.Linear(1, 1), decay=0.9, **{name: mean_of_three})


def test_refuses_another_model_before_anything_changes():
    model = critic("ours_hook")
    average = AveragedModel(model, decay=0.999)
    before = copy.deepcopy(average.state_dict())
    with pytest.raises(ValueError, match=r"got Sequential without .*; pass the network itself"):
        average.update_parameters(nn.Sequential(model))
    other = critic("ours_hook")
    other.plain = nn.Conv2d(4, 4, 3)
    message = r"expected plain.weight of shape \(4, 4, 1, 1\), got \(4, 4, 3, 3\)"
    with pytest.raises(ValueError, match=message):
        average.update_parameters(other)
    assert_equal_tensors(average.state_dict(), before, atol=0)
