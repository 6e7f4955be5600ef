"""`python -m benchmarks.gpu.model`: the section of docs/cuda.md; ``--write`` puts it there."""

from __future__ import annotations

import argparse

from benchmarks.gpu.model import section


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the section of docs/cuda.md")
    if parser.parse_args().write:
        section.write()
    else:
        print(section.section(), end="")


if __name__ == "__main__":
    main()
