"""What misbehaves (models, observers, arguments, callers) gets an error of its own, and harms nobody else."""

import threading

import pytest
import torch
import transformers

from bestiary import LLM, SamplingParams
from bestiary.api import ModelRegistry
from bestiary.api.errors import BrokenPlugin, EngineError, RequestError, UsageError

GREEDY = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 90,
    "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(5)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(made)
    return made


def load(folder, **options):
    return LLM(str(folder), dtype="float32", skip_tokenizer_init=True, progress=False, **options)


@pytest.fixture(scope="module")
def llm(folder):
    return load(folder)


def tokens(llm, ids=(4, 5, 6), params=GREEDY):
    return llm.generate([list(ids)], params, use_tqdm=False)[0].outputs[0].token_ids


def test_a_closed_llm_says_so(folder):
    closed = load(folder)
    closed.close()
    with pytest.raises(EngineError) as caught:
        tokens(closed)
    assert caught.value.error_code == "CLOSED"


def test_several_threads_share_one_llm(llm):
    want = {start: tokens(llm, (start, 7, 8)) for start in range(4, 12)}
    found = {}
    threads = [threading.Thread(target=lambda s=s: found.update({s: tokens(llm, (s, 7, 8))})) for s in want]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == want
    assert not llm.engine.has_unfinished_requests


def test_two_engines_in_two_threads_take_turns(folder, llm):
    """One is deterministic, one is not: each runs with its own versions of the ops, whoever else runs."""
    other = load(folder, deterministic=True)
    want = {each: [tokens(each, (start, 7, 8)) for start in range(4, 16)] for each in (llm, other)}
    found = {}

    def work(each):
        found[each] = [tokens(each, (start, 7, 8)) for start in range(4, 16)]

    threads = [threading.Thread(target=work, args=(each,)) for each in want]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == want


def test_overrides_may_be_a_function(folder):
    shorter = load(folder, hf_overrides=lambda data: data | {"max_position_embeddings": 32})
    assert shorter.vllm_config.model_config.max_model_len == 32


def test_a_stream_ended_by_another_call_still_yields_its_end(llm):
    stream = llm.stream([4, 5, 6], GREEDY)
    next(stream)
    tokens(llm, (9, 9))
    rest = list(stream)
    assert rest[-1].finished
    assert rest[-1].outputs[0].token_ids == tokens(llm)


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_numbers_in_attention_are_an_error_not_tokens(folder, projection, bad):
    llm = load(folder)
    layer = llm.engine.executor.runner.model.model.layers[0].self_attn.qkv_proj
    start = {"q_proj": 0, "k_proj": 32, "v_proj": 64}[projection]
    layer.weight.data[start : start + 32] = bad
    for ids in ([4, 5, 6], [7]):
        (output,) = llm.generate([ids], GREEDY, use_tqdm=False)
        assert output.outputs[0].finish_reason == "error"
        assert output.outputs[0].stop_reason == "numerical"


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("compute_logits", lambda logits: logits[:, :5]),
        ("compute_logits", lambda logits: torch.cat([logits, logits], 1)),
        ("compute_logits", lambda logits: logits.long()),
        ("compute_logits", lambda logits: None),
        ("forward", lambda hidden: hidden[:1]),
        ("forward", lambda hidden: None),
    ],
)
def test_a_model_that_returns_the_wrong_shape_is_named(llm, monkeypatch, method, wrong):
    model = type(llm.engine.executor.runner.model)
    right = getattr(model, method)
    with monkeypatch.context() as patch:
        patch.setattr(model, method, lambda self, **given: wrong(right(self, **given)))
        with pytest.raises(BrokenPlugin, match=method):
            tokens(llm)
    assert len(tokens(llm)) == 5


@pytest.mark.parametrize("ending", [SystemExit, KeyError, RecursionError])
def test_whatever_a_model_raises_is_an_error(llm, folder, monkeypatch, ending):
    model = type(llm.engine.executor.runner.model)

    def raising(*args, **kwargs):
        raise ending("in the plugin")

    for method in ("forward", "__init__", "load_weights"):
        with monkeypatch.context() as patch:
            patch.setattr(model, method, raising, raising=False)
            with pytest.raises((EngineError, BrokenPlugin)) as caught:
                tokens(llm) if method == "forward" else load(folder)
        assert ending.__name__ in str(caught.value)


class NoModule:
    def __init__(self, *, vllm_config, prefix=""):
        pass

    def embed_input_ids(self, input_ids):
        return input_ids

    def forward(self, input_ids, positions):
        return input_ids

    def compute_logits(self, hidden_states):
        return hidden_states


