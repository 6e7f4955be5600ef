"""A pretended GPU: tensors on it say that they are on CUDA, and lie in the CPU's memory.

`pytest --pretended-gpu -k "[cuda or -cuda"` runs the tests of CUDA on it, by the CPU kernels. What
it tests are those tests. It refuses what torch refuses on a GPU: tensors of two devices in one
call, a generator of the other device, numpy arrays of its tensors. Its random numbers are not those
of the CPU. And under the backend "cuda" our operators refuse a CPU tensor, with which such a test
would say nothing of the kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gankernels._fused import computed, frames
from gankernels.ops import _operator

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
#: By address of the storage: those on the GPU. A storage that is referred to keeps its address.
_storages: dict[int, StorageWeakRef] = {}
_random_state: Tensor | None = None
#: By address, as operators get another Python object.
_generators: set[int] = set()

# Operators that take tensors of two devices.
_aten = torch.ops.aten
_MIXING = {
    *(_aten.copy_, _aten._to_copy, _aten.index, _aten.index_put, _aten.index_put_, _aten.set_),
    *(_aten._index_put_impl_, _aten.where, _aten.lift_fresh, _aten.masked_fill, _aten.masked_fill_),
}


class MixedDevicesError(RuntimeError):
    """What torch raises where it finds tensors on two devices."""


def is_on_gpu(x: Tensor) -> bool:
    try:
        return x.untyped_storage()._cdata in _storages
    except (NotImplementedError, RuntimeError):  # a wrapper, which has none
        return False


def _put(x: Tensor, on_gpu: bool) -> None:
    storage = x.untyped_storage()
    if on_gpu:
        _storages[storage._cdata] = StorageWeakRef(storage)
    else:
        _storages.pop(storage._cdata, None)


def forget() -> None:
    """Drop what is known of storages that are gone."""
    for address in [a for a, storage in _storages.items() if storage.expired()]:
        del _storages[address]


class _Move(torch.autograd.Function):
    """A copy on the other device, and of its gradient on this one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to_gpu: bool) -> Tensor:
        ctx.to_gpu = to_gpu
        copy = x.detach().clone(memory_format=torch.preserve_format)
        _put(copy, to_gpu)
        return copy

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Move.apply(grad, not ctx.to_gpu), None


class _Dispatch(TorchDispatchMode):
    """Where results lie, and what may not meet."""

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.strict = strict

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        target = kwargs.get("device")
        if target is not None:
            target = torch.device(target)
            kwargs["device"] = CPU if target.type == "cuda" else target
        if "pin_memory" in kwargs:
            kwargs["pin_memory"] = None
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        where = [is_on_gpu(x) for x in given]
        # A conversion names the device that the tensor says it has in C++. What moves is a _Move.
        if target is None or (func is _aten._to_copy.default and target.type == "cpu"):
            on_gpu = any(where)
        else:
            on_gpu = target.type == "cuda"
        self._check(func, args, kwargs, given, where)
        generator = kwargs.get("generator")
        if generator is not None and (generator._cdata in _generators) != on_gpu:
            raise RuntimeError(f"Expected a generator of the device of the tensor, {func}")
        if func in (_aten._pin_memory.default, _aten.pin_memory.default):
            return args[0].clone()
        known = {x.untyped_storage()._cdata for x in given if _has_storage(x)}
        random = torch.Tag.nondeterministic_seeded in func.tags and on_gpu
        with _gpus_random_numbers() if random else contextlib.nullcontext():
            found = func(*args, **kwargs)
        for x in tree_leaves(found):
            is_new = isinstance(x, Tensor) and _has_storage(x) and not is_on_gpu(x)
            if is_new and on_gpu and x.untyped_storage()._cdata not in known:
                _put(x, on_gpu=True)
        return found

    def _check(
        self, func: Any, args: Any, kwargs: Any, given: list[Tensor], where: list[bool]
    ) -> None:
        if func.namespace.startswith("gankernels"):
            if self.strict and not all(where):
                raise MixedDevicesError(f"{func}: expected CUDA tensors, got one on the CPU")
            return
        if all(where) or not any(where) or func.overloadpacket in _MIXING:
            return
        if torch.Tag.pointwise in func.tags or func.overloadpacket in (_aten.lerp_, _aten.fill_):
            writes = [
                value
                for argument, value in zip(func._schema.arguments, args, strict=False)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
            written = [x for x in tree_leaves(writes) if isinstance(x, Tensor)]
            if all(map(is_on_gpu, written)) and all(
                on_gpu or x.dim() == 0 for x, on_gpu in zip(given, where, strict=True)
            ):
                return
        raise MixedDevicesError(
            f"Expected all tensors to be on the same device, {func} got "
            + ", ".join("cuda:0" if on_gpu else "cpu" for on_gpu in where)
        )


def _has_storage(x: Tensor) -> bool:
    try:
        x.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return False
    return True


@contextlib.contextmanager
def _gpus_random_numbers() -> Iterator[None]:
    global _random_state
    before = torch.get_rng_state()
    torch.set_rng_state(_random_state if _random_state is not None else _seeded(0))
    try:
        yield
    finally:
        _random_state = torch.get_rng_state()
        torch.set_rng_state(before)


def _seeded(seed: int) -> Tensor:
    return torch.Generator().manual_seed((seed + 0x9E3779B9) % 2**62).get_state()


def _seed(seed: int) -> None:
    global _random_state
    _random_state = _seeded(seed)


def _names_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


# They ask for the device before any mode is asked.
_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray)

