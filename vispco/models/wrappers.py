"""Models as people have them: inside PEFT, DataParallel or torch.compile."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vispco.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

COMPILED = (
    "pruning changes what the layers receive, and compiled code does not see it; load the model without compiling "
    "it, or give the plain model and call that one"
)

PROMPT_LEARNING = (
    "puts tokens of its own before the prompt, among which visual tokens cannot be found; use an adapter that changes "
    "weights, such as LoRA"
)


def unwrapped(model: Any) -> Any:
    """The transformers model inside PEFT's and torch's wrappers, with the adapters that PEFT put into its layers.

    Raises:
        ModelError: the wrapper changes how the model is called.
    """
    while True:
        kinds = {kind.__name__ for kind in type(model).__mro__}
        if kinds & {"DataParallel", "DistributedDataParallel"}:
            model = model.module
        elif "PeftModel" in kinds and getattr(model.active_peft_config, "is_prompt_learning", False):
            raise ModelError(f"{model.active_peft_config.peft_type} {PROMPT_LEARNING}")
        elif kinds & {"PeftModel", "PeftMixedModel"}:
            model = model.base_model
        elif "BaseTuner" in kinds:
            model = model.model
        elif "FullyShardedDataParallel" in kinds:
            raise ModelError(
                "FullyShardedDataParallel spreads each layer's weights, and pruning reads them whole; "
                "use a model that fits one device, or device_map='auto'"
            )
        elif "OptimizedModule" in kinds:
            raise ModelError(f"this model was compiled by torch.compile: {COMPILED}")
        else:
            return model


def refuse_compiled(model: nn.Module, hooked: Iterable[nn.Module]) -> None:
    """Compiled code does not run hooks that are put on later.

    Raises:
        ModelError: a module that has one of the ``hooked`` modules in it was compiled.
    """
    wanted = set(hooked)
    for name, module in model.named_modules():
        if _is_compiled(module) and not wanted.isdisjoint(module.modules()):
            raise ModelError(f"{f'{name!r} of this model' if name else 'this model'} was compiled: {COMPILED}")


def _is_compiled(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    return (
        module._compiled_call_impl is not None
        or type(module).__name__ == "OptimizedModule"
        or hasattr(forward, "_torchdynamo_orig_callable")
    )
