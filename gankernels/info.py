"""What is installed and what runs where: ``python -m gankernels.info [--json]``.

Ends with a self-test of every operator and, for whatever is missing, the cure. The exit status is 0
when the kernels that this machine needs are there and right, those for the CPU and, where torch
sees a GPU, those for it; else 1. Started in the folder of the sources, Python imports the package
from there, whatever is installed: then the installed copy is named.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gankernels import __version__, _library, ops, reference
from gankernels.ops.ada_parameters import NORMALS, UNIFORMS, AdaMultipliers

#: Of the self-test: the largest error against float64, relative to the largest value.
TOLERANCE = 1e-5
SHAPES = ((64, 32, 3, 3), (10, 7), (1, 5), (33, 31))

Facts = dict[str, Any]

Normalize = Callable[[list[Tensor]], tuple[list[Tensor], Tensor]]


def collect() -> Facts:
    """Everything that ``python -m gankernels.info`` shows, as plain data."""
    build, hidden = build_info(), _library.hidden_copy()
    facts: Facts = {
        "gankernels": __version__,
        "imported_from": str(_library.PACKAGE),
        "hidden_copy": None if hidden is None else str(hidden),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "build": build,
        "extensions": {name: _extension(name, build) for name in _library.EXTENSIONS},
        "cpu": {"instruction_set": _library.isa(), "threads": torch.get_num_threads()},
        "gpu": gpu(build),
        "backends": op_backends(),
        "self_test": self_test(),
    }
    facts["missing"] = missing(facts)
    facts["healthy"] = not any(gap["needed"] for gap in facts["missing"])
    return facts


def op_backends() -> dict[str, dict[str, str]]:
    """For every operator, what it runs on for each kind of device."""
    where = {d: "native" if d in _library.NATIVE_DEVICES else "reference" for d in ("cpu", "cuda")}
    return {name: dict(where) for name in ops.__all__}


def build_info() -> Facts | None:
    """What setup.py wrote when it compiled the extension modules; None if it never did."""
    try:
        module = importlib.import_module("gankernels._build_info")
    except ModuleNotFoundError:
        return None
    return dict(module.BUILD_INFO)


def _extension(name: str, build: Facts | None) -> Facts:
    status = _library.EXTENSIONS[name]
    reason, cure = status.reason, status.cure
    left_out = (build or {}).get("cuda", {})
    if not status.loaded and name == "_C_cuda" and torch.version.cuda and "left_out" in left_out:
        reason, cure = f"it was not built: {left_out['left_out']}", left_out["cure"]
    return {"loaded": status.loaded, "path": status.path, "reason": reason, "cure": cure}


def gpu(build: Facts | None) -> Facts | None:
    """The GPU, its architecture, and whether the compiled kernels cover it; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    flags = (build or {}).get("cuda", {}).get("arch_flags", [])
    return {
        "name": torch.cuda.get_device_name(),
        "architecture": f"{major}.{minor}",
        "compiled": architectures(flags),
        "covered": covers(flags, (major, minor)),
    }


def architectures(arch_flags: Sequence[str]) -> list[str]:
    """nvcc's -gencode flags as TORCH_CUDA_ARCH_LIST writes them: ["8.0", "9.0", "9.0+PTX"]."""
    return [f"{major}.{minor}{'+PTX' if ptx else ''}" for major, minor, ptx in _parse(arch_flags)]


def covers(arch_flags: Sequence[str], device: tuple[int, int]) -> bool:
    """Whether kernels compiled with these flags run on the device, as they are or from PTX."""
    for major, minor, ptx in _parse(arch_flags):
        if (ptx and (major, minor) <= device) or (major == device[0] and minor <= device[1]):
            return True
    return False


def _parse(arch_flags: Sequence[str]) -> list[tuple[int, int, bool]]:
    found = []
    for flag in arch_flags:
        match = re.search(r"code=(sm|compute)_(\d+)(\d)", flag)
        if match is not None:
            found.append((int(match[2]), int(match[3]), match[1] == "compute"))
    return sorted(found)


