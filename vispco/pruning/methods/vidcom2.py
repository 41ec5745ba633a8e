"""VidCom2: more tokens for frames that are unlike the video, and of each frame those unlike frame and video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vispco.errors import ConfigError
from vispco.pruning.methods.base import METHODS, Method, ScoreContext
from vispco.pruning.methods.order import unit

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)


@METHODS.register("vidcom2")
@dataclass(frozen=True)
class VidCom2(Method):
    """Of the embeddings that enter the decoder the half of the channels with the least variance counts, at length 1.
    A token's familiarity with a centre is a sum of Gaussians of its distance to it. Frames that are less familiar with
    the video's centre get more of the tokens (a softmax at ``temperature``), and in each frame those stay that are
    least familiar with the centres of video and frame.

    Source: arXiv 2505.14454 and xuyang-liu16/VidCom2; its default is ``vidcom2:0.25``. Deviations: counts of frames are
    rounded by largest remainders so that they add up to the schedule's count (there each is rounded by itself, and what
    a full frame cannot take is lost); at later boundaries the rule is applied to what is left; a picture is one frame.
    """

    temperature: float = 0.01
    name: ClassVar[str] = "vidcom2"

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"method 'vidcom2' got temperature: {self.temperature}; it is above 0")

    def score(self, context: ScoreContext) -> Tensor:
        """How unfamiliar each token is with the centres of all that are left and of its frame."""
        import torch

        scores = torch.zeros(context.visual.shape, device=context.visual.device)
        for row, visual in enumerate(context.visual):
            at = visual.nonzero()[:, 0]
            if len(at):
                video, own = self._familiarity(context, row, at)
                scores[row, at] = -(video + own).to(scores.device)
        return scores

    def select(self, context: ScoreContext, scores: Tensor, keep: Tensor) -> Tensor:
        import torch

        chosen = torch.zeros_like(context.visual)
        for row, count in enumerate(keep.tolist()):
            at = context.visual[row].nonzero()[:, 0]
            if not len(at):
                continue
            frames = _frames(context, row, at)
            sizes = torch.bincount(frames)
            video = self._familiarity(context, row, at)[0].to(frames.device)
            unlike = -torch.zeros(len(sizes), device=video.device).index_add_(0, frames, video) / sizes
            counts = frame_counts(unlike, sizes, min(count, len(at)), self.temperature)
            for frame, stay in enumerate(counts):
                own = at[frames == frame]
                chosen[row, own[scores[row, own].argsort(descending=True, stable=True)[:stay]]] = True
        return chosen

    def _familiarity(self, context: ScoreContext, row: int, at: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [m] each: of tokens ``at`` [m] with the centre of all, and with that of their frame."""
        import torch

        embeddings = context.prompt.embeddings[row]
        values = embeddings[context.index[row, at].to(embeddings.device)].float()
        steady = values.var(dim=0, correction=0).argsort(stable=True)[: max(1, values.shape[1] // 2)]
        values, frames = unit(values[:, steady.sort().values]), _frames(context, row, at).to(values.device)
        sizes = torch.bincount(frames)
        centres = values.new_zeros(len(sizes), values.shape[1]).index_add_(0, frames, values) / sizes[:, None]
        return familiarity(values, values.mean(dim=0)), familiarity(values, centres[frames])


def familiarity(values: Tensor, centre: Tensor) -> Tensor:
    """float32 [n]: sum over widths a of ``exp(-d² / 2a)`` of the distance of [n, H] to ``centre`` [H] or [n, H]."""
    import torch

    squared = (values - centre).square().sum(dim=-1)
    return torch.stack([(-squared / (2 * width)).exp() for width in WIDTHS]).sum(dim=0)


def frame_counts(unlike: Tensor, sizes: Tensor, count: int, temperature: float = 0.01) -> list[int]:
    """How many of the ``sizes`` [F] tokens of each frame stay, ``count`` in all; ``unlike`` [F] as a frame's score.

    A frame's rate is ``min(1, r (1 + p - 1 / F))`` with p the softmax over frames; at least one token of each frame
    stays if there are enough.
    """
    import torch

    frames, limits = len(sizes), sizes.tolist()
    share = torch.softmax((unlike - unlike.max()) / temperature, dim=0)
    rates = (count / sum(limits) * (1 + share - 1 / frames)).clamp(max=1)
    ideal = (rates * sizes).tolist()
    counts = [min(limit, max(int(wish), int(count >= frames))) for wish, limit in zip(ideal, limits, strict=True)]
    while sum(counts) != count:
        step = 1 if sum(counts) < count else -1
        able = [f for f in range(frames) if (counts[f] < limits[f] if step > 0 else counts[f] > 0)]
        pick = max(able, key=lambda f: step * (ideal[f] - counts[f]))
        counts[pick] += step
    return counts


def _frames(context: ScoreContext, row: int, at: Tensor) -> Tensor:
    """int [m]: a number for the frame (of whichever picture) of each of the tokens ``at`` [m]."""
    places = context.prompt.coordinates[row, context.index[row, at]][:, :2]
    numbers: dict[tuple[int, ...], int] = {}
    return at.new_tensor([numbers.setdefault(tuple(place), len(numbers)) for place in places.tolist()])