_RealGenerator = torch.Generator


class _Generator(_RealGenerator):
    """A generator of the GPU."""

    device = GPU

    def __init__(self) -> None:
        _generators.add(self._cdata)

    def __del__(self) -> None:
        _generators.discard(self._cdata)

    def manual_seed(self, seed: int) -> _Generator:
        super().manual_seed((seed + 0x9E3779B9) % 2**62)
        return self


class _GeneratorMeta(type):
    def __instancecheck__(cls, x: object) -> bool:
        return isinstance(x, _RealGenerator)


class _AnyGenerator(metaclass=_GeneratorMeta):
    """torch.Generator, which makes either."""

    def __new__(cls, device: Any = "cpu") -> Any:
        device = torch.device(device)
        return _Generator() if device.type == "cuda" else _RealGenerator(device)


class _Functions(TorchFunctionMode):
    """What tensors say of themselves, and how they are moved."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FROM_DATA and _names_gpu(kwargs.get("device")):
            learns = kwargs.get("requires_grad", False)
            found = func(*args, **{**kwargs, "device": "cpu", "requires_grad": False})
            found = found if is_on_gpu(found) else _Move.apply(found, True)
            return found.requires_grad_() if learns else found
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if x is None:
            return func(*args, **kwargs)
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return _moved(func, x, args[1:], kwargs)
        if not is_on_gpu(x):
            return func(*args, **kwargs)
        if func == Tensor.device.__get__:
            return GPU
        if func == Tensor.is_cuda.__get__:
            return True
        if func == Tensor.is_cpu.__get__:
            return False
        if func is Tensor.get_device:
            return 0
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        found = func(*args, **kwargs)
        if func in (Tensor.__deepcopy__, Tensor.new_tensor) and "device" not in kwargs:
            _put(found, on_gpu=True)
        return found


def _moved(func: Callable[..., Any], x: Tensor, args: Any, kwargs: Any) -> Tensor:
    device, kept = None, []
    for arg in args if func is Tensor.to else ():
        if isinstance(arg, Tensor):
            device = GPU if is_on_gpu(arg) else arg.device
            kept.append(arg.dtype)
        elif isinstance(arg, (str, int, torch.device)) and not isinstance(arg, bool):
            device = torch.device(arg)
        else:
            kept.append(arg)
    kwargs = dict(kwargs)
    if kwargs.get("device") is not None:
        device = torch.device(kwargs.pop("device"))
    kwargs.pop("device", None)
    if func is not Tensor.to:
        device = GPU if func is Tensor.cuda else CPU
    if device is None or device.type not in ("cpu", "cuda"):
        return func(x, *args, **kwargs)
    to_gpu = device.type == "cuda"
    if to_gpu != is_on_gpu(x):
        x = _Move.apply(x, to_gpu)
        kwargs["copy"] = False
    kept = [value for value in kept if not isinstance(value, bool)]
    return x.to(*kept, **kwargs) if func is Tensor.to and (kept or kwargs) else x


class _Nothing:
    """A stream, an event: whatever is asked of it is done."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot pickle 'Event' object")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self if name == "record_event" else name != "is_capturing"


def _skip(*args: Any, **kwargs: Any) -> Any:
    pytest.skip("a pretended GPU is a mode, in which nothing is compiled")


def _no_mode() -> bool:
    """What the package is told: as on a GPU."""
    return False


def install() -> None:
    """Make torch say that there is a GPU, for the rest of the process."""
    cuda = torch.cuda
    for name, answer in {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "is_initialized": True,
        "is_current_stream_capturing": False,
        "get_device_name": "pretended GPU",
        "get_device_capability": (9, 0),
        "get_device_properties": SimpleNamespace(name="pretended GPU", major=9, minor=0),
        "is_bf16_supported": True,
        "get_arch_list": ["sm_90"],
        "_lazy_init": None,
        "synchronize": None,
    }.items():
        setattr(cuda, name, lambda *args, _answer=answer, **kwargs: _answer)
    for name in ("Event", "Stream"):
        setattr(cuda, name, _Nothing)
    cuda.current_stream = cuda.default_stream = lambda *args: _Nothing()
    torch.accelerator.current_stream = lambda *args: _Nothing()
    cuda.stream = lambda *args: contextlib.nullcontext()
    cuda.manual_seed = cuda.manual_seed_all = _seed
    # What is drawn there is drawn on the CPU, whose state is set besides.
    cuda.get_rng_state, cuda.set_rng_state = torch.get_rng_state, lambda *args: None
    torch.Generator = _AnyGenerator  # type: ignore[misc]
    torch.compile = torch.library.opcheck = _skip  # type: ignore[assignment]
    for module in (_operator, computed, frames):
        module.in_dispatch_mode = _no_mode


@contextlib.contextmanager
def use(*, strict: bool) -> Iterator[None]:
    """Tensors on CUDA work within the block; ``strict``: our operators take no others."""
    with _Functions(), _Dispatch(strict):
        yield
    forget()
