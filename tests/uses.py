"""How a pruned prompt may be used, on every family and schedule: `python tests/uses.py` writes the table tests/uses.md.

Every use gives logits or tokens, which must equal those of the whole model in which the dropped tokens are hidden and
nothing is cached, or it is refused in one line.
"""

from __future__ import annotations

import copy
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import vispco
from vispco.errors import ModelError
from vispco.models.families import adapter_for
from vispco.pruning.schedules import Ratios, Schedule, Step
from vispco.testing.checks import hidden_from, tolerance
from vispco.testing.tiny import LAYERS, TINY, TinyFamily

SCHEDULES: dict[str, tuple[str, Schedule]] = {
    "layer 0": ("random", Step(0, 0.25)),
    "layer 1": ("fastv", Step(1, 0.25)),
    "three steps": ("fastv", Ratios([1, 0.75, 0.5, 0.25])),
}
ROW = (3, 1, 5)
STEPS = 5
TEXTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
Kept = list[list[list[int]]]
Batch = dict[str, Tensor]


class Case:
    """One family, one method and schedule."""

    def __init__(self, family: str, schedule: str) -> None:
        self.tiny: TinyFamily = TINY[family]
        self.model: Any = self.tiny.model()
        self.adapter = adapter_for(self.model)
        self.method, self.schedule = SCHEDULES[schedule]
        if self.method == "fastv" and "attention" not in self.adapter.provides():
            self.method = "stride"
        self.batch = self.tiny.batch([ROW])
        self.length = self.batch["input_ids"].shape[1]
        self.new = torch.tensor([[11, 12, 13]])

    def prune(self, model: Any = None, schedule: Schedule | None = None) -> Any:
        return vispco.prune(
            self.model if model is None else model, method=self.method, schedule=schedule or self.schedule
        )

    def generate(self, batch: Batch | None = None, **how: Any) -> Any:
        """Generated output with the logits of each new token."""
        torch.manual_seed(0)
        given = {"do_sample": False, "suppress_tokens": [4, 5], "min_new_tokens": STEPS, "max_new_tokens": STEPS, **how}
        return self.model.generate(**(batch or self.batch), output_logits=True, return_dict_in_generate=True, **given)

    def kept(self, session: Any) -> Kept:
        return [session.kept(layer) for layer in range(LAYERS)]

    def more(self, cache: Any, seen: Batch, new: Tensor) -> Tensor:
        """Logits of ``new`` [B, n] on a cache of the tokens in ``seen``."""
        mask = torch.cat([seen["attention_mask"], torch.ones_like(new)], dim=1)
        inputs = {"input_ids": new, "attention_mask": mask, **self.adapter.decoding_inputs(mask, new.shape[1])}
        logits: Tensor = self.model(**inputs, past_key_values=cache, use_cache=True).logits
        return logits

    def whole(self, kept: Kept, batch: Batch, new: Tensor) -> Tensor:
        """Logits [B, n + 1, V] of ``batch``'s last token and ``new`` [B, n] behind it, in the whole model."""
        longer = self.tiny.extend(batch, new)
        with hidden_from(self.model, longer, kept):
            logits: Tensor = self.model(**longer, use_cache=False).logits
        return logits[:, -new.shape[1] - 1 :]

    def same(self, found: Tensor, wanted: Tensor) -> None:
        difference = float((found - wanted).abs().max())
        assert difference <= tolerance(self.model), f"differs by {difference:.3g}"

    def prefilled(self, batch: Batch | None = None) -> tuple[Any, Kept]:
        with self.prune() as session:
            cache = self.model(**(batch or self.batch), use_cache=True).past_key_values
        return cache, self.kept(session)


# --- uses ----------------------------------------------------------------------------------------------


def greedy(case: Case) -> None:
    with case.prune() as session:
        found = case.generate()
    answer = found.sequences[:, case.length :]
    wanted = case.whole(case.kept(session), case.batch, answer)[:, :-1]
    case.same(torch.stack(found.logits, dim=1), wanted)


def beams(case: Case) -> None:
    """Every returned beam is as probable as the whole model says."""
    with case.prune() as session:
        found = case.generate(num_beams=3, num_return_sequences=3, output_scores=True, length_penalty=0.0)
        kept = [session.kept(layer)[:1] for layer in range(LAYERS)]
    for sequence, score in zip(found.sequences, found.sequences_scores, strict=True):
        answer = sequence[None, case.length :]
        logs = case.whole(kept, case.batch, answer)[:, :-1].log_softmax(dim=-1)
        case.same(logs.gather(2, answer[..., None]).sum(), score)


def sampling(case: Case) -> None:
    with case.prune() as session:
        found = case.generate(do_sample=True, num_return_sequences=2)
        kept = [session.kept(layer)[:1] for layer in range(LAYERS)]
    for row, sequence in enumerate(found.sequences):
        answer = sequence[None, case.length :]
        case.same(torch.stack(found.logits, dim=1)[row : row + 1], case.whole(kept, case.batch, answer)[:, :-1])


