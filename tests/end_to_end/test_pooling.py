"""Vectors of prompts: transformers' hidden states, pooled; batches, chunks and caches that change nothing."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from torch import nn

from bestiary import LLM, PoolingParams, SamplingParams
from bestiary.api import ModelRegistry, VllmConfig, VllmModelForPooling
from bestiary.api.errors import BrokenPlugin, ConfigError, EngineError, ModelError, RequestError, UsageError
from bestiary.engine.plan import NewRequest, ScheduledItem, StepPlan
from bestiary.nn import (
    DispatchPooler,
    EncoderOnlyAttention,
    Pooler,
    QKVParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    pooler_for_embed,
)
from bestiary.testing.ranks import Ranks
from bestiary.testing.reference import randomize, save_reference, transformers_reference
from bloom_plugin.contract import TestBloom as Bloom
from llama_plugin.contract import TestLlama as Llama
from llama_plugin.llama import LlamaForCausalLM, LlamaModel
from mixtral_plugin.contract import TestMixtral as Mixtral
from qwen_plugin.contract import TestQwen3 as Qwen3
from qwen_plugin.contract import TestQwen3Moe as Qwen3Moe

RAW = PoolingParams(normalize=False)
FAMILIES = {each.architecture: each for each in (Llama, Mixtral, Qwen3, Qwen3Moe, Bloom)}
POOLED = {"LAST": lambda rows: rows[-1], "CLS": lambda rows: rows[0], "MEAN": lambda rows: rows.mean(0)}
LENGTHS = (1, 5, 17, 40, 33)


def prompts(vocabulary=90, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def load(folder, **options):
    plain = {"dtype": "float32", "skip_tokenizer_init": True, "progress": False, "runner": "pooling"}
    return LLM(str(folder), **{**plain, **options})


def vectors(llm, asked, params=RAW):
    found = llm.embed([{"prompt_token_ids": ids} for ids in asked], params, use_tqdm=False)
    assert {each.outputs.finish_reason for each in found} == {"stop"}
    return [torch.tensor(each.outputs.embedding) for each in found]


@torch.inference_mode()
def hidden_states(model, ids):
    """After the last norm, ``[tokens, hidden]``."""
    return model.base_model(torch.tensor([ids])).last_hidden_state[0]


def require_close(found, want):
    for ours, theirs in zip(found, want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """`checkpoint(architecture)`: a reference model of a family, and its directory; made once."""
    made = {}

    def make(architecture):
        if architecture not in made:
            torch.manual_seed(0)
            config, folder = FAMILIES[architecture].config, tmp_path_factory.mktemp(architecture)
            model = transformers_reference(config, architecture).eval()
            randomize(model)
            save_reference(model, folder, config, architecture)
            made[architecture] = model, folder
        return made[architecture]

    return make


@pytest.fixture(scope="module")
def llama(checkpoint):
    return checkpoint("LlamaForCausalLM")


# --- hidden states of models that generate ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POOLED)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_vectors_are_the_references_hidden_states_pooled(architecture, kind, checkpoint):
    model, folder = checkpoint(architecture)
    want = [POOLED[kind](hidden_states(model, ids)) for ids in prompts()]
    for step in (2048, 7):
        with load(folder, pooling_type=kind, max_num_batched_tokens=step) as llm:
            require_close(vectors(llm, prompts()), want)
            require_close(vectors(llm, prompts(), None), [each / each.norm() for each in want])
            (cut,) = vectors(llm, prompts()[:1], PoolingParams(dimensions=5))
            require_close([cut], [want[0][:5] / want[0][:5].norm()])


@pytest.mark.parametrize("kind", POOLED)
def test_a_vector_does_not_depend_on_the_batch_or_the_step(kind, llama):
    """Not in its last bit, where the engine is deterministic."""
    asked, found = prompts(), []
    for options in ({"max_num_seqs": 1}, {}, {"max_num_batched_tokens": 11}):
        with load(llama[1], pooling_type=kind, deterministic=True, **options) as llm:
            found.append(vectors(llm, asked))
            found.append(vectors(llm, asked[::-1])[::-1])
    assert all(torch.equal(one, other) for each in found for one, other in zip(found[0], each, strict=True))


def test_only_the_last_token_lets_the_others_come_from_the_cache(llama):
    long = prompts(lengths=(40,))[0]
    for kind, cached in (("LAST", 32), ("MEAN", 0), ("CLS", 0)):
        with load(llama[1], pooling_type=kind, block_size=16) as llm:
            first = llm.embed([long], RAW, use_tqdm=False)[0]
            again = llm.embed([[*long[:35], 3]], RAW, use_tqdm=False)[0]
            assert (first.num_cached_tokens, again.num_cached_tokens) == (0, cached)
            want = POOLED[kind](hidden_states(llama[0], [*long[:35], 3]))
            require_close([torch.tensor(again.outputs.embedding)], [want])


def test_whoever_loses_its_blocks_begins_anew(llama):
    """Twelve blocks, and requests of a better priority in the middle of others."""
    asked = prompts(lengths=(44, 40, 37, 46, 43, 20))
    options = {"num_gpu_blocks_override": 12, "block_size": 4, "max_num_batched_tokens": 11, "max_model_len": 48}
    with load(llama[1], pooling_type="MEAN", **options) as llm:
        given = [{"prompt_token_ids": ids} for ids in asked]
        requests = llm._submit(given[:3], RAW, [1, 1, 1])
        for _ in range(3):
            llm._step()
        requests += llm._submit(given[3:], RAW, [0, 0, 0])
        llm._drive(requests, show=False)
    assert sum(each.metrics.preemptions for each in requests) > 0
    want = [POOLED["MEAN"](hidden_states(llama[0], ids)) for ids in asked]
    require_close([torch.tensor(each.outputs.data) for each in requests], want)


def test_a_step_that_failed_adds_nothing_to_a_mean(llama, monkeypatch):
    ids = prompts(lengths=(40,))[0]
    with load(llama[1], pooling_type="MEAN", max_num_batched_tokens=16) as llm:
        runner, engine = llm.engine.executor.runner, llm.engine
        (request,) = llm._submit([{"prompt_token_ids": ids}], RAW, None)
        llm._step()
        pooled = type(runner.stage.pooler).forward

        def failing(*arguments):
            pooled(*arguments)
            raise ZeroDivisionError("too late")

        with monkeypatch.context() as patch:
            patch.setattr(type(runner.stage.pooler), "forward", failing)
            with pytest.raises(EngineError, match="too late"):
                llm._step()
        assert engine.has_unfinished_requests
        llm._drive([request], show=False)
    require_close([torch.tensor(request.outputs.data)], [POOLED["MEAN"](hidden_states(llama[0], ids))])


def test_a_prompt_may_fill_the_context(llama):
    with load(llama[1], max_model_len=24) as llm:
        assert len(vectors(llm, prompts(lengths=(24,)))[0]) == Llama.config["hidden_size"]
        with pytest.raises(RequestError) as caught:
            llm.embed([prompts(lengths=(25,))[0]], use_tqdm=False)
        assert caught.value.error_code == "CONTEXT_LENGTH_EXCEEDED"


def test_more_numbers_than_there_are_cannot_be_had(llama):
    hidden = Llama.config["hidden_size"]
    with load(llama[1]) as llm:
        assert len(vectors(llm, [[4]], PoolingParams(dimensions=hidden))[0]) == hidden
        for params, field in (
            (PoolingParams(dimensions=hidden + 1), "dimensions"),
            (PoolingParams(task="classify"), "task"),
        ):
            with pytest.raises(RequestError) as caught:
                llm.encode([[4], [5]], params, use_tqdm=False)
            assert caught.value.field == field
        with pytest.raises(RequestError, match="another task"):
            llm.classify([[4]], PoolingParams(task="embed"))
        with pytest.raises(UsageError, match="no PoolingParams"):
            llm.embed([[4]], {"normalize": False})
        assert not llm.engine.has_unfinished_requests


def test_an_engine_does_what_it_was_started_for(llama):
    with load(llama[1], runner="auto") as generating, load(llama[1]) as pooling:
        for call in (lambda: generating.embed([[4]], use_tqdm=False), lambda: pooling.generate([[4]], use_tqdm=False)):
            with pytest.raises(RequestError) as caught:
                call()
            assert caught.value.error_code == "WRONG_RUNNER"
        greedy = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
        assert len(generating.generate([[4]], greedy, use_tqdm=False)[0].outputs[0].token_ids) == 3
        assert len(vectors(pooling, [[4]])) == 1


def test_numbers_that_are_none_end_their_request_alone(llama, monkeypatch):
    with load(llama[1]) as llm:
        model = llm.engine.executor.runner.model
        forward = type(model).forward

        def poisoned(self, input_ids, positions, **more):
            hidden = forward(self, input_ids, positions, **more)
            hidden[input_ids == 77] = float("nan")
            return hidden

        monkeypatch.setattr(type(model), "forward", poisoned)
        good, bad = llm.embed([[4, 5], [4, 77]], use_tqdm=False)
        assert (good.outputs.finish_reason, good.outputs.hidden_size) == ("stop", Llama.config["hidden_size"])
        assert (bad.outputs.finish_reason, bad.outputs.stop_reason, bad.outputs.data) == ("error", "numerical", [])


def test_what_the_models_files_say_of_pooling_holds(llama, tmp_path):
    ids = prompts(lengths=(9,))[0]
    rows = hidden_states(llama[0], ids)
    for file in llama[1].iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "1_Pooling").mkdir()
    modes = {"word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}

    def write(**changes):
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(modes | changes))

    write()
    require_close(vectors(load(tmp_path), [ids]), [rows.mean(0)])
    require_close(vectors(load(tmp_path, pooling_type="LAST"), [ids]), [rows[-1]])
    for changes in ({"pooling_mode_max_tokens": True}, {"pooling_mode_mean_tokens": False}):
        write(**changes)
        with pytest.raises(ConfigError, match="1_Pooling"):
            load(tmp_path)
        require_close(vectors(load(tmp_path, pooling_type="CLS"), [ids]), [rows[0]])
    assert load(tmp_path, runner="auto").engine.checks.pooling is None


def test_a_quantized_model_gives_vectors_of_almost_the_same_direction(llama):
    asked = prompts(lengths=(40, 33))
    want = [POOLED["MEAN"](hidden_states(llama[0], ids)) for ids in asked]
    with load(llama[1], pooling_type="MEAN", quantization="int8") as llm:
        for ours, theirs in zip(vectors(llm, asked), want, strict=True):
            assert 0.995 < float(torch.cosine_similarity(ours, theirs, dim=0)) < 1.0


LAYOUTS = {
    "PP 2": {"pipeline_parallel_size": 2},
    "TP 2": {"tensor_parallel_size": 2},
    "TP 2, PP 2": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
    "PP 2, DP 2": {"pipeline_parallel_size": 2, "data_parallel_size": 2},
}


@pytest.mark.parametrize(
    "layout", ["PP 2", *(pytest.param(name, marks=pytest.mark.full) for name in list(LAYOUTS)[1:])]
)
def test_several_ranks_equal_one(layout, llama):
    options = {"pooling_type": "MEAN", "max_num_batched_tokens": 16, "device": "cpu"} | LAYOUTS[layout]
    want = [POOLED["MEAN"](hidden_states(llama[0], ids)) for ids in prompts()]
    with load(llama[1], **options) as llm:
        for _ in range(2):
            require_close(vectors(llm, prompts()), want)
        with pytest.raises(RequestError, match="generates no text"):
            llm.generate([[4]], use_tqdm=False)
        require_close(vectors(llm, prompts()[2:4], PoolingParams()), [each / each.norm() for each in want[2:4]])


# --- classes with poolers of their own -------------------------------------------------------------------------------


class Classifier(nn.Module, VllmModelForPooling):
    """What transformers calls LlamaForSequenceClassification."""

    packed_modules_mapping = LlamaForCausalLM.packed_modules_mapping

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.model = LlamaModel(config)
        self.score = RowParallelLinear(config.hidden_size, config.num_labels, bias=False, input_is_parallel=False)
        self.pooler = DispatchPooler.for_seq_cls(vllm_config.model_config.pooler_config, classifier=self.score)

    def embed_input_ids(self, input_ids):
        return self.model.embed_input_ids(input_ids)

    def forward(self, input_ids, positions):
        return self.model(input_ids, positions)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    ModelRegistry.register_model("LlamaForSequenceClassification", Classifier)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    config = transformers.LlamaConfig(**{**Llama.config, "num_labels": 4, "pad_token_id": 0})
    model = transformers.LlamaForSequenceClassification(config).eval()
    randomize(model)
    model.save_pretrained(folder)
    return model, folder


def test_a_class_with_a_pooler_of_its_own_classifies(classifier):
    model, folder = classifier
    with torch.inference_mode():
        want = [model(torch.tensor([ids])).logits[0] for ids in prompts()]
    with load(folder, runner="auto", max_num_batched_tokens=16) as llm:
        found = llm.classify(prompts(), use_tqdm=False)
        require_close([torch.tensor(each.outputs.probs) for each in found], [each.softmax(-1) for each in want])
        assert {each.outputs.num_classes for each in found} == {4}
        scores = llm.encode(prompts(), RAW, use_tqdm=False)
        require_close([torch.tensor(each.outputs.data) for each in scores], want)
        with pytest.raises(RequestError) as caught:
            llm.embed([[4]])
        assert caught.value.error_code == "TASK_UNSUPPORTED"


def test_all_ranks_of_a_stage_compute_its_classifier(classifier):
    model, folder = classifier
    ids = prompts(lengths=(20,))[0]
    new = NewRequest("r", tuple(ids), SamplingParams(max_tokens=1), 0, pooling=RAW)
    with Ranks(folder, tensor_parallel_size=2) as ranks, torch.inference_mode():
        first = ranks.execute(StepPlan(0, (ScheduledItem("r", 0, 13, (0, 1), False),), (new,)))
        last = ranks.execute(StepPlan(1, (ScheduledItem("r", 13, 7, (0, 1), True),)))
        assert (first.pooled, last.sampled, list(last.pooled)) == ({}, {}, ["r"])
        scores = torch.frombuffer(bytearray(last.pooled["r"].data), dtype=torch.float32)
        require_close([scores], [model(torch.tensor([ids])).logits[0]])


def test_a_class_without_a_head_does_not_generate(classifier):
    with pytest.raises(ModelError) as caught:
        load(classifier[1], runner="generate")
    assert caught.value.error_code == "RUNNER_UNSUPPORTED"


class Encoder(nn.Module, VllmModelForPooling):
    """One layer of attention in both directions."""

    default_pooling_type = "MEAN"
    attn_type = "encoder_only"

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        size, heads = config.hidden_size, config.num_attention_heads
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, size)
        self.qkv_proj = QKVParallelLinear(size, size // heads, heads, heads, bias=False)
        self.o_proj = RowParallelLinear(size, size, bias=False)
        self.attn = EncoderOnlyAttention(heads, size // heads, scale=(size // heads) ** -0.5, num_kv_heads=heads)
        self.pooler = DispatchPooler({"embed": pooler_for_embed(vllm_config.model_config.pooler_config)})

    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}

    def embed_input_ids(self, input_ids):
        return self.embed_tokens(input_ids)

    def forward(self, input_ids, positions):
        q, k, v = self.qkv_proj(self.embed_tokens(input_ids))[0].split(self.qkv_proj.split_sizes, dim=-1)
        return self.o_proj(self.attn(q, k, v))[0]


def test_a_model_that_reads_in_both_directions_is_computed_whole(tmp_path, caplog):
    from safetensors.torch import save_file

    ModelRegistry.register_model("Encoder", Encoder)
    generator = torch.Generator().manual_seed(0)
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    weights = {f"{name}.weight": torch.randn(32, 32, generator=generator) * 0.2 for name in names}
    weights["embed_tokens.weight"] = torch.randn(90, 32, generator=generator)
    save_file(weights, tmp_path / "model.safetensors")
    config = {"architectures": ["Encoder"], "model_type": "llama", "hidden_size": 32, "num_attention_heads": 4,
              "vocab_size": 90, "max_position_embeddings": 64}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))

    def reference(ids):
        x = weights["embed_tokens.weight"][ids]
        q, k, v = ((x @ weights[f"{name}.weight"].T).view(-1, 4, 8).transpose(0, 1) for name in names[:3])
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return (out.transpose(0, 1).reshape(len(ids), 32) @ weights["o_proj.weight"].T).mean(0)

    with load(tmp_path, runner="auto", max_num_batched_tokens=48) as llm:
        assert "no chunked prefill" in caplog.text and "no prefix cache" in caplog.text
        for _ in range(2):
            require_close(vectors(llm, prompts()), [reference(ids) for ids in prompts()])
        with pytest.raises(RequestError) as caught:
            llm.embed([prompts(lengths=(49,))[0]])
        assert caught.value.error_code == "PROMPT_EXCEEDS_STEP"


class Careless(Pooler):
    """Gives what it is told to."""

    made = None

    def forward(self, hidden_states, pooling_metadata):
        return self.made


@pytest.mark.parametrize("made", [None, [], torch.zeros(1, 8), [torch.zeros(1, 8)], [torch.zeros(8).long()], [1.0]])
def test_a_pooler_that_returns_what_it_must_not_is_named(made, llama):
    with load(llama[1]) as llm:
        llm.engine.executor.runner.stage.pooler = Careless()
        llm.engine.executor.runner.stage.pooler.made = made
        with pytest.raises(BrokenPlugin, match="Careless returned what it must not"):
            llm.embed([[4]], use_tqdm=False)
        assert not llm.engine.has_unfinished_requests


def test_a_pooler_narrower_than_it_says_is_an_error_of_the_request(llama):
    with load(llama[1]) as llm:
        llm.engine.executor.runner.stage.pooler = Careless()
        llm.engine.executor.runner.stage.pooler.made = [torch.ones(3)]
        (output,) = llm.embed([[4]], PoolingParams(dimensions=8), use_tqdm=False)
        assert output.outputs.finish_reason == "error"
        assert "the pooler gives 3" in output.outputs.stop_reason


def test_a_class_whose_pooler_is_none_is_refused(llama):
    class WithoutPooler(Classifier):
        def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config)
            self.pooler = nn.Identity()

    ModelRegistry.register_model("WithoutPooler", WithoutPooler)
    with pytest.raises(BrokenPlugin, match=r"WithoutPooler\.pooler is no pooler"):
        load(llama[1], hf_overrides={"architectures": ["WithoutPooler"]})
