"""A split made ready once: prompts tokenised, visual features computed, fixed batches."""

from __future__ import annotations

import hashlib
import itertools
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vispco.config import content_hash
from vispco.errors import ConfigError, DataError, ModelError, shortened
from vispco.evaluation.content import picture_key, sample_rows
from vispco.evaluation.pixels import limited
from vispco.evaluation.showing import check_shown, video_arguments
from vispco.models.resolution import rescaled
from vispco.pruning.forward.tokens import Prompt
from vispco.tasks.base import Sample, Task
from vispco.tasks.rendering import render_prompt

if TYPE_CHECKING:
    from vispco.models.base import ModelAdapter
    from vispco.models.vision import VisionExtras
    from vispco.problem import Problem
    from vispco.pruning.methods.base import Method


@dataclass(frozen=True)
class Batch:
    """Samples ``rows`` of a split, left-padded; ``inputs`` are the processor's, without pixels.

    ``pictures``: keys of each sample's pictures by their content (:func:`vispco.evaluation.content.picture_key`).
    ``read_vision`` runs the vision tower again, for methods that read it (with True, its middle layer too); few do, and
    what they read is large.
    ``read_inputs``: the processor's inputs with pixels, for beams. ``names``: the samples' ids.
    """

    rows: NDArray[np.int64]
    inputs: dict[str, Tensor]
    features: Tensor
    keys: list[int]
    pictures: list[list[str]] = field(default_factory=list)
    read_vision: Callable[[bool], VisionExtras] | None = None
    read_inputs: Callable[[], dict[str, Tensor]] = dict
    names: list[str] = field(default_factory=list)

    @cached_property
    def _vision(self) -> VisionExtras | None:
        return self.read_vision(False) if self.read_vision is not None and len(self.features) else None

    @cached_property
    def _vision_with_middle(self) -> VisionExtras | None:
        return self.read_vision(True) if self.read_vision is not None and len(self.features) else None

    def vision_for(self, method: Method) -> VisionExtras | None:
        """What ``method`` may read of the vision tower, once for all policies; None if it reads nothing there."""
        if "middle" in method.needs:
            return self._vision_with_middle
        return self._vision if "vision" in method.needs else None

    def prompt(self, adapter: ModelAdapter) -> Prompt:
        """What the decoder will receive, without running it."""
        ids, valid = self.inputs["input_ids"], self.inputs["attention_mask"].bool()
        visual = adapter.visual_mask(ids, None)
        embeddings = adapter.model.get_input_embeddings()(ids.masked_fill(visual, 0))
        if len(self.features):
            first = self.features[:, : embeddings.shape[-1]]
            embeddings = embeddings.masked_scatter(visual[..., None], first.to(embeddings))
        return Prompt(
            embeddings=embeddings,
            visual=visual & valid,
            valid=valid,
            read_coordinates=lambda: adapter.coordinates(self.inputs, visual),
            read_keys=lambda: self.keys,
        )


@dataclass(frozen=True)
class PreparedSplit:
    """Samples of one task and split; ``n_visual``, ``n_text`` int [S] count the prompt's tokens.

    ``place`` int [S]: each sample's place in one random order of all tasks' samples. ``looks``: numbers of batches
    after which a block of that order is complete (:func:`block_ends`, one for all tasks); the last is all.
    """

    task: Task
    samples: list[Sample]
    batches: list[Batch]
    place: NDArray[np.int64]
    looks: list[int]
    n_visual: NDArray[np.int64]
    n_text: NDArray[np.int64]

    @cached_property
    def lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Distinct pairs (visual [U], text [U]) and each sample's pair [S]."""
        pairs, which = np.unique(np.stack([self.n_visual, self.n_text]), axis=1, return_inverse=True)
        return pairs[0], pairs[1], which.reshape(-1)

    @property
    def groups(self) -> list[str]:
        return [sample.group_id for sample in self.samples]

    @cached_property
    def pictures(self) -> list[list[str]]:
        """Keys of each sample's pictures by their content, in the order of the samples."""
        found: list[list[str]] = [[] for _ in self.samples]
        for batch in self.batches:
            for row, keys in zip(batch.rows.tolist(), batch.pictures, strict=True):
                found[row] = keys
        return found

    @cached_property
    def tokens(self) -> list[int]:
        """Checksums of the tokens that are read, in the order of the samples."""
        sums = [0] * len(self.samples)
        for batch in self.batches:
            masks = batch.inputs["attention_mask"]
            for row, ids, valid in zip(batch.rows.tolist(), batch.inputs["input_ids"], masks, strict=True):
                sums[row] = zlib.crc32(np.ascontiguousarray(ids[valid.bool()].cpu().numpy()).tobytes())
        return sums

    @cached_property
    def digest(self) -> str:
        """Identity of the samples: all that they say, their pictures, the tokens that are read, and the features."""
        features = [f"{batch.features.float().sum().item():.6e}" for batch in self.batches]
        order = [batch.rows.tolist() for batch in self.batches]
        read = [self.n_visual.tolist(), self.n_text.tolist(), self.tokens, self.pictures]
        return content_hash([sample_rows(self.samples), order, read, features])