def self_test() -> list[Facts]:
    """Runs every operator on small random data against the reference in float64."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [_judge(op, test, device) for device in devices for op, test in TESTS.items()]


def _judge(op: str, test: Callable[[str], float], device: str) -> Facts:
    result: Facts = {"op": op, "device": device, "max_error": None, "passed": False}
    try:
        result["max_error"] = test(device)
        result["passed"] = result["max_error"] <= TOLERANCE  # false for NaN
    except Exception as error:
        result["failure"] = f"{type(error).__name__}: {error}"
    return result


def _data(device: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    weights = [normal(*shape) for shape in SHAPES]
    u = [normal(w.shape[0]) for w in weights]
    v = [normal(w[0].numel()) for w in weights]
    return weights, u, v


def _double(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().double() for t in tensors]


def _error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    errors = [
        ((f - e).abs().max() / e.abs().max()).item() for f, e in zip(found, expected, strict=True)
    ]
    return float("nan") if any(e != e for e in errors) else max(errors)


def _test_iteration(device: str) -> float:
    weights, u, v = _data(device)
    exact = _double(weights), _double(u), _double(v)
    expected = reference.power_iteration_(*exact, n=2)
    found = ops.power_iteration_(weights, u, v, n=2)
    sigmas = found.sigma, expected.sigma
    return _error([*u, *v, sigmas[0]], [*exact[1], *exact[2], sigmas[1]])


def _test_normalize(device: str) -> float:
    weights, u, v = _data(device)
    exact_u, exact_v = _double(u), _double(v)
    return _compare(
        lambda w: reference.spectral_normalize(w, exact_u, exact_v),
        lambda w: ops.spectral_normalize(w, u, v),
        weights,
    )


def _test_norm(device: str) -> float:
    weights, u, v = _data(device)
    exact_u, exact_v = _double(u), _double(v)

    def expected(w: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        return reference.spectral_normalize(w, *reference.power_iteration_(w, exact_u, exact_v))

    return _compare(expected, lambda w: ops.spectral_norm(w, u, v), weights)


def _test_penalty(device: str) -> float:
    grads, *_ = _data(device)
    grads = [g[:1] for g in grads]

    def penalty(op: Any, grads: list[Tensor]) -> list[Tensor]:
        grads = [g.detach().requires_grad_() for g in grads]
        value, norms = op(grads, center=1.0, return_norms=True)
        return [value.detach(), norms, *torch.autograd.grad(value, grads)]

    expected = penalty(reference.gradient_penalty, _double(grads))
    return _error(penalty(ops.gradient_penalty, grads), expected)


def _test_parameters(device: str) -> float:
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"dtype": torch.float64, "generator": generator}
    arguments: dict[str, Any] = {
        "p": torch.tensor(0.7, device=device),
        "multipliers": AdaMultipliers._make((*[1.0] * 15, (1.0,) * 4)),
        "uniforms": torch.rand(16, UNIFORMS, **options).to(device),
        "normals": torch.randn(16, NORMALS, **options).to(device),
        "height": 24,
        "width": 40,
        "colour_channels": 3,
    }
    expected = reference.ada_parameters(**arguments, dtype=torch.float64)
    found = ops.ada_parameters(**arguments)
    return _error([x for x in found if x is not None], [x for x in expected if x is not None])


def _test_affine(name: str, device: str) -> float:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 9, 14, generator=generator).to(device)
    maps = torch.tensor(
        [[[0.9, -0.5, 1.3], [0.6, 1.1, -0.2]], [[-1.2, 0, 0.3], [0, 0.8, 0]]], dtype=torch.float64
    ).to(device)
    options: dict[str, Any] = {}
    if name == "affine_resample_transpose":
        options["input_size"] = (9, 14)
    if name == "affine_augment":
        options["colour"] = torch.randn(2, 3, 4, generator=generator).to(device)
        options["colour_channels"] = (0, 1, 2)
    exact = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    expected = getattr(reference, name)(image.double(), maps, **exact)
    return _error([getattr(ops, name)(image, maps, **options)], [expected])


def _test_filter(name: str, device: str) -> float:
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 24, 33, generator=draw).to(device)
    gains = torch.rand(2, 4, generator=draw).to(device)
    options: dict[str, Any] = {
        "box": torch.tensor([[0.5, 0.5, 0.4]] * 2, dtype=torch.float64, device=device)
    }
    if name == "image_filter":
        options["sigma"] = torch.ones(2, device=device)
        options["seed"] = torch.arange(2, device=device)
    expected = getattr(reference, name)(image.double(), gains, **options)
    return _error([getattr(ops, name)(image, gains, **options)], [expected])


def _compare(expected: Normalize, found: Normalize, weights: list[Tensor]) -> float:
    return _error(_with_gradient(found, weights), _with_gradient(expected, _double(weights)))


def _with_gradient(normalize: Normalize, weights: list[Tensor]) -> list[Tensor]:
    """Outputs, sigmas, and the gradients through both."""
    weights = [w.detach().requires_grad_() for w in weights]
    outputs, sigma = normalize(weights)
    total = torch.stack([out.square().sum() for out in outputs]).sum() + sigma.sum()
    gradients = torch.autograd.grad(total, weights)
    return [t.detach() for t in (*outputs, sigma, *gradients)]


TESTS: dict[str, Callable[[str], float]] = {
    "ada_parameters": _test_parameters,
    **{
        name: partial(_test_affine, name)
        for name in ("affine_augment", "affine_resample", "affine_resample_transpose")
    },
    "gradient_penalty": _test_penalty,
    **{name: partial(_test_filter, name) for name in ("image_filter", "image_filter_transpose")},
    "power_iteration_": _test_iteration,
    "spectral_norm": _test_norm,
    "spectral_normalize": _test_normalize,
}


def missing(facts: Facts) -> list[Facts]:
    """What is not there, why, what to do about it, and whether this machine needs it."""
    device = facts["gpu"]
    found = [
        {
            "what": f"gankernels.{name}",
            "why": status["reason"],
            "cure": status["cure"],
            "needed": name == "_C" or device is not None,
        }
        for name, status in facts["extensions"].items()
        if not status["loaded"]
    ]
    if device is not None and facts["extensions"]["_C_cuda"]["loaded"] and not device["covered"]:
        found.append(
            {
                "what": f"kernels for {device['name']}",
                "why": f"it is of architecture {device['architecture']}, "
                f"compiled were {', '.join(device['compiled']) or 'none'}",
                "cure": f'reinstall with TORCH_CUDA_ARCH_LIST="{device["architecture"]}"',
                "needed": True,
            }
        )
    found += [
        {
            "what": f"a right {test['op']} on {test['device']}",
            "why": test.get("failure") or f"the error against float64 is {test['max_error']:.1e}",
            "cure": 'reinstall gankernels; until then use gankernels.backend("reference")',
            "needed": True,
        }
        for test in facts["self_test"]
        if not test["passed"]
    ]
    return found


def render(facts: Facts) -> str:
    """``collect()`` as text."""
    lines = [
        _row("gankernels", f"{facts['gankernels']}, {facts['imported_from']}"),
        *([_row("", f"hides the copy in {facts['hidden_copy']}")] if facts["hidden_copy"] else []),
        _row("torch", facts["torch"]),
        _row("python", f"{facts['python']}, {facts['system']}"),
        *_render_build(facts["build"]),
        "",
    ]
    for name, status in facts["extensions"].items():
        lines.append(_row(name, status["path"] if status["loaded"] else "not loaded"))
    cpu, device = facts["cpu"], facts["gpu"]
    lines.append(_row("cpu", f"{cpu['instruction_set'] or 'no kernels'}, {cpu['threads']} threads"))
    if device is None:
        lines.append(_row("gpu", "none that torch can use"))
    else:
        compiled = ", ".join(device["compiled"]) or "none"
        text = f"{device['name']}, architecture {device['architecture']}; compiled: {compiled}"
        lines.append(_row("gpu", text))
    lines += ["", f"{'operator':<29}" + "".join(f"{d:<12}" for d in ("cpu", "cuda"))]
    for op, where in facts["backends"].items():
        lines.append(f"  {op:<27}" + "".join(f"{where.get(d, '-'):<12}" for d in ("cpu", "cuda")))
    lines += ["", f"{'self-test':<29}max error (at most {TOLERANCE:.0e})"]
    for test in facts["self_test"]:
        error = "-" if test["max_error"] is None else f"{test['max_error']:.1e}"
        verdict = "ok" if test["passed"] else "FAILED"
        lines.append(f"  {test['op']:<27}{test['device']:<6}{error:<10}{verdict}")
    for gap in facts["missing"]:
        what = gap["what"] if gap["needed"] else f"{gap['what']} (not needed here)"
        lines += ["", f"missing: {what}", f"  why:  {gap['why']}", f"  cure: {gap['cure']}"]
    return "\n".join(lines)


def _render_build(build: Facts | None) -> list[str]:
    if build is None:
        return [_row("built", "never: there is no gankernels/_build_info.py")]
    lines = [_row("built with", f"torch {build['torch']}, {build['compiler']}")]
    if "nvcc" in build["cuda"]:
        compiled = ", ".join(architectures(build["cuda"]["arch_flags"]))
        lines.append(
            _row("", f"nvcc {build['cuda']['nvcc']} ({build['cuda']['toolkit']}): {compiled}")
        )
    return lines


def _row(name: str, value: object) -> str:
    return f"{name:<12}{value}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gankernels.info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    chosen = parser.parse_args(arguments)
    facts = collect()
    print(json.dumps(facts, indent=2) if chosen.json else render(facts))
    return 0 if facts["healthy"] else 1


if __name__ == "__main__":
    sys.exit(main())
