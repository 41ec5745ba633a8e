"""Pruning on unmodified transformers models: for a block, or until it is removed; the model is left as it was."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vispco.errors import ConfigError, ScheduleError, shortened
from vispco.models.base import ModelAdapter
from vispco.models.families import adapter_for
from vispco.pruning.methods.base import Method, make_method
from vispco.pruning.published import named_schedule
from vispco.pruning.schedule_file import ScheduleFile
from vispco.pruning.schedules import Policy, resolution_of
from vispco.pruning.session import PruningSession

Given = Policy | str | pathlib.Path | None


def install(
    model: Any,
    *,
    method: str | Method | None = None,
    schedule: Given = None,
    gather_always: bool = False,
    **parameters: Any,
) -> PruningSession:
    """Prune visual tokens of ``model`` from now on, until ``remove()`` of what is returned.

    Arguments and errors are those of :func:`prune`. The session counts ``prefills``, ``visual_tokens``,
    ``dropped_tokens`` and ``milliseconds``. Several threads may call the model at once.
    """
    adapter = adapter_for(model)
    policy, chosen = _resolved(adapter, method, schedule, parameters)
    if (share := resolution_of(policy)) not in (None, 1.0):
        raise ScheduleError(
            f"{policy} is for smaller pictures, and a model gets what the processor made: give the processor what "
            f"vispco.rescaled(processor, images, {share:g}) returns, then prune with method={chosen.name!r} and this "
            "schedule without its resolution"
        )
    session = PruningSession(adapter, chosen, policy, gather_always=gather_always)
    if hasattr(policy, "keep_ratio"):
        policy.keep_ratio(len(adapter.layers()))
    session.install()
    return session


@contextmanager
def prune(
    model: Any,
    *,
    method: str | Method | None = None,
    schedule: Given = None,
    gather_always: bool = False,
    **parameters: Any,
) -> Iterator[PruningSession]:
    """Prune visual tokens of ``model`` inside the block; afterwards the model is as it was.

    Args:
        model: a loaded transformers vision-language model, or one inside PEFT's or torch's wrappers; forward passes
            and ``generate`` work as usual, in several threads too.
        method: a method's name, with ``parameters`` as its keyword arguments, or a method object. Default: what
            belongs to the schedule, or ``fastv``.
        schedule: a schedule, any policy, a schedule's text such as ``"step(layer=2, keep=0.5)"``, a published
            name such as ``"sparsevlm:192"``, or the path of a file written by ``vispco export`` (``.json``), or what
            :func:`vispco.load_schedule` read from one.
        gather_always: run the gather at every layer, also where nothing is dropped: for tests and benchmarks.

    Yields:
        The session, which tells what the last prefill kept. A cache that a prefill filled can be used inside any
        prune block of the same model; elsewhere it is refused.

    Raises:
        ModelError: the model's family is unknown, the model is compiled, or inside another prune block; in a forward
            pass, a cache or attention backend that cannot be cut.
        ScheduleError: the schedule does not fit the model or the method, or its file cannot be read.
        ConfigError: unknown method or parameter.

    Warns:
        UserWarning: the block ends, and the model was not called in it.
    """
    session = install(model, method=method, schedule=schedule, gather_always=gather_always, **parameters)
    try:
        yield session
    finally:
        session.remove()
    if not session.prefills:
        warnings.warn(
            f"the prune block of {type(session.adapter.model).__name__} saw no prompt, so nothing was pruned; call the "
            "model inside the block, and not one that was compiled before",
            stacklevel=3,
        )


def _resolved(
    adapter: ModelAdapter, method: str | Method | None, schedule: Given, parameters: dict[str, Any]
) -> tuple[Policy, Method]:
    """The policy and the method that are meant."""
    if schedule is None:
        raise ScheduleError("prune needs schedule=, for example vispco.Step(layer=2, keep=0.5)")
    policy: Policy
    if not isinstance(schedule, (str, pathlib.Path)) and (
        isinstance(schedule, type) or not callable(getattr(schedule, "counts", None))
    ):
        raise ScheduleError(
            f"schedule is {shortened(schedule)}, which is no schedule; write for example vispco.Step(layer=2, keep=0.5)"
        )
    if method is not None and not isinstance(method, (str, Method)):
        raise ConfigError(f"method is {shortened(method)}; give a method's name or a method object")
    if isinstance(schedule, (str, pathlib.Path)):
        policy, named = named_schedule(str(schedule), len(adapter.layers()), adapter.model.config)
    elif isinstance(schedule, ScheduleFile):
        schedule.check_model(len(adapter.layers()), adapter.model.config)
        policy, named = schedule, schedule.make_method()
    else:
        policy, named = schedule, None
    if isinstance(policy, ScheduleFile) and (conditions := policy.conditions()):
        warnings.warn(
            f"{policy.text()} was measured with {conditions}; its accuracy and cost hold only where model and pictures "
            "are given so",
            stacklevel=4,
        )
    given = named if method is None and not parameters else method
    if isinstance(given, Method):
        if parameters:
            raise ConfigError(f"prune got a method object and parameters {list(parameters)}; give them to the method")
        return policy, given
    if method is None and named is not None:  # the schedule's own method, with other values for some parameters
        return policy, make_method(named.name, {**named.parameters(), **parameters})
    return policy, make_method(given or "fastv", parameters)
