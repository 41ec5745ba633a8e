"""Training of the official VisPCO code: samples, loss, multiplier updates, learning rate, stopping rule.

    Loss = 1000 KL(teacher || student) - 0.1 w c + sigma c^2,   c = sum over the batch of (target - actual)
    target = min + b (max - min),   actual = sum over layers of F(N_t + N_v r_i),   in tera-multiply-adds

``min`` counts the text alone, ``max`` all tokens. Sample i of the data set always has budget b = BUDGETS[i mod 20].
Once per epoch, with c_t the mean over the validation samples: sigma <- alpha sigma if |c_t| >= beta |c_(t-1)|, then
w <- w - sigma c_t. Training ends after a number of epochs, or when the history has more than four entries and the last
three are below epsilon. Source: JHW5981/VisPCO; what is kept of it and what is mended is listed in README.md.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vispco.costs import official_layer_macs, plain_flops
from vispco.errors import DataError
from vispco.evaluation.prepared import Batch, prepare
from vispco.official.predictor import Kernel, RatioPredictor
from vispco.official.relaxed import official_relaxed

if TYPE_CHECKING:
    from vispco.problem import Problem

BUDGETS = (0.01, *(twentieth / 20 for twentieth in range(1, 20)))
TERA = 1e12
KL_WEIGHT, MULTIPLIER_WEIGHT = 1000.0, 0.1
STUDENT_PASSES = 3  # a backward pass is charged at twice its forward


@dataclass(frozen=True)
class Hyperparameters:
    """The letters of the official code; ``temperature`` is the paper's T, ``warmup`` a share of all steps."""

    w: float
    sigma: float
    alpha: float
    epsilon: float
    beta: float
    epochs: int
    learning_rate: float
    min_learning_rate: float
    warmup: float
    weight_decay: float
    batch: int
    temperature: float = 0.1


@dataclass
class Multipliers:
    """``w`` and ``sigma``, and the history of the constraint; the first entry is there before training."""

    w: float
    sigma: float
    alpha: float
    beta: float
    history: list[float] = field(default_factory=list)

    def update(self, c: float) -> None:
        """Once per epoch: penalty first, then the multiplier with the new penalty."""
        before, self.history = self.history[-1], [*self.history, c]
        # The tensors of the official code divide by zero without an error: 0 / 0 compares as false.
        if abs(c) >= self.beta * abs(before) and (c or before):
            self.sigma *= self.alpha
        self.w -= self.sigma * c

    def converged(self, epsilon: float) -> bool:
        """More than four entries, the last three below ``epsilon``."""
        return len(self.history) > 4 and all(abs(c) < epsilon for c in self.history[-3:])


def learning_rate(step: int, steps: int, settings: Hyperparameters) -> float:
    """Linear warm-up from 0, both ends included, then a cosine down to the minimum, per step."""
    warm = int(settings.warmup * steps)
    if step < warm:
        return settings.learning_rate * step / max(1, warm - 1)
    place = (step - warm) / max(1, steps - warm)
    spread = settings.learning_rate - settings.min_learning_rate
    return settings.min_learning_rate + spread * (1 + math.cos(math.pi * place)) / 2


@dataclass(frozen=True)
class Example:
    """One sample: its prompt without padding, the tokens of its first gold answer, and the end token and newline."""

    prompt: Batch
    answer: list[int]
    end: list[int]
    budget: float

    @property
    def length(self) -> int:
        return int(self.prompt.inputs["input_ids"].shape[1]) + len(self.answer) + len(self.end)


