"""Adapters, mixed in one batch, equal the models that PEFT makes of them.

PEFT wraps transformers' own model, reads nothing of ours, and writes the directories that we load; its logits and its
greedy answers are the oracle. Four adapters of different kinds and the model alone run together.
"""

import json
import shutil
import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bestiary import LLM, LoRARequest, SamplingParams
from bestiary.api.errors import BadAdapter
from bestiary.engine.loader.lora_files import WEIGHTS
from bestiary.engine.plan import LoRALoad, NewRequest, ScheduledItem, StepPlan
from bestiary.testing.logits import prompt_logits
from bestiary.testing.ranks import Ranks

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 101,
    "max_position_embeddings": 64, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
MODELS = {
    "llama": (
        transformers.LlamaConfig(**SIZES, intermediate_size=48),
        {"attention": ATTENTION, "all": {"target_modules": ATTENTION + MLP}, "ends": ["embed_tokens", "lm_head"]},
    ),
    "qwen2": (
        transformers.Qwen2Config(**SIZES, intermediate_size=48, tie_word_embeddings=True),
        {"attention": ATTENTION, "all": {"target_modules": ATTENTION + MLP}, "ends": ["embed_tokens", "lm_head"]},
    ),
    "mixtral": (
        transformers.MixtralConfig(**SIZES, intermediate_size=48, num_local_experts=4),
        {"attention": ATTENTION, "ends": ["embed_tokens", "lm_head"],
         "all": {"target_modules": ATTENTION, "target_parameters": [*EXPERTS["target_parameters"], "mlp.gate.weight"]}},
    ),
    "qwen3_moe": (
        transformers.Qwen3MoeConfig(
            **SIZES, intermediate_size=48, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2, head_dim=8,
            mlp_only_layers=[0], norm_topk_prob=True,
        ),
        {"attention": ATTENTION, "all": {"target_modules": ATTENTION + MLP, **EXPERTS},
         "ends": ["embed_tokens", "lm_head"]},
    ),
    "bloom": (
        transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=101, initializer_range=0.2),
        {"attention": ["query_key_value", "self_attention.dense"], "ends": ["word_embeddings", "lm_head"],
         "all": {"target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]}},
    ),
}  # fmt: skip
PROMPTS = [[5, 9, 3, 77, 40, 8], [61, 12, 12, 90, 33, 7, 50, 21, 4]]
TOKENS = 6
GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)


def base_model(config):
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    if hasattr(config, "_experts_implementation"):
        model.config._experts_implementation = "eager"
    return model.eval()


def adapters(targets):
    """Name → PEFT's configuration; of different ranks, scales and parts of the model."""
    common = {"init_lora_weights": False, "task_type": "CAUSAL_LM"}
    first = targets["attention"][0]
    return {
        "all": peft.LoraConfig(r=4, lora_alpha=6, **common, **targets["all"]),
        "stable": peft.LoraConfig(
            r=9, lora_alpha=3, use_rslora=True, **common, **targets["all"],
            rank_pattern={first: 5}, alpha_pattern={rf"layers\.0\..*{first}": 2},
        ),
        "ends": peft.LoraConfig(r=3, lora_alpha=3, target_modules=targets["ends"], **common),
        "attention": peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets["attention"], **common),
    }  # fmt: skip


@torch.inference_mode()
def logits_of(model, ids):
    return model(torch.tensor([ids])).logits[0]


def answer_of(model, ids):
    ids = list(ids)
    for _ in range(TOKENS):
        ids.append(int(logits_of(model, ids)[-1].argmax()))
    return ids[-TOKENS:]


class Oracle:
    """A base model, adapters beside it, and what each of them answers; `None` is the model alone."""

    def __init__(self, folder, config, targets):
        self.base = str(folder / "base")
        self.paths, self.logits, self.answers = {}, {}, {}
        model = base_model(config)
        model.save_pretrained(self.base)
        self._ask(None, model)
        for name, each in adapters(targets).items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of tied and saved embeddings
                torch.manual_seed(len(name))
                wrapped = peft.get_peft_model(base_model(config), each).eval()
                for parameter_name, parameter in wrapped.named_parameters():
                    if "lora_" in parameter_name:
                        parameter.data.normal_(0, 0.2)
                self.paths[name] = str(folder / name)
                wrapped.save_pretrained(self.paths[name])
            self._ask(name, wrapped)

    def _ask(self, name, model):
        self.logits[name] = [logits_of(model, ids) for ids in PROMPTS]
        self.answers[name] = [answer_of(model, ids) for ids in PROMPTS]

    def requests(self):
        """Every adapter and the model alone, on every prompt, in mixed order."""
        return [(index, name) for index in range(len(PROMPTS)) for name in self.answers]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    made = {}

    def make(name):
        if name not in made:
            made[name] = Oracle(tmp_path_factory.mktemp(name), *MODELS[name])
        return made[name]

    return make


def engine(oracle, **options):
    plain = {"dtype": "float32", "skip_tokenizer_init": True, "progress": False, "num_gpu_blocks_override": 64}
    return LLM(oracle.base, **plain, lora_modules=oracle.paths, max_lora_rank=18, **options)


