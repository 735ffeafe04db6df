"""A stretch of a sound, from one second to another: what `dataset.slices` makes of a clip.

In: a `Sound` that seeks, and two times. Out: a `Sound` of that stretch alone, with the samples that cutting the whole
decoded file at round(seconds * rate) gives. What lies beyond the file's end is said, in `partial`, or as a clip that is
too short where nothing is left. The price: about a second before the stretch is decoded as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from balance.audio.open_sound import Sound
from balance.audio.sound_file import Undecodable

_SLACK_S = 0.05  # lists round times


class Stretch:
    """Samples round(bos_s * rate) … round(eos_s * rate) of `sound`, fewer where it ends earlier."""

    def __init__(self, sound: Sound, bos_s: float, eos_s: float) -> None:
        self._sound, self._bos_s, self._eos_s = sound, bos_s, eos_s
        self.sample_rate, self.channels = sound.sample_rate, sound.channels
        self.partial = ""

    def blocks(self, start: int = 0) -> Iterator[npt.NDArray[np.float32]]:
        """As `Sound.blocks`; start: in the stretch. Raises Undecodable where it begins beyond the file's end."""
        first, stop = (round(seconds * self.sample_rate) for seconds in (self._bos_s, self._eos_s))
        at = first + start
        for block in self._sound.blocks(at):
            yield block[: stop - at]
            at += len(block)
            if at >= stop:
                break
        if at == first and stop > first:
            raise Undecodable("too_short", f"the file ends before {self._bos_s:.3f} s, where the stretch begins")
        end_s = min(at, stop) / self.sample_rate
        missing_s = self._eos_s - end_s
        self.partial = (
            f"{self._eos_s - self._bos_s:.3f} s announced, {end_s - self._bos_s:.3f} s decoded: "
            f"the file ends at {end_s:.3f} s"
            if missing_s > _SLACK_S
            else ""
        )
