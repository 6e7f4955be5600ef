"""What of nvcc's PTX the tests executed: ``python tests/ptx/coverage.py FILE [--missing]``.

FILE is what processes with ``PTX_COVERAGE=FILE`` left. The exit status is 1 where less than LEAST
of a kernel's instructions ran and EXPLAINED does not say why.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

LEAST = 0.95
_COLORS = "loops over at most three channels of color, unrolled by four"
#: Kernels, of which less may run, and why: by a pattern of their names.
EXPLAINED: dict[str, tuple[float, str]] = {
    r"ada_parameters::compute.*": (0.93, "rows of at most four numbers of color, unrolled by four"),
    r"affine_resample::gather<double>": (
        0.70,
        f"{_COLORS}; of a box of 40 nodes a thread has less than four rows, which it takes at once",
    ),
    r"affine_resample::gather<.*>": (
        0.69,
        f"{_COLORS}; of a sweep's boxes a thread has less than four rows, which it takes at once",
    ),
    r"affine_resample::gather_plainly<.*>": (0.66, _COLORS),
    r"affine_resample::resample(_plainly)?<.*>": (0.85, _COLORS),
    r"image_filter::filter<double>": (
        0.55,
        "tiles of 8 columns, copied up to 128 at once; loops over less pixels than threads",
    ),
    r"image_filter::filter<.*>": (
        0.70,
        "tiles of 64 columns, copied up to 128 at once; loops over less pixels than threads",
    ),
    r"gradient_penalty::backward<.*, 1>": (
        0.77,
        "a table of one has the first tensor's column, where weights of samples are added up over "
        "the rows, only if there is one row",
    ),
    r"weight_norm::scale_rows<.*, \(Pass\)[02], .*>": (
        0.91,
        "loops over the chunks of a row, unrolled by four: a thread has so many from 64 MiB on",
    ),
}


def read(path: Path) -> dict[str, dict[int, tuple[int, bool]]]:
    """By kernel: a block's line, its instructions, and whether any process executed it."""
    found: dict[str, dict[int, tuple[int, bool]]] = defaultdict(dict)
    for row in path.read_text().splitlines():
        _, line, instructions, executed, kernel = row.split()
        before = found[kernel].get(int(line), (0, False))[1]
        found[kernel][int(line)] = int(instructions), before or executed == "1"
    return found


def names(mangled: list[str]) -> list[str]:
    """Kernels as people write them, with the operator's namespace and no other."""
    done = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True)
    found = []
    for name in done.stdout.splitlines():
        name = name.removeprefix("void ")
        name = name[: name.rindex(">(") + 1] if ">(" in name else name.partition("(")[0]
        operator = re.match(r"gankernels::(\w+::)cuda::", name)
        short = re.sub(r"\b(\w+::)+", "", name)
        found.append((operator[1] if operator else "") + short)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--missing", action="store_true", help="lines of the kernels' PTX, too")
    args = parser.parse_args()
    kernels = read(args.file)
    total = executed = 0
    failed = []
    readable = zip(kernels, names(list(kernels)), strict=True)
    for mangled, name in sorted(readable, key=lambda pair: pair[1]):
        blocks = kernels[mangled]
        size = sum(n for n, _ in blocks.values())
        hit = sum(n for n, ran in blocks.values() if ran)
        total, executed = total + size, executed + hit
        expected = next((x for x in EXPLAINED.items() if re.fullmatch(x[0], name)), None)
        least, why = expected[1] if expected else (LEAST, "")
        if hit < least * size:
            failed.append(name)
        print(f"{hit:6} of {size:6}  {100 * hit / size:5.1f} %  {name}  {why}")
        if args.missing:
            for line, (n, ran) in sorted(blocks.items()):
                if not ran:
                    print(f"        line {line}: {n} instructions")
    print(f"{executed} of {total} instructions, {100 * executed / total:.1f} %")
    if failed:
        sys.exit(f"less than expected: {', '.join(failed)}")


if __name__ == "__main__":
    main()
