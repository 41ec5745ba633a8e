"""Hooks that are taken away together and do not survive in a copy of the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from vispco.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

COMPILED = (
    "a prune block cannot be compiled, traced or exported, as what it drops depends on the prompt; call the plain "
    "model inside the block"
)


class Hooks:
    """The hooks of one block. ``owner`` is whose they are; :func:`owner_of_hooks` finds it on a module."""

    def __init__(self, owner: Any = None) -> None:
        self.owner, self.active = owner, True
        self.modules: list[nn.Module] = []
        self._handles: list[Any] = []

    def before(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """``function(module, args, kwargs)`` runs before ``module`` and may return new ones."""
        self.modules.append(module)
        self._handles.append(module.register_forward_pre_hook(_Hook(self, function), with_kwargs=True))

    def after(self, module: nn.Module, function: Callable[..., Any], *, always: bool = False) -> None:
        """``function(module, args, output)`` runs after ``module`` and may return another output.

        ``always``: also where the module fails; the output is then None.
        """
        self.modules.append(module)
        self._handles.append(module.register_forward_hook(_Hook(self, function), always_call=always))

    def method(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        """``function(own, output, *args, **kwargs)`` runs after the method ``name`` of ``module``, which is ``own``.

        For what a model does outside of any module's forward.
        """
        self._handles.append(_Method(self, module, name, function))

    def remove(self) -> None:
        self.active = False
        for handle in reversed(self._handles):
            handle.remove()
        self._handles.clear()
        self.modules.clear()


class _Hook:
    """A function of a block. In a copy of the model, or in its pickle, it does nothing."""

    def __init__(self, hooks: Hooks, function: Callable[..., Any]) -> None:
        self.hooks, self.function = hooks, function

    def __call__(self, *args: Any) -> Any:
        # Code that was compiled inside the block may call a hook that was removed.
        if not self.hooks.active:
            return None
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            raise ModelError(COMPILED)
        return self.function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return _inert, ()


class _Method:
    """Stands in the place of a method of one module. In a copy of the module, or in its pickle, it is the method."""

    def __init__(self, hooks: Hooks, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        self.hooks, self.module, self.name, self.function = hooks, module, name, function
        self.before = vars(module).get(name)
        self.__wrapped__ = getattr(module, name)  # so that its signature is the method's
        setattr(module, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.__wrapped__(*args, **kwargs)
        if self.hooks.active:
            self.function(self.__wrapped__, output, *args, **kwargs)
        return output

    def remove(self) -> None:
        if vars(self.module).get(self.name) is self:
            delattr(self.module, self.name)
            if self.before is not None:
                setattr(self.module, self.name, self.before)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.module, self.name)


def _inert() -> Callable[..., None]:
    return _nothing


def _nothing(*args: Any) -> None:
    return None


def owner_of_hooks(module: nn.Module) -> Any:
    """Whose hooks stand before ``module``; None: nobody's of this package."""
    found = [hook.hooks.owner for hook in module._forward_pre_hooks.values() if isinstance(hook, _Hook)]
    return next((owner for owner in found if owner is not None), None)


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What ``module`` is called with, by the names in its ``forward``."""
    return {**(inspect.signature(module.forward).bind_partial(*args).arguments if args else {}), **kwargs}