def check_prunable(problem: Problem, parts: Sequence[PreparedSplit]) -> None:
    """Refuse a task whose pictures leave no visual token in any prompt: nothing of them could be pruned.

    Raises:
        ModelError: names the token that the model's configuration takes for a visual one.
    """
    for part in parts:
        if not part.n_visual.any() and any(sample.images for sample in part.samples):
            tokens = ", ".join(map(str, problem.adapter.visual_token_ids()))
            raise ModelError(
                f"nothing can be pruned on task {part.task.name!r}: no prompt of a sample with a picture has a visual "
                f"token (number {tokens} by the model's configuration); correct image_token_id in config.json, or take "
                "the processor that belongs to the model"
            )


UNREAD = 1 / 3  # of a task's words; a tokenizer that knows parts of words has none


def unread(problem: Problem, parts: Sequence[PreparedSplit]) -> str:
    """One line about the first task of whose prompts the tokenizer does not know many words; "" where there is none."""
    tokenizer = problem.processor.tokenizer
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None:
        return ""
    marks = {*getattr(tokenizer, "all_special_ids", ())} - {unknown} | {*problem.adapter.visual_token_ids()}
    for part in parts:
        read = torch.cat([batch.inputs["input_ids"][batch.inputs["attention_mask"].bool()] for batch in part.batches])
        words = read[~torch.isin(read, torch.tensor(sorted(marks), device=read.device))]
        share = int((words == unknown).sum()) / max(1, len(words))
        if share >= UNREAD:
            return (
                f"task {part.task.name!r}: the model's tokenizer does not know {share:.0%} of the words in prompts, "
                "so answers mean little; leave out what is written around questions (post_prompt: ''), or take a model "
                "that reads them"
            )
    return ""


FIRST_BLOCK, LARGEST_BLOCK = 128, 256


def block_ends(samples: int) -> list[int]:
    """Where the blocks of a random order end: after 128 samples, 256, 384, 512, and then every 256.

    >>> block_ends(1000), block_ends(100)
    ([128, 256, 384, 512, 768, 1000], [100])
    """
    ends = [
        end for end in (*range(FIRST_BLOCK, 512, FIRST_BLOCK), *range(512, samples, LARGEST_BLOCK)) if end < samples
    ]
    return [*ends, samples]


def random_places(names: Sequence[str]) -> NDArray[np.int64]:
    """Place of each of the distinct ``names`` in a random order that follows from the names alone."""
    order = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode()).digest())
    places = np.empty(len(names), dtype=np.int64)
    places[order] = np.arange(len(names))
    return places


def prepare_split(problem: Problem, split: str) -> list[PreparedSplit]:
    """The samples of all tasks on ``split``.

    They are put in one random order and cut into blocks; a batch holds samples of one task, of one block, and of
    similar length. So a race may look at the first blocks as at a random part of the split, and a result never
    depends on what else was measured.
    """
    samples = [task.samples(split) for task in problem.tasks]
    names = [f"{task.name}/{split}/{s.id}" for task, part in zip(problem.tasks, samples, strict=True) for s in part]
    places = np.split(random_places(names), np.cumsum([len(part) for part in samples])[:-1])
    ends = block_ends(len(names))
    parts = []
    for task, part, place in zip(problem.tasks, samples, places, strict=True):
        blocks: list[list[int]] = [[] for _ in ends]
        for row, block in enumerate(np.searchsorted(ends, place, side="right").tolist()):
            blocks[block].append(row)
        parts.append(_prepare(problem, task, part, blocks, place, problem.study.batch_size))
    return parts


