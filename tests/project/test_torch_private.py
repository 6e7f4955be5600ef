"""Private names of torch: all in ``gankernels/_torch.py``, each doing what it is there for.

A failure here on a new torch says which name went and what to put in its place; the rest of the
package need not be looked at.
"""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from gankernels import _torch

PACKAGE = Path(_torch.__file__).parent
LISTED = {*_torch.TENSOR_ATTRIBUTES, *_torch.MODULE_ATTRIBUTES}


def private_names(source):
    """Names of torch with an underscore: by path (torch._C), by import, on modules and tensors."""
    objects = (nn.Linear(1, 1), nn.Linear(1, 1).weight, torch.optim.SGD([torch.zeros(1)]))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            yield from (part for part in parts if part.startswith("_"))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            dunder = node.attr.startswith("__")
            root = ast.unparse(node.value).split(".")[0]
            if not dunder and (root == "torch" or any(hasattr(x, node.attr) for x in objects)):
                yield node.attr


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_private_names_are_in_one_file(path):
    if path.name == "_torch.py":
        return
    found = set(private_names(path.read_text())) - LISTED
    assert not found, f"{path}: move {sorted(found)} to gankernels/_torch.py, with a test here"


def test_the_search_finds_them():
    source = (
        "from torch.a import _b\nimport torch\ntorch._c.d()\nx._version\nm._buffers\nself._own = 1"
    )
    assert set(private_names(source)) == {"_b", "_c", "_version", "_buffers"}


@pytest.mark.parametrize("name", _torch.TENSOR_ATTRIBUTES)
def test_tensor_attributes(name):
    assert hasattr(torch.zeros(1), name), f"Tensor.{name} went: find another way to know it"


@pytest.mark.parametrize("name", _torch.MODULE_ATTRIBUTES)
def test_module_attributes(name):
    assert hasattr(nn.Linear(1, 1), name), f"Module.{name} went: look at its successor in torch.nn"


@pytest.mark.parametrize("name", _torch.CALLED_METHODS)
def test_called_methods(name):
    assert hasattr(nn.Conv2d, name), f"Conv2d.{name} went: look at what its forward calls now"


def test_below_autograd():
    """If it goes: torch.no_grad() does, at the price of some microseconds a call."""
    x = torch.ones(2, requires_grad=True)
    with _torch.below_autograd():
        assert not (2 * x).requires_grad
    assert (2 * x).requires_grad


def test_disabled_torch_function():
    """If it goes: a classmethod ``__torch_function__`` that calls ``func(*args, **kwargs)`` within
    ``torch._C.DisableTorchFunctionSubclass()``."""

    class Plain(torch.Tensor):
        __torch_function__ = _torch.disabled_torch_function

    assert type(torch.ones(2).as_subclass(Plain) * 2) is torch.Tensor


def test_fake_tensors_are_known():
    """If it goes: look for the class of what a FakeTensorMode makes."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        assert isinstance(torch.zeros(1), _torch.FakeTensor)
        assert _torch.is_fake(torch.zeros(1))
        assert _torch.in_dispatch_mode()
    assert _torch.is_fake(torch.zeros(1, device="meta"))
    assert not _torch.is_fake(torch.zeros(1))
    assert not _torch.in_dispatch_mode()


def test_foreach_clamps():
    """If they go: ``Tensor.clamp_`` of each tensor."""
    x = [torch.tensor([-3.0, 3.0])]
    _torch.foreach_clamp_max_(x, 2.0)
    _torch.foreach_clamp_min_(x, -1.0)
    assert x[0].tolist() == [-1, 2]


def test_containers_are_registered():
    """If it goes: its public successor; without one, leave the registration out."""

    class Pair(tuple):
        pass

    _torch.register_pytree_node(Pair, lambda x: (list(x), None), lambda x, _: tuple(x))
    assert torch.utils._pytree.tree_leaves(Pair([1, 2])) == [1, 2]


def test_torchs_parametrization():
    """If it goes: the class of ``layer.parametrizations.weight[0]`` after torch's spectral_norm, or
    its weight_norm."""
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))
    assert type(layer.parametrizations.weight[0]) is _torch.TorchParametrization
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert type(layer.parametrizations.weight[0]) is _torch.TorchWeightNorm


def test_jit_traces_are_seen():
    """If it goes: ``torch.jit.is_tracing()``; where there is no torch.jit, return False."""
    seen = []

    def f(x):
        seen.append(_torch.in_jit_trace())
        return x + 1

    f(torch.ones(1))
    torch.jit.trace(f, torch.ones(1), check_trace=False)
    assert seen == [False, True]


def test_transforms_are_seen():
    """If it goes: whatever torch.func's own code asks for the current interpreter."""
    seen = []

    def f(x):
        seen.append(_torch.in_functorch())
        return x.sum()

    f(torch.ones(2))
    torch.func.grad(f)(torch.ones(2))
    torch.func.vmap(f)(torch.ones(2, 2))
    assert seen == [False, True, True]


