"""CUDA devices to test on without a GPU: tensors that say `cuda:1`, compute on the CPU, and obey CUDA's rules.

`simulated()` gives a `Machine` of two devices or more and lets torch believe in them while its block runs. A tensor of
a device is a subclass of `torch.Tensor` that only says where it lies; each call of torch comes through `Machine.call`,
which refuses what a GPU would refuse (tensors of different devices, numpy), copies where a GPU would copy, counts what
makes the host wait, and runs out of memory on demand. Kernels follow their tensors, as torch's do; an event, a stream
or a FAISS call belongs to the *current* device, and to take one while the work is on another is a failure here: on
hardware it is a race that no test sees. The price: it knows nothing of time, and only the calling thread.

The real device takes its place where there is one: tests ask for the fixture `cuda`.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only

Matmul = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

WAITS = {  # the host waits for the value or for the number of results
    *("__bool__", "__int__", "__float__", "__index__", "__contains__", "item", "tolist", "is_nonzero"),
    *("nonzero", "masked_select", "bincount", "equal", "unique", "allclose", "argwhere"),
}
COPIES = {"copy_", "to", "cpu", "cuda"}  # between devices
MATMULS = {"mm", "matmul", "__matmul__"}


class CudaTensor(torch.Tensor):
    """A tensor that says it lies on a device of `machine`; its numbers are an ordinary tensor's."""

    machine: Machine
    place: torch.device
    allocation: _Allocation

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = next(x for x in tree_flatten((args, kwargs))[0] if isinstance(x, CudaTensor))
        return first.machine.call(func, args, kwargs or {})


class CudaSparse:
    """A sparse matrix (CSR) on a device, as far as the program uses one: torch knows no subclass of such a tensor."""

    def __init__(self, machine: Machine, plain: torch.Tensor, place: torch.device) -> None:
        self.machine, self.plain, self.place = machine, plain, place

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = next(x for x in tree_flatten((args, kwargs))[0] if isinstance(x, CudaSparse))
        return first.machine.call(func, args, kwargs or {})

    def values(self) -> torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self.machine._wrap(self.plain.values(), self.place)


class _Allocation:
    """The memory behind a tensor and its views; given back when the last of them is gone."""

    def __init__(self, machine: Machine, index: int, num_bytes: int) -> None:
        self._machine, self._index, self._num_bytes = machine, index, num_bytes
        machine.used_bytes[index] += num_bytes

    def __del__(self) -> None:
        self._machine.used_bytes[self._index] -= self._num_bytes