def examples(problem: Problem, seed: int, validation: float) -> tuple[list[Example], list[Example]]:
    """The calibration split in random order, cut into training samples and, at the end, validation samples.

    Raises:
        DataError: a sample has no answer.
    """
    tokenizer, found = problem.processor.tokenizer, []
    stop = problem.model.generation_config.eos_token_id
    end = [] if stop is None else [stop[0] if isinstance(stop, list) else int(stop)]
    line = tokenizer("\n", add_special_tokens=False)["input_ids"]
    end += [token for token in line if token != tokenizer.unk_token_id]
    for task in problem.calibration_tasks:
        part = prepare(problem, task, "calibration", batch_size=1, shuffle=seed)
        for prompt in part.batches:
            sample = part.samples[int(prompt.rows[0])]
            answer = tokenizer(sample.answers[0], add_special_tokens=False)["input_ids"] if sample.answers else []
            if not answer:
                raise DataError(
                    f"task {task.name!r}: sample {sample.id!r} has no answer, and the official training reads it; "
                    "use kind 'lagrangian', which does not"
                )
            found.append((prompt, answer))
    random.Random(f"vispco_official/{seed}").shuffle(found)
    held = min(max(1, round(validation * len(found))), max(1, len(found) - 1))
    parts = found[:-held] or found, found[-held:]
    training, held_back = (
        [Example(prompt, answer, end, BUDGETS[i % len(BUDGETS)]) for i, (prompt, answer) in enumerate(part)]
        for part in parts
    )
    return training, held_back


@dataclass(frozen=True)
class Collated:
    """Examples as one batch, padded on the right, N tokens long.

    ``visual``, ``valid``, ``answers``: bool [B, N]; ``answers`` are the places of the answers with their ends.
    """

    batch: Batch
    visual: Tensor
    valid: Tensor
    answers: Tensor
    budgets: list[float]

    @property
    def n_visual(self) -> Tensor:
        """[B]."""
        return self.visual.sum(dim=1)

    @property
    def n_text(self) -> Tensor:
        """[B]: everything else but padding."""
        return self.valid.sum(dim=1) - self.n_visual


def collate(problem: Problem, chosen: Sequence[Example], *, answered: bool = True) -> Collated:
    """Prompts, with ``answered`` followed by answer and end."""
    rows = [example.prompt.inputs["input_ids"][0] for example in chosen]
    behind = [[*example.answer, *example.end] if answered else [] for example in chosen]
    length = max(len(row) + len(more) for row, more in zip(rows, behind, strict=True))
    values: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for example in chosen for name in example.prompt.inputs):
        # Samples without a picture have no grids.
        having = [example.prompt.inputs for example in chosen if name in example.prompt.inputs]
        parts, first = [inputs[name] for inputs in having], having[0][name]
        if first.shape != having[0]["input_ids"].shape:
            values[name] = torch.cat(parts)
            continue
        pad = problem.processor.tokenizer.pad_token_id if name == "input_ids" else None
        values[name] = first.new_full((len(chosen), length), pad or 0)
        for number, part in enumerate(parts):
            values[name][number, : part.shape[1]] = part[0]
    answers = torch.zeros(len(chosen), length, dtype=torch.bool, device=rows[0].device)
    for number, (row, more) in enumerate(zip(rows, behind, strict=True)):
        new = slice(len(row), len(row) + len(more))
        values["input_ids"][number, new] = torch.tensor(more, dtype=row.dtype, device=row.device)
        values["attention_mask"][number, new] = 1
        if answered:
            answers[number, new] = True
    features = torch.cat([example.prompt.features for example in chosen])
    keys = [key for example in chosen for key in example.prompt.keys]
    batch = Batch(chosen[0].prompt.rows, values, features, keys)
    valid = values["attention_mask"].bool()
    visual = problem.adapter.visual_mask(values["input_ids"], None) & valid
    return Collated(batch, visual, valid, answers, [example.budget for example in chosen])


