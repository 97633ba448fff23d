"""Adapters come and go while an engine runs: slots, the prefix cache, names, memory."""

import gc
import os
import shutil

import psutil
import pytest
import torch

from bestiary import LoRARequest, SamplingParams
from bestiary.api.errors import BadAdapter, ModelError, RequestError, UsageError
from bestiary.testing.adapters import change_of, random_adapter
from bestiary.testing.logits import prompt_logits

from .conftest import open_llm

PROMPT = [5, 9, 3, 77, 40, 8, 61, 12, 33]
GREEDY = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)


def ask(llm, *adapters, prompt=PROMPT):
    """Each adapter's answer to the prompt, all in one batch."""
    given = [{"prompt_token_ids": prompt}] * len(adapters)
    return [each.outputs[0].token_ids for each in llm.generate(given, GREEDY, lora_request=adapters, use_tqdm=False)]


def request(name, path):
    return LoRARequest(name, lora_path=path)


def slots_of(llm):
    return {info.name: info.slot for info in llm.list_loras()}


def test_more_adapters_than_slots_in_one_batch(llm, adapter):
    alone = [ask(llm, request(f"a{seed}", adapter(seed)))[0] for seed in range(4)]
    assert len({tuple(each) for each in alone}) == 4
    (base,) = ask(llm, None)
    names = [f"a{seed}" for seed in (0, 1, 2, 3, 2, 0)]
    assert ask(llm, *names, None) == [alone[seed] for seed in (0, 1, 2, 3, 2, 0)] + [base]
    assert sorted(slot for slot in slots_of(llm).values() if slot is not None) == [0, 1]


def test_the_least_recently_used_gives_its_slot(llm, adapter):
    for seed in (0, 1, 0, 2):
        ask(llm, request(f"a{seed}", adapter(seed)))
    assert slots_of(llm) == {"a0": 0, "a1": None, "a2": 1}


def test_an_adapter_is_one_for_all_or_one_each(llm, adapter):
    llm.add_lora(request("a", adapter(1)))
    two = [{"prompt_token_ids": PROMPT}] * 2
    both = llm.generate(two, GREEDY, lora_request="a", use_tqdm=False)
    assert both[0].outputs[0].token_ids == both[1].outputs[0].token_ids == ask(llm, "a")[0]
    assert [each.lora_name for each in both] == ["a", "a"]
    assert [each.lora_name for each in llm.generate(two, GREEDY, lora_request=[None, "a"], use_tqdm=False)] == [
        None,
        "a",
    ]
    with pytest.raises(UsageError, match="3 lora_request for 2 prompts"):
        llm.generate(two, GREEDY, lora_request=["a"] * 3, use_tqdm=False)


def test_streams_have_adapters(llm, adapter):
    (want,) = ask(llm, request("a", adapter(1)))
    *_, last = llm.stream({"prompt_token_ids": PROMPT}, GREEDY, lora_request="a")
    assert last.outputs[0].token_ids == want


def test_cached_blocks_are_never_those_of_another_adapter(llm, adapter, tmp_path):
    """The name does not count, the content does: also where a directory's files were replaced."""
    path = tmp_path / "sql"
    llm.engine.scheduler.clear_prefix_cache()
    answers, cached = [], []
    for seed in (1, 2, 1):
        shutil.copytree(adapter(seed), path, dirs_exist_ok=True)
        llm.add_lora(request("sql", str(path)))
        (output,) = llm.generate([{"prompt_token_ids": PROMPT}], GREEDY, lora_request="sql", use_tqdm=False)
        answers.append(output.outputs[0].token_ids)
        cached.append(output.metrics.cached_tokens)
        llm.remove_lora("sql")
    assert answers[0] == answers[2] != answers[1]
    assert cached == [0, 0, 8]


def test_the_prefix_cache_tells_adapters_apart(llm, adapter):
    llm.engine.scheduler.clear_prefix_cache()

    def cached(which):
        (output,) = llm.generate([{"prompt_token_ids": PROMPT}], GREEDY, lora_request=which, use_tqdm=False)
        return output.metrics.cached_tokens

    llm.add_lora(request("a", adapter(1)))
    llm.add_lora(request("b", adapter(2)))
    assert [cached(each) for each in (None, "a", "b", None, "a", "b")] == [0, 0, 0, 8, 8, 8]


