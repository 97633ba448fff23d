"""Model classes of other conventions: what their methods were called, and took, is given its present form in place."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from types import FunctionType, ModuleType
from typing import Any

from bestiary.api.config import VllmConfig

from .changeable import changeable
from .said import say_once

_ADAPTED = "__bestiary_vllm_adapted__"


def adapt_classes(modules: Iterable[ModuleType]) -> None:
    """Adapt every model class that was defined in one of `modules`. A class is adapted once."""
    if "torch" not in sys.modules:
        return  # what has not been imported, nobody derives from
    from torch import nn

    for module in list(modules):
        for each in list(vars(module).values()):
            if isinstance(each, type) and issubclass(each, nn.Module) and each.__module__ == module.__name__:
                adapt(each)


def adapt(model_class: type) -> None:
    """``compute_logits(hidden_states, sampling_metadata)`` and ``get_input_embeddings`` (to 0.11) become what they are
    now, each with a line that says so. `forward` can do without the tensors of other stages, and a constructor is given
    a configuration that it may change."""
    own = vars(model_class)
    if _ADAPTED in own:
        return
    if "compute_logits" in own and _needs_sampling_metadata(own["compute_logits"]):
        say_once(
            f"{model_class.__name__}.compute_logits(…, sampling_metadata): it is compute_logits(hidden_states) now"
        )
        setattr(model_class, "compute_logits", _without_metadata(own["compute_logits"]))  # noqa: B010  typed as any class
    if "get_input_embeddings" in own and not hasattr(model_class, "embed_input_ids"):
        say_once(f"{model_class.__name__}.get_input_embeddings: it is embed_input_ids now")
        setattr(model_class, "embed_input_ids", own["get_input_embeddings"])  # noqa: B010
    if "compute_logits" in own and not hasattr(model_class, "embed_input_ids"):
        setattr(model_class, "embed_input_ids", _by_first_embedding)  # noqa: B010
    if isinstance(own.get("forward"), FunctionType):
        _default_of_other_stages(own["forward"])
    if "__init__" in own and "vllm_config" in inspect.signature(own["__init__"]).parameters:
        setattr(model_class, "__init__", _with_own_config(own["__init__"]))  # noqa: B010
    setattr(model_class, _ADAPTED, True)


def _by_first_embedding(self: Any, input_ids: Any) -> Any:
    """Files to 0.9 have no method for it; a model's first embedding is that of tokens."""
    from bestiary.nn import VocabParallelEmbedding

    return next(each for each in self.modules() if isinstance(each, VocabParallelEmbedding))(input_ids)


def _needs_sampling_metadata(method: Callable[..., Any]) -> bool:
    parameter = inspect.signature(method).parameters.get("sampling_metadata")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _default_of_other_stages(forward: FunctionType) -> None:
    """Arguments from `intermediate_tensors` on are None where they are not given."""
    parameters = inspect.signature(forward).parameters
    if "intermediate_tensors" not in parameters:
        return
    if parameters["intermediate_tensors"].kind is inspect.Parameter.KEYWORD_ONLY:
        forward.__kwdefaults__ = {"intermediate_tensors": None, **(forward.__kwdefaults__ or {})}
        return
    known = forward.__defaults__ or ()
    optional = forward.__code__.co_argcount - list(parameters).index("intermediate_tensors")
    forward.__defaults__ = (None,) * (optional - len(known)) + known


def _without_metadata(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def compute_logits(self: Any, hidden_states: Any) -> Any:
        return method(self, hidden_states, None)

    del compute_logits.__wrapped__  # its signature is the new one
    return compute_logits


def _with_own_config(constructor: Callable[..., None]) -> Callable[..., None]:
    @wraps(constructor)
    def __init__(self: Any, *arguments: Any, **options: Any) -> None:
        if isinstance(options.get("vllm_config"), VllmConfig):
            options["vllm_config"] = changeable(options["vllm_config"])
        constructor(self, *arguments, **options)

    return __init__
