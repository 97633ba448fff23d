"""What a plugin says about its architecture in GGUF files, as data.

A distribution offers one through the entry-point group `bestiary_gguf`: the entry's name is the file's
`general.architecture`, its value `module:OBJECT`, the object a `GgufArchitecture`. Importing it must not import torch.

Where one `general.architecture` stands for several models, the name may be that of a metadata key instead: an entry
``llama.expert_count`` is for the files of architecture `llama` whose key of this name is there and not 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class GgufArchitecture:
    """How a GGUF file of one `general.architecture` becomes a `config.json` and a checkpoint.

    Attributes:
        architecture: the name in `config.json`'s `architectures`, e.g. ``"LlamaForCausalLM"``.
        model_type: `config.json`'s `model_type`, e.g. ``"llama"``.
        config: further `config.json` fields → GGUF metadata keys, without the leading ``"<arch>."``
            (``{"rms_norm_eps": "attention.layer_norm_rms_epsilon"}``), on top of (and winning
            over) the standard ones in `engine/loader/gguf_config.py`; a key the file lacks leaves its field out.
        constants: further `config.json` fields with fixed values.
        tensors: GGUF tensor names → checkpoint names, ``{bid}`` standing for the layer index, on top of (and winning
            over) the standard names in `engine/loader/gguf_names.py`. A name without its ``.weight`` or ``.bias``
            speaks for both. A value of None says the tensor is not a weight of the model.
        rope_interleaved: checkpoint module names (``"q_proj"``) whose rows GGUF stores for interleaved rotary pairs and
            which the loader puts back into half-split order, with the config field that counts their heads.
        qkv_interleaved: checkpoint module names (``"query_key_value"``) of fused projections whose rows the checkpoint
            has key-value head by head (`QKVParallelLinear`'s `interleaved`), and GGUF all queries first, then all keys,
            then all values; the loader puts them back.
    """

    architecture: str
    model_type: str
    config: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, object] = field(default_factory=dict)
    tensors: Mapping[str, str | None] = field(default_factory=dict)
    rope_interleaved: Mapping[str, str] = field(default_factory=dict)
    qkv_interleaved: Collection[str] = ()
