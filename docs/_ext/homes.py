"""The public names, and the module on whose page the reference has each of them."""

import importlib
from types import ModuleType
from typing import Any

#: Where public names live, in the order in which an object that several of them have gets its page.
HOMES = [
    "gankernels.ops",
    "gankernels.losses",
    "gankernels.regularizers",
    "gankernels.augment",
    "gankernels.ema",
    "gankernels.nn",
    "gankernels.nn.utils",
    "gankernels.nn.utils.parametrizations",
    "gankernels.nn.utils.spectral_norm",
    "gankernels.dirac",
    "gankernels.penalties",
    "gankernels",
]


def public(module: str) -> dict[str, Any]:
    """What a module exports, but for modules."""
    # Not getattr: gankernels.nn.utils.spectral_norm is a function in its package, too.
    found = importlib.import_module(module)
    return {
        name: getattr(found, name)
        for name in found.__all__
        if not isinstance(getattr(found, name), ModuleType)
    }


def home_of(module: str, name: str) -> str:
    """The first module that exports what a module exports under a name."""
    value = public(module)[name]
    return next(home for home in HOMES if any(x is value for x in public(home).values()))


def anchor_of(module: str, name: str) -> str:
    """Where the site has a name. Penalties are taken from the package itself."""
    home = home_of(module, name)
    return f"{home.removesuffix('.penalties')}.{name}"
