"""What tests of several subjects share; fixtures are in conftest.py."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
