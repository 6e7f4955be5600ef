"""The definition of right: every operator in plain PyTorch, with the signature it has in ops."""

import importlib
import pkgutil
from typing import Any

# Found by the stem, like an operator's kernels and tests: what a file has in __all__ is here.
__all__: list[str] = []
for _file in pkgutil.iter_modules(__path__):
    if not _file.name.startswith("_"):
        _module = importlib.import_module(f"{__name__}.{_file.name}")
        __all__ += _module.__all__
        globals().update({name: getattr(_module, name) for name in _module.__all__})


def __getattr__(name: str) -> Any:  # says to type checkers that there is more than they see
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
