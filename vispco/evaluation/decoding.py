"""The model's own generation settings: which are followed, which change no answer, and which are refused beforehand."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vispco.errors import ConfigError, shortened

if TYPE_CHECKING:
    from torch import Tensor

    from vispco.evaluation.prepared import Batch
    from vispco.problem import Problem

# By which ``generate`` takes another token than the most probable one, with the values that change nothing.
CHANGES_LOGITS: Mapping[str, Any] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "min_length": 0,
    "num_beams": 1,
    **dict.fromkeys(("min_new_tokens", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "sequence_bias", "watermarking_config")),
    **dict.fromkeys(("exponential_decay_length_penalty", "stop_strings")),
}
OF_BEAMS: Mapping[str, Any] = {"length_penalty": 1.0, "early_stopping": False}
# What is returned, how fast, what sampling would do, and what is cut later: the answer stays the same without.
SAME_ANSWER: Mapping[str, Any] = {
    "do_sample": False,
    "num_return_sequences": 1,
    "use_cache": True,
    "max_length": None,
    **dict.fromkeys(
        ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states"),
        False,
    ),
    **dict.fromkeys(("prompt_lookup_num_tokens", "assistant_early_exit", "cache_implementation", "cache_config")),
    **dict.fromkeys(("prefill_chunk_size", "use_mtp", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p")),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "stop_strings")),
}
# Ways to decode that need a model beside this one, code from elsewhere, or a clock.
REFUSED: Mapping[str, Any] = {
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "guidance_scale": 1.0,
    "low_memory": False,
    "token_healing": False,
    **dict.fromkeys(("constraints", "force_words_ids", "penalty_alpha", "dola_layers", "max_time")),
}


def changed_logits(config: Any) -> dict[str, Any]:
    """Settings of a generation config by which ``generate`` takes another token than the most probable one."""
    found = _changed(config, CHANGES_LOGITS)
    return {**found, **_changed(config, OF_BEAMS)} if "num_beams" in found else found


def _changed(config: Any, plain: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: getattr(config, name, None) for name in plain}
    return {name: value for name, value in found.items() if value is not None and value != plain[name]}


def needs_generate(config: Any) -> bool:
    """Whether the most probable tokens, cut where the answer ends, are not the answer."""
    return bool(changed_logits(config).keys() - {"stop_strings"})


def answer_length(config: Any, tokenizer: Any, tokens: Sequence[int]) -> int:
    """How many of an answer's ``tokens`` there are up to the one that completes a stop string, as ``generate`` does.

    transformers' own criterion refuses some tokenizers.
    """
    wanted = getattr(config, "stop_strings", None) or []
    wanted = [wanted] if isinstance(wanted, str) else wanted
    for length in range(1, len(tokens) + 1 if wanted else 0):
        text = tokenizer.decode(tokens[:length])
        if any(stop in text for stop in wanted):
            return length
    return len(tokens)


def check_decoding(config: Any) -> None:
    """Refuse what an evaluation cannot follow.

    Raises:
        ConfigError: names the setting and its value.
    """
    for name, value in _changed(config, REFUSED).items():
        raise ConfigError(
            f"the model's generation setting {name} = {shortened(value)} cannot be followed in an evaluation; "
            f"remove it from generation_config.json (model.generation_config.{name} = None)"
        )
    if _changed(config, {"num_beams": 1}) and getattr(config, "stop_strings", None):
        raise ConfigError(
            "the model's generation settings num_beams and stop_strings cannot be followed together; remove one of them"
        )


def stop_tokens(config: Any) -> tuple[list[int], int]:
    """(tokens that end an answer, token that fills up after one) of a generation config."""
    stop = config.eos_token_id
    stops = [] if stop is None else list(stop) if isinstance(stop, (list, tuple)) else [stop]
    return stops, config.pad_token_id if config.pad_token_id is not None else (stops or [0])[0]


@contextmanager
def settings_of_answers(model: Any) -> Iterator[None]:
    """The model's own settings inside, without those that change no answer; afterwards it has them all again."""
    own = model.generation_config
    config = copy.deepcopy(own)
    for name, value in SAME_ANSWER.items():
        if hasattr(config, name):
            setattr(config, name, value)
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


def generated(problem: Problem, batch: Batch, most: int) -> Tensor:
    """Answers [B, m] of at most ``most`` tokens, by the model's own ``generate`` and settings, never sampled.

    Stop strings are not looked for, see :func:`answer_length`.
    With beams each sample becomes several rows, which transformers repeats from the pixels alone.
    """
    model = problem.model
    config = model.generation_config
    if (getattr(config, "num_beams", None) or 1) > 1 and len(batch.features):
        inputs = batch.read_inputs()
    else:
        inputs = problem.adapter.with_features(batch.inputs, batch.features)
    with settings_of_answers(model):
        found: Tensor = model.generate(**inputs, max_new_tokens=most)
    return found[:, inputs["input_ids"].shape[1] :]
