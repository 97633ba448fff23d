"""Loading holds the model and one tensor: no reader, mapper or loader keeps what it has passed on."""

import weakref

import pytest
import torch
import transformers

from bestiary import LLM, SamplingParams
from bestiary.engine.loader import load

SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 300,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).save_pretrained(folder, max_shard_size="100KB")
    return str(folder)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SMALL, num_key_value_heads=4, num_local_experts=6)
    transformers.MixtralForCausalLM(config).save_pretrained(folder, max_shard_size="300KB")
    return str(folder)


class Spy:
    """Stands where the stream of weights enters the model, and counts earlier tensors that are still alive."""

    def __init__(self):
        self.alive, self.passed = [], []

    def __call__(self, model, stream):
        def watched():
            for name, tensor in stream:
                self.alive.append(sum(each() is not None for each in self.passed))
                self.passed.append(weakref.ref(tensor))
                yield name, tensor

        self.load_complete(model, watched())


@pytest.mark.parametrize("options", [{}, {"quantization": "int8"}])
@pytest.mark.parametrize("which", ["checkpoint", "experts"])
def test_at_most_one_tensor_is_alive_beside_the_model(which, monkeypatch, options, request):
    checkpoint = request.getfixturevalue(which)
    spy = Spy()
    spy.load_complete = load.load_complete
    monkeypatch.setattr(load, "load_complete", spy)
    llm = LLM(checkpoint, dtype="float32", skip_tokenizer_init=True, progress=False, **options)
    assert len(spy.passed) > 30
    assert max(spy.alive) <= 1
    (output,) = llm.generate({"prompt_token_ids": [5, 6, 7]}, SamplingParams(max_tokens=3), use_tqdm=False)
    assert output.finished


def test_building_allocates_no_weights(checkpoint):
    from bestiary.engine.arguments import EngineArgs
    from bestiary.engine.build import EngineBuilder

    model_class, config = EngineBuilder(EngineArgs(model=checkpoint, progress=False)).configure()
    assert all(param.is_meta for param in load.build_model(model_class, config).parameters())


def test_int8_stays_near_float32(checkpoint):
    from bestiary.testing.logits import prompt_logits

    ids = list(range(3, 40))
    plain = LLM(checkpoint, dtype="float32", skip_tokenizer_init=True, progress=False)
    want = prompt_logits(plain, ids)
    quantized = LLM(checkpoint, dtype="float32", skip_tokenizer_init=True, progress=False, quantization="int8")
    got = prompt_logits(quantized, ids)
    assert 0 < float((got - want).abs().max()) < 0.05 * float(want.abs().max())


def test_dummy_weights_run_and_are_the_same_every_time(checkpoint):
    def tokens():
        llm = LLM(checkpoint, dtype="float32", skip_tokenizer_init=True, progress=False, load_format="dummy")
        params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
        return llm.generate({"prompt_token_ids": [9, 8, 7]}, params, use_tqdm=False)[0].outputs[0].token_ids

    assert tokens() == tokens()
