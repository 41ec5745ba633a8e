"""Videos as lmms-eval's tasks give them: files, folders of frames, arrays of frames, decord's readers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vispco.tasks.base import FrameTimes
from vispco.tasks.videos import VideoFrames, spread


class Frames(list[Any]):
    """Pictures of a video that was decoded already, and which frames of it they are."""

    def __init__(self, pictures: Iterable[Any], times: FrameTimes) -> None:
        super().__init__(pictures)
        self._times = times

    def times(self) -> FrameTimes:
        return self._times


def is_video(shown: Any) -> bool:
    """Whether ``shown`` is a path, a reader with ``get_batch``, or frames [F, height, width, 3]."""
    return isinstance(shown, (str, Path)) or hasattr(shown, "get_batch") or len(getattr(shown, "shape", ())) == 4


def frames_of(video: Any, most: int, where: str) -> Sequence[Any]:
    """Frames of ``video`` evenly from the first to the last, as pictures that know their times.

    Of a file or a folder ``most``, as ``vispco eval`` shows it; of what was decoded already at most so many, an array
    as one frame a second.

    Raises:
        DataError: there is no such file. Whether it is a video shows when its frames are read.
    """
    if isinstance(video, (str, Path)):
        frames = VideoFrames(Path(video), most, where)
        frames.check()
        return frames
    total = len(video)
    numbers = spread(total, min(most, total))
    reads = hasattr(video, "get_batch")
    rate = float(video.get_avg_fps()) if reads else 1.0
    chosen = video.get_batch(numbers) if reads else video[numbers]
    array = np.asarray(chosen.asnumpy() if hasattr(chosen, "asnumpy") else chosen)
    return Frames(map(_picture, array), FrameTimes(rate, tuple(numbers), total))


def _picture(frame: Any) -> Any:
    from PIL import Image

    return Image.fromarray(frame).convert("RGB")