def test_a_class_that_is_no_torch_module_is_refused(folder):
    ModelRegistry.register_model("NoModule", NoModule)
    with pytest.raises(BrokenPlugin, match=r"torch\.nn\.Module"):
        load(folder, hf_overrides={"architectures": ["NoModule"]})


def test_an_observer_that_raises_is_left_out_and_no_token_is_lost(llm, caplog):
    class Raising:
        def on_step(self, plan, seconds):
            raise ValueError("observed too much")

    want, before = tokens(llm), llm.engine.observers
    llm.engine.observers = (*before, Raising())
    assert tokens(llm) == want
    assert llm.engine.observers == before
    assert "observed too much" in caplog.text


def test_end_of_sequence_ids_that_cannot_be_drawn_are_left_out(folder, caplog):
    llm = load(folder, hf_overrides={"eos_token_id": [2, 90, -1, 2**40]})
    assert llm.engine.eos_token_ids == {2}
    assert "[-1, 90, 1099511627776] are left out" in caplog.text
    assert len(tokens(llm, params=SamplingParams(min_tokens=3, max_tokens=3))) == 3


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(bad_token_ids=range(90)),
        SamplingParams(allowed_token_ids=[9], stop_token_ids=[9], min_tokens=3),
    ],
)
def test_a_request_that_leaves_nothing_to_draw_is_refused(llm, params):
    with pytest.raises(RequestError) as caught:
        tokens(llm, params=params)
    assert caught.value.error_code == "NOTHING_TO_DRAW"


@pytest.mark.parametrize("priority", ["x", None, 1.5, 10**30])
def test_a_bad_priority_is_refused_and_nothing_is_left_behind(llm, priority):
    with pytest.raises(RequestError, match="priority"):
        llm.generate([[4], [5]], GREEDY, priority=[0, priority], use_tqdm=False)
    assert not llm.engine.has_unfinished_requests


@pytest.mark.parametrize("prompts", [None, 5, b"abc", {4, 5}, (each for each in ([4], [5])), torch.tensor([4, 5])])
def test_what_is_no_prompt_is_refused(llm, prompts):
    with pytest.raises(RequestError, match="no usable form"):
        llm.generate(prompts, GREEDY)


def test_what_is_no_sampling_params_is_refused(llm):
    for given in ({"temperature": 0}, [None]):
        with pytest.raises(UsageError, match="no SamplingParams"):
            llm.generate([[4]], given)
    with pytest.raises(UsageError, match="0 sampling_params for 1"):
        llm.generate([[4]], [])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_model_len": "64"}, "int or None"),
        ({"max_model_len": 0}, "at least 1"),
        ({"max_model_len": True}, "int or None"),
        ({"kv_cache_memory_bytes": "1G"}, "int or None"),
        ({"seed": "a"}, "wrong kind"),
        ({"allow_nonfinite": "no"}, "bool"),
        ({"max_queue": -1}, "at least 0"),
        ({"plugin": {"LamaForCausalLM": "x"}}, "did you mean LlamaForCausalLM"),
        ({"gpu_memory_utilization": 0.5}, "kv_cache_memory_bytes"),
        ({"runner": "draft"}, "auto or generate or pooling"),
        ({"pooling_type": "MEAN"}, "nothing is pooled"),
        ({"pooling_type": "ALL"}, "LAST or CLS or MEAN"),
        ({"tokenizer": "nowhere", "skip_tokenizer_init": False}, "no such tokenizer directory"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(folder, options, words):
    with pytest.raises(UsageError, match=words):
        LLM(str(folder), **{"skip_tokenizer_init": True, "progress": False, **options})


def test_arguments_that_ask_for_what_happens_anyway_are_taken(folder):
    options = {"enforce_eager": True, "tensor_parallel_size": 1, "runner": "generate", "tokenizer_mode": "auto"}
    assert LLM(str(folder), skip_tokenizer_init=True, progress=False, dtype=torch.float32, **options).engine


def test_huge_and_missing_values_in_parameters():
    for field in ("temperature", "top_p", "presence_penalty", "n", "max_tokens"):
        with pytest.raises(RequestError) as caught:
            SamplingParams(**{field: 10**5000})
        assert caught.value.field == field
        assert str(caught.value)
    empty = SamplingParams(stop=None, stop_token_ids=None, logit_bias=None, bad_token_ids=None, seed=-1)
    assert empty == SamplingParams()
    for field, value in {"stop": 5, "logit_bias": [1], "stop_token_ids": "12"}.items():
        with pytest.raises(RequestError):
            SamplingParams(**{field: value})
    with pytest.raises(RequestError, match="1024 characters"):
        SamplingParams(stop="x" * 2000)
