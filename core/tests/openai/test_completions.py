"""Prompts as they stand: a whole answer, the same as a stream, several at once, echoed, with log-probabilities."""

from __future__ import annotations

import asyncio
from itertools import chain

import pytest

from bestiary.serve.openai.schemas.completions import Completion

from .conftest import client, events
from .fake import Script

PATH = "/v1/completions"
OPTIONS = [
    {}, {"n": 2}, {"prompt": ["a", "b", "c"], "n": 2}, {"prompt": [[5, 6], [7]]}, {"prompt": [5, 6, 7]},
    {"logprobs": 2}, {"logprobs": 0}, {"echo": True}, {"echo": True, "logprobs": 1}, {"max_tokens": 1},
    {"echo": True, "logprobs": 1, "max_tokens": 1, "prompt": [5, 6]}, {"return_token_ids": True},
    {"prompt_logprobs": 1},
]  # fmt: skip


def joined(parts):
    """Pieces of one choice's log-probabilities as one."""
    found = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for part in filter(None, parts):
        for name, values in part.items():
            found[name] += values
    return found if found["tokens"] else None


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_stream_says_what_the_whole_answer_says(ask, options):
    body = {"prompt": "Hi", "max_tokens": 60} | options
    whole = ask("POST", PATH, body)
    assert whole.status_code == 200, whole.text
    document = Completion.model_validate(whole.json())
    chunks = events(ask("POST", PATH, body | {"stream": True, "stream_options": {"include_usage": True}}))
    assert chunks.pop() == "[DONE]"
    assert chunks.pop()["usage"] == whole.json()["usage"]
    prompts = len(body["prompt"]) if isinstance(body["prompt"], list) and not isinstance(body["prompt"][0], int) else 1
    assert [each.index for each in document.choices] == list(range(prompts * body.get("n", 1)))
    for choice in whole.json()["choices"]:
        mine = [each["choices"][0] for each in chunks if each["choices"][0]["index"] == choice["index"]]
        assert "".join(each["text"] for each in mine) == choice["text"]
        assert [each["finish_reason"] for each in mine if each["finish_reason"]] == [choice["finish_reason"]]
        assert joined(each["logprobs"] for each in mine) == choice["logprobs"]
        for name in ("token_ids", "prompt_token_ids", "prompt_logprobs"):
            shown = [each[name] for each in mine if name in each]
            assert ([*chain(*shown)] if shown else None) == choice.get(name)


def test_log_probabilities_of_prompt_and_answer(ask):
    body = {"prompt": "the x", "echo": True, "logprobs": 1, "max_tokens": 2}
    choice = ask("POST", PATH, body).json()["choices"][0]
    assert choice["text"] == "the xGr"
    assert choice["logprobs"]["tokens"] == ["the", " ", "x", "G", "r"]
    assert choice["logprobs"]["text_offset"] == [0, 3, 4, 5, 6]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5]
    assert choice["logprobs"]["top_logprobs"][0] is None
    assert choice["logprobs"]["top_logprobs"][3] == {"G": -0.5}


def test_a_prompt_of_ids_is_echoed_as_text(ask, llm):
    ids = llm.tokenizer.encode("Hello 🦁")
    assert ask("POST", PATH, {"prompt": ids, "echo": True}).json()["choices"][0]["text"].startswith("Hello 🦁G")


def test_sixteen_tokens_are_the_default(ask, llm):
    document = ask("POST", PATH, {"prompt": "Hi"}).json()
    assert document["usage"]["completion_tokens"] == 16
    assert document["choices"][0]["finish_reason"] == "length"


def test_one_bad_prompt_of_several_and_none_is_computed(ask, llm):
    response = ask("POST", PATH, {"prompt": [[5], [6], [999]]})
    assert response.status_code == 400
    assert [each.aborted for each in llm.generations] == [True, True] and not llm.live


def test_one_of_several_fails_and_all_end(ask, llm):
    llm.script = Script(fail=(2, "ENGINE_DEAD"))
    assert ask("POST", PATH, {"prompt": ["a", "b"]}).status_code == 503
    chunks = events(ask("POST", PATH, {"prompt": ["a", "b"], "stream": True}))
    assert [("error" in each) for each in chunks] == [False] * (len(chunks) - 1) + [True]
    assert not llm.live


def test_many_prompts_leave_when_their_client_does(llm):
    llm.script = Script(pace=asyncio.Semaphore(0))

    async def run():
        async with client(llm) as http:
            task = asyncio.create_task(http.post(PATH, json={"prompt": ["a"] * 9, "stream": True}))
            while len(llm.live) < 9:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await asyncio.sleep(0.05)
            return [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]

    left = asyncio.run(run())
    assert not llm.live and all(each.aborted for each in llm.generations)
    assert left == []


def test_parameters_arrive(ask, llm):
    body = {
        "prompt": "Hi", "n": 2, "temperature": 0.3, "top_p": 0.5, "top_k": 4, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": 0.1, "frequency_penalty": 0.2, "seed": 3, "max_tokens": 9, "min_tokens": 2, "stop": ["x"],
        "stop_token_ids": [7], "include_stop_str_in_output": True, "ignore_eos": True, "logit_bias": {"5": 1.5},
        "allowed_token_ids": [5, 6], "bad_token_ids": [6], "logprobs": 3, "prompt_logprobs": 1,
        "skip_special_tokens": False,
    }  # fmt: skip
    assert ask("POST", PATH, body | {"priority": -2, "cache_salt": "s"}).status_code == 200
    (submitted,) = llm.submitted
    assert (submitted["priority"], submitted["cache_salt"]) == (-2, "s")
    for name, value in body.items():
        found = getattr(submitted["sampling"], name, value)
        assert (list(found) if isinstance(found, tuple) else found) == ({5: 1.5} if name == "logit_bias" else value)
