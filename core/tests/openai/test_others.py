"""Models, tokens, vectors, adapters, health, figures."""

from __future__ import annotations

import asyncio
import base64
import struct

import msgspec
import pytest

from bestiary.api.errors import EngineError, RequestError
from bestiary.engine.pooling import PoolingOffer
from bestiary.serve.openai.metrics import METRICS, STATES
from bestiary.serve.openai.options import ServeOptions
from bestiary.serve.openai.schemas.embeddings import Embeddings
from bestiary.serve.openai.schemas.tokenize import Tokenized

from .conftest import client
from .fake import MODEL, FakeLLM


def test_models_are_names_and_adapters(ask, llm):
    asyncio.run(llm.add_lora("sql", "x"))
    listed = ask("GET", "/v1/models", served_model_names=("one", "two")).json()
    assert [each["id"] for each in listed["data"]] == ["one", "two", "sql"]
    assert [each["parent"] for each in listed["data"]] == [None, None, "one"]
    assert ask("GET", "/v1/models/sql", served_model_names=("one", "two")).json()["id"] == "sql"
    assert ask("GET", "/v1/models/tiny", served_model_names=("one",)).status_code == 404
    answer = ask("POST", "/v1/completions", {"prompt": "x", "model": "sql"}, served_model_names=("one",)).json()
    assert (answer["model"], llm.submitted[-1]["lora_name"]) == ("sql", "sql")
    answer = ask("POST", "/v1/completions", {"prompt": "x"}, served_model_names=("one", "two")).json()
    assert (answer["model"], llm.submitted[-1]["lora_name"]) == ("one", None)


def test_a_model_in_a_directory_is_called_by_its_last_name(tmp_path):
    (tmp_path / "my-model").mkdir()
    llm = FakeLLM(str(tmp_path / "my-model"))

    async def run():
        async with client(llm) as http:
            listed = (await http.get("/v1/models")).json()["data"]
            return [each["id"] for each in listed], (await http.get("/server/info")).text

    names, info = asyncio.run(run())
    assert names == ["my-model"]
    assert str(tmp_path) not in info


def test_what_a_request_leaves_out_is_the_servers(ask, llm):
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/responses", {"input": "x"}),
    ):
        for given, want in (({}, (0.25, 0.5)), ({"temperature": 0.75}, (0.75, 0.5))):
            ask("POST", path, body | given, sampling={"temperature": 0.25, "top_p": 0.5})
            sampling = llm.submitted[-1]["sampling"]
            assert (sampling.temperature, sampling.top_p) == want
    info = ask("GET", "/server/info", sampling={"temperature": 0.25}).json()
    assert (info["defaults"]["temperature"], info["defaults"]["top_p"]) == (0.25, 1.0)
    with pytest.raises(RequestError, match="temperature"):
        ServeOptions(sampling={"temperature": -1.0})


def test_texts_to_ids_and_back(ask, llm):
    document = ask("POST", "/tokenize", {"prompt": "the 🦁", "return_token_strs": True}).json()
    Tokenized.model_validate(document)
    assert document["tokens"] == llm.tokenizer.encode("the 🦁")
    assert (document["count"], document["token_strs"][0]) == (6, "the")
    assert ask("POST", "/detokenize", {"tokens": document["tokens"]}).json() == {"prompt": "the 🦁"}
    chat = ask("POST", "/tokenize", {"messages": [{"role": "user", "content": "a"}]}).json()
    assert chat["tokens"] == llm.tokenizer.encode("<s>user: a</s><s>", add_special_tokens=False)


def test_a_text_that_would_take_a_hundred_times_its_size_is_refused(ask):
    error = ask("POST", "/tokenize", {"prompt": "x" * (2**20 + 1)}).json()["error"]
    assert (error["code"], error["param"]) == ("TEXT_LIMIT", "prompt")
    assert "1048576 characters" in error["limit"]
    many = ask("POST", "/tokenize", {"prompt": "the " * 6000, "return_token_strs": True}).json()
    assert many["count"] == len(many["token_strs"]) > 20_000 // 2


def test_vectors(ask, llm):
    llm.info = msgspec.structs.replace(MODEL, pooling=PoolingOffer(("embed",), 2))
    body = {"input": ["a", "b"]}
    document = ask("POST", "/v1/embeddings", body).json()
    Embeddings.model_validate(document)
    assert [each["embedding"] for each in document["data"]] == [[0.6, 0.8]] * 2
    assert document["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    packed = ask("POST", "/v1/embeddings", body | {"encoding_format": "base64", "dimensions": 1}).json()
    assert struct.unpack("<2f", base64.b64decode(packed["data"][1]["embedding"])) == pytest.approx((0.6, 0.8))
    assert llm.submitted[-1]["params"].dimensions == 1
    too_many = ask("POST", "/v1/embeddings", body | {"dimensions": 3})
    assert (too_many.status_code, too_many.json()["error"]["param"]) == (400, "dimensions")
    assert ask("POST", "/v1/completions", {"prompt": "x"}).json()["error"]["code"] == "WRONG_RUNNER"


@pytest.fixture
def adapters(tmp_path):
    """A directory of adapters: two good places, and links that lead out."""
    root = tmp_path / "adapters"
    (root / "sql" / "inner").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "file").write_text("x")
    return root


