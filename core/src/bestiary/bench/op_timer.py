"""What ops and attention take in steps that run op by op: every call between two looks at the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from bestiary.engine.model_layers import attention_layers
from bestiary.engine.runner import ModelRunner
from bestiary.nn.graphs import KernelTime
from bestiary.nn.ops.registry import ChosenOps
from bestiary.nn.quant.packed import PackedLinearMethod

from .hardware import wait
from .op_cost import OpCost, attention_cost, op_cost


class OpTimer:
    """Adds up calls until they are taken. Of ops within ops the outermost counts."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._within = False
        self._found: dict[tuple[str, str], KernelTime] = {}

    def take(self) -> list[KernelTime]:
        """What was called since the last time, by op and shape, in the order in which these first came."""
        found, self._found = self._found, {}
        return list(found.values())

    @contextmanager
    def watching(self, runner: ModelRunner) -> Iterator[None]:
        """While it lasts, the runner's ops and its attention are timed, and no step of its is recorded or replayed."""
        layers = [layer for layer in attention_layers(runner.model).values() if layer.backend is not None]
        heads = [each for each in runner.model.modules() if _is_packed_head(each)]
        before = runner.stage.ops, runner.graphs, [layer.backend for layer in layers]
        methods = [head.quant_method for head in heads]
        runner.stage.ops, runner.graphs = self._timed_ops(runner.stage.ops), None
        for layer in layers:
            layer.backend = _TimedAttention(layer.backend, self)
        for head in heads:
            head.quant_method = _TimedHead(head.quant_method, self)
        try:
            yield
        finally:
            for head, method in zip(heads, methods, strict=True):
                head.quant_method = method
            runner.stage.ops, runner.graphs, backends = before
            for layer, backend in zip(layers, backends, strict=True):
                layer.backend = backend

    def _timed_ops(self, ops: ChosenOps) -> ChosenOps:
        return ChosenOps(
            {name: replace(each, function=self._timed(name, each.function)) for name, each in ops.versions.items()}
        )

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            given = [*args, *kwargs.values()]
            return self.call(name, lambda: function(*args, **kwargs), lambda result: op_cost(name, given, result))

        return timed

    def call(self, name: str, function: Callable[[], Any], cost: Callable[[Any], OpCost]) -> Any:
        if self._within:
            return function()
        wait(self._device)
        self._within, start = True, time.perf_counter()
        try:
            result = function()
            wait(self._device)
        finally:
            self._within = False
        seconds = time.perf_counter() - start
        self._add(name, cost(result), seconds)
        return result

    def _add(self, name: str, cost: OpCost, seconds: float) -> None:
        key = name, cost.shape
        one = KernelTime(*key, 1, seconds, cost.bytes, cost.operations)
        self._found[key] = together([self._found[key], one]) if key in self._found else one


class _TimedAttention:
    """A backend as it is, but for the clock."""

    def __init__(self, backend: Any, timer: OpTimer) -> None:
        self._backend, self._timer = backend, timer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def forward(self, query: Any, key: Any, value: Any, kv_cache: Any, metadata: Any, spec: Any, sinks: Any) -> Any:
        return self._timer.call(
            "attention",
            lambda: self._backend.forward(query, key, value, kv_cache, metadata, spec, sinks),
            lambda _: attention_cost(query, kv_cache, metadata, spec),
        )


class _TimedHead:
    """How a head that is no op's business is applied, but for the clock."""

    def __init__(self, method: Any, timer: OpTimer) -> None:
        self._method, self._timer = method, timer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def apply(self, layer: Any, x: Any, bias: Any = None) -> Any:
        return self._timer.call(
            "linear_onednn",
            lambda: self._method.apply(layer, x, bias),
            lambda result: op_cost("linear_onednn", [x, layer.weight, bias], result),
        )


def _is_packed_head(module: Any) -> bool:
    return isinstance(getattr(module, "quant_method", None), PackedLinearMethod)


def together(rows: list[KernelTime]) -> KernelTime:
    """The sum of calls of one op on one shape."""
    return replace(
        rows[0], calls=sum(each.calls for each in rows), seconds=sum(each.seconds for each in rows),
        bytes=sum(each.bytes for each in rows), operations=sum(each.operations for each in rows),
    )  # fmt: skip