class Machine(TorchFunctionMode):
    """Some devices, which of them is current, and what was asked of them.

    syncs: (function, file:line in the package) -> how often the host waited; copies: (bytes, contiguous, pinned) of
    each copy to a device; memory_bytes: of a device, to be lowered by tests; matmul: float16 matrices -> float32, in
    place of torch's.
    """

    def __init__(self, num_devices: int, memory_bytes: int, matmul: Matmul | None) -> None:
        super().__init__()
        self.num_devices, self.memory_bytes, self.matmul = num_devices, memory_bytes, matmul
        self.current = 0
        self.worked_on = 0  # the device of the last kernel or copy
        self.used_bytes = [0] * num_devices
        self.peak_bytes = [0] * num_devices
        self.syncs: collections.Counter[tuple[str, str]] = collections.Counter()
        self.copies: list[tuple[int, bool, bool]] = []
        self._allocations: weakref.WeakValueDictionary[int, _Allocation] = weakref.WeakValueDictionary()
        self._pinned: set[int] = set()
        self.registered: dict[int, int] = {}  # address -> bytes that the driver has pinned
        self.refuses_to_register = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, args, kwargs or {})

    # -- one call of torch ---------------------------------------------------------------------------------------

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name, getter = getattr(func, "__name__", ""), getattr(func, "__self__", None)
        with torch._C.DisableTorchFunctionSubclass():
            on_devices = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, CudaTensor | CudaSparse)]
            if name == "__get__":
                if on_devices and getter is torch.Tensor.device:
                    return on_devices[0].place
                if on_devices and getter is torch.Tensor.is_cuda:
                    return True
                return self._wrapped(func(*args, **kwargs), on_devices[0].place) if on_devices else func(*args)
            if name in COPIES and isinstance(args[0], torch.Tensor):
                return self._copy(name, args, kwargs)
            if name == "_has_compatible_shallow_copy_type":  # a module's parameter becomes the copy on the device
                return False
            if name in ("pin_memory", "is_pinned"):
                return self._pin(name, args[0])
            if on_devices:
                return self._kernel(func, name, args, kwargs, on_devices)
            return self._created(func, name, args, kwargs)

    def _kernel(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], on: list[Any]) -> Any:
        place = on[0].place
        self._refuse_mixed(name, args, kwargs, place)
        if name in ("numpy", "__array__"):
            raise TypeError(f"can't convert {place} device type tensor to numpy. Use Tensor.cpu() first")
        if name in WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self._waits(name)
        if name in ("__getitem__", "__setitem__"):
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            tensors = [index for index in indices if isinstance(index, torch.Tensor)]
            fill = name == "__setitem__" and (not isinstance(args[2], torch.Tensor) or args[2].numel() == 1)
            if any(not isinstance(x, CudaTensor) or (x.dtype == torch.bool and not fill) for x in tensors):
                self._waits(f"{name} by a mask or from the host")
        kwargs = self._without_device(kwargs)
        args = tree_map_only(CudaSparse, lambda x: x.plain, args)
        self.worked_on = place.index
        if self.matmul and name in MATMULS and args[0].dtype == torch.float16:
            result = self.matmul(*(x.as_subclass(torch.Tensor) for x in args[:2])).half()
            return self._wrapped(result, place) if kwargs.get("out") is None else kwargs["out"].copy_(result)
        return self._wrapped(func(*args, **kwargs), place)

    def _created(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Without a tensor of a device among the arguments: one may be asked for."""
        place = self._place(kwargs.get("device"))
        if place is None:
            pinned = kwargs.get("pin_memory", False)
            result = func(*args, **({**kwargs, "pin_memory": False} if pinned else kwargs))
            if pinned:
                self._pinned.add(result.untyped_storage().data_ptr())
            return result
        result = func(*args, **self._without_device(kwargs))
        if name in ("tensor", "as_tensor", "asarray"):
            self._waits(f"{name} to the device")
            result = result.clone()
        self.worked_on = place.index
        return self._wrapped(result, place)

    def _copy(self, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        if name == "copy_":
            target, source = args[0], args[1]
            self._waits_for_copy(source, target, kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
            return torch.Tensor.copy_(target, source)
        source = args[0]
        here = source.place if isinstance(source, CudaTensor) else None
        wanted: Any = {"cpu": "cpu", "cuda": "cuda"}.get(name)
        rest = list(args[1:])
        for i, x in enumerate(rest):
            if isinstance(x, torch.device | str):
                wanted = rest.pop(i)
                break
            if isinstance(x, torch.Tensor):
                wanted = x.place if isinstance(x, CudaTensor) else "cpu"
                rest[i] = x.dtype
                break
        wanted = kwargs.get("device", wanted)
        there = here if wanted is None else self._place(wanted)
        non_blocking = kwargs.get("non_blocking", next((x for x in rest if isinstance(x, bool)), False))
        rest = [x for x in rest if x is not None and not isinstance(x, bool)]  # as nn.Module.to asks
        options = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking")}
        plain = source.as_subclass(torch.Tensor)
        result = torch.Tensor.to(plain, *rest, **options) if rest or options else plain
        if there == here:
            if result is plain:
                return source
            return result if there is None else self._wrapped(result, there)
        if result is plain:
            result = plain.clone()
        moved = result if there is None else self._wrapped(result, there)
        self._waits_for_copy(source, moved, non_blocking)
        return moved

    def _waits_for_copy(self, source: torch.Tensor, target: torch.Tensor, non_blocking: bool) -> None:
        places = [x.place if isinstance(x, CudaTensor) else None for x in (source, target)]
        for place in places:
            if place is not None:
                self.worked_on = place.index
        if places[0] == places[1] or None not in places:
            return
        host = source if places[0] is None else target
        contiguous = host.is_contiguous()
        pinned = self._is_pinned(host)
        if places[1] is not None:
            self.copies.append((host.nbytes, contiguous, pinned))
        if not (non_blocking and pinned and contiguous):
            self._waits("copy to the device" if places[1] is not None else "copy to the host")

    def _pin(self, name: str, tensor: torch.Tensor) -> Any:
        assert not isinstance(tensor, CudaTensor), "only memory of the host can be pinned"
        if name == "is_pinned":
            return self._is_pinned(tensor)
        pinned = tensor.clone()
        self._pinned.add(pinned.untyped_storage().data_ptr())
        return pinned

    def _is_pinned(self, tensor: torch.Tensor) -> bool:
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        inside = any(at <= first and last <= at + size for at, size in self.registered.items())
        return inside or tensor.untyped_storage().data_ptr() in self._pinned

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        if self.refuses_to_register:
            return 2  # cudaErrorMemoryAllocation, as where `ulimit -l` is low
        self.registered[address] = num_bytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0

    # -- rules ---------------------------------------------------------------------------------------------------

    def _refuse_mixed(self, name: str, args: Any, kwargs: dict[str, Any], place: torch.device) -> None:
        if name == "__getitem__" or (name == "__setitem__" and isinstance(args[0], CudaTensor)):
            args = (args[0], *args[2:])  # an index may come from the host
        for x in tree_flatten((args, kwargs))[0]:
            other = x.place if isinstance(x, CudaTensor) else None
            if isinstance(x, torch.Tensor) and other != place and (x.dim() or other is not None):
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two, {place} and "
                    f"{other or 'cpu'}! ({name} at {_line()})"
                )

    def _waits(self, why: str) -> None:
        self.syncs[why, _line()] += 1

    def check_current(self, what: str, index: int | None = None) -> None:
        """AssertionError where another device than the current one is worked on."""
        index = self.worked_on if index is None else index
        assert self.current == index, f"{what} belongs to cuda:{self.current}, the work is on cuda:{index} ({_line()})"

    # -- devices and memory --------------------------------------------------------------------------------------

    def _place(self, device: Any) -> torch.device | None:
        """A device with its number, None for the host."""
        if device is None or (device := torch.device(device)).type != "cuda":
            return None
        place = torch.device("cuda", self.current if device.index is None else device.index)
        assert place.index < self.num_devices, f"CUDA error: invalid device ordinal {place}"
        return place

    @staticmethod
    def _without_device(kwargs: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory", "non_blocking")}

    def _wrapped(self, result: Any, place: torch.device) -> Any:
        return tree_map_only(torch.Tensor, lambda x: x if isinstance(x, CudaTensor) else self._wrap(x, place), result)

    def _wrap(self, plain: torch.Tensor, place: torch.device) -> Any:
        if plain.layout == torch.sparse_csr:
            return CudaSparse(self, plain, place)
        storage = plain.untyped_storage()
        pointer, num_bytes = storage.data_ptr(), storage.nbytes()
        allocation = self._allocations.get(pointer) if pointer else None
        if allocation is None:
            if self.used_bytes[place.index] + num_bytes > self.memory_bytes:
                raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {num_bytes:,} bytes")
            allocation = _Allocation(self, place.index, num_bytes)
            if pointer:
                self._allocations[pointer] = allocation
            self.peak_bytes[place.index] = max(self.peak_bytes[place.index], self.used_bytes[place.index])
        tensor = plain.as_subclass(CudaTensor)
        tensor.machine, tensor.place, tensor.allocation = self, place, allocation
        return tensor

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        index = self.current if device is None else torch.device(device).index or 0
        return self.memory_bytes - self.used_bytes[index], self.memory_bytes


def _line() -> str:
    """The line of the package that asked."""
    frame = sys._getframe()
    while frame is not None and "/balance/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/balance/')[2]}:{frame.f_lineno}" if frame else "a test"


class _Device:
    """`torch.cuda.device`: the current device for a block."""

    machine: Machine

    def __init__(self, device: Any) -> None:
        place = self.machine._place(torch.device("cuda", device) if isinstance(device, int) else device)
        self._index = self.machine.current if place is None else place.index

    def __enter__(self) -> None:
        self._before, self.machine.current = self.machine.current, self._index

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.machine.current = self._before


class _Event:
    machine: Machine

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        self.machine.check_current("an event")

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.machine._waits("event")

    def elapsed_time(self, _: Any) -> float:
        return 0.0


def tensor_core(width: int, spare_bits: int) -> Matmul:
    """A float16 product as tensor cores add: `width` exact products and the sum so far are aligned to the largest, cut
    (not rounded) `spare_bits` below float32's last bit, and added. With torch's reduced-precision switch on, the sum so
    far is kept in float16, as cuBLAS may then."""

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        left, right = a.double().numpy(), b.double().numpy().T
        total = np.zeros((len(left), len(right)))
        reduced = torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
        for k in range(0, left.shape[1], width):
            terms = left[:, None, k : k + width] * right[None, :, k : k + width]
            terms = np.concatenate([terms, total[:, :, None]], axis=2)
            mantissa, exponent = np.frexp(np.abs(terms).max(axis=2))
            unit = np.ldexp(1.0, np.where(mantissa == 0, 0, exponent - 24 - spare_bits))
            mantissa, exponent = np.frexp(np.trunc(terms / unit[:, :, None]).sum(axis=2) * unit)
            total = np.ldexp(np.trunc(np.ldexp(mantissa, 24)), exponent - 24)
            total = total.astype(np.float16).astype(np.float64) if reduced else total
        return torch.from_numpy(total).float()

    return product


@contextlib.contextmanager
def simulated(num_devices: int = 2, *, memory_bytes: int = 80 << 30, matmul: Matmul | None = None) -> Iterator[Machine]:
    """torch believes in so many devices of so much memory while the block runs."""
    machine = Machine(num_devices, memory_bytes, matmul)
    patch = pytest.MonkeyPatch()

    def current_stream(device: Any = None) -> Any:
        machine.check_current("a stream", None if device is None else machine.current)
        return type("Stream", (), {"cuda_stream": 0, "synchronize": lambda _: machine._waits("stream")})()

    replaced = {
        "is_available": lambda: True,
        "device_count": lambda: num_devices,
        "current_device": lambda: machine.current,
        "set_device": lambda device: setattr(machine, "current", torch.device("cuda", device).index),
        "device": type("device", (_Device,), {"machine": machine}),
        "Event": type("Event", (_Event,), {"machine": machine}),
        "current_stream": current_stream,
        "mem_get_info": machine.mem_get_info,
        "empty_cache": lambda: None,
        "cudart": lambda: machine,
        "synchronize": lambda device=None: machine._waits("synchronize"),
        "get_device_name": lambda device=None: "simulated",
    }
    for name, value in replaced.items():
        patch.setattr(torch.cuda, name, value)
    try:
        with machine:
            yield machine
    finally:
        patch.undo()


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    """The last CUDA device: a real one where there is one, else the second of two simulated ones."""
    if torch.cuda.is_available():
        yield torch.device("cuda", torch.cuda.device_count() - 1)
        return
    with simulated():
        yield torch.device("cuda", 1)
