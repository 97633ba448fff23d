"""langchain-openai."""

from __future__ import annotations

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from .asking import GREEDY, ROOM, SCHEMA, TEXT, TOOL, check_weather
from .processes import KEY


@pytest.fixture(scope="module")
def chat(t0):
    def make(**options):
        given = {"model": "t0", "base_url": f"{t0.url}/v1", "api_key": KEY, "max_retries": 0}
        return ChatOpenAI(**given | GREEDY | options)

    return make


def test_invoke(chat, oracle):
    answer = chat().invoke(TEXT)
    (expected,) = oracle.chat(TEXT, **GREEDY)
    assert answer.content == expected["text"]
    assert answer.usage_metadata["output_tokens"] == len(expected["token_ids"])


def test_stream(chat, oracle):
    assert "".join(chunk.content for chunk in chat().stream(TEXT)) == oracle.chat(TEXT, **GREEDY)[0]["text"]


def test_batch(chat, oracle):
    texts = [f"{TEXT} {number}" for number in range(4)]
    answers = chat().batch(texts)
    assert [answer.content for answer in answers] == [oracle.chat(text, **GREEDY)[0]["text"] for text in texts]


def test_bind_tools_and_the_answer_to_a_call(chat):
    bound = chat(max_tokens=ROOM).bind_tools([TOOL], tool_choice="weather")
    answer = bound.invoke(TEXT)
    (call,) = answer.tool_calls
    assert call["name"] == "weather"
    check_weather(call["args"])
    said = [HumanMessage(TEXT), answer, ToolMessage("mild", tool_call_id=call["id"])]
    assert chat().invoke(said).content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_with_structured_output(chat, method):
    schema = SCHEMA | {"title": "weather", "description": "The weather in a city."}
    check_weather(chat(max_tokens=ROOM).with_structured_output(schema, method=method, strict=True).invoke(TEXT))


def test_embeddings(pooling, oracle):
    made = OpenAIEmbeddings(
        model="t0", base_url=f"{pooling.url}/v1", api_key=KEY, check_embedding_ctx_length=False, max_retries=0
    )
    assert made.embed_query("An owl.") == pytest.approx(oracle.ask("embed", texts=["An owl."])[0], abs=1e-5)
