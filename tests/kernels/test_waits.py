"""No public call waits for a GPU, nor does what cannot be captured in a CUDA graph."""

import pytest
import torch
from support.bad_arguments import CALLS, critic_and, images, maps, normalized
from support.waits import standing_in
from torch import nn
from torch.utils import _pytree as pytree

import gankernels
from gankernels import ema, fuse_spectral_norm, ops
from gankernels.augment import APA, ADAController, ADAPipe, ADASchedule
from gankernels.nn.utils import parametrizations
from gankernels.nn.utils import spectral_norm as hook

WAYS = {"hook": hook, "parametrization": parametrizations.spectral_norm}
NAMES = ("real_logits", "fake_logits", "validation_logits")
TAKEN = {"rt": NAMES[:1], "rv": NAMES, "accuracy": NAMES[:2]}


def fused(**options):
    model = nn.Sequential(hook(nn.Conv2d(3, 4, 3)), nn.Tanh(), hook(nn.Conv2d(4, 4, 3)))
    fuse_spectral_norm(model, **options)
    return model


# Each waits, in its own way: what looks must see it.
FAULTS = {
    "tensor": lambda x: x + torch.tensor([1.0, 2, 3]),
    "new_tensor": lambda x: x + x.new_tensor([1.0, 2, 3]),
    "as_tensor": lambda x: x + torch.as_tensor([1.0, 2, 3], device=x.device),
    "tensor().to": lambda x: x + torch.ones(3, device="cpu").to(x.device),
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "bool": lambda x: 1 if x.sum() > 0 else 2,
    "any": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x.tolist(),
    "equal": lambda x: torch.equal(x, x + 1),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "copy_": lambda x: torch.empty(3, device="cpu").copy_(x),
    "copy_ from": lambda x: torch.empty_like(x).copy_(torch.ones(3, device="cpu")),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "assigned mask": lambda x: x.__setitem__(x > 0, torch.ones(3)),
    "list": lambda x: x[[0, 1]],
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.int64)),
    "range": lambda x: list(range(x.sum().long())),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_waiting_is_seen(fault):
    with standing_in() as waits:
        x = torch.ones(3)
        assert x.is_cuda
        with waits.looking():
            FAULTS[fault](x)
    assert waits.found


def test_the_rest_is_not():
    with standing_in() as waits:
        x = torch.ones(3, requires_grad=True)
        i = torch.ones(3, dtype=torch.int64)
        with waits.looking():
            y = (2 * x).clamp(max=1.5).where(x > 0, 0.5)[1:].sum() + torch.full((), 0.5)
            torch.autograd.grad(y, x)
            torch.arange(3, device=x.device).repeat_interleave(4, output_size=12)
            torch.stack([x, x])[:, 0].detach().fill_(3)
            assert torch.zeros(3, device=x.device).is_cuda
            assert (x[i] + x.new_zeros(3)).is_cuda
            assert x.index_add(0, i, x).device == x.device
            assert not torch.zeros(3).is_cuda
            assert torch.zeros(3).tolist() == [0, 0, 0]
    assert waits.found == []


# --- every public call --------------------------------------------------------------------------


def averaging(**options):
    model = normalized()
    average = ema.AveragedModel(model, **options)
    average.update_parameters(model)
    return average.update_parameters, {"model": model}


def clipping():
    clip = gankernels.SpectralNormClip(nn.Conv2d(3, 4, 3).parameters())
    clip.step()  # where v comes from the host
    return clip.step, {}


