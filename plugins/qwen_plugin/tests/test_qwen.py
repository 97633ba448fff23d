"""The first Qwen against a plain reference beyond its training length; within it its contract says all."""

import json

import gguf
import pytest
import torch

from bestiary import LLM, SamplingParams
from bestiary.api.errors import ConfigError, EngineError
from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.context import ForwardContext, forward_context
from bestiary.testing.logits import prompt_logits
from qwen_plugin.reference import SMALL, ReferenceQwen

LENGTHS = (1, 5, 15, 16, 17, 31, 32, 33, 64, 70)  # around seq_length 16, where alpha goes 1, 3, 7, 15

VARIANTS = {
    "as published": {},
    "no dynamic NTK": {"use_dynamic_ntk": False},
    "no log-n attention": {"use_logn_attn": False},
    "neither": {"use_dynamic_ntk": False, "use_logn_attn": False},
    "half of each head is rotated": {"rotary_pct": 0.5},
    "another base": {"rotary_emb_base": 1e6},
    "training length no power of two": {"seq_length": 23},
}


def prompts(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 211, (length,), generator=generator).tolist() for length in lengths]


def load(folder, **options):
    options = {"dtype": "float32", "skip_tokenizer_init": True} | options
    return LLM(str(folder), progress=False, **options)


def greedy(llm, prompts, tokens):
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


def check_logits(model, llm, chunk=None):
    for ids in prompts():
        torch.testing.assert_close(prompt_logits(llm, ids, chunk), model.logits(ids), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    model, folder = ReferenceQwen(SMALL), tmp_path_factory.mktemp("qwen")
    model.save(folder)
    return model, folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_answers_equal_the_reference(variant, tmp_path):
    model = ReferenceQwen(SMALL | VARIANTS[variant])
    model.save(tmp_path)
    llm = load(tmp_path)
    check_logits(model, llm)
    check_logits(model, llm, chunk=7)
    some = prompts((5, 15, 16, 30, 40))
    assert greedy(llm, some, 24) == [model.greedy(ids, 24) for ids in some]


def test_answers_depend_neither_on_chunks_nor_on_cache_nor_on_preemption(published):
    model, folder = published
    head = prompts((48,))[0]
    some = [head[:length] for length in (12, 16, 17, 20, 33, 34, 48)]  # one beginning, four classes of lengths
    want = [model.greedy(ids, 20) for ids in some]
    assert greedy(load(folder), some, 20) == want
    assert greedy(load(folder, enable_prefix_caching=False), some, 20) == want
    tight = load(folder, max_num_batched_tokens=23, block_size=4, num_gpu_blocks_override=20)
    assert greedy(tight, some, 20) == want
    assert tight.engine.stats().preemptions > 0
    for one, ids in zip(want, some, strict=True):  # one by one, with all the others' blocks in the cache
        assert greedy(tight, [ids], 20) == [one]


def test_prompts_share_blocks_only_within_a_class_of_lengths(published):
    _, folder = published
    llm = load(folder, block_size=4)
    head = prompts((32,))[0]

    def cached(length):
        (output,) = llm.generate({"prompt_token_ids": head[:length]}, SamplingParams(max_tokens=1), use_tqdm=False)
        return output.metrics.cached_tokens

    assert [cached(length) for length in (16, 13, 17, 16, 32, 31, 30)] == [0, 12, 0, 12, 16, 28, 28]


def test_models_without_dynamic_ntk_share_all_blocks(tmp_path):
    ReferenceQwen(SMALL | {"use_dynamic_ntk": False}).save(tmp_path)
    llm = load(tmp_path, block_size=4)
    head = prompts((32,))[0]
    for length, cached in ((16, 0), (32, 16)):
        (output,) = llm.generate({"prompt_token_ids": head[:length]}, SamplingParams(max_tokens=1), use_tqdm=False)
        assert output.metrics.cached_tokens == cached


def test_without_the_prompts_lengths_nothing_is_guessed(published):
    rope = load(published[1]).engine.executor.runner.model.transformer.h[0].attn.rotary_emb
    empty = torch.zeros(1, dtype=torch.int32)
    step = AttentionMetadata(empty, empty, empty, empty.long(), (), (), 0, 0, 0, 16)
    with forward_context(ForwardContext(step, {})), pytest.raises(EngineError, match="prompt"):
        rope(torch.tensor([1]), torch.zeros(1, 64))


def test_fields_that_are_absent_have_the_published_defaults(tmp_path):
    model = ReferenceQwen(SMALL)
    model.save(tmp_path)
    defaults = {"kv_channels", "layer_norm_epsilon", "rotary_pct", "rotary_emb_base", "use_dynamic_ntk",
                "use_logn_attn", "no_bias", "scale_attn_weights", "tie_word_embeddings"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in SMALL.items() if k not in defaults}))
    check_logits(model, load(tmp_path))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seq_length": None, "vocab_size": None}, "vocab_size"),
        ({"intermediate_size": 191}, "intermediate_size"),
        ({"seq_length": 1}, "seq_length"),
        ({"use_dynamic_ntk": 1}, "use_dynamic_ntk"),
        ({"no_bias": "yes"}, "no_bias"),
    ],
)
def test_a_wrong_field_is_named(changes, field, tmp_path):
    ReferenceQwen(SMALL).save(tmp_path)
    fields = {name: value for name, value in (SMALL | changes).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert field in str(caught.value.field)
    if changes[field] is None:
        assert set(caught.value.details) == set(changes)


def write_gguf(model, path):
    """As llama.cpp's converter lays it out: nothing in the file tells of dynamic NTK or log-n attention."""
    config = model.config
    writer = gguf.GGUFWriter(path, "qwen")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_rope_freq_base(config.rotary_emb_base)
    writer.add_rope_dimension_count(config.kv_channels)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_config_json_beside_a_gguf_file_tells_the_rest(tmp_path):
    model = ReferenceQwen(SMALL)
    write_gguf(model, tmp_path / "model.gguf")
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    check_logits(model, load(tmp_path / "model.gguf"))