class OfficialTraining:
    """One training run. ``charged`` counts every FLOP, the teacher's forward in each step included.

    ``unpruned``: what the mean training sample costs unpruned, in tera-multiply-adds of the official count.

    ``dtype``, in which the predictor and all budget arithmetic run, is the model's (float32 for float16 models).

    Args:
        validation: share of the calibration split whose mean constraint moves the multipliers.
        shift: distil the prediction of each answer token; the official code distils what is predicted after it.
        full_tflops: count in units in which the mean training sample, unpruned, has so many; None: 1e12.
    """

    def __init__(
        self,
        problem: Problem,
        kernel: Kernel,
        settings: Hyperparameters,
        seed: int,
        *,
        validation: float = 0.1,
        shift: bool = False,
        full_tflops: float | None = None,
    ) -> None:
        self.problem, self.kernel, self.settings, self.seed, self.shift = problem, kernel, settings, seed, shift
        self.shape, self.device = problem.shape, problem.model.device
        self.dtype = torch.bfloat16 if problem.adapter.dtype() == torch.bfloat16 else torch.float32
        self.training, self.validation = examples(problem, seed, validation)
        self.multipliers = Multipliers(settings.w, settings.sigma, settings.alpha, settings.beta)
        self.trajectory: list[dict[str, Any]] = []
        self.charged = 0
        self.stopped = "epochs"
        macs = [official_layer_macs(self.shape, example.length) for example in self.training]
        self.unpruned = self.shape.layers * sum(macs) / len(macs) / TERA
        self.unit = TERA if full_tflops is None else TERA * self.unpruned / full_tflops
        with self._seeded():
            self.predictor = RatioPredictor(self.shape.hidden, kernel.size).to(self.device, self.dtype)

    # --- the constraint --------------------------------------------------------------------------

    def bounds(self, data: Collated) -> tuple[Tensor, Tensor]:
        """The official count [B] of the text alone and of all tokens, rounded to bfloat16 in any model's dtype."""
        found = []
        for tokens in (data.n_text, data.n_text + data.n_visual):
            macs = self.shape.layers * official_layer_macs(self.shape, tokens.double().cpu()) / self.unit
            found.append(macs.to(torch.bfloat16).to(self.device, self.dtype))
        return found[0], found[1]

    def target(self, data: Collated, budgets: Tensor) -> Tensor:
        """[B] for ``budgets`` [B]: between the text alone and all tokens."""
        least, most = self.bounds(data)
        return least + (most - least) * budgets

    def actual(self, data: Collated, ratios: Tensor) -> Tensor:
        """[B] for keep ``ratios`` [B, L]; differentiable. Every step is rounded to the dtype of ``ratios``."""
        kept = (data.n_visual.float()[:, None] * ratios.float()).to(ratios.dtype)
        tokens = (data.n_text.float()[:, None] + kept.float()).to(ratios.dtype)
        hidden, products = self.shape.hidden, tokens * tokens * self.shape.hidden
        attention = 3 * tokens * hidden * hidden + products + products + tokens * hidden * hidden
        layers = (attention + 2 * tokens * hidden * self.shape.mlp) / self.unit
        return reduce(torch.add, layers.unbind(dim=1))

    def code(self, data: Collated, budgets: Tensor) -> Tensor:
        """What the predictor reads for ``budgets`` [B]: the target's place in its range, [B]; 0 without a range."""
        least, most = self.bounds(data)
        place = torch.clamp(self.target(data, budgets), least, most) - least
        return place / torch.where(most > least, most - least, torch.ones_like(most))

    def constraint(self) -> tuple[float, float]:
        """Signed mean over the validation samples, one by one, and its share of the mean target."""
        self.predictor.eval()
        targets, actuals = [], []
        with torch.no_grad():
            for example in self.validation:
                data = collate(self.problem, [example], answered=False)
                ratios, budgets = self._ratios(data)
                targets.append(float(self.target(data, budgets)))
                actuals.append(float(self.actual(data, ratios)))
        c = (sum(targets) - sum(actuals)) / len(targets)
        return c, -c * len(targets) / sum(targets)

    def _ratios(self, data: Collated) -> tuple[Tensor, Tensor]:
        """Keep ratios [B, L] and budgets [B]; the mean over tokens takes the padding in, as the official code does."""
        with torch.no_grad():
            embeddings = data.batch.prompt(self.problem.adapter).embeddings.to(self.dtype)
        budgets = torch.tensor(data.budgets, dtype=self.dtype, device=self.device)
        self.charged += self.predictor.flops(embeddings.shape[1]) * len(embeddings)
        return self.kernel.ratios(self.kernel.values(self.predictor(embeddings, self.code(data, budgets)))), budgets

    # --- training --------------------------------------------------------------------------------

    def run(self, advance: Callable[[int, int, str], None] = lambda done, total, note: None) -> None:
        """Train until the last epoch, convergence, or a loss or gradient that is not finite."""
        settings = self.settings
        rng = random.Random(f"vispco_official/{self.seed}/order")
        optimizer = torch.optim.AdamW(self._groups())
        per_epoch = -(-len(self.training) // settings.batch)
        steps, step = per_epoch * settings.epochs, 0
        with self._seeded(1), _frozen(self.problem.model):
            self.multipliers.history = [self.constraint()[0]]
            for epoch in range(settings.epochs):
                self.predictor.train()
                order, losses = rng.sample(self.training, len(self.training)), []
                for start in range(0, len(order), settings.batch):
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(step, steps, settings)
                    loss = self._step(collate(self.problem, order[start : start + settings.batch]), optimizer)
                    if loss is None:
                        self.stopped = "diverged"
                        break
                    losses.append(loss)
                    step += 1
                c, violation = self.constraint()
                if self.stopped != "diverged":
                    self.multipliers.update(c)
                self.trajectory.append(
                    {
                        "loss": sum(losses) / max(1, len(losses)),
                        "violation": violation,
                        "multiplier": self.multipliers.w,
                        "penalty": self.multipliers.sigma,
                        "constraint": c,
                    }
                )
                advance(epoch + 1, settings.epochs, f"training, {violation:+.3f} from the target")
                if self.stopped == "diverged":
                    return
                if self.multipliers.converged(settings.epsilon):
                    self.stopped = "converged"
                    return

    def _groups(self) -> list[dict[str, Any]]:
        """Weights decay, biases and other one-dimensional parameters do not."""
        decayed = [parameter for parameter in self.predictor.parameters() if parameter.dim() > 1]
        others = [parameter for parameter in self.predictor.parameters() if parameter.dim() == 1]
        decay = self.settings.weight_decay
        return [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]

    def _step(self, data: Collated, optimizer: torch.optim.Optimizer) -> float | None:
        """One optimiser step; its loss, or None if nothing was changed since something is not finite."""
        loss = self.loss(data)
        parameters = list(self.predictor.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        if not all(bool(torch.isfinite(found).all()) for found in (loss.detach(), *gradients)):
            return None
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    def loss(self, data: Collated) -> Tensor:
        """Of one batch; charges the teacher's forward, and forward and backward of student and predictor."""
        before = self.charged
        ratios, budgets = self._ratios(data)
        self.charged += (STUDENT_PASSES - 1) * (self.charged - before)
        tokens = data.valid.sum(dim=1).tolist()
        plain = sum(int(plain_flops(self.shape, n)) for n in tokens)
        self.charged += (1 + STUDENT_PASSES) * plain
        wanted = data.answers.roll(-1, dims=1) if self.shift else data.answers
        places = wanted.any(dim=0).nonzero()[:, 0]
        with torch.no_grad():
            teacher = self._logits(data, places).log_softmax(dim=-1)
        with official_relaxed(
            self.problem.adapter, ratios, data.visual, data.valid, temperature=self.settings.temperature
        ):
            student = self._logits(data, places).log_softmax(dim=-1)
        each = (teacher.exp() * (teacher - student)).sum(dim=-1)
        c = (self.target(data, budgets) - self.actual(data, ratios)).sum()
        multipliers = self.multipliers
        return (
            KL_WEIGHT * each[wanted[:, places]].mean()
            - MULTIPLIER_WEIGHT * multipliers.w * c
            + multipliers.sigma * c**2
        )

    def _logits(self, data: Collated, places: Tensor) -> Tensor:
        """float32 [B, len(places), V]."""
        inputs = self.problem.adapter.with_features(data.batch.inputs, data.batch.features)
        logits: Tensor = self.problem.model(**inputs, use_cache=False, logits_to_keep=places).logits
        return logits.float()

    @contextmanager
    def _seeded(self, stage: int = 0) -> Iterator[None]:
        """torch's generators start from the seed, and are put back afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(2 * self.seed + stage)
            yield


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """No gradient for the model's weights inside the block."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
