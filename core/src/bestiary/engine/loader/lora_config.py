"""`adapter_config.json`, read as data: what PEFT wrote, checked field by field, everything wrong said at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bestiary.api.errors import BadAdapter, ConfigError, shorten

from .config_json import read_json
from .lora_patterns import MAX_PATTERNS, Values, compiled, value_of
from .lora_patterns import problems as pattern_problems

CONFIG = "adapter_config.json"
MAX_CONFIG_BYTES = 2**20
MAX_RANK = 2**16
_READ = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules",
    "target_parameters", "bias", "init_lora_weights",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "task_type",
}  # fmt: skip
"""Fields about training, or about which modules were chosen, which the tensors tell."""
_KEEPS_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin training after which the base's weights are what they were."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What decides how the factors are used. targets: the listed names, None where they are a pattern."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: Values
    alpha_pattern: Values
    targets: tuple[str, ...] | None
    parameters: tuple[str, ...]

    def rank_and_scale(self, names: tuple[str, ...]) -> tuple[int, float]:
        """Of a module, by the names it goes by. The scale is ``alpha / rank``, or ``alpha / sqrt(rank)`` where the
        adapter is rank-stabilized (arXiv 2312.03732)."""
        rank = int(value_of(self.rank_pattern, names, self.rank))
        alpha = value_of(self.alpha_pattern, names, self.alpha)
        return rank, alpha / math.sqrt(rank) if self.rslora else alpha / rank


def read_adapter_config(directory: Path) -> AdapterConfig:
    """Raises `BadAdapter`: the file is missing, damaged, or asks for what adapters here cannot do."""
    path = directory / CONFIG
    try:
        data = read_json(path, max_bytes=MAX_CONFIG_BYTES)
    except ConfigError as error:
        raise BadAdapter(
            error.message, field=error.field, limit=error.limit, value=error.value, fix=error.fix
        ) from error
    problems = [*_kind(data), *_numbers(data), *_patterns(data), *_targets(data), *_unknown(data)]
    if problems:
        raise BadAdapter(
            f"{CONFIG} is refused: {len(problems)} problem(s)",
            field=str(path),
            details=problems,
            fix="what is not possible here can be merged into the model (peft: merge_and_unload)",
        )
    targets = data.get("target_modules")
    return AdapterConfig(
        rank=data["r"],
        alpha=float(data["lora_alpha"]),
        rslora=data.get("use_rslora") or False,
        rank_pattern=compiled(data.get("rank_pattern") or {}),
        alpha_pattern=compiled(data.get("alpha_pattern") or {}),
        targets=tuple(targets) if isinstance(targets, list) else None,
        parameters=tuple(data.get("target_parameters") or ()),
    )


def _kind(data: Mapping[str, Any]) -> list[str]:
    problems = []
    if data.get("peft_type") != "LORA":
        problems.append(f"peft_type is {shorten(data.get('peft_type'))}: only LORA is possible")
    if data.get("bias", "none") != "none":
        problems.append(f"bias is {shorten(data['bias'])}: trained biases are not possible, only none")
    if data.get("init_lora_weights", True) not in _KEEPS_THE_BASE:
        problems.append(
            f"init_lora_weights is {shorten(data['init_lora_weights'])}: it changed the base model's weights; convert "
            "the adapter when saving it (peft: path_initial_model_for_weight_conversion)"
        )
    if not isinstance(data.get("use_rslora", False), bool | None):
        problems.append(f"use_rslora is {shorten(data['use_rslora'])}: true or false")
    return problems


def _numbers(data: Mapping[str, Any]) -> list[str]:
    problems = []
    for name in ("r", "lora_alpha"):
        if (reason := _why_no_number(data.get(name), whole=name == "r")) is not None:
            problems.append(f"{name} is {shorten(data.get(name))}: {reason}")
    return problems


def _why_no_number(value: object, *, whole: bool) -> str | None:
    number = isinstance(value, int) or (isinstance(value, float) and not whole)
    if not isinstance(value, int | float) or isinstance(value, bool) or not number:
        return "a whole number" if whole else "a number"
    if whole and not 1 <= value <= MAX_RANK:
        return f"from 1 to {MAX_RANK}"
    return None if abs(value) < 1e9 else "a number below 1e9"


def _patterns(data: Mapping[str, Any]) -> list[str]:
    problems = []
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = data.get(field) or {}
        if not isinstance(patterns, dict):
            problems.append(f"{field} is {shorten(patterns)}: numbers by pattern")
            continue
        problems += [f"{field}: {each}" for each in pattern_problems(patterns)]
        for pattern, value in patterns.items():
            if (reason := _why_no_number(value, whole=field == "rank_pattern")) is not None:
                problems.append(f"{field}.{pattern[:64]} is {shorten(value)}: {reason}")
    return problems


def _targets(data: Mapping[str, Any]) -> list[str]:
    """`target_modules` may be a pattern; it is not run, since the tensors tell what it matched."""
    problems = []
    modules, parameters = data.get("target_modules"), data.get("target_parameters")
    if not isinstance(modules, str | None) and not _names(modules):
        problems.append(f"target_modules is {shorten(modules)}: a list of names, or one pattern")
    if parameters is not None and not _names(parameters):
        problems.append(f"target_parameters is {shorten(parameters)}: a list of names")
    return problems


def _names(value: object) -> bool:
    return isinstance(value, list) and len(value) <= MAX_PATTERNS and all(isinstance(each, str) for each in value)


def _unknown(data: Mapping[str, Any]) -> list[str]:
    """Fields that ask for something else than plain factors; what is not set asks for nothing."""
    asked = {name: value for name, value in data.items() if value not in (None, False, "") and value != {}}
    names = sorted(asked.keys() - _READ - _WITHOUT_EFFECT)
    return [f"{name[:64]} is {shorten(asked[name])}: this is not possible here" for name in names]
