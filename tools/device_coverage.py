"""How much of the CUDA kernels the emulated C++ tests run: ``python tools/device_coverage.py DIR``.

DIR is a build with ``-DGANKERNELS_COVERAGE=ON`` in which ctest ran. Lines are counted for every
instantiation of every device function by itself: what only float was run for is not covered for
double. The exit status is 1 where one is below 95 %.
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

BAR = 95.0
HEADERS = (
    "csrc/cuda/",
    "csrc/common/reduce.cuh",
    "csrc/common/tensor_table.cuh",
    "csrc/gradient_penalty.h",
    "csrc/weight_norm.h",
)
#: What the same headers do on the host: planning.
HOST = {
    "Arena",
    "aligned",
    "ceil_div",
    "column_order",
    "factor",
    "lanes_for",
    "rows",
    "take",
    "tile_bytes",
    "tiles",
    "used",
    "values",
    "walk_across",
    "walk_along",
}


def reports(build: Path) -> list[dict]:
    """gcov's report of every CUDA source."""
    found = []
    for data in sorted(build.glob("CMakeFiles/gankernels_emulated.dir/csrc/cuda/*.gcda")):
        command = ["gcov", "--json-format", "--stdout", str(data)]
        done = subprocess.run(command, capture_output=True, check=True)
        text = gzip.decompress(done.stdout) if done.stdout[:2] == b"\x1f\x8b" else done.stdout
        found += [json.loads(line) for line in text.splitlines() if line.strip()]
    return found


def name_of(demangled: str) -> str:
    """``multiply_across<float, 4>``: without namespaces, arguments and the lambdas inside."""
    if demangled.startswith("_Z"):  # what gcov cannot read: whole, as parts of it are abbreviations
        match = re.match(r"_ZZ?N\w*?cuda\d+(\w+?)I\w*?EEEv", demangled)
        return f"{match[1]}<{demangled}>" if match else demangled
    name = demangled.partition("::{lambda")[0]
    name = re.sub(r"\b(\w+::|\(anonymous namespace\)::)+", "", name)
    depth = 0
    begin = depth = 0
    for i, c in enumerate(name):  # what is outside <>: blanks after the result, then arguments
        depth += (c == "<") - (c == ">")
        if depth == 0 and c == " ":
            begin = i + 1
        if depth == 0 and c == "(":
            return name[begin:i]
    return name[begin:]


def collect(build: Path) -> dict[str, dict[tuple[str, int], int]]:
    """By header and function instantiation: how often every line of it ran."""
    found: dict[str, dict[tuple[str, int], int]] = defaultdict(lambda: defaultdict(int))
    for report in reports(build):
        for file in report["files"]:
            if not any(part in file["file"] for part in HEADERS) or file["file"].endswith(".cu"):
                continue
            names = {f["name"]: name_of(f["demangled_name"]) for f in file["functions"]}
            for line in file["lines"]:
                name = names.get(line.get("function_name", ""), "")
                if name and name.partition("<")[0] not in HOST:
                    path = Path(file["file"])
                    place = path.name, line["line_number"]
                    found[f"{path.stem}: {name}"][place] += line["count"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=Path)
    found = collect(parser.parse_args().build)
    if not found:
        print("expected coverage of device code, found none: build with GANKERNELS_COVERAGE=ON")
        return 1
    low = 0
    families: dict[str, list[float]] = defaultdict(list)
    for name, lines in sorted(found.items()):
        percent = 100 * sum(count > 0 for count in lines.values()) / len(lines)
        families[name.partition("<")[0]].append(percent)
        if percent < BAR:
            low += 1
            missing = [f"{file}:{line}" for (file, line), count in lines.items() if not count]
            print(f"{name}: {percent:.0f} %, not run: {', '.join(missing)}")
    print(f"{'device function':<40}{'instantiations':>16}{'least lines run':>17}")
    for family, percents in sorted(families.items()):
        print(f"{family:<40}{len(percents):>16}{min(percents):>15.0f} %")
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
