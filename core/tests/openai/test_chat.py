import asyncio

from bestiary.serve.openai.schemas.chat import ChatCompletion

from .conftest import client, events
from .fake import ANSWER

HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


def test_an_answer(llm):
    async def run():
        async with client(llm) as http:
            return await http.post("/v1/chat/completions", json=HELLO)

    response = asyncio.run(run())
    assert response.status_code == 200, response.text
    document = ChatCompletion.model_validate(response.json())
    assert document.choices[0].message.content == ANSWER
    assert document.choices[0].finish_reason == "stop"


def test_a_stream(llm):
    async def run():
        async with client(llm) as http:
            return await http.post(
                "/v1/chat/completions", json=HELLO | {"stream": True, "n": 2, "stream_options": {"include_usage": True}}
            )

    found = events(asyncio.run(run()))
    for i in range(2):
        assert (
            "".join(
                c["choices"][0]["delta"].get("content", "")
                for c in found[:-1]
                if c["choices"] and c["choices"][0]["index"] == i
            )
            == ANSWER
        )
    assert found[-1] == "[DONE]"
    assert found[-2]["usage"]["completion_tokens"] > 10


def test_completions(llm):
    async def run():
        async with client(llm) as http:
            a = await http.post(
                "/v1/completions", json={"prompt": ["Hi", "the"], "max_tokens": 60, "logprobs": 2, "echo": True}
            )
            b = await http.post(
                "/v1/completions",
                json={"prompt": ["Hi", "the"], "max_tokens": 60, "logprobs": 2, "echo": True, "stream": True},
            )
            c = [
                await http.get(p)
                for p in ("/v1/models", "/v1/models/tiny", "/v1/models/x", "/health", "/metrics", "/nope")
            ]
            return a, b, c

    a, b, c = asyncio.run(run())
    assert a.json()["choices"][0]["text"] == "Hi" + ANSWER
    assert events(b)[-1] == "[DONE]"
    assert [each.status_code for each in c] == [200, 200, 404, 200, 200, 404]
