"""Spectral norm of weights that stay in shards, in two and four processes, against one."""

import functools
import itertools
import traceback

import pytest
import torch
from distributed import ranks
from support.networks import KINDS
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

import gankernels as gk
from gankernels import losses

pytestmark = pytest.mark.slow

D = torch.float64


class Critic(nn.Module):
    def __init__(self, checkpointed):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third, self.last = (
            nn.Linear(*sizes, dtype=D) for sizes in ((6, 12), (12, 7), (7, 4), (4, 1))
        )
        self.checkpointed = checkpointed

    def part(self, x):
        return self.second(self.first(x).tanh()).tanh()

    def forward(self, x):
        x = checkpoint(self.part, x, use_reentrant=False) if self.checkpointed else self.part(x)
        return self.last(self.third(x).tanh())


OPTIONS = {
    "": {},
    "three iterations": {"n_power_iterations": 3},
    "guard": {"guard": True},
    "max_norm": {"max_norm": 1.5},
}
CASES = [
    *itertools.product(KINDS, (False, True), OPTIONS, (False,), (None,)),
    *itertools.product(KINDS, (False, True), ("",), (True,), (None, "difference")),
    *itertools.product(KINDS, (False, True), ("",), (False,), ("difference",)),
]


def build(kind, fused, option, checkpointed, mesh=None):
    model = Critic(checkpointed)
    if mesh is not None:
        plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
        parallelize_module(model, mesh, plan)
    for layer in (model.first, model.second, model.third, model.last):
        KINDS[kind].ours(layer, **OPTIONS[option])
    if fused:
        gk.fuse_spectral_norm(model)
    return model


def train(model, method):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, foreach=False)
    history = []
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        real, fake = (torch.randn(5, 6, dtype=D, generator=generator) for _ in range(2))
        optimizer.zero_grad()
        loss = losses.hinge.discriminator(model(real), model(fake))
        if method is not None:
            loss = loss + gk.r1_penalty(model, real, gamma=1.0, method=method, sigma=1e-3)
        loss.backward()
        history.append(loss.detach())
        optimizer.step()
    model.eval()
    found = {**model.state_dict(), **dict(model.named_buffers())}
    found = {k: x.full_tensor() if isinstance(x, DTensor) else x for k, x in found.items()}
    return {**found, "losses": torch.stack(history), "evaluated": model(real).detach()}


def all_cases():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found = {}
    for case in CASES:
        *built, method = case
        try:
            found[case] = train(build(*built, mesh), method)
        except Exception:
            found[case] = traceback.format_exc()
    found["norms"] = norms_of_shards(mesh)
    x = torch.randn(5, 6, dtype=D)
    with pytest.raises(RuntimeError, match="torch loses the second derivative") as error:
        gk.r1_penalty(build("hook", False, "", False, mesh), x)
    found["twice"] = str(error.value)
    model = build("hook", False, "", False, mesh)
    folded = gk.fold_spectral_norm(model).first.weight.full_tensor().detach()
    found["logged"] = gk.spectral_norms(model).layers, folded
    return found


def norms_of_shards(mesh):
    """Of a transposed convolution, whose shards are of its columns, and of words."""
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 2, dtype=D)
    found, words = [], {}
    for placement in (None, Shard(0), Shard(1), Replicate()):
        torch.manual_seed(1)
        layer = nn.ConvTranspose1d(5, 3, 2, dtype=D)
        shards = weight if placement is None else distribute_tensor(weight, mesh, [placement])
        layer.weight = nn.Parameter(shards)
        KINDS["parametrization"].ours(layer, n_power_iterations=50)
        u = layer.parametrizations.weight[0]._u
        found.append(u.full_tensor() if isinstance(u, DTensor) else u)
        if placement == Shard(0):
            for option in ("step_scoped", "cache_eval"):
                with pytest.raises(TypeError) as error:
                    KINDS["hook"].ours(nn_with(shards), **{option: True})
                words[option] = str(error.value)
    return found, words


def nn_with(weight):
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(weight)
    return layer


@functools.cache
def expected(case):
    *built, method = case
    return train(build(*built), method)


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory):
    return ranks.run(request.param, tmp_path_factory.mktemp("ranks"), all_cases)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shards(found, case):
    wanted = expected(case)
    ranks.assert_same(found, case, wanted)


def test_second_derivatives_are_refused(found):
    """torch gives a gradient without a graph there, which trains nothing."""
    assert all('Take method="difference"' in rank["twice"] for rank in found)


def test_layouts(found):
    for rank in found:
        vectors, words = rank["norms"]
        for u in vectors[1:]:
            torch.testing.assert_close(u, vectors[0])
        for option, text in words.items():
            assert f"weight to be whole on every rank with {option}=True" in text


def test_norms_and_folds(found):
    for rank in found:
        norms, folded = rank["logged"]
        model = build("hook", False, "", False)
        for name, x in gk.spectral_norms(model).layers.items():
            torch.testing.assert_close(norms[name], x)
        expected = gk.fold_spectral_norm(model).first.weight.detach()
        torch.testing.assert_close(folded, expected)
