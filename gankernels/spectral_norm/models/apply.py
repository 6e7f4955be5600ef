"""Spectral normalization of every layer of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn import Module
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter

from gankernels._checks import check_bool, check_module, kind
from gankernels.ops._checks.spectral_norm import check_weight
from gankernels.spectral_norm.hook import check_shards
from gankernels.spectral_norm.hook import spectral_norm as normalize_by_hook
from gankernels.spectral_norm.parametrization import spectral_norm
from gankernels.spectral_norm.sites import sites

#: The layers whose weights are matrices.
LAYERS: tuple[type[Module], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
)

Skip = str | Module | type[Module] | Callable[[str, Module], bool]

_OP = "apply_spectral_norm"


def apply_spectral_norm(
    model: Module,
    types: type[Module] | Sequence[type[Module]] = LAYERS,
    *,
    skip: Skip | Sequence[Skip] = (),
    name: str = "weight",
    hook: bool = False,
    keep: bool = False,
    **options: Any,
) -> list[str]:
    """Put spectral normalization on every layer of a model.

    The numbers, and the order in which u and v are drawn, are those of calling ``spectral_norm`` on
    the layers one after the other, as ``named_modules()`` has them. A module that the model has
    twice is normalized once. Two modules that share a weight go on to share it, with a u and v
    each. Where anything is refused nothing is changed.

    Args:
        model: any module; in place. A layer itself will do.
        types: the classes to normalize, with their subclasses. By default linear layers,
            convolutions, transposed ones, and embeddings.
        skip: what to leave as it is: the name of a module in the model, or a pattern
            (``"*.to_rgb"``, where ``*`` stands for dots as well), each with all that is within; a
            module, with all that is within; a class; a function of a module's name and the module;
            or a list of these.
        name: the parameter's name.
        hook: normalize by a forward pre-hook, :func:`gankernels.nn.utils.spectral_norm`, instead of
            the parametrization, :func:`gankernels.nn.utils.parametrizations.spectral_norm`.
        keep: leave layers that have a spectral norm already, torch's or ours, as they are, instead
            of refusing them.
        options: those of the function that does it: ``n_power_iterations``, ``eps``, ``max_norm``,
            ``guard``, ``init_iterations``, ``cache_eval``, ``step_scoped``, ``trust_versions``.
            ``dim`` is each layer's own, 1 for transposed convolutions and else 0.

    Returns:
        The names in ``model`` of the modules that it has normalized, in order; ``""`` is the model
        itself. Empty only where ``keep`` left them all.

    Raises:
        TypeError: if an argument is of another type than these, for ``dim``, and for weights that
            are sparse, nested or quantized; for those that are split over ranks as the function
            that does it.
        ValueError: if the model has no layer of these types that is not skipped; if ``skip`` names
            what is not there; for a layer that has a spectral norm already, that is lazy, whose
            weight is computed (by ``weight_norm`` for one), has fewer than two dimensions, or is
            shared with a module that is not normalized; for ``hook=True`` and the output layer of
            ``MultiheadAttention``, which is never called; for an option out of its range.

    The papers are those of what it puts there: Miyato et al. 2018 (arXiv 1802.05957); embeddings,
    Miyato and Koyama 2018 (arXiv 1802.05637).
    """
    check_module(_OP, model)
    classes = _checked_types(types)
    if not isinstance(name, str):
        raise TypeError(f"{_OP}: expected name to be a str, got {kind(name)}")
    check_bool(_OP, "hook", hook)
    check_bool(_OP, "keep", keep)
    if "dim" in options:
        raise TypeError(
            f"{_OP}: expected no dim, which is each layer's own, 1 for transposed convolutions and "
            "else 0; call spectral_norm(layer, dim=...) where it is another, and pass keep=True"
        )
    skipped = _skipped(model, skip)
    found = {
        module: path
        for path, module in model.named_modules()
        if isinstance(module, classes) and module not in skipped
    }
    if not found:
        raise ValueError(
            f"{_OP}: expected a model with layers of {_words(classes)}, got {kind(model)} with "
            "none that is not skipped; print(model) shows its layers"
        )
    normalized = {site.module for site in sites(model) if site.name == name}
    wanted = {module: path for module, path in found.items() if module not in normalized}
    if len(wanted) < len(found) and not keep:
        again = [path for module, path in found.items() if module in normalized]
        raise ValueError(
            f"{_OP}: expected layers without a spectral norm, and {_list(again)} has one already; "
            "pass keep=True to leave it, or remove it first"
        )
    for module, path in wanted.items():
        _check_layer(module, path, name, hook, options)
    _check_ties(model, wanted, found, name)
    for module in wanted:
        (normalize_by_hook if hook else spectral_norm)(module, name, **options)
    return list(wanted.values())


def _checked_types(types: object) -> tuple[type[Module], ...]:
    classes = (types,) if isinstance(types, type) else types
    good = isinstance(classes, (list, tuple)) and len(classes) > 0
    if not good or not all(isinstance(c, type) and issubclass(c, Module) for c in classes):  # type: ignore[attr-defined]
        raise TypeError(
            f"{_OP}: expected types to be classes of modules, such as (nn.Linear, nn.Conv2d), got "
            f"{types if isinstance(types, type) else kind(types)}"
        )
    return tuple(classes)  # type: ignore[arg-type]


def _skipped(model: Module, skip: Any) -> set[Module]:
    """The modules of a model that are to be left as they are."""
    skips = skip if isinstance(skip, (list, tuple)) else [skip]
    named = list(model.named_modules(remove_duplicate=False))
    found = set[Module]()
    for what in skips:
        if isinstance(what, (str, Module)):
            tops: list[Module] = [
                module
                for path, module in named
                if module is what or (isinstance(what, str) and fnmatchcase(path, what))
            ]
            if not tops:
                wanted = f'"{what}"' if isinstance(what, str) else f"this {kind(what)}"
                raise ValueError(
                    f"{_OP}: expected skip to name modules of the model, and {wanted} is none of "
                    "them; [name for name, _ in model.named_modules()] lists their names"
                )
            found.update(part for top in tops for part in top.modules())
        elif isinstance(what, type):
            found.update(module for _, module in named if issubclass(type(module), what))
        elif callable(what):
            found.update(module for path, module in named if what(path, module))
        else:
            raise TypeError(
                f"{_OP}: expected skip to be names of modules, modules, classes, or functions of "
                f"a name and a module, got {kind(what)}"
            )
    return found


def _check_layer(
    module: Module, path: str, name: str, hook: bool, options: Mapping[str, Any]
) -> None:
    """Refuse what spectral_norm would trip over, or go on with in silence."""
    label = f"{path}.{name}" if path else name
    weight = module._parameters.get(name)
    if weight is None and getattr(module, name, None) is not None:
        raise ValueError(
            f"{_OP}: expected {label} to be a parameter, got one that is computed, as weight_norm "
            "and other parametrizations do; remove that first, or skip it"
        )
    if weight is None:
        raise ValueError(
            f"{_OP}: expected layers with a parameter {name}, got {label}, where {kind(module)} "
            "has none; pass other types, or skip it"
        )
    if isinstance(weight, UninitializedParameter):
        raise ValueError(
            f"{_OP}: expected weights that have a shape, got {label} of a lazy module; call the "
            "model once before"
        )
    check_weight(_OP, label, weight, shards=True)
    memories = {option: bool(options.get(option)) for option in ("step_scoped", "cache_eval")}
    check_shards(label, weight, **memories)
    if weight.dim() < 2:
        raise ValueError(
            f"{_OP}: expected weights of two dimensions and more, got {label} of shape "
            f"{tuple(weight.shape)}; skip it, or call spectral_norm for it"
        )
    if hook and isinstance(module, NonDynamicallyQuantizableLinear):
        raise ValueError(
            f"{_OP}: expected layers that are called, and MultiheadAttention reads {label} without "
            "calling its layer, so that a hook never runs; pass hook=False, or skip it"
        )


def _check_ties(
    model: Module, wanted: dict[Module, str], found: dict[Module, str], name: str
) -> None:
    """Refuse weights of which one owner would use W / sigma, and another W."""
    labels = {module._parameters[name]: f"{path}.{name}" for module, path in wanted.items()}
    for path, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter in labels and not (module in found and key == name):
                raise ValueError(
                    f"{_OP}: expected {labels[parameter]} to be shared by normalized layers only, "
                    f"and it is {path}.{key} as well, which is not; skip both, or pass types that "
                    "have both"
                )


def _words(classes: Sequence[type[Module]]) -> str:
    return " or ".join(c.__name__ for c in classes)


def _list(paths: Sequence[str]) -> str:
    more = len(paths) - 3
    return ", ".join(repr(path) for path in paths[:3]) + (f" and {more} more" if more > 0 else "")


__all__ = ["apply_spectral_norm"]