@pytest.mark.parametrize(
    "path",
    ["../..", "..", "../secret", "sql/../../secret", "out", "up", "up/secret", "loop", "file", "missing", "~", "\0",
     "sql\0", "x" * 4000, "x/" * 2000, "/", "/etc", "http://evil.example/x", "file:///etc", ".", "sql/..",
     "{root}", "{root}/sql"],
)  # fmt: skip
def test_adapters_lie_below_the_directory(ask, llm, adapters, path):
    given = path.replace("{root}", str(adapters))
    response = ask("POST", "/v1/load_lora_adapter", {"lora_name": "a", "lora_path": given}, lora_dir=adapters)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "LORA_PATH")
    assert not llm.loras


@pytest.mark.parametrize("path", ["sql", "sql/inner", "./sql/", "sql/../sql"])
def test_adapters_come_and_go(llm, adapters, path):
    async def run():
        async with client(llm, lora_dir=adapters) as http:
            loaded = await http.post("/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": path})
            assert (loaded.status_code, loaded.json()["id"]) == (200, "a")
            again = await http.post("/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": path})
            assert (again.status_code, again.json()["error"]["code"]) == (409, "ADAPTER_NAME_TAKEN")
            gone = await http.post("/v1/unload_lora_adapter", json={"lora_name": "a"})
            assert gone.json() == {"id": "a", "object": "model", "deleted": True}
            missing = await http.post("/v1/unload_lora_adapter", json={"lora_name": "a"})
            assert missing.status_code == 404

    asyncio.run(run())


def test_adapters_are_not_loaded_unless_a_directory_was_named(ask, llm):
    for path, body in (
        ("load", {"lora_name": "a", "lora_path": "x"}),
        ("unload", {"lora_name": "a"}),
    ):
        response = ask("POST", f"/v1/{path}_lora_adapter", body)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "RUNTIME_LORA_OFF")


@pytest.mark.parametrize("state", STATES)
def test_health(ask, llm, state):
    llm.state, llm.error = state, EngineError("it is gone", code="ENGINE_DEAD")
    live, ready, short = (ask("GET", path) for path in ("/health/live", "/health/ready", "/health"))
    assert live.status_code == 200
    assert ready.status_code == short.status_code == (200 if state == "ready" else 503)
    assert ready.json() == ({"status": "ok"} if state == "ready" else {"status": state, "code": "ENGINE_DEAD"})


def test_nothing_is_loaded_yet(ask, llm):
    llm.info, llm.state = None, "starting"
    info = ask("GET", "/server/info").json()
    assert info["model"] is None and info["server"]["phases"] == {"load the model": 0.5}
    assert ask("GET", "/server/stats").json()["state"] == "starting"
    assert ask("GET", "/v1/models").json()["data"][0]["max_model_len"] is None
    assert ask("POST", "/tokenize", {"prompt": "x"}).json()["max_model_len"] is None


def test_figures_for_prometheus_are_those_of_the_table(ask):
    text = ask("GET", "/metrics").text
    for row in METRICS:
        name = row.name.removesuffix("_total") if row.kind == "counter" else row.name
        assert f"# TYPE {row.name if row.kind == 'counter' else name} {row.kind}" in text, row.name
        assert row.kind != "counter" or row.name.endswith("_total")
    assert "bestiary_kv_cache_blocks_used 3.0" in text
    assert "bestiary_step_seconds_sum 0.5" in text and "bestiary_step_seconds_count 5.0" in text
    assert 'bestiary_engine_state{state="ready"} 1.0' in text
    assert 'bestiary_engine_state{state="failed"} 0.0' in text


def test_figures_for_the_page(ask):
    found = ask("GET", "/server/stats").json()
    assert found["kv"] == {"used": 3, "total": 64, "block_size": 16}
    assert found["prefix"] == {"queried_tokens": 10, "hit_tokens": 4}
    info = ask("GET", "/server/info").json()
    assert info["model"]["architecture"] == "TinyForCausalLM"
    assert info["defaults"]["temperature"] == 1.0 and info["limits"]["max_n"] == 64
