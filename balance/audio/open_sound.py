"""An open file of any kind -> its samples, by libsndfile, else by FFmpeg; or what the file is instead of audio.

In: a seekable binary file. Out: a `Sound`, of which `stretch.Stretch` takes a part. libsndfile comes first, so that
what it reads keeps its bytes; what is certainly no audio by its first bytes goes to nobody; the rest to FFmpeg, which
is imported when the first such file comes. The price of trying one after the other: a few milliseconds of a file that
nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from balance.audio import sniff
from balance.audio.sound_file import LibsndfileSound, Undecodable, Unopened


class Sound(Protocol):
    """An opened file. sample_rate: Hz; partial: once `blocks` has ended, what of the sound is missing, in words."""

    sample_rate: int
    channels: int
    partial: str

    def blocks(self, start: int = 0) -> Iterator[npt.NDArray[np.float32]]:
        """(n, channels) float32 each, from sample `start` on, to which it seeks; each call begins there."""
        ...


def open_sound(file: BinaryIO) -> Sound:
    """The sound of a file, which stays open and the caller's own. Raises Undecodable, OSError."""
    try:
        return LibsndfileSound(file)
    except Unopened as refused:
        file.seek(0)
        head = file.read(sniff.SNIFFED_BYTES)
        if words := sniff.no_audio(head):
            raise Undecodable("undecodable", words) from None
        try:
            from balance.audio.ffmpeg import FFmpegSound
        except ImportError as error:
            raise Undecodable("undecodable", f"FFmpeg cannot be loaded ({error}): pip install av") from None
        try:
            return FFmpegSound(file)
        except Undecodable as error:
            kind = sniff.container(head)
            raise Undecodable("undecodable", f"{kind}: {error.detail}" if kind else refused.detail) from None