def _drafted(case: Case, **how: Any) -> None:
    """Tokens that are kept and answers are those of greedy decoding."""
    with case.prune() as session:
        wanted = case.generate()
        kept = case.kept(session)
        found = case.generate(**how)
        assert case.kept(session) == kept, "other tokens are kept than by greedy decoding"
    assert torch.equal(found.sequences, wanted.sequences)


def prompt_lookup(case: Case) -> None:
    ids = case.batch["input_ids"].clone()
    ids[0, -2:] = ids[0, -5:-3]  # so that there are drafts from the first call on
    case.batch = {**case.batch, "input_ids": ids}
    _drafted(case, prompt_lookup_num_tokens=3, max_matching_ngram_size=2)


def assisted(case: Case) -> None:
    """By the same model unpruned, most of whose drafts are rejected."""
    _drafted(case, assistant_model=copy.deepcopy(case.model))


def second_turn(case: Case) -> None:
    """All tokens again, and a new question."""
    with case.prune() as session:
        first = case.generate()
        kept = case.kept(session)
        asked = torch.cat([first.sequences, case.new], dim=1)
        behind = case.tiny.extend(case.batch, asked[:, case.length :])
        text = {key: value for key, value in behind.items() if key in TEXTS}
        found = case.generate(text, past_key_values=first.past_key_values)
    answer = found.sequences[:, case.length :]
    case.same(torch.stack(found.logits, dim=1), case.whole(kept, case.batch, answer)[:, -STEPS - 1 : -1])


def copied(case: Case) -> None:
    """Original and copy go on with different tokens."""
    with case.prune() as session:
        cache = case.model(**case.batch).past_key_values
        news = case.new, case.new + 5
        found = [case.more(copy.deepcopy(cache), case.batch, new) for new in news]
        found.append(case.more(cache, case.batch, case.new))
    for logits, new in zip(found, (*news, case.new), strict=True):
        case.same(logits, case.whole(case.kept(session), case.batch, new)[:, 1:])


def cropped(case: Case) -> None:
    """Into the answer, and into the text behind the picture."""
    shorter = {key: value[..., :-2] if key in TEXTS else value for key, value in case.batch.items()}
    for left, removed in ((case.batch, 4), (shorter, 6)):
        cache = DynamicCache(config=case.model.config)
        cache.activate_past_recording()
        with case.prune() as session:
            case.model(**case.batch, past_key_values=cache)
            case.more(cache, case.batch, torch.tensor([[21, 22, 23, 24]]))
            cache.crop(-removed)
            found = case.more(cache, left, case.new)
        case.same(found, case.whole(case.kept(session), left, case.new)[:, 1:])


