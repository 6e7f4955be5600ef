"""Shows what is installed and what runs where: ``python -m gankernels.info [--json]``.

Ends with a self-test of every operator and, for whatever is missing, the cure. The exit status is 0
when the kernels that this machine needs are there and right, those for the CPU and, where torch
sees a GPU, those for it; else 1. Started in the folder of the sources, Python imports the package
from there, whatever is installed: then the installed copy is named.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gankernels import __version__, _library, ops, reference
from gankernels._library import architectures as architectures
from gankernels._library import build_info as build_info
from gankernels._library import covers as covers
from gankernels.ops._operator import EXAMPLES

#: The largest error that passes the self-test: against float64, relative to the largest value.
TOLERANCE = 1e-5

Facts = dict[str, Any]


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
        "extensions": {name: extension(name, build) for name in _library.EXTENSIONS},
        "cpu": {"instruction_set": _library.isa(), "threads": torch.get_num_threads()},
        "gpu": gpu(build),
        "backends": op_backends(),
        "self_test": self_test(),
    }
    facts["missing"] = missing(facts)
    facts["healthy"] = not any(gap["needed"] for gap in facts["missing"])
    return facts


def op_backends() -> dict[str, dict[str, str]]:
    """The backend that every operator runs on, for each kind of device."""
    device = gpu(build_info())
    native = set(_library.NATIVE_DEVICES)
    if device is not None and not device["covered"]:
        native.discard("cuda")
    where = {d: "native" if d in native else "reference" for d in ("cpu", "cuda")}
    return {name: dict(where) for name in ops.__all__}


def extension(name: str, build: Facts | None) -> Facts:
    status = _library.EXTENSIONS[name]
    reason, cure = _library.why_missing(name, build)
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


def self_test() -> list[Facts]:
    """Runs every operator on small random data against the reference in float64."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [_judge(op, device) for device in devices for op in sorted(EXAMPLES)]


def _judge(op: str, device: str) -> Facts:
    result: Facts = {"op": op, "device": device, "max_error": None, "passed": False}
    try:
        arguments = EXAMPLES[op](_drawing(device))
        widened = _widened(arguments)
        results = _results(getattr(ops, op), arguments)
        expected = _results(getattr(reference, op), widened)
        result["max_error"] = _error(results, expected)
        result["passed"] = result["max_error"] <= TOLERANCE  # false for NaN
    except Exception as error:
        result["failure"] = f"{type(error).__name__}: {error}"
    return result


def _drawing(device: str) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator).to(device)


def _widened(value: Any) -> Any:
    """Copies of tensors, in float64 if they are of floating point; what holds them stays."""
    if isinstance(value, Tensor):
        dtype = torch.float64 if value.is_floating_point() else value.dtype
        return value.detach().to(dtype, copy=True).requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: _widened(x) for key, x in value.items()}
    return [_widened(x) for x in value] if isinstance(value, list) else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, str) or not isinstance(value, Iterable):
        return []
    return [t for x in value for t in _tensors(x)]


def _results(op: Callable[..., Any], arguments: dict[str, Any]) -> list[Tensor]:
    """Outputs, gradients through them, and the arguments, which the operator may have moved."""
    outputs = _tensors(op(**arguments))
    inputs = _tensors([x for x in arguments.values() if isinstance(x, (Tensor, list))])
    leaves = [x for x in inputs if x.requires_grad]
    differentiable = [x for x in outputs if x.requires_grad]
    gradients: Sequence[Tensor] = ()
    if differentiable:
        # Not squares alone: those of a weight with given norms do not depend on its direction.
        total = torch.stack([(x + x.square()).sum() for x in differentiable]).sum()
        gradients = torch.autograd.grad(total, leaves)
    return [x.detach() for x in (*outputs, *gradients, *inputs)]


def _error(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    errors = [
        ((f.double() - e.double()).abs().max() / e.double().abs().max().clamp_min(1e-30)).item()
        for f, e in zip(results, expected, strict=True)
        if e.numel()
    ]
    return float("nan") if any(e != e for e in errors) else max(errors)


def missing(facts: Facts) -> list[Facts]:
    """Missing parts: why, what to do about it, and whether this machine needs it."""
    device = facts["gpu"]
    parts = [
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
        parts.append(
            {
                "what": f"kernels for {device['name']}",
                "why": f"it is of architecture {device['architecture']}, "
                f"compiled were {', '.join(device['compiled']) or 'none'}",
                "cure": f'reinstall with TORCH_CUDA_ARCH_LIST="{device["architecture"]}"',
                "needed": True,
            }
        )
    parts += [
        {
            "what": f"a right {test['op']} on {test['device']}",
            "why": test.get("failure") or f"the error against float64 is {test['max_error']:.1e}",
            "cure": 'reinstall gankernels; until then use gankernels.backend("reference")',
            "needed": True,
        }
        for test in facts["self_test"]
        if not test["passed"]
    ]
    return parts


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
    heads = {"cpu": "cpu", "cuda": "cuda" if device else "cuda (not tried: no gpu)"}
    lines += ["", f"{'operator':<29}{heads['cpu']:<12}{heads['cuda']}"]
    for op, where in facts["backends"].items():
        lines.append(f"  {op:<27}{where.get('cpu', '-'):<12}{where.get('cuda', '-')}")
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
