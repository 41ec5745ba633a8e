"""What the processor's call is given of samples: their pictures, or their frames as videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vispco.errors import ConfigError

if TYPE_CHECKING:
    from vispco.tasks.base import Sample


def check_shown(processor: Any, show: str) -> None:
    """Refuse videos where the family reads none.

    Raises:
        ConfigError: videos are to be shown to a processor of pictures.
    """
    if show == "video" and getattr(processor, "video_processor", None) is None:
        raise ConfigError(
            f"show: video: this model's processor ({type(processor).__name__}) takes no videos; show pictures, or use "
            "a model with a video processor, such as Qwen3-VL"
        )


def video_arguments(samples: Sequence[Sample], frames: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Arguments of a processor's call that show the frames of ``samples`` as one video each, all of them.

    Raises:
        ValueError: frames of one video differ in size.
    """
    import numpy as np

    videos, metadata = [], []
    for sample, pictures in zip(samples, frames, strict=True):
        if not pictures:
            continue
        if len({picture.size for picture in pictures}) > 1:
            raise ValueError("the frames of its video differ in size")
        times = sample.frame_times
        videos.append(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
        metadata.append(
            {
                "fps": times.rate,
                "frames_indices": list(times.numbers),
                "total_num_frames": times.total,
                "duration": times.total / times.rate,
            }
        )
    if not videos:
        return {}
    return {"videos": videos, "video_metadata": metadata, "videos_kwargs": {"do_sample_frames": False}}