def rows_chosen(case: Case) -> None:
    """Two prompts of different lengths: selected, repeated and put in another order."""
    both = case.tiny.batch([ROW, (1, 1, 9)])
    changes = (
        (lambda cache: cache.batch_select_indices(torch.tensor([1, 0, 1])), [1, 0, 1]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
        (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
    )
    for change, rows in changes:
        new = torch.arange(11, 11 + 2 * len(rows)).view(-1, 2)
        mask = torch.cat([both["attention_mask"][rows], torch.ones_like(new)], dim=1)
        with case.prune() as session:
            cache = case.model(**both).past_key_values
            kept, deltas = case.kept(session), getattr(case.model.model, "rope_deltas", None)
            change(cache)
            inputs = {}
            if deltas is not None:
                inputs["position_ids"] = ((mask.cumsum(dim=1) - 1)[:, -2:] + deltas[rows]).expand(3, -1, -1)
            found = case.model(input_ids=new, attention_mask=mask, past_key_values=cache, **inputs).logits
        for at, row in enumerate(rows):
            wanted = case.whole(kept, both, new[at : at + 1].expand(2, -1))[row, 1:]
            case.same(found[at], wanted)


def another_block(case: Case) -> None:
    """Prefilled in one block, continued in another with another schedule."""
    cache, kept = case.prefilled()
    with case.prune(schedule=Step(1, 0.75)) as session:
        found = case.more(cache, case.batch, case.new)
        assert session.counts is None
        case.model(**case.batch)
    case.same(found, case.whole(kept, case.batch, case.new)[:, 1:])


def own_cache(case: Case) -> None:
    """A cache that the caller made, read from the caller's own name."""
    cache = DynamicCache(config=case.model.config)
    with case.prune() as session:
        case.model(**case.batch, past_key_values=cache)
        found = case.more(cache, case.batch, case.new)
    case.same(found, case.whole(case.kept(session), case.batch, case.new)[:, 1:])


def threads(case: Case) -> None:
    """Four at once: each answers, and is told what was kept, as alone."""
    batches = [case.tiny.batch([(3, 1, 5 + number)], seed=number) for number in range(4)]
    found: dict[int, Any] = {}

    def run(number: int) -> None:
        try:
            with torch.no_grad():
                for _ in range(2):
                    found[number] = case.generate(batches[number]).sequences, case.kept(session)
        except Exception as error:
            found[number] = error

    with case.prune() as session:
        alone = [(case.generate(batch).sequences, case.kept(session)) for batch in batches]
        working = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in working:
            thread.start()
        for thread in working:
            thread.join()
    for number, (sequences, kept) in enumerate(alone):
        if isinstance(found[number], Exception):
            raise found[number]
        assert torch.equal(found[number][0], sequences)
        assert found[number][1] == kept


def checkpointing(case: Case) -> None:
    """Gradients with checkpointed layers are those without."""
    model = copy.deepcopy(case.model).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        with torch.enable_grad(), case.prune(model):
            model(**case.batch, use_cache=False).logits[:, -1].logsumexp(-1).sum().backward()
        weights = [part for part in adapter_for(model).layers().parameters() if part.grad is not None]
        gradients.append(torch.cat([part.grad.flatten() for part in weights]))
    assert float(gradients[0].abs().max()) > 0
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def after_the_block(case: Case) -> None:
    cache, _ = case.prefilled()
    case.more(cache, case.batch, case.new)


def another_model(case: Case) -> None:
    cache, _ = case.prefilled()
    case.model = copy.deepcopy(case.model)
    with case.prune():
        case.more(cache, case.batch, case.new)


def cropped_into_the_picture(case: Case) -> None:
    cache, _ = case.prefilled()
    cache.crop(-ROW[2] - 2)


def static_cache(case: Case) -> None:
    with case.prune():
        case.generate(cache_implementation="static")


def compiled(case: Case) -> None:
    with case.prune(torch.compile(case.model)):
        case.generate()


USES: tuple[Callable[[Case], None], ...] = (
    greedy,
    beams,
    sampling,
    prompt_lookup,
    assisted,
    second_turn,
    copied,
    cropped,
    rows_chosen,
    another_block,
    own_cache,
    threads,
    checkpointing,
    after_the_block,
    another_model,
    cropped_into_the_picture,
    static_cache,
    compiled,
)


@torch.no_grad()
def outcome(use: Callable[[Case], None], family: str, schedule: str) -> str:
    """ "equal", or the line that refuses it, with N for its numbers."""
    try:
        use(Case(family, schedule))
    except ModelError as error:
        return re.sub(r"\d+", "N", str(error))
    except (ValueError, AttributeError, RuntimeError) as error:  # what transformers itself cannot, pruned or not
        if not re.search("stateful models|LinearAttentionLayer.*batch_select|not track past states", str(error)):
            raise
        return "transformers: " + re.sub(r"such as \w+", "such as this one", str(error))
    return "equal"


PAGE = Path(__file__).parent / "uses.md"
HEAD = """# Uses of a pruned prompt, on every family

Written by `python tests/uses.py` from what happens; [test_uses.py](test_uses.py) holds it. A cell is "equal" where
logits or tokens are those of the whole model in which the dropped tokens are hidden, under each of three schedules: at
layer 0, at layer 1, at three layers. Else it has the number of the line that refuses it, once for all three or one for
each.

"""


def page(found: dict[str, dict[str, list[str]]]) -> str:
    """``found``: by family and use, the outcome under each schedule."""
    lines = sorted({one for uses in found.values() for outcomes in uses.values() for one in outcomes} - {"equal"})
    short = {"equal": "equal", **{line: str(number) for number, line in enumerate(lines, start=1)}}
    rows = [["use", *found], ["---"] * (len(found) + 1)]
    for use in USES:
        cells = [[short[one] for one in found[family][use.__name__]] for family in found]
        rows.append([use.__name__.replace("_", " "), *(", ".join(c if len(set(c)) > 1 else c[:1]) for c in cells)])
    table = "".join("| " + " | ".join(row) + " |\n" for row in rows)
    return HEAD + table + "\n" + "".join(f"{number}. {line}\n" for number, line in enumerate(lines, start=1))


def recorded() -> dict[str, dict[str, list[str]]]:
    """What the page says, in the form that :func:`page` takes."""
    text = PAGE.read_text()
    lines = dict(re.findall(r"^(\d+)\. (.*)$", text, flags=re.MULTILINE))
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row.startswith("|")]
    found: dict[str, dict[str, list[str]]] = {family: {} for family in rows[0][1:]}
    for use, *cells in rows[2:]:
        for family, cell in zip(found, cells, strict=True):
            said = [lines.get(part, part) for part in cell.split(", ")]
            found[family][use.replace(" ", "_")] = said if len(said) > 1 else said * len(SCHEDULES)
    return found


def outcomes(family: str) -> dict[str, list[str]]:
    return {use.__name__: [outcome(use, family, schedule) for schedule in SCHEDULES] for use in USES}


def main() -> None:
    """Run the families that are named, or all, and write the page."""
    torch.set_num_threads(1)  # for models this small faster than several
    known = recorded() if PAGE.exists() else {}
    for family in sys.argv[1:] or TINY:
        known[family] = outcomes(family)
        PAGE.write_text(page({name: known[name] for name in TINY if name in known}))


if __name__ == "__main__":
    main()
