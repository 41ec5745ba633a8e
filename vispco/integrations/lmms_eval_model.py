"""lmms-eval's ``--model vispco``: any family, plain or pruned, on any of its tasks with pictures or videos."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, get_args

import torch
from lmms_eval.api.model import lmms
from torch import Tensor

from vispco.errors import ConfigError, DataError
from vispco.evaluation.pixels import limited
from vispco.evaluation.showing import check_shown, video_arguments
from vispco.integrations.lmms_eval_videos import frames_of, is_video
from vispco.models.families import adapter_for
from vispco.models.loading import load_model
from vispco.pruning.prune import install, prune
from vispco.tasks.base import PLACE, Sample, Show
from vispco.tasks.rendering import render_prompt

LONGEST = 1024  # tokens of an answer, where a task does not say


class VispcoModel(lmms):  # type: ignore[misc]
    """One model under one schedule.

    Args:
        pretrained: hub id, local folder, or ``demo``.
        schedule: a file of ``vispco export``, a published name or a schedule's text; None prunes nothing.
        method: defaults to the schedule's own, or FastV.
        dtype, attn_implementation: as in a study's model block.
        min_pixels, max_pixels: limits on the area of pictures; default: the processor's.
        show: videos as ``video``, by the model's own video processor, or their frames as ``pictures``.
        max_num_frames: how many frames of a video the model sees.
        batch_size, device, max_batch_size: what lmms-eval passes on.

    Raises:
        UserError: the model, the schedule or a setting cannot be used.
    """

    is_simple: ClassVar[bool] = True

    def __init__(
        self,
        pretrained: str,
        schedule: str | None = None,
        method: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str = "sdpa",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        show: Show = "video",
        max_num_frames: int = 32,
    ) -> None:
        super().__init__()
        if method is not None and schedule is None:
            raise ConfigError(f"method={method} says which tokens to drop, not how many; add schedule=best.json")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ConfigError(f"batch_size {batch_size!r}: vispco runs batches of a fixed size; give a number")
        if show not in get_args(Show):
            raise ConfigError(f"show={show}: videos are shown as video or as pictures; give one of the two")
        if max_num_frames < 1:
            raise ConfigError(f"max_num_frames={max_num_frames}: a video shows at least one frame")
        self.show, self.frames = show, max_num_frames
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.processor = load_model(
            pretrained, device=device, dtype=dtype, attn_implementation=attn_implementation
        )
        self.adapter = adapter_for(self.model)
        self.schedule = schedule.strip("'\"") if schedule is not None else None
        self.method = method
        self.batch_size = int(batch_size)
        self.limits = limited(self.processor, min_pixels, max_pixels)
        if self.schedule is not None:  # what is wrong with it is said before any data are loaded
            install(self.model, method=self.method, schedule=self.schedule).remove()

    @property
    def device(self) -> torch.device:
        found: torch.device = self.model.device
        return found

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @contextmanager
    def pruned(self, samples: Sequence[Sample]) -> Iterator[None]:
        """Within it the model prunes a batch of ``samples``, if there is a schedule."""
        if self.schedule is None:
            yield
            return
        with prune(self.model, method=self.method, schedule=self.schedule) as session:
            session.sample_keys = [zlib.crc32(sample.id.encode()) for sample in samples]
            yield

    # --- what lmms-eval asks -------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers in the order of the requests; (context, settings, doc_to_visual, doc_id, task, split) each."""
        found = [""] * len(requests)
        for numbers in self._batches(requests):
            settings = dict(requests[numbers[0]].args[1])
            texts = self._generate([self._sample(requests[number].args) for number in numbers], settings)
            for number, text in zip(numbers, texts, strict=True):
                found[number] = text
                context, given = requests[number].args[:2]
                self.cache_hook.add_partial("generate_until", (context, given), text)
        return found

    @torch.inference_mode()
    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(mean negative log-likelihood per token, whether it is the greedy continuation) of each continuation.

        The sign is that of lmms-eval's own models: its tasks take the smallest. The prompt alone is the prefill, so
        that a continuation is judged under the tokens that its generation would have had.
        """
        found = []
        for request in requests:
            context, target, visuals, doc_id, task, split = request.args
            if not isinstance(target, str):
                target = target(self.task_dict[task][split][doc_id])
            sample = self._sample((context, {}, visuals, doc_id, task, split))
            ids = self.tokenizer(target, add_special_tokens=False, return_tensors="pt")["input_ids"].to(self.device)
            if not ids.shape[1]:
                raise DataError(f"{sample.id}: the continuation {target!r} has no tokens; lmms-eval cannot rank it")
            found.append(self._judge(sample, ids.long()))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError(
            "vispco answers one question at a time; use another model for tasks of several rounds"
        )

    # --- how it is done ------------------------------------------------------------------------------

    def _batches(self, requests: Sequence[Any]) -> Iterator[list[int]]:
        """Numbers of requests with the same settings, as many as run together; long prompts first."""

        def settings(number: int) -> str:
            return repr(sorted(requests[number].args[1].items(), key=str))

        order = sorted(range(len(requests)), key=lambda i: (settings(i), -len(requests[i].args[0]), i))
        for _, same in itertools.groupby(order, key=settings):
            numbers = list(same)
            for start in range(0, len(numbers), self.batch_size):
                yield numbers[start : start + self.batch_size]

    def _sample(self, arguments: Sequence[Any]) -> Sample:
        context, _, visuals, doc_id, task, split = arguments
        shown = visuals(self.task_dict[task][split][doc_id]) or []
        wrong = [type(one).__name__ for one in shown if not (hasattr(one, "convert") or is_video(one))]
        if wrong:
            raise DataError(
                f"task {task!r} shows {wrong[0]}, and vispco takes pictures and videos only; choose another task"
            )
        videos, where = [is_video(one) for one in shown], f"task {task!r}: document {doc_id}"
        found = [frames_of(one, self.frames, where) if is_video(one) else [one.convert("RGB")] for one in shown]
        names = f"{task}/{split}/{doc_id}", f"{task}/{doc_id}"
        if self.show == "video" and any(videos):
            self._check_video(videos, where)
            return Sample(*names, found[0], context.replace(PLACE, "").strip(), (), show="video")
        pictures = [picture for part in found for picture in part]
        # A mark that stands for no picture is text: the processor would look for one.
        text = context if context.count(PLACE) == len(pictures) else context.replace(PLACE, "").strip()
        return Sample(*names, pictures, text, ())

    def _check_video(self, videos: Sequence[bool], where: str) -> None:
        check_shown(self.processor, self.show)
        if len(videos) > 1:
            raise DataError(
                f"{where} shows {sum(videos)} of its {len(videos)} visuals as videos, and a prompt may have one video "
                "and nothing beside it; add show=pictures"
            )
        if self.limits:
            raise ConfigError(f"{where}: min_pixels and max_pixels are for pictures; remove them, or add show=pictures")

    def _inputs(self, samples: Sequence[Sample]) -> Mapping[str, Any]:
        videos = [sample for sample in samples if sample.show == "video"]
        images = [[] if sample.show == "video" else list(sample.images) for sample in samples]
        try:
            inputs: Mapping[str, Any] = self.processor(
                images=images if any(images) else None,
                text=[render_prompt(self.processor, sample) for sample in samples],
                return_tensors="pt",
                padding=True,
                padding_side="left",
                **video_arguments(videos, [list(sample.images) for sample in videos]),
                **self.limits,
            ).to(self.device)
        except ValueError as error:
            names = ", ".join(sample.id for sample in samples)
            raise DataError(f"{names}: the processor refuses what is shown: {' '.join(str(error).split())}") from error
        return inputs

    def _generate(self, samples: Sequence[Sample], settings: dict[str, Any]) -> list[str]:
        stops = _stops(settings.pop("until", None))
        heat = float(settings.get("temperature") or 0) if settings.get("do_sample", True) else 0.0
        inputs = self._inputs(samples)
        with torch.inference_mode(), self.pruned(samples):
            tokens = self.model.generate(
                **inputs,
                max_new_tokens=int(settings.get("max_new_tokens") or LONGEST),
                num_beams=int(settings.get("num_beams") or 1),
                do_sample=heat > 0,
                **({"temperature": heat, "top_p": settings.get("top_p")} if heat > 0 else {}),
            )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [_until(text, stops) for text in texts]

    def _judge(self, sample: Sample, ids: Tensor) -> tuple[float, bool]:
        inputs = self._inputs([sample])
        with self.pruned([sample]):
            out = self.model(**inputs, use_cache=True, logits_to_keep=1)
            logits = out.logits[:, -1:]
            if ids.shape[1] > 1:
                given = ids[:, :-1]
                mask = torch.cat([inputs["attention_mask"], torch.ones_like(given)], dim=1)
                more = self.model(
                    input_ids=given,
                    attention_mask=mask,
                    past_key_values=out.past_key_values,
                    use_cache=True,
                    **self.adapter.decoding_inputs(mask, given.shape[1]),
                ).logits
                logits = torch.cat([logits, more], dim=1)
        logs = logits.float().log_softmax(dim=-1)
        loss = -logs.gather(2, ids[..., None]).mean()
        return float(loss), bool((logits.argmax(dim=-1) == ids).all())


def _stops(until: str | Sequence[str] | None) -> list[str]:
    """Without a blank line: lmms-eval gives it to every task that names no end, and its own models ignore it there."""
    return [stop for stop in ([until] if isinstance(until, str) else until or ()) if stop != "\n\n"]


def _until(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the first of ``stops``."""
    ends = [text.index(stop) for stop in stops if stop and stop in text]
    return text[: min(ends)] if ends else text