def ask(llm, requests):
    outputs = llm.generate(
        [{"prompt_token_ids": PROMPTS[index]} for index, _ in requests], GREEDY, use_tqdm=False,
        lora_request=[name for _, name in requests],
    )  # fmt: skip
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("name", list(MODELS))
def test_a_mixed_batch_equals_peft(oracle, name):
    known = oracle(name)
    with engine(known) as llm:
        requests = known.requests()
        assert ask(llm, requests) == [known.answers[adapter][index] for index, adapter in requests]
        ids = {info.name: info.lora_id for info in llm.list_loras()}
        for adapter in known.answers:
            for index, prompt in enumerate(PROMPTS):
                got = prompt_logits(llm, prompt, lora_id=ids.get(adapter))
                torch.testing.assert_close(got, known.logits[adapter][index], atol=1e-4, rtol=0)


LAYOUTS = {
    "TP 2": {"tensor_parallel_size": 2},
    "PP 2": {"pipeline_parallel_size": 2},
    "EP 2": {
        "tensor_parallel_size": 2, "enable_expert_parallel": True, "eplb_config": {"num_redundant_experts": 2},
    },
    "int8, TP 2": {"tensor_parallel_size": 2, "quantization": "int8"},
}  # fmt: skip


def cases():
    for name in MODELS:
        for layout in LAYOUTS:
            if name in ("mixtral", "qwen3_moe") or "EP" not in layout:
                yield pytest.param(name, layout, id=f"{name}, {layout}")


def one_step(ranks, paths, requests):
    """Logits of every position of all prompts, each by its adapter, computed in one step."""
    ids = {name: ranks.add_adapter(name, path) for name, path in paths.items()}
    sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    new, items = [], []
    for number, (index, name) in enumerate(requests):
        prompt = PROMPTS[index]
        new.append(NewRequest(str(number), tuple(prompt), sampling, seed=0, lora_name=ids.get(name)))
        items.append(ScheduledItem(str(number), 0, len(prompt), (number,), samples=True))
    loads = tuple(LoRALoad(slot, lora_id) for slot, lora_id in enumerate(ids.values()))
    return ranks.logits(StepPlan(0, tuple(items), tuple(new), lora_loads=loads))


@pytest.mark.parametrize(("name", "layout"), list(cases()))
def test_ranks_answer_as_peft_does(oracle, name, layout):
    """Where the base is quantized, the oracle is one process with the same base."""
    known, options = oracle(name), {"enable_lora": True, "max_lora_rank": 18}
    requests = known.requests()
    if "quantization" in LAYOUTS[layout]:
        with Ranks(known.base, quantization="int8", **options) as alone:
            want = one_step(alone, known.paths, requests)
    else:
        want = torch.cat([known.logits[adapter][index] for index, adapter in requests])
    with Ranks(known.base, **options, **LAYOUTS[layout]) as ranks:
        got = one_step(ranks, known.paths, requests)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_processes_answer_as_peft_does(oracle, layout, tmp_path):
    """The whole way: adapters read by all processes, refused by all of them, loaded by plans that each derives."""
    known = oracle("llama")
    bad = tmp_path / "bad"
    shutil.copytree(known.paths["attention"], bad)
    name, tensors = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight", load_file(bad / WEIGHTS)
    tensors[name] = tensors[name][:, :-1].contiguous()  # of the last layer, which the first stage does not have
    save_file(tensors, bad / WEIGHTS)
    with engine(known, max_loras=2, **{layout: 2}) as llm:
        with pytest.raises(BadAdapter, match=r"layers.1.self_attn.q_proj: lora_A is \[2, 31\]"):
            llm.add_lora(LoRARequest("bad", lora_path=str(bad)))
        requests = known.requests()
        assert ask(llm, requests) == [known.answers[adapter][index] for index, adapter in requests]
        llm.remove_lora("all")
        llm.add_lora(LoRARequest("again", lora_path=known.paths["all"]))
        assert ask(llm, [(0, "again"), (1, "ends")]) == [known.answers["all"][0], known.answers["ends"][1]]
        assert [info.name for info in llm.list_loras()] == ["again", "attention", "ends", "stable"]


def test_adapters_follow_experts_that_move(oracle):
    """Slots move with the experts; what is put into a slot later is cut for the experts that are here then."""
    known = oracle("mixtral")
    eplb = {"num_redundant_experts": 2, "window_size": 4, "step_interval": 2}
    options = {"tensor_parallel_size": 2, "enable_expert_parallel": True, "enable_eplb": True, "eplb_config": eplb}
    with engine(known, max_loras=2, enable_prefix_caching=False, **options) as llm:
        layers = llm.engine.executor.balancer.layers
        first = [layer.placement for layer in layers]
        for requests in ([(0, "all"), (1, "stable")], known.requests(), [(1, "all"), (0, None), (0, "stable")]):
            assert ask(llm, requests) == [known.answers[adapter][index] for index, adapter in requests]
        assert any(layer.placement != before for layer, before in zip(layers, first, strict=True))


def test_the_adapters_differ(oracle):
    known = oracle("llama")
    assert len({json.dumps(answers) for answers in known.answers.values()}) == len(known.answers)
