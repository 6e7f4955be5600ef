"""The build backend: setuptools', which may also ask pip for a CUDA compiler.

In an isolated build torch may be a CUDA build on a machine without a CUDA toolkit. The compiler
packages of the package index then join the isolated environment. GANKERNELS_CUDA=0 asks for none.
"""

from __future__ import annotations

import os
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  the hooks that stay as they are
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from build_support import cuda


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _cuda_compiler()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _cuda_compiler()


def _cuda_compiler() -> list[str]:
    if cuda.parse_switch(os.environ.get("GANKERNELS_CUDA")) == "0":
        return []
    import torch

    return cuda.packages_to_install(torch.version.cuda)
