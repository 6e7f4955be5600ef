"""What every operator can do, found by trying it: dtypes, derivatives, transforms, determinism.

``python tests/project/precision.py --write`` writes the table of docs/support.md from here;
test_precision.py looks whether it is the same.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from gankernels import _library, backend, info, ops
from gankernels.ops._operator import EXAMPLES

DOCS = Path(__file__).resolve().parents[2] / "docs" / "support.md"
BEGIN = "<!-- from tests/project/precision.py: --write -->\n"
#: Largest errors against the reference in float64, over the largest number.
DTYPES = {
    torch.float64: 1e-12,
    torch.float32: 1e-4,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}
COLUMNS = (
    *(str(dtype).removeprefix("torch.") for dtype in DTYPES),
    *("derivatives", "compile", "vmap", "forward AD", "same bits"),
)
#: Beside half-precision images and scores these are float32.
PARAMETERS = {"p", "color"}
_ORDERS = 3  # what has so many has any number

Arguments = dict[str, Any]


def arguments_of(op: str, dtype: torch.dtype) -> Arguments:
    """Right ones: float64 where the example says so, elsewhere of the dtype."""
    generator = torch.Generator().manual_seed(0)
    found = EXAMPLES[op](lambda *shape: torch.randn(shape, generator=generator).to(dtype))
    for name in PARAMETERS & found.keys():
        found[name] = found[name].to(torch.promote_types(dtype, torch.float32))
    if op == "image_filter":  # its noise is of float32 numbers
        found = {k: x for k, x in found.items() if k not in ("sigma", "seed")}
    if op in ("ada_parameters", "diff_augment_parameters"):
        found["dtype"] = dtype  # of what they make
    return found


def precision(op: str, dtype: torch.dtype) -> str:
    arguments = arguments_of(op, dtype)
    widened = info._widened(arguments)
    if "dtype" in widened:
        widened["dtype"] = torch.float64
    with backend("reference"):
        expected = info._results(getattr(ops, op), widened)
    return served(
        lambda: info._error(info._results(getattr(ops, op), arguments), expected) <= DTYPES[dtype]
    )


def derivatives(op: str) -> str:
    """How often it can be differentiated, to what the reference has."""

    def orders(how: str) -> Iterator[list[Tensor]]:
        leaves, function = differentiated(op)
        with backend(how):
            results = [x for x in function(*leaves) if x.requires_grad]
            while results and leaves:
                total = torch.stack([(x + x.pow(3)).sum() for x in results]).sum()
                results = list(torch.autograd.grad(total, leaves, create_graph=True))
                yield [x.detach() for x in results]

    count, wanted = 0, orders("reference")
    try:
        for found in orders("native"):
            assert info._error(found, next(wanted)) < 1e-9
            count += 1
            if count == _ORDERS:
                return "any"
    except RuntimeError:  # there are no more
        pass
    return str(count) if count else ""


def compiled(op: str) -> str:
    torch._dynamo.reset()
    function = torch.compile(getattr(ops, op), fullgraph=True, backend="aot_eager", dynamic=False)
    expected = info._results(getattr(ops, op), arguments_of(op, torch.float64))
    return served(
        lambda: (
            info._error(info._results(function, arguments_of(op, torch.float64)), expected) < 1e-12
        )
    )


def mapped(op: str) -> str:
    """Over what it is differentiated in."""
    leaves, function = differentiated(op)
    if not leaves:
        return ""
    stacked = [torch.stack((x, 2 * x)).detach() for x in leaves]
    alone = [differentiated(op)[1](*(x[i] for x in stacked)) for i in range(2)]
    expected = [torch.stack(pair) for pair in zip(*alone, strict=True)]
    return served(lambda: info._error(torch.func.vmap(function)(*stacked), expected) < 1e-12)


def forward_ad(op: str) -> str:
    """Against backward mode, <J t, c> = <t, J^T c>."""
    leaves, function = differentiated(op)
    if not leaves:
        return ""
    outputs = function(*leaves)
    cotangents, tangents = ([torch.randn_like(x) for x in of] for of in (outputs, leaves))
    gradients = torch.autograd.grad(outputs, leaves, cotangents)
    expected = inner(gradients, tangents)
    points = tuple(x.detach() for x in leaves)
    _, function = differentiated(op)  # from the same u and v
    return served(
        lambda: (
            info._error(
                [inner(torch.func.jvp(function, points, tuple(tangents))[1], cotangents)],
                [expected],
            )
            < 1e-9
        )
    )


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def same_bits(op: str) -> str:
    """Whatever the number of threads."""
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(info._results(getattr(ops, op), arguments_of(op, torch.float32)))
    finally:
        torch.set_num_threads(threads)
    same = all(torch.equal(a, b) for again in found for a, b in zip(found[0], again, strict=True))
    return "yes" if same else "no"


def differentiated(op: str) -> tuple[list[Tensor], Callable[..., tuple[Tensor, ...]]]:
    """What of the arguments has a gradient, and the outputs that do, as a function of it."""

    def leaves_of(arguments: Arguments) -> list[Tensor]:
        held = [x for x in arguments.values() if isinstance(x, (Tensor, list))]
        return [x for x in info._tensors(held) if x.requires_grad]

    arguments = arguments_of(op, torch.float64)
    results = info._tensors(getattr(ops, op)(**arguments))
    kept = [k for k, x in enumerate(results) if x.requires_grad]
    arguments = arguments_of(op, torch.float64)  # those before may have been moved
    leaves = leaves_of(arguments) if kept else []

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        by_id = {id(a): b for a, b in zip(leaves, given, strict=True)}

        def replaced(x: Any) -> Any:
            return [replaced(y) for y in x] if isinstance(x, list) else by_id.get(id(x), x)

        outputs = info._tensors(getattr(ops, op)(**{k: replaced(x) for k, x in arguments.items()}))
        return tuple(outputs[k] for k in kept)

    return leaves, function


def served(right: Callable[[], bool]) -> str:
    """By what: the kernel or the reference."""
    with mock.patch.object(_library, "_log_fallback") as fallback:
        try:
            assert right()
        except (RuntimeError, TypeError, ValueError, torch._dynamo.exc.TorchDynamoException):
            return "refused"
    return "reference" if fallback.called else "kernel"


def row(op: str) -> list[str]:
    return [
        *(precision(op, dtype) for dtype in DTYPES),
        *(derivatives(op), compiled(op), mapped(op), forward_ad(op), same_bits(op)),
    ]


def table() -> str:
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of what it compiles
        lines += [f"| `{op}` | {' | '.join(row(op))} |" for op in sorted(EXAMPLES)]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", required=True)
    parser.parse_args()
    head, _, tail = DOCS.read_text().partition(BEGIN)
    DOCS.write_text(head + BEGIN + "\n" + table() + tail[tail.index("\n## ") :])


if __name__ == "__main__":
    main()
