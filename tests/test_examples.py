"""The examples run as a reader would run them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_sngan_digits(tmp_path):
    for package in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(package)
    picture = tmp_path / "digits.png"
    command = [sys.executable, EXAMPLES / "sngan_digits.py", "--steps", "5", "--out", picture]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("largest difference from torch") == 3
    assert picture.read_bytes().startswith(b"\x89PNG")
