"""A split made ready once: prompts tokenised, visual features computed, fixed batches."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vispco.config import content_hash
from vispco.errors import DataError
from vispco.pruning.tokens import Prompt
from vispco.tasks.base import Sample, Task

if TYPE_CHECKING:
    from vispco.models.base import ModelAdapter
    from vispco.problem import Problem


@dataclass(frozen=True)
class Batch:
    """Samples ``rows`` of a split, left-padded; ``inputs`` are the processor's, without pixels."""

    rows: NDArray[np.int64]
    inputs: dict[str, Tensor]
    features: Tensor
    keys: list[int]

    def prompt(self, adapter: ModelAdapter) -> Prompt:
        """What the decoder will receive, without running it."""
        ids, valid = self.inputs["input_ids"], self.inputs["attention_mask"].bool()
        visual = adapter.visual_mask(ids, None)
        embeddings = adapter.model.get_input_embeddings()(ids.masked_fill(visual, 0))
        if len(self.features):
            embeddings = embeddings.masked_scatter(visual[..., None], self.features.to(embeddings))
        return Prompt(
            embeddings=embeddings,
            visual=visual & valid,
            valid=valid,
            read_coordinates=lambda: adapter.coordinates(self.inputs, visual),
            read_keys=lambda: self.keys,
        )


@dataclass(frozen=True)
class PreparedSplit:
    """Samples of one task and split; ``n_visual``, ``n_text`` int [S] count the prompt's tokens."""

    task: Task
    samples: list[Sample]
    batches: list[Batch]
    n_visual: NDArray[np.int64]
    n_text: NDArray[np.int64]

    @property
    def groups(self) -> list[str]:
        return [sample.group_id for sample in self.samples]

    @cached_property
    def digest(self) -> str:
        """Identity of the samples: ids, questions, answers, token counts, and the visual features themselves."""
        features = [batch.features.float().sum().item() for batch in self.batches]
        rows = [[s.id, s.group_id, s.question, s.answers] for s in self.samples]
        return content_hash([rows, self.n_visual.tolist(), self.n_text.tolist(), [f"{f:.6e}" for f in features]])


def render_prompt(processor: Any, sample: Sample) -> str:
    """The text the model reads: by the processor's chat template if it has one, else pictures then question."""
    if getattr(processor, "chat_template", None):
        content: list[dict[str, Any]] = [{"type": "image"} for _ in sample.images]
        content.append({"type": "text", "text": sample.question})
        text: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return text
    token = getattr(processor, "image_token", "<image>")
    return f"{token * len(sample.images)} {sample.question}".strip()


def prepare(
    problem: Problem, task: Task, split: str, *, batch_size: int | None = None, shuffle: int | None = None
) -> PreparedSplit:
    """Tokenise a split, encode its pictures, and cut it into fixed batches.

    Batches hold samples of similar length, or random ones drawn with the seed ``shuffle``. They depend on the
    split alone, so that a result never depends on what else was measured.
    """
    model, processor, adapter = problem.model, problem.processor, problem.adapter
    samples = task.samples(split)
    prompts = [render_prompt(processor, sample) for sample in samples]
    lengths = [len(processor.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    order = sorted(range(len(samples)), key=lambda i: (lengths[i], samples[i].id))
    if shuffle is not None:
        random.Random(shuffle).shuffle(order)
    n_visual, n_text = np.zeros(len(samples), dtype=np.int64), np.zeros(len(samples), dtype=np.int64)
    batches = []
    size = batch_size or problem.study.batch_size
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        images = [list(samples[row].images) for row in rows]
        try:
            inputs = processor(
                images=images if any(images) else None,
                text=[prompts[row] for row in rows],
                return_tensors="pt",
                padding=True,
                padding_side="left",
            ).to(model.device)
        except (ValueError, TypeError, OSError) as error:
            ids = ", ".join(samples[row].id for row in rows[:3])
            raise DataError(f"task {task.name!r}: cannot process samples {ids}, ...: {error}") from error
        values = dict(inputs)
        visual = adapter.visual_mask(values["input_ids"], None)
        n_visual[rows] = visual.sum(dim=1).cpu().numpy()
        n_text[rows] = (values["attention_mask"].bool() & ~visual).sum(dim=1).cpu().numpy()
        with torch.inference_mode():
            features = adapter.encode_images(values) if any(images) else torch.zeros(0)
        batches.append(
            Batch(
                rows=np.array(rows),
                inputs=adapter.with_features(values, torch.zeros(0)),
                features=features.clone(),
                keys=[zlib.crc32(samples[row].id.encode()) for row in rows],
            )
        )
    return PreparedSplit(task, samples, batches, n_visual, n_text)
