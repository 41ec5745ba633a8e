"""Options of the gradient searches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from vispco.search.base import Options
from vispco.search.racing import RacingOptions

# Defaults that depend on the predictor. One network for all budgets needs few steps, a small check, and little between.
BY_PREDICTOR: dict[str, dict[str, Any]] = {
    "budget": {"dual_steps": 4, "learning_rate": 0.01, "check": 32, "between": 2, "samples": 128, "enough": 0.005},
    "static": {"dual_steps": 3, "learning_rate": 0.3, "check": 128, "between": 6, "samples": 0, "enough": "never"},
    "input": {"dual_steps": 12, "learning_rate": 0.01, "check": 128, "between": 0, "samples": 0, "enough": "never"},
}
EARLIER = {"dual_steps": 12, "check": 128, "between": 6}  # with a predictor, when static was the default
EVERYTHING = {"samples": 0, "enough": "never"}  # before these options were there

Sharpness = Annotated[float, Field(gt=0)]


class GradientOptions(Options):
    """Every option has a default that needs no choice; some depend on ``predictor`` (:data:`BY_PREDICTOR`).

    ``dual_steps`` times ``primal_steps`` Adam steps of ``batch`` samples: per budget if static, else in all.
    ``sharpness`` goes from the first to the second value over these steps: a blunt schedule feels the effect of
    layers further away. At most ``check`` calibration samples decide between the result and its neighbouring shapes
    (0: no check), of which the best ``measure`` are measured on the search split, each as a trial. ``climb`` goes on,
    at most this many times, from the nearest to the teacher to its own neighbours, those 2, 4, ... layers away and what
    was found for the budget above included: in deep models gradients of a layer stop before layers far from it.
    ``samples``: of the calibration split that are used (0: all).
    ``enough``: accuracy on the search split. Budgets are measured from the least up, half of them and then one, two,
    three, ... together, until a schedule loses no more than that of the unpruned model's; the larger budgets take it
    over, and are neither checked nor measured. ``never``: all are measured, together, as with ``race`` and the other
    predictors.
    ``rotate``: a step takes each sample's loss at one of the budgets, at another one in another step; false: at fixed
    ones, of which a budget gets as few as one sample in ``batch``.
    ``between``: how many more budgets are tried where the front found so far leaves gaps. ``race``, with a predictor:
    stop what is shown not to matter before it has seen all search samples.
    ``micro_batch``: samples that run together, a divisor of ``batch`` (0: all of ``batch``); several processes
    share the gradients by micro-batches. ``recompute``: run each layer again in the backward pass instead of keeping
    its activations.
    """

    predictor: Literal["budget", "static", "input"] = "budget"
    dual_steps: int | None = Field(None, ge=1)
    primal_steps: int = Field(6, ge=1)
    batch: int = Field(16, ge=1)
    micro_batch: int = Field(0, ge=0)
    recompute: bool = False
    learning_rate: float | None = Field(None, gt=0)
    penalty: float = Field(20.0, gt=0)
    penalty_cap: float = Field(200.0, gt=0)
    temperature: float = Field(0.1, gt=0)
    sharpness: tuple[Sharpness, Sharpness] = (1.5, 10.0)
    check: int | None = Field(None, ge=0)
    climb: int = Field(0, ge=0)
    measure: int = Field(1, ge=1)
    between: int | None = Field(None, ge=0)
    samples: int | None = Field(None, ge=0)
    enough: Annotated[float, Field(ge=0, le=1)] | Literal["never"] | None = None
    race: RacingOptions | None = None
    rotate: bool = True

    @field_validator("micro_batch")
    @classmethod
    def _divides(cls, value: int, info: ValidationInfo) -> int:
        batch = info.data.get("batch")
        if value and batch and batch % value:
            raise ValueError(f"micro_batch must divide batch, which is {batch}")
        return value

    def settled(self) -> GradientOptions:
        """With defaults that depend on the predictor filled in."""
        given = BY_PREDICTOR[self.predictor]
        return self.model_copy(update={k: v for k, v in given.items() if getattr(self, k) is None})

    def as_begun(self, defaults: int) -> GradientOptions:
        """With the defaults of entries that began under number ``defaults``, at most 3; at 1 ``static`` was the
        predictor."""
        said = self
        if defaults < 2 and "predictor" not in self.model_fields_set:
            said = self.model_copy(update={"predictor": "static"})
        given: dict[str, Any] = {}
        if defaults < 2:
            given = BY_PREDICTOR["static"] if said.predictor == "static" else EARLIER
        if defaults < 3 and said.predictor == "budget":
            given = {**given, **EVERYTHING}
        missing = {k: v for k, v in given.items() if getattr(said, k) is None}
        fixed = {} if "rotate" in self.model_fields_set or said.predictor == "static" else {"rotate": False}
        return said.model_copy(update={**missing, **fixed})
