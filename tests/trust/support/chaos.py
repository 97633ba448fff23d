"""The plugin of `chaos_model` as an installed distribution, and requests that provoke it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bestiary import SamplingParams
from bestiary.testing.fake_site import Site

from .chaos_model import PROVOCATIONS

ARCHITECTURE = "ChaosForCausalLM"
OVERRIDES: Mapping[str, Any] = {"architectures": [ARCHITECTURE]}
"""Makes T0 a model of this plugin."""
TRIGGERS = tuple(PROVOCATIONS)
TOKEN = {what: token for token, what in PROVOCATIONS.items()}
HARMLESS = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True, bad_token_ids=TRIGGERS)
"""A request's parameters that never draws a token which provokes."""


def install(root: Path) -> Path:
    """Put the plugin into `root`, to be put on `sys.path`; returns `root`."""
    source = Path(__file__).with_name("chaos_model.py").read_text("utf-8")
    models = {ARCHITECTURE: f"chaos_plugin:{ARCHITECTURE}"}
    Site(root).add("chaos-plugin", models=models, module="chaos_plugin", source=source)
    return root


def provoking(what: str, when: str) -> tuple[list[int], SamplingParams]:
    """A request that provokes in its prompt's step ("prefill"), or in a step after it ("decode")."""
    if when == "prefill":
        return [70, 71, 72, TOKEN[what]], HARMLESS
    return [70, 71, 72], replace(HARMLESS, bad_token_ids=(), logit_bias={TOKEN[what]: 100.0})


def as_fields(params: SamplingParams) -> dict[str, Any]:
    """Parameters as fields of a request over HTTP, those that differ from the usual."""
    found = {each.name: getattr(params, each.name) for each in fields(params)}
    usual = {each.name: getattr(SamplingParams(), each.name) for each in fields(params)}
    changed = {name: value for name, value in found.items() if value != usual[name]}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}
