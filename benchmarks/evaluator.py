"""What sharing and racing save.

``python benchmarks/evaluator.py [--quick] [--device cuda] [--samples N] [--table FILE.npz]``

On the demo: the dense step grid and 200 random multistep schedules, each alone and all together. Answers are
compared sample by sample; alone and together take turns unit by unit. The bound is what FLOPs allow: those of every
schedule measured alone, vision tower included, over those of the tree. Also what the evaluator costs over a bare
transformers loop. Then 100 races are replayed on a table of all per-sample scores (4,096 search samples), which
``--table`` keeps: recording takes a quarter of an hour, replaying it seconds. Prints each claim and whether it
holds; exits 1 if one does not.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from replay import figures, load, replay

import vispco
from vispco.costs import prefill_flops, shared_flops
from vispco.evaluation.evaluator import Evaluator
from vispco.evaluation.job import Job, Pending
from vispco.evaluation.units import Unit
from vispco.problem import Problem
from vispco.pruning.families import FAMILIES
from vispco.pruning.schedules import Schedule, Step, keep_all
from vispco.tasks.rendering import render_prompt

STUDY = "studies/quickstart.yaml"


class Demo:
    """The demo's search split, with pixels kept."""

    def __init__(self, samples: int, device: str) -> None:
        overrides = [f"tasks.0.splits.search={samples}", f"model={{name: demo, device: {device}}}"]
        self.problem = Problem.from_yaml(STUDY, overrides)
        self.evaluator = Evaluator(self.problem)
        self.part = self.evaluator.prepared("search")[0]
        self.method = self.problem.default_method
        self.pixels = [self._with_pixels(batch.rows) for batch in self.part.batches]

    def _with_pixels(self, rows: Any) -> dict[str, Any]:
        samples = [self.part.samples[row] for row in rows]
        prompts = [render_prompt(self.problem.processor, sample) for sample in samples]
        images = [list(sample.images) for sample in samples]
        inputs = self.problem.processor(
            images=images, text=prompts, return_tensors="pt", padding=True, padding_side="left"
        )
        return dict(inputs.to(self.problem.model.device))

    @torch.inference_mode()
    def alone(self, schedule: Schedule, number: int) -> list[float]:
        """Scores of one batch by transformers and a prune block, from the pixels on."""
        batch, model = self.part.batches[number], self.problem.model
        with vispco.prune(model, method=self.method, schedule=schedule) as session:
            session.sample_keys = batch.keys
            tokens = model(**self.pixels[number], use_cache=False, logits_to_keep=1).logits[:, -1].argmax(dim=-1)
        answers = self.problem.processor.tokenizer.batch_decode(tokens[:, None])
        return [self.part.task.score(self.part.samples[r], a) for r, a in zip(batch.rows, answers, strict=True)]

    @torch.inference_mode()
    def encode(self, number: int) -> None:
        """The pictures of one batch, once for all schedules."""
        self.problem.adapter.encode_images(self.pixels[number])

    def together(self, job: Job, number: int, unit: Unit) -> None:
        """The unit's schedules on its batch, as the evaluator runs them."""
        job.absorb(number, self.evaluator.runner.run(unit))

    def job(self, schedules: list[Schedule]) -> Job:
        pending = []
        for i, schedule in enumerate(schedules):
            counts = self.evaluator.counts(schedule, "search")
            pending.append(Pending(str(i), schedule.text(), counts, [np.full(len(counts[0]), np.nan, np.float32)]))
        return Job([self.part], self.problem.shape, "search", self.method, pending)

    def vision_flops(self) -> int:
        """FLOPs of the vision tower and projector on the whole split."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            for inputs in self.pixels:
                self.problem.adapter.encode_images(inputs)
        return int(counter.get_total_flops())


def multisteps(layers: int, count: int) -> list[Schedule]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    family = FAMILIES["multistep"](layers)
    drawn = []
    for seed in range(count):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        drawn.append(family.schedule(dict(study.ask(fixed_distributions=family.distributions()).params)))
    return drawn


def sharing(demo: Demo, name: str, schedules: list[Schedule]) -> bool:
    """Time alone over time together, against the same ratio of FLOPs."""
    job, part = demo.job(schedules), demo.part
    times: dict[str, float] = {"alone": 0.0, "together": 0.0}
    pending = list(job.pending)
    parsed = {schedule.text(): schedule for schedule in schedules}

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        times[what] += time.perf_counter() - started

    for number, batch in enumerate(part.batches):
        with timed("together"):
            demo.encode(number)
        for unit_number, unit in job.units([(0, number)], job.chunks()):
            with timed("together"):
                demo.together(job, unit_number, unit)
            with timed("alone"):
                found = {name: demo.alone(parsed[name], number) for name in unit.names}
            for waiting in pending:
                if waiting.name in found:
                    assert waiting.scores[0][batch.rows].tolist() == found[waiting.name], f"{waiting.name} differs"
    lengths, shape = (part.n_visual, part.n_text), demo.problem.shape
    counts = [waiting.counts[0] for waiting in pending]
    alone = sum(int(prefill_flops(shape, c, *lengths, demo.method).sum()) for c in counts)
    tree = 0
    for batch in part.batches:
        visual, text = part.n_visual[batch.rows], part.n_text[batch.rows]
        tree += int(shared_flops(shape, [c[batch.rows] for c in counts], visual, text, demo.method).sum())
    vision = demo.vision_flops()
    bound = (alone + len(schedules) * vision) / (tree + vision)
    reached = times["alone"] / times["together"]
    good = reached >= 0.8 * bound
    print(f"{'ok  ' if good else 'FAIL'} {name}: {len(schedules)} schedules, {len(part.samples)} samples, scores equal")
    print(f"     bound by FLOPs {bound:.3f}, {alone / tree:.3f} without the vision tower")
    print(f"     reached in time {reached:.3f}: {reached / bound:.3f} of the bound (asked: >= 0.8)")
    return good


def overhead(demo: Demo, rounds: int) -> bool:
    """The evaluator over a bare loop on the same batches, features given, one schedule at a time."""
    good = True
    problem, adapter = demo.problem, demo.problem.adapter

    @torch.inference_mode()
    def bare(schedule: Schedule) -> list[str]:
        answers: list[str] = []
        for batch in demo.part.batches:
            inputs = adapter.with_features(batch.inputs, batch.features)
            if schedule is plain:
                logits = problem.model(**inputs, use_cache=False, logits_to_keep=1).logits
            else:
                with vispco.prune(problem.model, method=demo.method, schedule=schedule):
                    logits = problem.model(**inputs, use_cache=False, logits_to_keep=1).logits
            answers += problem.processor.tokenizer.batch_decode(logits[:, -1].argmax(dim=-1, keepdim=True))
        return answers

    def measured(schedule: Schedule) -> Any:
        evaluator = Evaluator(problem)
        evaluator.runner._prepared = demo.evaluator.runner._prepared
        evaluator.__dict__["_model_identity"] = demo.evaluator._model_identity
        return evaluator.evaluate([schedule])[0]

    plain = keep_all()
    for name, schedule in (("plain model", plain), ("step(layer=2, keep=0.5)", Step(2, 0.5))):
        rows = np.concatenate([batch.rows for batch in demo.part.batches])
        score = [demo.part.task.score(demo.part.samples[r], a) for r, a in zip(rows, bare(schedule), strict=True)]
        assert measured(schedule).scores["mosaic-vqa"][rows].tolist() == score
        ratio = ratio_of_medians(lambda s=schedule: measured(s), lambda s=schedule: bare(s), rounds)
        good &= ratio <= 1.1
        print(f"{'ok  ' if ratio <= 1.1 else 'FAIL'} evaluator over a bare loop, {name}: {ratio:.3f} (asked: <= 1.1)")
    return good


def record(path: Path) -> None:
    """Scores of the dense step grid on 4,096 search and 2,048 held-out samples."""
    problem = Problem.from_yaml(STUDY, ["tasks.0.splits.search=4096", "tasks.0.splits.held_out=2048"])
    evaluator, table = Evaluator(problem), {}
    for split in ("search", "held_out"):
        found = evaluator.evaluate(list(problem.family().dense_grid()), split)
        table[split] = np.stack([e.scores["mosaic-vqa"] for e in found]).astype(np.float32)
        table[f"{split}_cost"] = np.array([e.flops_ratio for e in found])
    table["names"] = np.array([e.schedule for e in found])
    table["groups"] = np.array(evaluator.prepared("search")[0].groups)
    np.savez(path, **table)


def racing(path: Path) -> bool:
    good = True
    for samples in (4096, 512):
        runs = replay(load(str(path)), range(100), n=samples, processes=2)
        found = figures(runs)
        holds = found["both"] >= 97
        mark = "     " if samples == 512 else "ok   " if holds else "FAIL "
        good &= holds or samples == 512
        print(f"{mark}racing on {samples} samples: compute less by {found['compute less by, median']:.2f} (median)")
        for name in ("compute less by, least", "budget_score within 0.005", "budget_score, mean difference", "both"):
            print(f"     {name}: {found[name]:.4g}" + (" of 100 (asked: >= 97)" if name == "both" else ""))
    return good


def ratio_of_medians(over: Callable[[], Any], under: Callable[[], Any], rounds: int) -> float:
    times: dict[Callable[[], Any], list[float]] = {over: [], under: []}
    for number in range(rounds):
        for run in (over, under) if number % 2 else (under, over):
            started = time.perf_counter()
            run()
            times[run].append(time.perf_counter() - started)
    return statistics.median(times[over]) / statistics.median(times[under])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--quick", action="store_true", help="64 samples, every fourth schedule, 3 rounds")
    parser.add_argument("--table", type=Path, help="keep the recorded scores here, or replay those that are there")
    parser.add_argument("--only-racing", action="store_true")
    options = parser.parse_args()
    table = options.table or Path(tempfile.mkdtemp()) / "table.npz"
    if not options.quick and not table.exists():
        record(table)
    if options.only_racing:
        return 0 if racing(table) else 1
    demo = Demo(64 if options.quick else options.samples, options.device)
    every = 4 if options.quick else 1
    layers = demo.problem.shape.layers
    print(f"{torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.2f}")
    good = overhead(demo, 3 if options.quick else options.rounds)
    good &= sharing(demo, "dense step grid", list(FAMILIES["step"](layers).dense_grid())[::every])
    good &= sharing(demo, "random multistep", multisteps(layers, 200)[::every])
    good &= options.quick or racing(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