def test_a_bad_adapter_harms_nobody(llm, adapter, broken):
    good = request("good", adapter(1))
    (want,) = ask(llm, good)
    with pytest.raises(BadAdapter, match="prompt 1: adapter bad does not fit"):
        ask(llm, good, request("bad", broken(r=5)), good)
    assert not llm.engine.has_unfinished_requests
    assert ask(llm, good, None)[0] == want
    assert [info.name for info in llm.list_loras()] == ["good"]


def test_names(llm, adapter):
    first = llm.add_lora(request("a", adapter(1)))
    assert (first.rank, first.pinned, first.slot) == (3, True, None)
    assert first.target_modules == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    assert llm.add_lora(LoRARequest("a")).digest == first.digest
    with pytest.raises(RequestError, match="ADAPTER_NAME_TAKEN"):
        llm.add_lora(request("a", adapter(2)))
    with pytest.raises(RequestError, match="ADAPTER_NAME_TAKEN"):
        ask(llm, request("a", adapter(2)))
    llm.remove_lora("a")
    ask(llm, request("a", adapter(1)))
    second = llm.add_lora(request("a", adapter(2)))  # the first only came with a request
    assert second.digest != first.digest
    with pytest.raises(RequestError, match="UNKNOWN_ADAPTER") as caught:
        llm.remove_lora("b")
    assert "known: a" in str(caught.value)


def test_an_adapter_in_use_is_not_removed(llm, adapter):
    llm.add_lora(request("a", adapter(1)))
    stream = llm.stream({"prompt_token_ids": PROMPT}, GREEDY, lora_request="a")
    next(stream)
    with pytest.raises(RequestError, match="ADAPTER_IN_USE"):
        llm.remove_lora("a")
    stream.close()
    llm.remove_lora("a")


def test_only_so_many_adapters_are_kept(checkpoint, adapter):
    with open_llm(checkpoint, max_cpu_loras=3, lora_modules={"kept": adapter(0)}) as llm:
        want = [ask(llm, request(f"a{seed}", adapter(seed)))[0] for seed in (1, 2, 3, 4)]
        assert list(slots_of(llm)) == ["a3", "a4", "kept"]
        assert ask(llm, request("a1", adapter(1))) == [want[0]]
        for seed in (5, 6):
            llm.add_lora(request(f"b{seed}", adapter(seed)))
        with pytest.raises(RequestError, match="TOO_MANY_ADAPTERS"):
            ask(llm, request("a1", adapter(1)))


def test_engines_without_room_say_so(checkpoint, adapter):
    with open_llm(checkpoint, enable_lora=False) as llm:
        with pytest.raises(RequestError, match="LORA_DISABLED"):
            ask(llm, request("a", adapter(1)))
        assert llm.list_loras() == []


def test_classes_that_do_not_claim_it_say_so(checkpoint):
    from bestiary import ModelRegistry
    from llama_plugin.llama import LlamaForCausalLM

    class Without(LlamaForCausalLM):
        supports_lora = False

    ModelRegistry.register_model("WithoutLoRA", Without)
    with pytest.raises(ModelError, match="LORA_UNSUPPORTED"):
        open_llm(checkpoint, hf_overrides={"architectures": ["WithoutLoRA"]})


