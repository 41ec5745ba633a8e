"""Published configurations as trials, beside those that were searched."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import field_validator

from vispco.errors import ConfigError, ScheduleError
from vispco.pruning.families import ScheduleFamily
from vispco.pruning.methods.base import Method
from vispco.pruning.published import PUBLISHED
from vispco.registry import suggest
from vispco.search.base import SEARCHES, Options, Proposal, Search


class PublishedOptions(Options):
    """``names``: which configurations; default: all that were published for the entry's method."""

    names: list[str] | None = None

    @field_validator("names")
    @classmethod
    def _known(cls, value: list[str] | None) -> list[str] | None:
        for name in value or []:
            if name not in PUBLISHED:
                raise ValueError(f"no published configuration {name!r}; {suggest(name, list(PUBLISHED))}")
        return value


@SEARCHES.register("published")
class PublishedSearch(Search):
    """What papers publish as their defaults for the entry's method, each measured once; proposing costs nothing.

    A configuration belongs to a method with its parameters, so an entry measures those of its own method:
    ``sparsevlm:192`` with sparsevlm, ``sparsevlm-1.5:192`` with ``{release: "1.5", recycle: true}``. They are
    what they are: no budget is asked for and none is kept to.
    """

    kind: ClassVar[str] = "published"
    deterministic: ClassVar[bool] = True
    Options: ClassVar[type[Options]] = PublishedOptions
    fixed_family: ClassVar[str | None] = "layerwise"

    @classmethod
    def check(cls, options: Any, method: Method, family: ScheduleFamily) -> None:
        fitting = published_for(method)
        if not fitting:
            known = sorted({known.method for known in PUBLISHED.values()})
            raise ConfigError(
                f"no configuration is published for method {method.name!r} with parameters {method.parameters()}; "
                f"there are some for {', '.join(known)} (vispco ls schedules)"
            )
        for name in options.names or []:
            if name not in fitting:
                other = PUBLISHED[name]
                raise ConfigError(
                    f"{name!r} is published for method {other.method!r} with parameters {other.parameters}, not for "
                    "the entry's; measure it in an entry with that method"
                )

    def run(self) -> None:
        context, layers = self.context, self.context.family.layers
        done = {trial.user_attrs["published"] for trial in context.log.settled()}
        wanted = []
        for name in self.options.names or published_for(context.method):
            if name in done:
                continue
            schedule = PUBLISHED[name].for_layers(layers)
            try:
                ratios = schedule.keep_ratio(layers)
            except ScheduleError as error:
                context.say(f"{name} is left out: {error}")
                continue
            # The family keeps all tokens at layer 0: what is dropped before the decoder has no parameters in it.
            parameters = context.family.parameters(schedule) if ratios[0] == 1.0 else {}
            wanted.append(Proposal(schedule, parameters, attributes={"published": name}))
        total = len(done) + len(wanted)
        context.advance(len(done), total, "")

        def tell(landed: int) -> None:
            context.advance(len(done) + landed, total, wanted[landed - 1].attributes["published"])

        self.measure(wanted, tell)


def published_for(method: Method) -> list[str]:
    """Names of the configurations that were published for ``method`` with its parameters."""
    return [name for name, known in PUBLISHED.items() if known.make_method() == method]
