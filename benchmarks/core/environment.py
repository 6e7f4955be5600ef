"""Facts about the machine and the software, and the environment of a measuring process."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TUNED, DEFAULT = "tuned", "default"

# With these, glibc keeps freed memory instead of giving it back to the system, so that no output
# pays for page faults: neither torch's nor ours. Read once, when a process starts.
_TUNABLES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "mmap_max": 0,
        "mmap_threshold": 1 << 40,
        "trim_threshold": 1 << 40,
        "top_pad": 1 << 26,
    }.items()
)


def process_environment(allocator: str) -> dict[str, str]:
    """Environment variables of a measuring process: `tuned` or `default` malloc."""
    variables = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    if allocator == TUNED:
        variables["GLIBC_TUNABLES"] = _TUNABLES
    return variables


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _caches() -> dict[str, str]:
    """Cache name to size, as the first processor sees them."""
    found: dict[str, str] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text().strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        found[f"L{level}" + {"Data": "d", "Instruction": "i"}.get(kind, "")] = size
    return found


def _memory_gib() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (OSError, ValueError):
        return None


def _gankernels_facts() -> dict[str, Any]:
    """What `python -m gankernels.info --json` says, or why it says nothing."""
    command = [sys.executable, "-m", "gankernels.info", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        facts: dict[str, Any] = json.loads(done.stdout)
        return facts
    except ValueError:
        tail = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": tail}


def facts() -> dict[str, Any]:
    """Everything a reader needs to place the numbers."""
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "caches": _caches(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "gankernels": _gankernels_facts(),
    }