#: Calls beyond those with every argument: settings that take other paths.
MORE = {
    **{
        f"ADAController.update {metric}": lambda metric=metric: (
            ADAController(APA(), metric=metric, interval=1).update,
            {name: [torch.randn(4, 1, 2, 2), torch.randn(4, 1)] for name in TAKEN[metric]},
        )
        for metric in TAKEN
    },
    **{
        f"ADASchedule.update {shape}": lambda shape=shape: (
            ADASchedule(APA(), shape, p=0.5, kimg=1.0).update,
            {"real_logits": torch.randn(4, 1)},
        )
        for shape in ("fixed", "linear", "cosine")
    },
    **{
        f"ADAPipe() {name}": lambda options=options: (
            ADAPipe(**{"preset": "bgcfnc", "p": 0.7, **options}).forward,
            {"images": images()},
        )
        for name, options in {
            "all": {},
            "stylegan2-ada": {"mode": "stylegan2-ada"},
            "p_max": {"p_max": 0.9},
            "seed_compat": {"seed_compat": True},
            "color_channels": {"color_channels": [0, 1, 2]},
        }.items()
    },
    "Transform.geometry stylegan2-ada": lambda: (
        ADAPipe("bg", p=0.7, mode="stylegan2-ada").sample(4).geometry,
        {"images": images(), "filter": "sym6"},
    ),
    "Transform.geometry integers": lambda: (
        ADAPipe("bg", p=0.7).sample(4).geometry,
        {"images": torch.ones(4, 1, 8, 8, dtype=torch.int64)},
    ),
    "Transform[2:4]": lambda: (ADAPipe("bg", p=0.7).sample(4).__getitem__, {"index": slice(2, 4)}),
    "affine_resample stylegan2-ada": lambda: (
        gankernels.affine_resample,
        {"image": images(), "inverse_maps": maps(), "mode": "stylegan2-ada"},
    ),
    "affine_augment stylegan2-ada": lambda: (
        ops.affine_augment,
        {"image": images(), "inverse_maps": maps(), "mode": "stylegan2-ada"},
    ),
    **{
        f"AveragedModel.update_parameters {name}": lambda options=options: averaging(**options)
        for name, options in {
            "all alike": {},
            "rampup": {"half_life": 1000.0, "batch": 4, "rampup": 0.05},
            "on the GPU": {"device": "cuda", "use_buffers": True},
        }.items()
    },
    "APA of a list": lambda: (APA(0.5).forward, {"real": [images()] * 2, "fake": [images()] * 2}),
    **{
        f"{way} {mode}": lambda wrap=wrap, mode=mode: (
            nn.Sequential(wrap(nn.Conv2d(3, 4, 3), guard=True)).train(mode == "training").forward,
            {"input": images()},
        )
        for way, wrap in WAYS.items()
        for mode in ("training", "evaluation")
    },
    **{
        f"fuse_spectral_norm() {name}": lambda options=options: (
            fused(**options).forward,
            {"input": images()},
        )
        for name, options in {
            "every forward": {},
            "guard": {"guard": True, "max_norm": 1.0},
            "step_scoped": {"step_scoped": True, "trust_versions": True},
        }.items()
    },
    "spectral_norms of operators": lambda: (
        gankernels.spectral_norms,
        {"model": normalized(), "of": "operator"},
    ),
    "fuse_spectral_norm().step": lambda: (
        fuse_spectral_norm(normalized(), step_scoped=True).step,
        {},
    ),
    "SpectralNormClip.step": clipping,
    **{
        f"gradient_penalty {name}": lambda options=options: (
            gankernels.gradient_penalty,
            {"grads": [images().requires_grad_()], **options},
        )
        for name, options in {
            "by tensors": {"per_tensor": True, "reduction": "none"},
            "one-sided": {"center": 1.0, "one_sided": True},
        }.items()
    },
    **{
        f"weight_norm {name}": lambda call=call: (ops.weight_norm, call())
        for name, call in {
            "of a tensor": lambda: {"v": images().requires_grad_(), "g": torch.ones(4)},
            "of dimension 1": lambda: {
                "v": [images().requires_grad_()],
                "g": [torch.ones(1, 3, 1, 1).requires_grad_()],
                "dim": 1,
            },
            "of some frozen weights": lambda: {
                "v": [images().requires_grad_(), images()],
                "g": [torch.ones(6)[::2][:1], torch.ones(4)],
                "dim": [None, 0],
            },
        }.items()
    },
    **{
        f"nn.{name}()": lambda module=module, takes=takes: (
            module.forward,
            critic_and(*takes),
        )
        for name, (module, takes) in {
            "WGANGPPenalty": (gankernels.nn.WGANGPPenalty(), ("real", "fake")),
            "DRAGANPenalty": (gankernels.nn.DRAGANPenalty(), ("real",)),
        }.items()
    },
    "nn.LazyRegularizer()": lambda: (
        gankernels.nn.LazyRegularizer(gankernels.nn.WGANGPPenalty(), 4).forward,
        critic_and("real", "fake"),
    ),
}

#: Calls that read values, as their documentation says, and what they are for.
READ = {
    "spectral_norms of operators": "norms as numbers of Python, to print",
    "check_independent_samples": "a check, to be made once",
    "clip_spectral_norm_": "sigma, for the tolerance that it has by default",
}


def everything():
    # Dirac-GANs are numbers on the CPU.
    return {k: v for k, v in {**CALLS, **MORE}.items() if not k.startswith("dirac.")}


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", sorted(everything()))
def test_nothing_waits(name, backend):
    with standing_in() as waits, gankernels.backend(backend):
        function, arguments = everything()[name]()
        if isinstance(average := getattr(function, "__self__", None), ema.AveragedModel):
            waits.mark(average.n_averaged, host=True)  # torch reads it, and has it there
        with waits.looking():
            results = function(**arguments)
            for create_graph in (True, False):
                results = gradients(results, arguments, create_graph)
    if name in READ:
        assert waits.found, f"{name} waits no more: take it off the list"
    else:
        assert waits.found == []


def gradients(results, arguments, create_graph):
    """The gradients of all results by all arguments that have one; none where there are none."""
    outputs = [x for x in pytree.tree_leaves(results) if isinstance(x, torch.Tensor)]
    outputs = [x for x in outputs if x.requires_grad and x.is_floating_point()]
    leaves = []
    for x in pytree.tree_leaves(arguments):
        leaves += list(x.parameters()) if isinstance(x, nn.Module) else [x]
    leaves = [x for x in leaves if isinstance(x, torch.Tensor) and x.requires_grad]
    if not outputs or not leaves:
        return ()
    total = torch.stack([x.square().sum().double() for x in outputs]).sum()
    found = torch.autograd.grad(total, leaves, create_graph=create_graph, allow_unused=True)
    return [x for x in found if x is not None]