def test_batched_tensors_are_seen():
    """If it goes: whatever torch.func's own code asks for a tensor's level."""
    seen = []

    def f(x):
        seen.append((_torch.is_batched(x), _torch.is_batched(outside)))
        return x.sum()

    outside = torch.ones(2)
    torch.func.grad(f)(torch.ones(2))
    torch.func.vmap(f)(torch.ones(2, 2))
    torch.func.vmap(torch.func.grad(f))(torch.ones(2, 2))
    assert seen == [(False, False), (True, False), (True, False)]


def test_forward_mode_is_seen():
    """If it goes: look at what torch.autograd.forward_ad.enter_dual_level sets."""
    assert not _torch.in_forward_ad()
    with forward_ad.dual_level():
        assert _torch.in_forward_ad()


def test_the_switch_of_dynamo():
    """If it goes, because torch always traces torch.autograd.grad: return True."""
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        assert _torch.traces_autograd_ops()
    with torch._dynamo.config.patch(trace_autograd_ops=False):
        assert not _torch.traces_autograd_ops()


def test_hooks_on_saved_tensors_are_seen():
    """If it goes: look at what torch.autograd.graph.saved_tensors_hooks pushes to; without a
    successor return True, and fused models leave their layers to normalize themselves."""
    assert not _torch.saves_through_hooks()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert _torch.saves_through_hooks()
    assert not _torch.saves_through_hooks()


def test_backward_passes_are_seen():
    """If it goes: return False, and layers that other code recomputes move u and v unwarned."""
    seen, x = [], torch.ones(2, requires_grad=True)
    x.register_hook(lambda _: seen.append(_torch.in_backward()))
    assert not _torch.in_backward()
    x.sum().backward()
    assert seen == [True]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_found(reentrant):
    """If it goes: look for the object of torch/utils/checkpoint.py that a forward and what computes
    it again share, and at the names of the local variables that hold it."""
    seen, x = [], torch.ones(2, requires_grad=True)

    def inner(x):
        seen.append(_torch.checkpoints())
        return x.sin().exp()

    def outer(x):
        return checkpoint(inner, x.exp(), use_reentrant=reentrant)

    assert _torch.checkpoints() == ([], None, None)
    checkpoint(outer, x, use_reentrant=reentrant).sum().backward()
    inside, around = seen[0].entered
    assert seen[0].recomputed is None
    assert seen[0].turn is None
    # A reentrant region is computed again with a new one within it, another kind by itself.
    assert seen[1].recomputed is (around if reentrant else inside)
    assert len(seen[1].entered) == reentrant
    assert seen[1].turn is not None
    assert _torch.checkpoints() == ([], None, None)


def test_sharding_is_seen():
    """If it goes: return whether torch.distributed.fsdp is imported, which costs only memory."""
    from torch.distributed.fsdp._fully_shard import _fully_shard

    assert _torch.shards_parameters() is bool(_fully_shard.cls_to_fsdp_cls)


def test_compiled_modules_are_seen():
    """If it goes: look at what Module.compile() sets, and at the class that torch.compile returns
    for a module."""
    module = nn.Linear(1, 1)
    assert not _torch.is_compiled(module)
    assert _torch.is_compiled(torch.compile(module))
    module.compile()
    assert _torch.is_compiled(module)


def test_the_setting_to_trace_gradients():
    """If it goes: look whether Dynamo traces torch.autograd.grad without it; else compile_step runs
    eagerly, as it does where it finds none."""
    assert _torch.can_trace_autograd_ops()
    assert not _torch.traces_autograd_ops()
    with _torch.tracing_autograd_ops():
        assert _torch.traces_autograd_ops()
    assert not _torch.traces_autograd_ops()


def test_compile_errors():
    """If they go: whatever torch.compile(fullgraph=True) raises of a function that it cannot
    compile, and of one that it compiles once too often."""
    factor = [0]

    def reads(x):
        return x * 2 if x.item() > 0 else x

    def changes(x):
        return x * factor[0]

    torch._dynamo.reset()
    with pytest.raises(_torch.compile_errors()):
        torch.compile(reads, fullgraph=True, backend="eager")(torch.ones(1))
    compiled = torch.compile(changes, fullgraph=True, backend="eager", dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=1):
        compiled(torch.ones(1))
        factor[0] = 1
        with pytest.raises(_torch.compile_errors()):
            compiled(torch.ones(1))


def test_backends():
    """If they go: what torch.compiler.list_backends names, as functions; for random numbers as in
    eager mode, the option fallback_random of inductor."""
    assert _torch.backend_of("indoctor") is None
    assert callable(_torch.backend_of("aot_eager"))
    inductor = _torch.backend_of("inductor")
    assert inductor.keywords == {"config_patches": {"fallback_random": True}}
    assert hasattr(torch._inductor.config, "fallback_random")


def test_hooks_of_tensors_can_be_put_aside():
    """If it goes: refuse parameters with hooks in compile_step."""
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda g: g * 3)
    with _torch.without_hooks([x]):
        (inside,) = torch.autograd.grad(x.sum(), x)
    (after,) = torch.autograd.grad(x.sum(), x)
    assert inside.tolist() == [1, 1]
    assert after.tolist() == [3, 3]
