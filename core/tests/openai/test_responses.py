"""`/v1/responses`: documents, and events in OpenAI's order."""

from __future__ import annotations

import pytest

from bestiary.serve.openai.schemas.responses import ResponseDocument

from .conftest import events
from .fake import ANSWER, Script

PATH = "/v1/responses"


@pytest.mark.parametrize("options", [{}, {"max_output_tokens": 2}, {"top_logprobs": 2}], ids=str)
def test_a_stream_tells_how_the_document_came_about(ask, options):
    whole = ask("POST", PATH, {"input": "Hi"} | options)
    assert whole.status_code == 200, whole.text
    ResponseDocument.model_validate(whole.json())
    response = ask("POST", PATH, {"input": "Hi", "stream": True} | options)
    found = events(response)
    names = [line.removeprefix("event: ") for line in response.text.split("\n") if line.startswith("event: ")]
    assert names == [each["type"] for each in found]
    assert [each["sequence_number"] for each in found] == list(range(len(found)))
    assert names[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]  # fmt: skip
    status = whole.json()["status"]
    assert names[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done",
                          f"response.{status}"]  # fmt: skip
    assert set(names[4:-4]) == {"response.output_text.delta"}
    text = "".join(each["delta"] for each in found[4:-4])
    last = found[-1]["response"]
    ResponseDocument.model_validate(last)
    assert text == found[-4]["text"] == last["output"][0]["content"][0]["text"]
    assert [each["content"][0]["text"] for each in whole.json()["output"]] == [text]
    assert last["usage"] == whole.json()["usage"]
    logprobs = [token for each in found[4:-4] for token in each["logprobs"]]
    assert logprobs == whole.json()["output"][0]["content"][0]["logprobs"]
    assert len({each["item_id"] for each in found[3:-2]}) == 1


def test_what_an_answer_says_of_itself(ask):
    document = ask("POST", PATH, {"input": "Hi", "instructions": "Be brief.", "metadata": {"a": "b"}}).json()
    assert (document["status"], document["error"], document["store"]) == ("completed", None, False)
    assert document["output"][0]["content"][0]["text"] == ANSWER
    assert (document["instructions"], document["metadata"]) == ("Be brief.", {"a": "b"})
    cut = ask("POST", PATH, {"input": "Hi", "max_output_tokens": 2}).json()
    assert cut["incomplete_details"] == {"reason": "max_output_tokens"}
    assert cut["output"][0]["status"] == "incomplete"


def test_an_input_is_a_conversation(ask, llm):
    items = [
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
    ]  # fmt: skip
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}]
    assert ask("POST", PATH, {"input": items, "instructions": "i", "tools": tools}).status_code == 200
    (rendered,) = llm.rendered
    assert [each["role"] for each in rendered["messages"]] == ["system", "system", "user", "assistant", "tool"]
    assert rendered["messages"][3]["content"] == [{"type": "text", "text": "b"}]
    assert [each["function"]["name"] for each in rendered["messages"][3]["tool_calls"]] == ["f", "g"]
    assert rendered["messages"][4]["tool_call_id"] == "c1"
    function = {"name": "f", "description": "", "parameters": {"type": "object"}}
    assert rendered["tools"] == [{"type": "function", "function": function}]


def test_a_failure_is_the_one_end_of_a_stream(ask, llm):
    llm.script = Script(fail=(3, "ENGINE_DEAD"))
    found = events(ask("POST", PATH, {"input": "Hi", "stream": True}))
    assert found[-1]["type"] == "response.failed"
    assert found[-1]["response"]["error"]["code"] == "engine_dead"
    assert [each["type"] for each in found].count("response.failed") == 1
    ResponseDocument.model_validate(found[-1]["response"])


def test_an_empty_answer_is_an_empty_message(ask, llm):
    llm.script = Script(answer="")
    document = ask("POST", PATH, {"input": "Hi"}).json()
    assert document["output"][0]["content"][0]["text"] == ""
    found = events(ask("POST", PATH, {"input": "Hi", "stream": True}))
    assert found[-1]["response"]["output"][0]["content"][0]["text"] == ""
