"""Caches of pruned prompts, beyond the table of uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from uses import Case
from vispco.errors import ModelError
from vispco.testing.tiny import LAYERS


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("schedule", ["layer 0", "three steps"])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_sliding_cache_is_cropped_if_it_has_what_it_needs(recorded: bool, schedule: str) -> None:
    """Gemma 3 with a window of 12: what fell out of it is missing after a crop, unless the cache was told to record."""
    case = Case("gemma3", schedule)
    asked = torch.tensor([[21, 22, 23, 24]])
    cache = DynamicCache(config=case.model.config)
    if recorded:
        cache.activate_past_recording()
    with case.prune() as session:
        case.model(**case.batch, past_key_values=cache)
        kept, left = case.kept(session), case.tiny.extend(case.batch, asked)
        case.more(cache, case.batch, asked)
        if recorded:
            left = case.tiny.extend(case.batch, asked[:, :2])
            cache.crop(-2)
        else:
            with pytest.raises(ModelError, match=r"crop\(-2\) .* sliding layer, of 12, .*activate_past_recording"):
                cache.crop(-2)
        found = case.more(cache, left, case.new)  # a crop that is refused changes nothing
    case.same(found, case.whole(kept, left, case.new)[:, 1:])


def stop_at(case: Case, layer: int, call: Callable[[], Any]) -> None:
    """``call``, which ends inside ``layer``."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = case.adapter.layers()[layer].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        call()
    hook.remove()


@pytest.mark.parametrize("schedule", ["layer 0", "layer 1", "three steps"])
@pytest.mark.parametrize("config", [True, False])
def test_a_cache_in_which_a_call_stopped_is_refused(schedule: str, config: bool) -> None:
    """Some layers hold what others do not: a prompt, a token of the answer, or one that was cropped."""
    case = Case("llava", schedule)

    def new() -> Any:
        return DynamicCache(config=case.model.config) if config else DynamicCache()

    length = case.length
    with case.prune() as session:
        for layer in range(1, LAYERS):
            cache = new()
            stop_at(case, layer, lambda cache=cache: case.model(**case.batch, past_key_values=cache))
            with pytest.raises(ModelError, match="layers of this cache hold"):
                case.more(cache, case.batch, case.new)
            with pytest.raises(ModelError, match=f"hold 0 to {length} tokens, so a call or a crop stopped on its way"):
                case.model(**case.batch, past_key_values=cache)
            cache = new()
            case.model(**case.batch, past_key_values=cache)
            stop_at(case, layer, lambda cache=cache: case.more(cache, case.batch, case.new))
            with pytest.raises(ModelError, match=f"hold {length} to {length + 3} tokens"):
                case.more(cache, case.batch, case.new)
        cache = new()
        case.model(**case.batch, past_key_values=cache)
        cache.layers[1].crop(-1)
        with pytest.raises(ModelError, match=f"hold {length - 1} to {length} tokens"):
            case.more(cache, case.batch, case.new)
        # The block goes on, with a cache that is whole.
        cache = new()
        case.model(**case.batch, past_key_values=cache)
        found = case.more(cache, case.batch, case.new)
    case.same(found, case.whole(case.kept(session), case.batch, case.new)[:, 1:])


def test_drafts_of_an_earlier_answer_are_none_of_the_next_prompt() -> None:
    """A cache that ``generate`` filled with drafts behind the prompt, and that is emptied and filled again."""
    case = Case("llava", "layer 1")
    longer, drafts = case.tiny.batch([(3, 1, 12)]), {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}
    with case.prune() as session:
        case.model(**longer)
        kept = case.kept(session)
        cache = DynamicCache(config=case.model.config)
        first = case.generate(past_key_values=cache, **drafts)
        cache.reset()
        case.model(**longer, past_key_values=cache)
        assert case.kept(session) == kept
        # Behind a cache that is filled, transformers gives the model the whole prompt again together with the drafts.
        asked = torch.cat([first.sequences, case.new], dim=1)
        text = {"input_ids": asked, "attention_mask": torch.ones_like(asked)}
        with pytest.raises(ModelError, match="visual tokens arrive after a filled cache"):
            case.generate(text, past_key_values=first.past_key_values, **drafts)
        cache.reset()
        case.model(**longer, past_key_values=cache)
        assert case.kept(session) == kept
