"""Benchmarks about videos: files in a folder, from which a few frames are shown as pictures, in their order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vispco.errors import ConfigError, DataError
from vispco.files import check_regular, expanded
from vispco.tasks.base import FrameTimes, Show
from vispco.tasks.benchmark import Benchmark, Count, Options
from vispco.tasks.loading import Row, Table
from vispco.tasks.pictures import Pictures

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
STILLS = (".jpg", ".jpeg", ".png")
SEEK_SECONDS = 5.0  # frames nearer than this are reached by decoding on

Bounds = tuple[float, float]  # seconds


class VideoOptions(Options):
    """``frames``: how many of a video the model sees; default: the task's. ``video_root``: the folder with the videos,
    in whatever folders below it. ``show``: as pictures, or as a video by the model's own video processor."""

    frames: Count | None = None
    video_root: str | None = None
    show: Show = "pictures"


class VideoFrames(Pictures):
    """``count`` frames of a video file, or of a folder of pictures in the order of their names, decoded anew each time.

    Evenly spread from the first to the last, both among them (``linspace`` over the frames, as lmms-eval does); of a
    part of a video, the middles of equal parts, as MVBench does. A video with fewer frames shows some of them twice. A
    folder of pictures counts as one a second.
    """

    def __init__(self, path: Path, count: int, where: str, bounds: Bounds | None = None) -> None:
        super().__init__(count, lambda: [path], where)
        self.path, self.bounds = path, bounds

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def __iter__(self) -> Iterator[Any]:
        if self.path.is_dir():
            stills = self._stills()
            chosen = [stills[number] for number in spread(len(stills), len(self))]
            return iter(Pictures(len(chosen), lambda: chosen, self.where))
        return iter(self._opened(lambda container, stream: _at_times(container, stream, len(self), self.bounds)))

    def times(self) -> FrameTimes:
        """Which frames these are, without decoding them."""
        if self.path.is_dir():
            total = len(self._stills())
            return FrameTimes(1.0, tuple(spread(total, len(self))), total)
        found: FrameTimes = self._opened(lambda container, stream: _times(container, stream, len(self), self.bounds))
        return found

    def _stills(self) -> list[Path]:
        stills = sorted(file for file in self.path.iterdir() if file.suffix.lower() in STILLS)
        if not stills:
            raise DataError(f"{self.where}: folder {self.path.as_posix()} holds no picture; correct video_root")
        return stills

    def check(self) -> None:
        """Look whether the file is there; only decoding tells whether it is a video."""
        if not self.path.is_dir():
            with self._told(self.path):
                check_regular(self.path)

    def keys(self) -> list[str]:
        part = "" if self.bounds is None else f"#{self.bounds[0]:g}-{self.bounds[1]:g}"
        return [f"{self.path.as_posix()}{part}"]

    def _opened(self, read: Callable[[Any, Any], Any]) -> Any:
        """What ``read`` makes of the container and its first video stream."""
        av = _av()
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise DataError(f"{self.where}: {self.path.as_posix()} has no video stream; replace the file")
                return read(container, container.streams.video[0])
        except (av.FFmpegError, OSError, ValueError) as error:
            raise DataError(
                f"{self.where}: cannot decode video {self.path.as_posix()}: {' '.join(str(error).split())[:200]}; "
                "replace the file"
            ) from None


def spread(frames: int, count: int) -> list[int]:
    """Numbers of ``count`` of ``frames`` frames, from the first to the last.

    >>> spread(10, 4), spread(2, 3), spread(9, 1)
    ([0, 3, 6, 9], [0, 0, 1], [0])
    """
    return [int(number) for number in np.linspace(0, frames - 1, count)]


def middles(start: float, end: float, count: int) -> list[float]:
    """Middles of ``count`` equal parts.

    >>> middles(2, 6, 4)
    [2.5, 3.5, 4.5, 5.5]
    """
    return [start + (end - start) * (part + 0.5) / count for part in range(count)]


def _rate(stream: Any) -> float:
    """Frames a second."""
    return float(stream.average_rate or stream.guessed_rate)


def _seconds(container: Any, stream: Any) -> float:
    return float(stream.duration * stream.time_base) if stream.duration else float(container.duration / 1e6)


def _total(container: Any, stream: Any) -> int:
    """Frames of the video."""
    return int(stream.frames) or max(1, round(_seconds(container, stream) * _rate(stream)))


