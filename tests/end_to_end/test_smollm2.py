"""SmolLM2-135M-Instruct, real weights from GGUF: greedy tokens and logits equal transformers'.

Of all prompts by hand (`-m full`), of every fourth on every change.

Equality of 64 greedy tokens is checked by one forward pass of transformers over prompt and answer: if every token is
the likeliest after all before it, greedy decoding yields exactly them. The full tier also runs transformers' own
`generate` on its own reading of the file.
"""

import pytest
import torch

from bestiary import LLM, SamplingParams
from bestiary.engine.loader.gguf_reader import GgufFile
from bestiary.engine.loader.gguf_weights import gguf_tensors
from bestiary.testing.logits import prompt_logits

TOKENS = 64
PROMPTS = [
    "The three primary colours are",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Q: What is the capital of France?\nA:",
    "Photosynthesis is the process by which",
    "1, 1, 2, 3, 5, 8, 13,",
    "The quick brown fox",
    "Ingredients:\n- 2 eggs\n- 200 g flour\n",
    "SELECT name, price FROM products WHERE",
    "Dear Sir or Madam,\n\n",
    "In 1969, the first humans",
    "To be, or not to be, that is",
    "<html>\n<head><title>",
    "La capitale de l'Italie est",
    "Der schnelle braune Fuchs",
    "水は",
    "Die Ärztin sagte: „Übung macht",
    "The chemical formula of water is",
    "import numpy as np\n\nx = np.",
    "Why did the chicken cross the road?",
    "Roses are red,",
    "    indented text\n        more",
    "😀 emoji test 👩‍👩‍👧",
    "0.1 + 0.2 =",
    "A",
    " ",
    "\n\n\n",
    "Repeat after me: la la la la la la la la",
    "<|im_start|>user\nName two fruits.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nYou are terse.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n",
    "Mathematicians study " * 20,
    "The history of the Roman Empire spans many centuries. " * 6 + "It began",
]
FEW = PROMPTS[3::4]
OF_THESE = pytest.mark.parametrize(
    "prompts", [pytest.param(FEW, id="few"), pytest.param(PROMPTS, id="all", marks=pytest.mark.full)]
)


@pytest.fixture(scope="module")
def llm():
    with LLM("smollm2", dtype="float32", max_model_len=1024, progress=False) as made:
        yield made


@pytest.fixture(scope="module")
def peer(llm):
    """transformers' model with the same dequantized weights."""
    from transformers import LlamaForCausalLM

    from bestiary.api.hook_manager import HookManager
    from bestiary.engine.arguments import EngineArgs
    from bestiary.engine.loader.description import describe

    description = describe(EngineArgs(model="smollm2"), HookManager().load())
    with torch.device("meta"):
        model = LlamaForCausalLM(llm.vllm_config.model_config.hf_config)
    with GgufFile.open(description.source.weight_files[0]) as file:
        weights = dict(gguf_tensors(file, description.gguf))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval()


@OF_THESE
def test_64_greedy_tokens_equal_transformers(llm, peer, prompts):
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    outputs = llm.generate(prompts, greedy, use_tqdm=False)
    assert len(outputs) == len(prompts) >= 8
    for output in outputs:
        answer, start = output.outputs[0].token_ids, len(output.prompt_token_ids)
        assert len(answer) == TOKENS
        with torch.inference_mode():
            logits = peer(torch.tensor([output.prompt_token_ids + answer[:-1]])).logits[0]
        assert logits[start - 1 :].argmax(-1).tolist() == answer, output.prompt


@OF_THESE
def test_logits_equal_transformers(llm, peer, prompts):
    for prompt in prompts:
        ids = llm.get_tokenizer().encode(prompt)
        with torch.inference_mode():
            want = peer(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(prompt_logits(llm, ids), want, atol=1e-4, rtol=0)


def test_chat_answers_and_stops(llm):
    (output,) = llm.chat(
        [{"role": "user", "content": "What is the capital of France?"}],
        SamplingParams(temperature=0, max_tokens=40),
        use_tqdm=False,
    )
    assert output.outputs[0].text == "The capital of France is Paris."
    assert output.outputs[0].finish_reason == "stop"


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_id_is_in_the_text_only_where_asked_for(llm, include):
    greedy = {"temperature": 0, "max_tokens": 12}
    (whole,) = llm.generate("The three primary colours are", SamplingParams(**greedy), use_tqdm=False)
    last = whole.outputs[0].token_ids[4]
    params = SamplingParams(**greedy, stop_token_ids=[last], include_stop_str_in_output=include)
    (output,) = llm.generate("The three primary colours are", params, use_tqdm=False)
    ids = output.outputs[0].token_ids
    assert (output.outputs[0].stop_reason, ids[-1]) == (last, last)
    assert output.outputs[0].text == llm.get_tokenizer().decode(ids if include else ids[:-1])


def test_streaming_equals_not_streaming(llm):
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=30, stop=["\n\n"])
    (whole,) = llm.generate("The history of", params, use_tqdm=False)
    pieces, seen = [], 0
    for growing in llm.stream("The history of", params):
        pieces.append(growing.outputs[0].text[seen:])
        seen = len(growing.outputs[0].text)
    assert "".join(pieces) == whole.outputs[0].text
    assert llm.get_tokenizer().decode(whole.outputs[0].token_ids).startswith(whole.outputs[0].text)


@pytest.mark.full
def test_transformers_own_reading_and_generation_agree(llm):
    from transformers import AutoModelForCausalLM

    from bestiary.api.hook_manager import HookManager
    from bestiary.engine.arguments import EngineArgs
    from bestiary.engine.loader.description import describe

    file = describe(EngineArgs(model="smollm2"), HookManager().load()).source.weight_files[0]
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True), use_tqdm=False)
    for output in outputs:
        ids = torch.tensor([output.prompt_token_ids])
        with torch.inference_mode():
            want = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
        assert output.outputs[0].token_ids == want[0, ids.shape[1] :].tolist()