def prepare(
    problem: Problem, task: Task, split: str, *, batch_size: int | None = None, shuffle: int = 0, most: int = 0
) -> PreparedSplit:
    """One task's samples in random batches drawn with the seed ``shuffle``; ``most``: how many at most, 0 for all."""
    samples = task.samples(split)
    lengths = _lengths(problem, samples)
    rows = sorted(range(len(samples)), key=lambda row: (lengths[row], samples[row].id))
    random.Random(shuffle).shuffle(rows)
    if most:
        samples = [samples[row] for row in rows[:most]]
        rows = list(range(len(samples)))
    place = np.empty(len(rows), dtype=np.int64)
    place[rows] = np.arange(len(rows))
    return _prepare(problem, task, samples, [rows], place, batch_size or problem.study.batch_size, by_length=False)


def _lengths(problem: Problem, samples: Sequence[Sample]) -> list[int]:
    return [_length(problem, sample) for sample in samples]


def _length(problem: Problem, sample: Sample) -> int:
    prompt = render_prompt(problem.processor, sample)
    try:
        return len(problem.processor.tokenizer(prompt)["input_ids"])
    except (ValueError, TypeError) as error:  # such as a lone surrogate, which JSON may hold
        raise DataError(
            f"sample {sample.id!r}: the model's tokenizer refuses its text {shortened(prompt)}: {_one_line(error)}; "
            "correct it, or remove it"
        ) from error


def _prepare(
    problem: Problem,
    task: Task,
    samples: list[Sample],
    blocks: list[list[int]],
    place: NDArray[np.int64],
    size: int,
    by_length: bool = True,
) -> PreparedSplit:
    """Tokenise samples, encode their pictures, and cut each block of rows into batches."""
    prompts = [render_prompt(problem.processor, sample) for sample in samples]
    if by_length:
        lengths = _lengths(problem, samples)
        for block in blocks:
            block.sort(key=lambda row: (lengths[row], samples[row].id))
    cut = [[block[start : start + size] for start in range(0, len(block), size)] for block in blocks]
    batches = [make_batch(problem, task, samples, prompts, rows) for rows in itertools.chain(*cut)]
    n_visual, n_text = np.zeros(len(samples), dtype=np.int64), np.zeros(len(samples), dtype=np.int64)
    for batch in batches:
        visual = problem.adapter.visual_mask(batch.inputs["input_ids"], None)
        n_visual[batch.rows] = visual.sum(dim=1).cpu().numpy()
        n_text[batch.rows] = (batch.inputs["attention_mask"].bool() & ~visual).sum(dim=1).cpu().numpy()
    looks = list(itertools.accumulate(len(part) for part in cut))
    return PreparedSplit(task, samples, batches, place, looks, n_visual, n_text)


def make_batch(
    problem: Problem, task: Task, samples: Sequence[Sample], prompts: Sequence[str], rows: Sequence[int]
) -> Batch:
    """Samples ``rows`` of a split as one batch.

    Raises:
        DataError: the processor cannot read a sample.
    """
    adapter = problem.adapter
    images = [list(samples[row].images) for row in rows]
    values = _processed(problem, task, samples, prompts, rows, images)
    with torch.inference_mode():
        shown = any(images)
        features = adapter.encode_images(values) if shown else torch.zeros(0)

    def pictures_again() -> list[list[Any]]:
        return [list(samples[row].images) for row in rows]

    def read_vision(middle: bool) -> VisionExtras:
        with torch.inference_mode():
            again = _processed(problem, task, samples, prompts, rows, pictures_again())
            return adapter.encode_with_extras(again, middle)[1]

    return Batch(
        rows=np.array(rows),
        inputs=adapter.with_features(values, torch.zeros(0)),
        features=features.clone(),
        keys=[sample_key(problem, task, samples[row]) for row in rows],
        pictures=[[picture_key(picture) for picture in shown] for shown in images],
        read_vision=read_vision,
        read_inputs=lambda: _processed(problem, task, samples, prompts, rows, pictures_again()),
        names=[samples[row].id for row in rows],
    )


