"""Conversations: a whole answer, and the same answer as a stream."""

from __future__ import annotations

import asyncio

import pytest

from bestiary.serve.openai.schemas.chat import ChatCompletion

from .conftest import client, events
from .fake import ANSWER, Script

PATH = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "Hi"}]}
OPTIONS = [
    {}, {"n": 3}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 2}, {"return_token_ids": True},
    {"max_tokens": 5}, {"max_completion_tokens": 4, "max_tokens": 9}, {"prompt_logprobs": 1},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_stream_says_what_the_whole_answer_says(ask, options):
    whole = ask("POST", PATH, HI | options)
    assert whole.status_code == 200, whole.text
    document = ChatCompletion.model_validate(whole.json())
    chunks = events(ask("POST", PATH, HI | options | {"stream": True, "stream_options": {"include_usage": True}}))
    assert chunks.pop() == "[DONE]"
    last = chunks.pop()
    assert (last["choices"], last["usage"]) == ([], whole.json()["usage"])
    assert {(each["id"], each["object"], each["model"], each["usage"]) for each in chunks} == {
        (last["id"], "chat.completion.chunk", "tiny", None)
    }
    for choice in document.choices:
        mine = [each["choices"][0] for each in chunks if each["choices"][0]["index"] == choice.index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(each["delta"].get("content", "") for each in mine) == choice.message.content
        assert [each["finish_reason"] for each in mine if each["finish_reason"]] == [choice.finish_reason]
        assert mine[-1]["finish_reason"] == choice.finish_reason
        tokens = [token for each in mine if each["logprobs"] for token in each["logprobs"]["content"]]
        shown = whole.json()["choices"][choice.index]
        assert tokens == (shown["logprobs"]["content"] if shown["logprobs"] else [])
        assert [token for each in mine for token in each.get("token_ids", [])] == shown.get("token_ids", [])


def test_an_answer(ask, llm):
    document = ask("POST", PATH, HI | {"model": "tiny", "seed": 7, "temperature": 0.5, "top_k": 3}).json()
    assert document["choices"][0]["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert document["choices"][0]["finish_reason"] == "stop"
    (submitted,) = llm.submitted
    sampling = submitted["sampling"]
    assert (sampling.seed, sampling.temperature, sampling.top_k, sampling.max_tokens) == (7, 0.5, 3, None)
    assert submitted["prompt"] == "<s>user: Hi</s><s>"
    assert submitted["ids"] == llm.tokenizer.encode(submitted["prompt"], add_special_tokens=False)
    usage = document["usage"]
    assert usage["prompt_tokens"] == len(submitted["ids"])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_log_probabilities_spell_tokens_as_text_and_bytes(ask):
    content = ask("POST", PATH, HI | {"top_logprobs": 2}).json()["choices"][0]["logprobs"]["content"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == ANSWER
    assert content[0]["token"] == "G" and content[0]["top_logprobs"][0]["token"] == "G"
    assert [len(each["top_logprobs"]) for each in content] == [2] * len(content)
    assert all(len(each["top_logprobs"]) == 0 for each in
               ask("POST", PATH, HI | {"logprobs": True}).json()["choices"][0]["logprobs"]["content"])  # fmt: skip


def test_what_a_conversation_is_rendered_with(ask, llm):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    body = {"messages": messages, "tools": tools, "reasoning_effort": "low", "chat_template_kwargs": {"extra": 1}}
    assert ask("POST", PATH, body).status_code == 200
    (rendered,) = llm.rendered
    assert [each["role"] for each in rendered["messages"]] == ["system", "user", "assistant", "tool"]
    assert rendered["messages"][2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}
    assert [each["function"]["name"] for each in rendered["tools"]] == ["f"]
    assert (rendered["reasoning_effort"], rendered["extra"]) == ("low", 1)
    ask("POST", PATH, body | {"tool_choice": "none"})
    assert "tools" not in llm.rendered[1]


def test_the_last_message_is_continued(ask, llm):
    body = {"messages": [*HI["messages"], {"role": "assistant", "content": "Well, "}], "continue_final_message": True}
    assert ask("POST", PATH, body).status_code == 200
    assert llm.submitted[0]["prompt"] == "<s>user: Hi</s><s>assistant: Well, "


@pytest.mark.parametrize("allowed", [False, True])
def test_a_template_of_the_request(ask, llm, allowed):
    response = ask("POST", PATH, HI | {"chat_template": "{{ messages[0].content }}!"}, allow_request_template=allowed)
    assert response.status_code == (200 if allowed else 400)
    assert [each["prompt"] for each in llm.submitted] == (["Hi!"] if allowed else [])


def test_the_servers_own_template(ask, llm):
    ask("POST", PATH, HI, chat_template="<{{ messages[0].content }}>")
    assert llm.submitted[0]["prompt"] == "<Hi>"


def test_continuous_usage(ask):
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    chunks = [each for each in events(ask("POST", PATH, HI | options)) if each != "[DONE]"]
    counts = [each["usage"]["completion_tokens"] for each in chunks]
    assert counts[0] == 0 and counts == sorted(counts) and counts[-1] == len(ANSWER.encode()) - 4


@pytest.mark.parametrize("code", ["ENGINE_DEAD", "numerical", "MODEL_FAILED"])
@pytest.mark.parametrize("after", [0, 3])
def test_a_failure_is_the_one_end_of_a_stream(ask, llm, code, after):
    llm.script = Script(fail=(after, code))
    response = ask("POST", PATH, HI | {"stream": True, "n": 2})
    chunks = events(response)
    assert "error" in chunks.pop()
    assert not any(each == "[DONE]" or each["choices"][0]["finish_reason"] for each in chunks)


@pytest.mark.parametrize(
    ("code", "status", "shown"),
    [("ENGINE_DEAD", 503, "engine_dead"), ("numerical", 500, "numerical"), ("MODEL_FAILED", 503, "MODEL_FAILED")],
)
def test_a_failure_of_a_whole_answer(ask, llm, code, status, shown):
    llm.script = Script(fail=(2, code))
    response = ask("POST", PATH, HI)
    assert (response.status_code, response.json()["error"]["code"]) == (status, shown)
    assert "something happened" not in response.text


def test_an_answer_ends_when_its_client_leaves(llm):
    llm.script = Script(pace=asyncio.Semaphore(0))

    async def run(body):
        async with client(llm) as http:
            task = asyncio.create_task(http.post(PATH, json=body))
            while not llm.live:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            for _ in range(100):
                await asyncio.sleep(0)

    for body in (HI, HI | {"stream": True}, HI | {"n": 2}):
        asyncio.run(run(body))
    assert [each.aborted for each in llm.generations] == [True] * 3
    assert not llm.live


def test_counts_of_what_became_of_requests(llm):
    async def run():
        async with client(llm) as http:
            await http.post(PATH, json=HI)
            await http.post(PATH, json=HI | {"stream": True})
            await http.post(PATH, json=HI | {"n": 0})
            llm.script = Script(fail=(1, "ENGINE_DEAD"))
            await http.post(PATH, json=HI)
            await http.post(PATH, json=HI | {"stream": True})
            return (await http.get("/server/stats")).json(), (await http.get("/metrics")).text

    stats, text = asyncio.run(run())
    assert stats["requests"] == {"finished": 2, "failed": 2, "aborted": 0, "shed": 0, "refused": 1}
    assert 'bestiary_requests_total{endpoint="/v1/chat/completions",outcome="finished"} 2.0' in text
    assert stats["tokens"]["generated"] == 2 * (len(ANSWER.encode()) - 4) + 2
    assert stats["latency"]["ttft"]["p50"] <= stats["latency"]["e2e"]["p99"]
