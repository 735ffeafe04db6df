"""The decoders' shared memory as pinned memory, from which CUDA copies in the background.

In: decoders at work. While the block runs their results lend their slots, if the driver has pinned them; else a word in
the log, and whoever copies a clip to the GPU stages it. The price: all slots become resident at once, `queue_bytes` of
each encoder process.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Iterator

import torch

from balance.audio.decoders import DecoderPool

log = logging.getLogger(__name__)


@contextlib.contextmanager
def pinned(decoders: DecoderPool, device: torch.device) -> Iterator[None]:
    """Pin the decoders' memory for a CUDA device, the current one; on a CPU nothing."""
    if device.type != "cuda":
        yield
        return
    first = ctypes.c_char.from_buffer(decoders.memory)  # memory that is looked into cannot be closed: let go of below
    address = ctypes.addressof(first)
    del first
    driver = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    error = int(driver.cudaHostRegister(address, len(decoders.memory), 0))
    if error:
        log.info(
            "the decoders' memory cannot be pinned (CUDA error %d): clips are staged on their way to the GPU", error
        )
    decoders.lends_slots = not error
    try:
        yield
    finally:
        decoders.lends_slots = False
        if not error:
            torch.cuda.current_stream().synchronize()  # no copy reads from it any more
            driver.cudaHostUnregister(address)