def sample_key(problem: Problem, task: Task, sample: Sample) -> int:
    """What seeded methods tell samples apart by. An id is known in its task only; a study of one task has the keys that
    it always had."""
    return zlib.crc32((f"{task.name}/{sample.id}" if len(problem.tasks) > 1 else sample.id).encode())


def vision_flops(problem: Problem, split: str = "search") -> float:
    """FLOPs of the vision tower and projector per visual token, counted on the split's first picture; 0 without any."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for task in problem.tasks:
        samples = task.samples(split)
        row = next((row for row, sample in enumerate(samples) if sample.images), None)
        if row is None:
            continue
        prompt = {row: render_prompt(problem.processor, samples[row])}
        values = _processed(problem, task, samples, prompt, [row], [list(samples[row].images)])
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), _countable(problem.adapter.model), sdpa_kernel(SDPBackend.MATH), counter:
            features = problem.adapter.encode_images(values)
        return float(counter.get_total_flops() / len(features))
    return 0.0


@contextmanager
def _countable(model: Any) -> Iterator[None]:
    """Inside, attention is made of operations that torch counts: of a flash kernel, or one of somebody's own, it sees
    nothing."""
    from transformers import PreTrainedConfig

    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    before = {id(one): (one, one._attn_implementation) for one in configs if isinstance(one, PreTrainedConfig)}
    try:
        for one, name in before.values():
            if name not in (None, "eager", "sdpa"):
                one._attn_implementation = {"": "sdpa"}  # of a mapping, parts that it does not name keep theirs
        yield
    finally:
        for one, name in before.values():  # from the outside in
            one._attn_implementation = {"": name}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _at_resolution(problem: Problem, images: Sequence[list[Any]]) -> tuple[list[list[Any]], dict[str, Any]]:
    """Pictures of each sample, and arguments of the processor's call, at the study's resolution."""
    flat, sizes = rescaled(
        problem.processor, [image for row in images for image in row], problem.study.model.resolution
    )
    pictures = iter(flat)
    return [[next(pictures) for _ in row] for row in images], sizes


def _shown(problem: Problem, task: Task, samples: Sequence[Sample], images: Sequence[list[Any]]) -> dict[str, Any]:
    """Arguments of the processor's call that show ``images`` of ``samples``."""
    if task.show == "video":
        check_shown(problem.processor, task.show)
        if problem.study.model.resolution != 1:
            raise ConfigError("a resolution is for pictures and does not go with show: video; leave one of the two")
        return video_arguments(samples, images)
    scaled, sizes = _at_resolution(problem, images)
    limits = limited(problem.processor, *task.pixels)
    if limits and sizes:
        raise ConfigError("min_pixels and max_pixels do not go with a resolution; give one of the two")
    return {"images": scaled if any(scaled) else None, **limits, **sizes}


def _processed(
    problem: Problem,
    task: Task,
    samples: Sequence[Sample],
    prompts: Sequence[str] | Mapping[int, str],
    rows: Sequence[int],
    images: Sequence[list[Any]],
) -> dict[str, Tensor]:
    """What the processor makes of samples ``rows`` with ``images``, pixels included."""
    try:
        inputs = problem.processor(
            text=[prompts[row] for row in rows],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            **_shown(problem, task, [samples[row] for row in rows], images),
        ).to(problem.model.device)
    except ConfigError as error:
        raise ConfigError(f"task {task.name!r}: {error}") from None
    except (ValueError, TypeError, OSError) as error:
        if len(rows) > 1:  # whichever it is will say so by itself
            for row, shown in zip(rows, images, strict=True):
                _processed(problem, task, samples, prompts, [row], [shown])
        where = getattr(samples[rows[0]].images, "where", f"task {task.name!r}: sample {samples[rows[0]].id!r}")
        raise DataError(
            f"{where}: the model's processor refuses it: {_one_line(error)}; change the picture or text, or remove it"
        ) from error
    return dict(inputs)
