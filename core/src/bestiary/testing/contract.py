"""`ModelContract`: the whole test file of an architecture.

    # src/my_plugin/contract.py, shipped in the wheel; entry point: [project.entry-points.bestiary_contracts]
    from bestiary.testing import ModelContract

    class TestMixtral(ModelContract):
        architecture = "MixtralForCausalLM"
        config = {"model_type": "mixtral", "hidden_size": 64, ...}
        variants = {"one key-value head": {"num_key_value_heads": 1}}

    # tests/test_my_plugin.py
    from my_plugin.contract import TestMixtral  # noqa: F401

Every inherited ``test_…`` method is one check.
"""

from __future__ import annotations

from .checks.claims import ClaimsChecks
from .checks.configuration import ConfigurationChecks
from .checks.gguf import GgufChecks
from .checks.installed import InstalledChecks
from .checks.logits import LogitsChecks
from .checks.lora import LoraChecks
from .checks.pipeline import PipelineChecks
from .checks.quantization import QuantizationChecks
from .checks.readme import ReadmeChecks
from .checks.schedule import ScheduleChecks
from .checks.tensor_parallel import TensorParallelChecks
from .checks.weights import WeightsChecks


class ModelContract(
    ReadmeChecks,
    GgufChecks,
    QuantizationChecks,
    LoraChecks,
    TensorParallelChecks,
    PipelineChecks,
    ScheduleChecks,
    LogitsChecks,
    ClaimsChecks,
    WeightsChecks,
    ConfigurationChecks,
    InstalledChecks,  # its checks come first
):
    """What an architecture promises, and the checks that hold it to that.

    Attributes:
        architecture: the name in `config.json`, which is the name of the entry point in `vllm_models`.
        config: `config.json` of a tiny model, with `model_type`. None: only what needs no model is checked.
        variants: name → changed fields; each is a model of its own whose logits are compared.
        refused: name → changed fields with which the model cannot be computed, so that building it must be a
            `ConfigError` that names one of them.
        gguf: its name in `bestiary_gguf`: `general.architecture` of its GGUF files, or that with a dot and
            the key that tells them from others. None: it has none.
        gguf_variants: variants that are written as GGUF files as well.
        bf16_bound: how far bfloat16 logits may be off: the norm of the difference, relative to the logits' norm.
        smooth_variant: the variant that bfloat16 is compared with, for a model that makes hard choices: where rounding
            sends a token to another expert, no bound holds. One that chooses all experts does not choose.
        quantization_bounds: how far a method's weights may be off, by its name, relative to the largest of a layer.
        optional_weights: patterns (`fnmatch`) of checkpoint tensors that may be missing.
        other_names: what some checkpoints call the same tensors: name of such a spelling → (regular expression,
            replacement), which turns the reference's names into it.
        without_effect: pattern of parameters of the reference → the reason why they cannot change the logits.
        given_up: name of a check → why this architecture does not make it, in at least ten characters.

    Methods that may be overridden: `reference(config)` returns the model to be equalled, by default transformers';
    `gguf_metadata(writer, config)` and `gguf_rows(name, array, config)` add what llama.cpp's converter does beyond the
    standard for this architecture.
    """
