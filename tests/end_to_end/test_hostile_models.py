"""Damaged and hostile model directories through the whole product: exit code 2, the reason, no code run, no network."""

import json
import shutil
import socket
import struct

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bestiary.api import index
from bestiary.serve.cli.main import run

SENTINEL = "sentinel-that-must-not-exist"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    torch.manual_seed(2)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def model(good, tmp_path):
    return shutil.copytree(good, tmp_path / "model")


@pytest.fixture
def refuse(model, capsys, monkeypatch, tmp_path):
    """`refuse(*words)`: `inspect` or `generate` ends with exit code 2 and a short message that holds the words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(index, "packages", lambda: {"SphinxForCausalLM": "bestiary-sphinx"})
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))

    def check(*words):
        status = run(["inspect", str(model)])
        shown = capsys.readouterr().err
        if status == 0:  # only the data is bad: loading must say so
            from bestiary import LLM
            from bestiary.api.errors import BestiaryError

            with pytest.raises(BestiaryError) as caught:
                LLM(str(model), dtype="float32", skip_tokenizer_init=True, progress=False)
            status, shown = caught.value.exit_code, str(caught.value)
        assert status == 2, shown
        assert "Traceback" not in shown
        assert len(shown.splitlines()) < 40
        for word in words:
            assert word in shown
        assert not (tmp_path / SENTINEL).exists()

    return check


def edit(model, **fields):
    path = model / "config.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in (data | fields).items() if value != "absent"}))


CONFIGS = {
    "C02 unknown architecture": ({"architectures": ["LamaForCausalLM"]}, ["UNKNOWN_ARCHITECTURE", "LlamaForCausalLM"]),
    "C02 installable": ({"architectures": ["SphinxForCausalLM"]}, ["pip install bestiary-sphinx"]),
    "no architecture": ({"architectures": "absent"}, ["MISSING_ARCHITECTURE"]),
    "architecture no list": ({"architectures": "LlamaForCausalLM"}, ["BAD_ARCHITECTURE", "a list"]),
    "C07 hidden 0": ({"hidden_size": 0}, ["hidden_size"]),
    "C07 hidden -1": ({"hidden_size": -1}, ["hidden_size"]),
    "C07 hidden 2^40": ({"hidden_size": 2**40}, ["hidden_size"]),
    "C07 hidden text": ({"hidden_size": "64"}, ["hidden_size", "'64'"]),
    "C07 hidden true": ({"hidden_size": True}, ["hidden_size", "True"]),
    "C07 heads do not divide": ({"num_attention_heads": 5, "head_dim": "absent"}, ["num_attention_heads"]),
    "C07 kv heads do not divide": ({"num_key_value_heads": 3}, ["num_key_value_heads"]),
    "C07 a billion layers": ({"num_hidden_layers": 10**9}, ["num_hidden_layers"]),
    "C07 vocabulary": ({"vocab_size": 10**12}, ["vocab_size"]),
    "C07 labels": ({"num_labels": 10**9}, ["num_labels"]),
    "C07 positions": ({"max_position_embeddings": 2**31}, ["max_position_embeddings"]),
    "C09 rope type": ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, ["spiral"]),
    "C09 factor 0": ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0}}, ["factor"]),
    "C09 window": ({"sliding_window": -1}, ["sliding_window"]),
    "C12 method": ({"quantization_config": {"quant_method": "magic"}}, ["magic", "int8"]),
    "C12 class path": ({"quantization_config": {"quant_method": "os:system"}}, ["quant_method"]),
    "other convention": ({"n_heads": 4, "num_attention_heads": "absent"}, ["num_attention_heads"]),
}


@pytest.mark.parametrize("row", CONFIGS)
def test_configurations(row, model, refuse):
    fields, words = CONFIGS[row]
    edit(model, **fields)
    refuse(*words)


JSON = {
    "C08 not JSON": b"{",
    "C08 depth": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "C08 duplicate keys": b'{"hidden_size": 1, "hidden_size": 2}',
    "C08 NaN": b'{"hidden_size": NaN}',
    "C08 1e400": b'{"hidden_size": 1e400}',
    "C08 not UTF-8": b'{"a": "\xff"}',
    "C08 no object": b"[]",
}


@pytest.mark.parametrize("row", JSON)
def test_bad_json(row, model, refuse):
    (model / "config.json").write_bytes(JSON[row])
    refuse("config.json")


def test_c08_devices_and_size(model, refuse):
    path = model / "config.json"
    path.unlink()
    path.symlink_to("/dev/zero")
    refuse("config.json")
    path.unlink()
    with path.open("wb") as file:
        file.truncate(2 * 1024**3)
    refuse("config.json")


def test_c01_c03_c04_code_in_the_directory_is_ignored_and_the_model_runs(model, tmp_path, capsys, monkeypatch):
    from bestiary import LLM, SamplingParams

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    (model / "evil.py").write_text(f"open({SENTINEL!r}, 'w')")
    edit(
        model, auto_map={"AutoModelForCausalLM": "evil.Model"}, _attn_implementation_internal="attacker/kernel",
        text_config_extra={"trust_remote_code": True, "auto_map": {}},
    )  # fmt: skip
    llm = LLM(str(model), dtype="float32", skip_tokenizer_init=True, progress=False)
    assert llm.generate([5, 6], SamplingParams(max_tokens=2), use_tqdm=False)[0].finished
    assert not (tmp_path / SENTINEL).exists()
    assert run(["inspect", str(model)]) == 0
    assert "auto_map" in "".join(capsys.readouterr())


def test_c03_a_field_that_names_another_model_fetches_nothing(model, monkeypatch, capsys):
    """transformers' classes for vision models ask the hub for the parts that `backbone` names."""
    import socket as sockets

    asked = []
    monkeypatch.setattr(sockets.socket, "connect", lambda self, address: asked.append(address))
    monkeypatch.setattr(sockets, "getaddrinfo", lambda *address, **_: asked.append(address) or [])
    for fields in ({"backbone": "attacker/x", "use_timm_backbone": False}, {"backbone_config": {"backbone": "a/x"}}):
        edit(model, model_type="detr", **fields)
        assert run(["inspect", str(model)]) in (0, 2)
        assert "Traceback" not in capsys.readouterr().err
    assert asked == []