@pytest.mark.parametrize("options", [{"quantization": "int8"}, {"dtype": "bfloat16"}, {"deterministic": True}])
def test_whatever_the_base_is_kept_in(options, checkpoint, weights, adapter):
    """The oracle: the same base, the adapter's change added to what its layers hold, in float32."""
    path, seed = adapter(1), 1
    changes = random_adapter(weights, seed=seed)
    with open_llm(checkpoint, **options) as llm:
        base = prompt_logits(llm, PROMPT).float()
        ask(llm, request("a", path))
        got = prompt_logits(llm, PROMPT, lora_id=llm.list_loras()[0].lora_id).float()
        dense = llm.engine.executor.runner.model
        with torch.inference_mode():
            for name, layer in dense.named_modules():
                parts = dense.packed_modules_mapping.get(name.rpartition(".")[2], [name.rpartition(".")[2]])
                modules = [f"{name.rpartition('.')[0]}.{part}" for part in parts]
                if all(module in weights for module in modules):
                    change = torch.cat([change_of(module, weights[module], changes) for module in modules])
                    _add_by_hand(layer, change)
        want = prompt_logits(llm, PROMPT).float()
    assert (got - base).abs().max() > 1
    bound = 0.05 * float(want.abs().max()) if options.get("dtype") else 1e-4
    torch.testing.assert_close(got, want, atol=bound, rtol=0)


def _add_by_hand(layer, change):
    """A layer whose product has ``x @ change.T`` added."""
    method = layer.quant_method
    apply = method.apply
    method.apply = lambda layer, x, bias=None: apply(layer, x, bias) + (x.float() @ change.t()).to(x.dtype)


def test_deterministic_answers_do_not_depend_on_the_batch(checkpoint, adapter):
    with open_llm(checkpoint, deterministic=True, max_loras=3, enable_prefix_caching=False) as llm:
        names = [request(f"a{seed}", adapter(seed)) for seed in range(3)]
        params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=1)
        prompts = [PROMPT[: 3 + at % 7] for at in range(9)]
        given = [{"prompt_token_ids": ids} for ids in prompts]
        chosen = [names[at % 3] if at % 4 else None for at in range(9)]
        together = llm.generate(given, params, lora_request=chosen, use_tqdm=False)
        for each, ids, which in zip(together, given, chosen, strict=True):
            (alone,) = llm.generate([ids], params, lora_request=which, use_tqdm=False)
            assert alone.outputs[0].logprobs == each.outputs[0].logprobs


def cycles(llm, paths, count):
    """Load, use and unload adapters, under names of their own; every second one by hand."""
    for at in range(count):
        name = f"n{at}"
        if at % 2:
            llm.add_lora(request(name, paths[at % len(paths)]))
        ask(llm, request(name, paths[at % len(paths)]), None, prompt=PROMPT[:3])
        llm.remove_lora(name)


def tensors_alive():
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.full)])
def test_loading_and_unloading_leaks_nothing(count, llm, adapter):
    paths, process = [adapter(seed) for seed in range(3)], psutil.Process()
    cycles(llm, paths, 20)
    before = tensors_alive(), process.num_fds(), process.num_threads(), len(os.listdir("/proc/self/map_files"))
    memory = process.memory_info().rss
    cycles(llm, paths, count)
    after = tensors_alive(), process.num_fds(), process.num_threads(), len(os.listdir("/proc/self/map_files"))
    assert after[:3] == before[:3]
    assert after[3] <= before[3] + 4
    assert process.memory_info().rss - memory < 4 * 2**20
    assert llm.list_loras() == []
    runner = llm.engine.executor.runner
    assert not runner.adapters.slot_of and not runner.adapters._prepared
    assert llm.engine.stats().kv_cache.used_blocks == 0


def test_two_engines_have_adapters_of_their_own(llm, checkpoint, adapter):
    with open_llm(checkpoint) as other:
        want = ask(llm, request("a", adapter(1)))
        assert ask(other, request("a", adapter(2))) != want
        assert ask(llm, "a") == want


def test_a_lost_step_loads_its_adapters_again(llm, adapter):
    (want,) = ask(llm, request("a", adapter(1)))
    llm.remove_lora("a")
    runner = llm.engine.executor.runner
    execute, runner.execute = runner.execute, lambda plan: 1 / 0
    requests = llm._submit([{"prompt_token_ids": PROMPT}], GREEDY, None, request("b", adapter(1)))
    with pytest.raises(Exception, match="MODEL_FAILED"):
        llm._step()
    runner.execute = execute
    llm._drive(requests, show=False)
    assert requests[0].outputs[0].token_ids == want
