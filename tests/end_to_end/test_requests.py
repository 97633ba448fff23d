"""What happens to requests: refusals, a model that fails, prefix-cache figures, chunks of a stream, prompt forms."""

import pytest
import torch
import transformers

from bestiary import LLM, SamplingParams
from bestiary.api.errors import EngineError, RequestError, UsageError

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=90,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return LLM(str(folder), dtype="float32", skip_tokenizer_init=True, progress=False, block_size=8, max_num_seqs=8)


def tokens(llm, ids, params=GREEDY):
    return llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)[0].outputs[0].token_ids


def test_a_model_that_raises_is_an_error_and_the_engine_goes_on(llm, monkeypatch):
    want = tokens(llm, [4, 5, 6])
    runner = llm.engine.executor.runner

    def failing(*args, **kwargs):
        raise ZeroDivisionError("in the plugin")

    with monkeypatch.context() as patch:
        patch.setattr(type(runner.model), "forward", failing)
        with pytest.raises(EngineError) as caught:
            tokens(llm, [4, 5, 6])
    assert caught.value.error_code == "MODEL_FAILED"
    assert "ZeroDivisionError: in the plugin" in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not llm.engine.has_unfinished_requests
    assert tokens(llm, [4, 5, 6]) == want
    assert llm.engine.stats().kv_cache.used_blocks == 0


@pytest.mark.parametrize(
    ("ids", "params", "code"),
    [
        ([], GREEDY, "EMPTY_PROMPT"),
        ([90], GREEDY, "TOKEN_OUT_OF_RANGE"),
        ([-1], GREEDY, "TOKEN_OUT_OF_RANGE"),
        ([True], GREEDY, "TOKEN_OUT_OF_RANGE"),
        (list(range(64)), GREEDY, "CONTEXT_LENGTH_EXCEEDED"),
        (list(range(60)), GREEDY, "CONTEXT_LENGTH_EXCEEDED"),
        ([5], SamplingParams(stop_token_ids=[90]), "TOKEN_OUT_OF_RANGE"),
        ([5], SamplingParams(logit_bias={200: 1.0}), "TOKEN_OUT_OF_RANGE"),
    ],
)
def test_a_bad_request_is_refused_by_number_and_harms_no_other(llm, ids, params, code):
    with pytest.raises(RequestError) as caught:
        llm.generate([{"prompt_token_ids": [7, 8]}, {"prompt_token_ids": ids}], [GREEDY, params], use_tqdm=False)
    assert caught.value.error_code == code
    assert caught.value.message.startswith("prompt 1: ")
    assert not llm.engine.has_unfinished_requests


def test_bad_parameters_name_their_field():
    for field, value in {
        "temperature": float("nan"), "top_p": 0.0, "top_k": -2, "min_p": 2.0, "n": 0, "max_tokens": 0,
        "logprobs": 21, "seed": 2**70, "repetition_penalty": 0.0, "presence_penalty": 1e9,
    }.items():  # fmt: skip
        with pytest.raises(RequestError) as caught:
            SamplingParams(**{field: value})
        assert caught.value.field == field


def test_metrics_tell_of_the_prefix_cache(llm):
    ids = list(range(3, 36))
    tokens(llm, ids)
    (again,) = llm.generate({"prompt_token_ids": ids}, GREEDY, use_tqdm=False)
    assert again.metrics.cached_tokens == 32
    assert again.metrics.arrival <= again.metrics.first_token <= again.metrics.finished


def test_prompts_come_in_several_forms(llm):
    want = tokens(llm, [9, 10, 11])
    for form in ([9, 10, 11], [[9, 10, 11]], [{"prompt_token_ids": [9, 10, 11]}]):
        assert llm.generate(form, GREEDY, use_tqdm=False)[0].outputs[0].token_ids == want
    with pytest.raises(UsageError, match="needs a tokenizer"):
        llm.generate("text", GREEDY)
    for form in ({}, {"prompt_embeds": 1}, {"prompt_token_ids": "12"}, [None]):
        with pytest.raises(RequestError):
            llm.generate([form] if form else form, GREEDY)


def test_priorities_and_one_parameter_each(llm):
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (2, 4, 6)]
    outputs = llm.generate([[5], [6], [7]], params, use_tqdm=False, priority=[2, 1, 0])
    assert [len(output.outputs[0].token_ids) for output in outputs] == [2, 4, 6]
    with pytest.raises(UsageError, match="2 sampling_params for 3 prompts"):
        llm.generate([[5], [6], [7]], params[:2])


def test_leaving_a_stream_ends_its_request(llm):
    stream = llm.stream([5, 6], SamplingParams(max_tokens=30, ignore_eos=True))
    next(stream)
    stream.close()
    assert not llm.engine.has_unfinished_requests


def test_unknown_and_impossible_arguments_say_so(tmp_path):
    for options, words in (
        ({"max_model_length": 5}, "did you mean max_model_len"),
        ({"cpu_offload_gb": 2}, "not possible in this version"),
        ({"tensor_parallel_size": "2"}, "tensor_parallel_size is of the wrong kind"),
        ({"trust_remote_code": True}, "runs no code from model directories"),
    ):
        with pytest.raises(UsageError, match=words):
            LLM(str(tmp_path), **options)