def weights(model):
    return model / "model.safetensors"


def header(model):
    raw = weights(model).read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write(model, head, body):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    weights(model).write_bytes(struct.pack("<Q", len(text)) + text + body)


def damage_m06(model):
    head, body = header(model)
    name = next(each for each in head if each != "__metadata__")
    text = json.dumps(head)
    write(model, (text[:-1] + f', "{name}": {json.dumps(head[name])}}}').encode(), body)


def damage_m03(model):
    head, body = header(model)
    first, second = [each for each in head if each != "__metadata__"][:2]
    head[first]["data_offsets"] = head[second]["data_offsets"]
    write(model, head, body)


def changed(change):
    def damage(model):
        tensors = load_file(weights(model))
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, weights(model))

    return damage


class Evil:
    def __reduce__(self):
        return open, (SENTINEL, "w")


def pickled(name):
    def damage(model):
        weights(model).unlink()
        torch.save(Evil(), model / name)

    return damage


NORM = "model.norm.weight"
WEIGHTS = {
    "M01 pickle": (pickled("pytorch_model.bin"), ["PICKLE_REFUSED"]),
    "M01 renamed pickle": (pickled("model.safetensors"), ["model.safetensors"]),
    "M02 header 2^63": (lambda m: weights(m).write_bytes(struct.pack("<Q", 2**63) + b"{}"), ["CORRUPT_WEIGHTS"]),
    "M02 header 0": (lambda m: weights(m).write_bytes(struct.pack("<Q", 0)), ["CORRUPT_WEIGHTS"]),
    "M03 overlap": (damage_m03, ["CORRUPT_WEIGHTS"]),
    "M04 trailing": (lambda m: weights(m).write_bytes(weights(m).read_bytes() + b"PK"), ["CORRUPT_WEIGHTS"]),
    "M06 duplicate": (damage_m06, ["CORRUPT_WEIGHTS"]),
    "M07 NaN": (changed(lambda t: t[NORM].fill_(float("nan"))), ["NONFINITE_WEIGHTS", NORM]),
    "M08 shape": (changed(lambda t: t.update({NORM: torch.ones(33)})), ["WEIGHTS_MISMATCH", NORM, "[32]", "[33]"]),
    "M08 other kind": (changed(lambda t: t.update({NORM: torch.ones(32).to(torch.int8)})), ["WEIGHTS_MISMATCH", NORM]),
    "M08 missing": (changed(lambda t: t.pop(NORM)), ["WEIGHTS_MISMATCH", NORM]),
    "M08 unexpected": (changed(lambda t: t.update(extra=torch.ones(2))), ["WEIGHTS_MISMATCH", "extra [2]"]),
    "M09 truncated": (lambda m: weights(m).write_bytes(weights(m).read_bytes()[:-100]), ["CORRUPT_WEIGHTS"]),
    "no weights": (lambda m: weights(m).unlink(), ["safetensors"]),
}


@pytest.mark.parametrize("row", WEIGHTS)
def test_weights(row, model, refuse):
    damage, words = WEIGHTS[row]
    damage(model)
    refuse(*words)


def test_m08_tied_and_different(model, refuse):
    edit(model, tie_word_embeddings=True)
    refuse("WEIGHTS_MISMATCH", "tied")


def test_m07_may_be_allowed(model):
    from bestiary import LLM, SamplingParams

    changed(lambda tensors: tensors[NORM].fill_(float("nan")))(model)
    llm = LLM(str(model), dtype="float32", skip_tokenizer_init=True, progress=False, allow_nonfinite=True)
    (output,) = llm.generate([5, 6], SamplingParams(max_tokens=2), use_tqdm=False)
    assert output.outputs[0].finish_reason == "error"


GGUF = {
    "M20 magic": b"GGML" + bytes(60),
    "M20 version": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
    "M11 counts": b"GGUF" + struct.pack("<IQQ", 3, 2**62, 2**62),
    "M12 string": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63),
    "M20 truncated": b"GGUF\x03",
    "empty": b"",
}


@pytest.mark.parametrize("row", GGUF)
def test_gguf(row, tmp_path, capsys):
    file = tmp_path / "model.gguf"
    file.write_bytes(GGUF[row])
    assert run(["inspect", str(file)]) == 2
    shown = capsys.readouterr().err
    assert "CORRUPT_GGUF" in shown
    assert "Traceback" not in shown
