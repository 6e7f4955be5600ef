"""Every public callable with every argument in turn replaced by what is none: one process a call.

    python tests/support/bad_arguments.py [--only NAME]     prints a line of JSON for each call

A server that has imported torch and done nothing else forks for every call, so that a crash, a hang
or an allocation without end takes its own process only; ``tests/project/test_bad_arguments.py``
judges.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
import types
import typing
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gankernels as gk
from gankernels import augment, dirac, ema, losses, ops, regularizers
from gankernels.nn.utils import parametrizations
from gankernels.nn.utils import spectral_norm as hook_spectral_norm
from gankernels.ops._operator import EXAMPLES

sys.path.insert(0, str(Path(__file__).parents[1]))  # started as a program

from support import penalties

#: Seconds of a processor that a call may take, and of a clock: others may use the machine.
CPU_SECONDS, WALL_SECONDS = 10, 120
#: All calls take ten minutes; one in so many is made, and all with GANKERNELS_BAD_ARGUMENTS=all.
SHARE = 6


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4), nn.Tanh())
        self.out = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x))


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8)


def leaf() -> Tensor:
    return images().requires_grad_()


def normalized() -> nn.Sequential:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 4)), nn.Linear(4, 2))


def weight_normed() -> nn.Sequential:
    return nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)))


def with_logits(name: str) -> dict[str, Any]:
    x = leaf()
    return {("logits" if name in ("real", "fake") else name): Critic()(x), name: x}


def two_sides() -> dict[str, Any]:
    D, real, fake = Critic(), leaf(), leaf()
    return {"real_logits": D(real), "fake_logits": D(fake), "real": real, "fake": fake}


def critic_and(*names: str) -> dict[str, Any]:
    return {"D": Critic(), **{name: images() for name in names}}


def vectors() -> dict[str, Any]:
    weights = [torch.randn(4, 5), torch.randn(3, 2)]
    return {
        "weights": weights,
        "u": [torch.randn(len(w)) for w in weights],
        "v": [torch.randn(w[0].numel()) for w in weights],
    }


def maps() -> Tensor:
    return torch.tensor([[1.0, 0.1, 0.5], [0.0, 1.0, 0.0]]).repeat(4, 1, 1)


def drawn() -> augment.Transform:
    return augment.ADAPipe("bgc", p=0.5).sample(4)


Call = tuple[Callable[..., Any], dict[str, Any]]
LOGITS = {"real_logits": lambda: torch.randn(4, 1), "fake_logits": lambda: torch.randn(4, 1)}


LOSSES = [n for n in losses.__all__ if isinstance(getattr(losses, n), losses.Loss)]


def of_loss(name: str, side: str) -> Callable[[], Call]:
    def call() -> Call:
        function = getattr(getattr(losses, name), side)
        taken = [p for p in inspect.signature(function).parameters if p in LOGITS]
        return function, {p: LOGITS[p]() for p in taken}

    return call


def of_example(name: str) -> Callable[[], Call]:
    return lambda: (getattr(ops, name), EXAMPLES[name](lambda *shape: torch.randn(shape)))


def of_penalty(name: str) -> Callable[[], Call]:
    """A penalty that takes a critic, and samples by whatever name."""
    function = getattr(gk, name)
    parameters = inspect.signature(function).parameters.values()
    samples = [
        p.name
        for p in parameters
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty and p.name != "D"
    ]
    return lambda: (function, critic_and(*samples))


#: By name: the callable, and arguments that it takes.
CALLS: dict[str, Callable[[], Call]] = {
    **{
        f"ops.{name}" if name == "spectral_norm" else name: of_example(name) for name in ops.__all__
    },
    "maps_from_theta": lambda: (gk.maps_from_theta, {"theta": maps(), "size": (8, 8)}),
    **{name: of_penalty(name) for name in penalties.CALLED},
    "compile_step": lambda: (gk.compile_step, {"loss": Critic(), "critic": Critic()}),
    "critic_step": lambda: (gk.critic_step, critic_and("real", "fake")),
    "apply_spectral_norm": lambda: (gk.apply_spectral_norm, {"model": Critic()}),
    "clip_spectral_norm_": lambda: (
        gk.clip_spectral_norm_,
        {"parameters": list(Critic().parameters())},
    ),
    "clip_weights_": lambda: (gk.clip_weights_, {"parameters": list(Critic().parameters())}),
    "SpectralNormClip": lambda: (
        gk.SpectralNormClip,
        {"parameters": list(Critic().parameters())},
    ),
    "SpectralNormClip.load_state_dict": lambda: (
        gk.SpectralNormClip([torch.ones(2, 2)]).load_state_dict,
        {"state": {"steps": 1, "v": [torch.ones(2)]}},
    ),
    "original_weights": lambda: (gk.original_weights, {"model": normalized()}),
    "consensus_penalty": lambda: consensus(),
    "r1_penalty": lambda: (gk.r1_penalty, with_logits("real")),
    "r2_penalty": lambda: (gk.r2_penalty, with_logits("fake")),
    "roth_penalty": lambda: (gk.roth_penalty, two_sides()),
    "spectral_norm_regularization": lambda: (gk.spectral_norm_regularization, vectors()),
    "orthogonal_regularization": lambda: (
        gk.orthogonal_regularization,
        {"weights": vectors()["weights"]},
    ),
    "spectral_norms": lambda: (gk.spectral_norms, {"model": normalized()}),
    "fold_spectral_norm": lambda: (gk.fold_spectral_norm, {"model": normalized()}),
    "fold_weight_norm": lambda: (gk.fold_weight_norm, {"model": weight_normed()}),
    "fuse_spectral_norm": lambda: (gk.fuse_spectral_norm, {"model": normalized()}),
    "fuse_weight_norm": lambda: (gk.fuse_weight_norm, {"model": weight_normed()}),
    "backend": lambda: (lambda name: gk.backend(name).__enter__(), {"name": "reference"}),
    "nn.utils.spectral_norm": lambda: (hook_spectral_norm, {"module": nn.Linear(5, 4)}),
    "nn.utils.remove_spectral_norm": lambda: (
        gk.nn.utils.remove_spectral_norm,
        {"module": hook_spectral_norm(nn.Linear(5, 4))},
    ),
    "parametrizations.spectral_norm": lambda: (
        parametrizations.spectral_norm,
        {"module": nn.Linear(5, 4)},
    ),
    "AveragedModel": lambda: (ema.AveragedModel, {"model": normalized()}),
    "AveragedModel.update_parameters": lambda: updating(),
    "decay_for_half_life": lambda: (
        ema.decay_for_half_life,
        {"half_life_images": 1000.0, "batch": 32},
    ),
    "FadingBlur": lambda: (regularizers.FadingBlur, {}),
    "FadingBlur()": lambda: (regularizers.FadingBlur(2.0).forward, {"x": images()}),
    "FadingBlur.step": lambda: (regularizers.FadingBlur().step, {"images": 4}),
    "PathLength": lambda: (regularizers.PathLength, {}),
    "PathLength()": lambda: pathing(),
    "InstanceNoise": lambda: (regularizers.InstanceNoise, {"steps": 4}),
    "InstanceNoise()": lambda: (regularizers.InstanceNoise(0.1, steps=4).forward, {"x": images()}),
    "LeCam": lambda: (regularizers.LeCam, {}),
    "LeCam()": lambda: (
        regularizers.LeCam().forward,
        {"real_logits": torch.randn(4, 1), "fake_logits": torch.randn(4, 1)},
    ),
    "MinibatchDiscrimination": lambda: (regularizers.MinibatchDiscrimination, {"in_features": 8}),
    "MinibatchDiscrimination()": lambda: (
        regularizers.MinibatchDiscrimination(8, 4).forward,
        {"x": torch.randn(4, 8)},
    ),
    "MinibatchStdDev": lambda: (regularizers.MinibatchStdDev, {}),
    "MinibatchStdDev()": lambda: (regularizers.MinibatchStdDev().forward, {"x": images()}),
    "minibatch_stddev": lambda: (regularizers.minibatch_stddev, {"x": images()}),
    "consistency_regularization": lambda: (
        regularizers.consistency_regularization,
        {**critic_and("real"), "augment": torch.flip_last},
    ),
    "balanced_consistency_regularization": lambda: (
        regularizers.balanced_consistency_regularization,
        {**critic_and("real", "fake"), "augment": torch.flip_last},
    ),
    "latent_consistency_discriminator": lambda: (
        regularizers.latent_consistency_discriminator,
        {"D": Critic(), "G": generator_network(), "z": torch.randn(4, 6)},
    ),
    "latent_consistency_generator": lambda: (
        regularizers.latent_consistency_generator,
        {"G": generator_network(), "z": torch.randn(4, 6)},
    ),
    "drift_penalty": lambda: (regularizers.drift_penalty, {"real_logits": torch.randn(4, 1)}),
    "rotate_batch": lambda: (regularizers.rotate_batch, {"x": images()}),
    "rotation_loss": lambda: (
        regularizers.rotation_loss,
        {"rotation_logits": torch.randn(4, 4), "labels": torch.arange(4)},
    ),
    **{
        f"losses.{name}.{side}": of_loss(name, side)
        for name in LOSSES
        for side in ("discriminator", "generator", "real", "fake")
        if hasattr(getattr(losses, name), side)
    },
    "losses.adaptive_weight": lambda: balancing(),
    "losses.feature_matching": lambda: (
        losses.feature_matching,
        {"real_features": [images()], "fake_features": [images()]},
    ),
    "losses.top_k": lambda: (losses.top_k, {"fake_logits": torch.randn(4, 1), "k": 2}),
    "APA": lambda: (augment.APA, {}),
    "APA()": lambda: (augment.APA(0.5).forward, {"real": images(), "fake": images()}),
    "ADAController": lambda: (augment.ADAController, {}),
    "ADAController.update": lambda: (
        augment.ADAController().update,
        {"real_logits": torch.randn(4, 1)},
    ),
    "ADASchedule": lambda: (augment.ADASchedule, {"p": 0.5, "kimg": 1.0}),
    "ADASchedule.update": lambda: (
        augment.ADASchedule(p=0.5, kimg=1.0).update,
        {"real_logits": torch.randn(4, 1)},
    ),
    "ADAPipe": lambda: (augment.ADAPipe, {"preset": "bgc"}),
    "ADAPipe()": lambda: (augment.ADAPipe("bgc", p=0.5).forward, {"images": images()}),
    "ADAPipe.sample": lambda: (augment.ADAPipe("bgc", p=0.5).sample, {"batch": 4}),
    "ADAPipe.preview": lambda: (
        augment.ADAPipe("bgc", p=0.5).preview,
        {"images": images(), "percentile": 0.5},
    ),
    "ADAPipe.set_p": lambda: (augment.ADAPipe("bgc", p=0.5).set_p, {"p": 0.3}),
    "Transform()": lambda: (drawn().__call__, {"images": images()}),
    "Transform.geometry": lambda: (drawn().geometry, {"images": images()}),
    "Transform.from_state_dict": lambda: (
        augment.Transform.from_state_dict,
        {"state": drawn().state_dict()},
    ),
    "DiffAugment": lambda: (augment.DiffAugment, {}),
    "DiffAugment()": lambda: (augment.DiffAugment().forward, {"images": images()}),
    "nn.ApproxR1Penalty": lambda: (gk.nn.ApproxR1Penalty, {}),
    "nn.ApproxR2Penalty": lambda: (gk.nn.ApproxR2Penalty, {}),
    "nn.ConsensusPenalty": lambda: (gk.nn.ConsensusPenalty, {}),
    "nn.DRAGANPenalty": lambda: (gk.nn.DRAGANPenalty, {}),
    "nn.GradientNormalizer": lambda: (gk.nn.GradientNormalizer, {}),
    "nn.GradientNormalizer()": lambda: (gk.nn.GradientNormalizer().forward, {"x": leaf()}),
    "nn.LazyRegularizer": lambda: (gk.nn.LazyRegularizer, {"penalty": gk.nn.R1Penalty()}),
    "nn.MaxGradientPenalty": lambda: (gk.nn.MaxGradientPenalty, {}),
    "nn.OrthogonalRegularization": lambda: (gk.nn.OrthogonalRegularization, {"model": Critic()}),
    "nn.R1Penalty": lambda: (gk.nn.R1Penalty, {}),
    "nn.R1R2Penalty": lambda: (gk.nn.R1R2Penalty, {}),
    "nn.R2Penalty": lambda: (gk.nn.R2Penalty, {}),
    "nn.RothPenalty": lambda: (gk.nn.RothPenalty, {}),
    "nn.SpectralNormRegularization": lambda: (
        gk.nn.SpectralNormRegularization,
        {"model": Critic()},
    ),
    "nn.WGANGPPenalty": lambda: (gk.nn.WGANGPPenalty, {}),
    "nn.WGANLPPenalty": lambda: (gk.nn.WGANLPPenalty, {}),
    "nn.ZeroCenteredPenalty": lambda: (gk.nn.ZeroCenteredPenalty, {}),
    "dirac.eigenvalues": lambda: (dirac.eigenvalues, {"method": "r1", "lr": 0.1}),
    "dirac.simulate": lambda: (dirac.simulate, {"method": "wgan_gp", "steps": 5, "lr": 0.1}),
    "dirac.verdict": lambda: (dirac.verdict, {"method": "wgan_gp", "lr": 0.1}),
}


def consensus() -> Call:
    D = Critic()
    loss = D(images()).square().mean()
    return gk.consensus_penalty, {"losses": [loss], "parameters": [list(D.parameters())]}


def balancing() -> Call:
    layer = nn.Linear(8, 8)
    x = layer(images())
    arguments = {"nll": x.square().mean(), "g_loss": -Critic()(x).mean()}
    return losses.adaptive_weight, {**arguments, "last_layer": layer.weight}


def updating() -> Call:
    model = normalized()
    return ema.AveragedModel(model, decay=0.999).update_parameters, {"model": model}


def pathing() -> Call:
    w = torch.randn(4, 6, requires_grad=True)
    return regularizers.PathLength().forward, {"images": generator_network()(w), "latents": w}


def generator_network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3 * 8 * 8), nn.Unflatten(1, (3, 8, 8)))


def flip_last(x: Any) -> Any:
    return x.flip(-1) if isinstance(x, Tensor) else [flip_last(y) for y in x]


torch.flip_last = flip_last  # type: ignore[attr-defined]

#: What an argument is replaced by.
BAD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "3": lambda: 3,
    "-1": lambda: -1,
    "0.5": lambda: 0.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "2**31": lambda: 2**31,
    "2**70": lambda: 2**70,
    "1j": lambda: 1j,
    '"no"': lambda: "no",
    'b"no"': lambda: b"no",
    "object()": object,
    "int": lambda: int,
    "[]": list,
    "{}": dict,
    "[None]": lambda: [None],
    "[1, 2]": lambda: [1, 2],
    '("2", "2")': lambda: ("2", "2"),
    "(2.5, 2)": lambda: (2.5, 2),
    "(nan, 2)": lambda: (float("nan"), 2),
    "lambda: None": lambda: lambda *_, **__: None,
    "Linear(5, 4)": lambda: nn.Linear(5, 4),
    "float (3,)": lambda: torch.randn(3),
    "float (4, 3, 8)": lambda: torch.randn(4, 3, 8),
    "float (0, 3, 8, 8)": lambda: torch.randn(0, 3, 8, 8),
    "float ()": lambda: torch.tensor(0.5),
    "int64 (4, 3, 8, 8)": lambda: torch.ones(4, 3, 8, 8, dtype=torch.int64),
    "bool (4, 3, 8, 8)": lambda: torch.ones(4, 3, 8, 8, dtype=torch.bool),
    "complex64 (4, 3, 8, 8)": lambda: torch.ones(4, 3, 8, 8, dtype=torch.complex64),
    "float8 (4, 3, 8, 8)": lambda: torch.ones(4, 3, 8, 8).to(torch.float8_e4m3fn),
    "sparse (4, 5)": lambda: torch.eye(5)[:4].to_sparse(),
    "sparse (4, 3, 8, 8)": lambda: torch.ones(4, 3, 8, 8).to_sparse(),
    "mkldnn (4, 3, 8, 8)": lambda: torch.ones(4, 3, 8, 8).to_mkldnn(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2, 8), torch.ones(3, 8)]),
    "meta (4, 3, 8, 8)": lambda: torch.ones(4, 3, 8, 8, device="meta"),
    "generator of tensors": lambda: (torch.ones(4, 5) for _ in range(2)),
    "[ragged tensors]": lambda: [torch.ones(4, 3, 8, 8), torch.ones(2, 3)],
    "[tensor, [tensor]]": lambda: [torch.ones(4, 1), [torch.ones(4, 3)]],
    "numpy": lambda: torch.ones(4, 3, 8, 8).numpy(),
}
#: What need not be tried where tensors are taken, and where none are.
NUMBERS = (
    "-1",
    "inf",
    "2**31",
    "2**70",
    "1j",
    'b"no"',
    "int",
    '("2", "2")',
    "(2.5, 2)",
    "(nan, 2)",
)
TENSORS = tuple(
    bad for bad in BAD if "(4, 3" in bad or bad in ("sparse (4, 5)", "nested", "float (0, 3, 8, 8)")
)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; bool is not a number, a str no sequence."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object, inspect.Parameter.empty) or isinstance(hint, str):
        return True
    if isinstance(hint, typing.TypeVar):
        return hint.__bound__ is None or fits(value, hint.__bound__)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is typing.Literal:
        return any(value is each or (type(value) is type(each) and value == each) for each in inner)
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple and Ellipsis not in inner:
        good = isinstance(value, (tuple, list)) and len(value) == len(inner)
        return good and all(map(fits, value, inner))
    if origin in (Sequence, Iterable, list, tuple) or hint in (Sequence, Iterable):
        if isinstance(value, (str, bytes, Tensor)) or not isinstance(value, origin or hint):
            return False
        listed = list(value) if isinstance(value, Sequence) else []
        return not inner or all(fits(each, inner[0]) for each in listed)
    if origin in (Mapping, dict) or hint in (Mapping, dict):
        return isinstance(value, Mapping)
    if origin is Callable or hint is Callable:
        return callable(value)
    return isinstance(value, origin or hint) if isinstance(origin or hint, type) else True


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    target = function.__init__ if inspect.isclass(function) else function
    target = inspect.unwrap(target)
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):
        return {}


def arguments_of(function: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [n for n, p in inspect.signature(function).parameters.items() if p.kind not in kinds]


def answer(name: str, argument: str | None, bad: str | None) -> dict[str, Any]:
    """What one call does, in this process."""
    torch.manual_seed(0)
    function, arguments = CALLS[name]()
    found = {"fits": True}
    if argument is not None and bad is not None:
        arguments[argument] = value = BAD[bad]()
        hint = hints_of(function).get(argument, Any)
        found["fits"] = bad != "nan" and fits(value, hint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**arguments)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        # An error of the critic's own comes through as it is.
        theirs = any(f.filename == __file__ and f.name != "answer" for f in frames)
        text = "\n".join([str(error), *map(str, getattr(error, "__notes__", ()))])
        return {**found, "error": type(error).__name__, "message": text, "theirs": theirs}
    return {**found, "accepted": True}


def isolated(name: str, argument: str | None, bad: str | None) -> dict[str, Any]:
    """The same in a process of its own, which may crash or hang."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            found = answer(name, argument, bad)
        except BaseException as error:  # of this file
            found = {"error": type(error).__name__, "message": f"no call was made: {error}"}
        os.write(writing, json.dumps(found).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    received, deadline = b"", time.monotonic() + WALL_SECONDS
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(reading, 65_536) if ready else b""
        received += part
        if not part:
            break
    os.close(reading)
    if not received:
        os.kill(child, signal.SIGKILL) if time.monotonic() >= deadline else None
    _, status = os.waitpid(child, 0)
    if received:
        return json.loads(received)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    hung = number in (signal.SIGXCPU, signal.SIGKILL)
    return {"hung" if hung else "crashed": signal.Signals(number).name if number else status}


def cases_of(name: str) -> list[tuple[str | None, str | None]]:
    """A call as it should be, then each argument replaced; tensors by fewer numbers, numbers by
    fewer tensors."""
    function = CALLS[name]()[0]
    hints = hints_of(function)
    cases: list[tuple[str | None, str | None]] = [(None, None)]
    for argument in arguments_of(function):
        takes_tensors = fits(torch.ones(4, 3, 8, 8), hints.get(argument, Any))
        skipped = NUMBERS if takes_tensors else TENSORS
        cases += [(argument, bad) for bad in BAD if bad not in skipped]
    if os.environ.get("GANKERNELS_BAD_ARGUMENTS") == "all":
        return cases
    return [case for case in cases if case[0] is None or is_drawn(name, *case)]


def is_drawn(name: str, argument: str | None, bad: str | None) -> bool:
    """Whether a call is among those of every run: one in SHARE, every value with some arguments."""
    return zlib.crc32(f"{name}({argument}={bad})".encode()) % SHARE == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(CALLS), help="one callable")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), help="the k-th of n parts")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a pool of threads would not survive a fork
    gc.freeze()  # what is never collected is never copied
    part, parts = options.part
    for name in [options.only] if options.only else list(CALLS)[part::parts]:
        for argument, bad in cases_of(name):
            found = {"name": name, "argument": argument, "bad": bad}
            print(json.dumps({**found, **isolated(name, argument, bad)}), flush=True)


if __name__ == "__main__":
    main()