def _times(container: Any, stream: Any, count: int, bounds: Bounds | None) -> FrameTimes:
    rate, total = _rate(stream), _total(container, stream)
    if bounds is None:
        return FrameTimes(rate, tuple(spread(total, count)), total)
    end = min(bounds[1], _seconds(container, stream))
    shown = tuple(min(int(time * rate), total - 1) for time in middles(bounds[0], end, count))
    return FrameTimes(rate, shown, max(1, round((end - bounds[0]) * rate)))


def _at_times(container: Any, stream: Any, count: int, bounds: Bounds | None) -> list[Any]:
    """RGB pictures of ``count`` frames: those shown at their times, in order."""
    rate, begin = _rate(stream), float((stream.start_time or 0) * stream.time_base)
    if bounds is None:
        times = [number / rate for number in spread(_total(container, stream), count)]
    else:
        times = middles(bounds[0], min(bounds[1], _seconds(container, stream)), count)
    found: list[Any] = []
    current: Any = None
    decoding: Iterator[Any] = container.decode(stream)
    for time in times:
        if current is None or not 0 <= begin + time - current.time < SEEK_SECONDS:
            container.seek(max(0, int((begin + time) / stream.time_base)), stream=stream, backward=True)
            decoding, current = container.decode(stream), None
        # A frame is shown until the next one: half a frame's time bridges rounding.
        while current is None or current.time + 0.5 / rate < begin + time:
            following = next(decoding, None)
            if following is None:
                break
            current = following
        if current is None:
            raise ValueError(f"no frame at {time:.2f} seconds")
        found.append(current.to_image())
    return found


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise ConfigError("videos need PyAV, which is not installed; run: pip install 'vispco[video]'") from None
    return av


class VideoBenchmark(Benchmark):
    """Subclasses say which video a row is about, and perhaps which part of it. ``frames``: of the task's protocol."""

    pictures: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    frames: ClassVar[int] = 32
    Options: ClassVar[type[Options]] = VideoOptions

    def __init__(self, sizes: Mapping[str, int], options: Mapping[str, Any] | None = None) -> None:
        super().__init__(sizes, options)
        self.show = self.options.show
        if self.show == "video" and self.pixels != (None, None):
            raise ConfigError(
                f"task {self.name!r}: min_pixels and max_pixels are for pictures and do not go with show: video; "
                "remove them, or show pictures"
            )

    @abstractmethod
    def video(self, row: Row) -> str:
        """Name of the row's video: a path below the folder of videos, or the file's name with or without its ending."""

    def bounds(self, row: Row) -> Bounds | None:
        """The part of the video that the question is about, in seconds; None: all of it."""
        return None

    def seen(self, table: Table, row: Row, number: int, names: Mapping[str, str], root: Path | None) -> Pictures:
        name = self.video(row)
        path = self._found(name, root)
        if path is None:
            raise row.error(
                f"video {name!r} is not below {self._root(root).as_posix()}",
                "name the folder that holds the videos with video_root: FOLDER",
            )
        return VideoFrames(path, self._frames, f"task {self.name!r}: {row.place}", self.bounds(row))

    @property
    def _frames(self) -> int:
        return self.options.frames or self.frames

    def _root(self, root: Path | None) -> Path:
        return expanded(self.options.video_root) if self.options.video_root else root or Path()

    def _found(self, name: str, root: Path | None) -> Path | None:
        """The file, or the folder of frames, that ``name`` means.

        Raises:
            DataError: several have that name.
        """
        folder = self._root(root)
        direct = [folder / f"{name}{suffix}" for suffix in ("", *SUFFIXES)]
        exact = next((path for path in direct if path.exists()), None)
        if exact is not None:
            return exact
        known = self._index.setdefault(folder, _index(folder)) if folder not in self._index else self._index[folder]
        below = known.get(Path(name).name, [])
        if len(below) > 1:
            raise DataError(
                f"video {name!r} is there more than once ({below[0].as_posix()}, {below[1].as_posix()}); name the "
                "folder that holds one of them with video_root: FOLDER"
            )
        return below[0] if below else None

    @cached_property
    def _index(self) -> dict[Path, dict[str, list[Path]]]:
        return {}

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "frames": self._frames}

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "frames": self._frames}


def _index(folder: Path) -> dict[str, list[Path]]:
    """Videos and folders below ``folder`` by name; videos by their name without its ending, too."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        video = path.suffix.lower() in SUFFIXES
        if video or path.is_dir():
            for name in {path.name, path.stem if video else path.name}:
                found.setdefault(name, []).append(path)
    return found


def lettered(options: Sequence[str], shape: str) -> str:
    """Options, a line each, as ``shape`` writes letter and text."""
    return "\n".join(shape.format(letter, text) for letter, text in zip("ABCDEFGHIJ", options, strict=False))
