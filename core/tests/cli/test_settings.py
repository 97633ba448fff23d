"""Settings: flag > environment > ./bestiary.toml > the user's file > default, for every kind of option."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import pytest

from bestiary.api import choices
from bestiary.api.errors import UsageError
from bestiary.serve.cli.config_files import PROJECT
from bestiary.serve.cli.configured import keys_of
from bestiary.serve.cli.main import cli
from bestiary.serve.cli.options import engine_args
from bestiary.serve.cli.settings import COMMAND_LINE, key_of, options_of, sources
from bestiary.testing.fake_site import Site

from .conftest import Run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, without variables of ours."""
    for name in [name for name in os.environ if name.startswith("BESTIARY_") and name != "BESTIARY_CACHE"]:
        monkeypatch.delenv(name)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "config/bestiary/config.toml"
    path.parent.mkdir(parents=True)
    return path


def parsed(command: str, *arguments: str) -> click.Context:
    """The context of a command line, as the command would get it."""
    above = click.Context(cli, info_name="bestiary")
    found = cli.get_command(above, command)
    assert found is not None
    with above:
        return found.make_context(command, list(arguments), parent=above)


KINDS: list[tuple[str, str, list[tuple[str, Any]]]] = [
    # parameter, key, (text on the command line and in the environment; TOML) …, from the strongest to the weakest place
    ("max_tokens", "max_tokens", [("1", 1), ("2", 2), ("3", 3), ("4", 4)]),
    ("temperature", "temperature", [("0.1", 0.1), ("0.2", 0.2), ("1", 1.0), ("0.4", 0.4)]),
    ("dtype", "dtype", [("float16", "float16"), ("bfloat16", "bfloat16"), ("float32", "float32"), ("auto", "auto")]),
    ("stop", "stop", [("a", ("a",)), ("b c", ("b c",)), ('["d", "e f"]', ("d", "e f")), ("g", ("g",))]),
    ("ops", "op", [("a=x", (("a", "x"),)), ("b=y", (("b", "y"),)), ("c=z,d=z", (("c", "z"), ("d", "z"))),
                   ("e=x", (("e", "x"),))]),
    ("kv_cache_memory_bytes", "kv_cache_memory_bytes", [("1K", 2**10), ("2M", 2**21), ("3", 3), ("4", 4)]),
    ("hf_overrides", "hf_overrides", [('{"a": 1}', {"a": 1}), ('{"b": 2}', {"b": 2}), ("{}", {}),
                                      ('{"c": 3}', {"c": 3})]),
    ("pipeline_layers", "pipeline_layers", [("1,2", [1, 2]), ("3", [3]), ("4,5", [4, 5]), ("6", [6])]),
]  # fmt: skip


def toml(value: Any) -> str:
    """A parameter's value as a file writes it."""
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        value = dict(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(each)}" for name, each in value.items()) + "}"
    return json.dumps(list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize("strongest", range(4), ids=["flag", "environment", "project", "user"])
@pytest.mark.parametrize(("parameter", "key", "values"), KINDS, ids=[kind[1] for kind in KINDS])
def test_the_strongest_place_wins(
    parameter: str, key: str, values: list[tuple[str, Any]], strongest: int, folder: Path, user_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Each place from `strongest` on says something of its own."""
    if strongest <= 1 and not (key == "stop" and strongest == 0):
        monkeypatch.setenv(f"BESTIARY_{key.upper()}", values[1][0])
    if strongest <= 2:
        (folder / PROJECT).write_text(f"{key} = {toml(values[2][1])}\n")
    user_file.write_text(f"{key} = {toml(values[3][1])}\n")
    context = parsed("generate", "m", *([f"--{key.replace('_', '-')}", values[0][0]] if strongest == 0 else []))
    assert context.params[parameter] == values[strongest][1]
    (source,) = sources(context)
    where = (COMMAND_LINE, f"BESTIARY_{key.upper()}", PROJECT, str(user_file))
    assert (source["option"], source["from"]) == (key, where[strongest])


@pytest.mark.parametrize("strongest", range(5), ids=["flag", "environment", "project", "user", "default"])
@pytest.mark.parametrize("said", [True, False])
def test_a_switch_is_set_and_unset_from_everywhere(
    strongest: int, said: bool, folder: Path, user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [said if place == strongest else not said for place in range(4)]
    if strongest <= 1:
        monkeypatch.setenv("BESTIARY_ENABLE_PREFIX_CACHING", str(values[1]))
    if strongest <= 2:
        (folder / PROJECT).write_text(f"enable-prefix-caching = {toml(values[2])}\n")
    if strongest <= 3:
        user_file.write_text(f"enable_prefix_caching = {toml(values[3])}\n")
    flag = ["--enable-prefix-caching" if said else "--no-enable-prefix-caching"] if strongest == 0 else []
    found = parsed("generate", "m", *flag).params["enable_prefix_caching"]
    assert found is (True if strongest == 4 else said)


def test_a_commands_table_is_stronger_than_the_top_of_the_same_file(folder: Path, user_file: Path) -> None:
    (folder / PROJECT).write_text("max_tokens = 1\n[chat]\nmax_tokens = 2\n[bench.latency]\nrepeats = 3\n")
    user_file.write_text("[generate]\nmax_tokens = 9\ntop_k = 9\n[bench]\nseed = 4\n")
    assert parsed("chat", "m").params["max_tokens"] == 2
    generate = parsed("generate", "m")
    assert (generate.params["max_tokens"], generate.params["top_k"]) == (1, 9)  # the project's file says it anywhere


def test_tables_of_commands_below_a_command(folder: Path, bestiary: Run) -> None:
    (folder / PROJECT).write_text("[bench]\nseed = 4\n[bench.latency]\nrepeats = 3\n")
    found = bestiary("config", "bench", "--json").data["commands"]
    rows = {name: {row["option"]: (row["value"], row["from"]) for row in each} for name, each in found.items()}
    assert rows["bench latency"]["seed"] == rows["bench throughput"]["seed"] == (4, f"{PROJECT} [bench]")
    assert rows["bench latency"]["repeats"] == (3, f"{PROJECT} [bench.latency]")
    assert rows["bench throughput"]["repeats"] == (3, "default")


def test_a_seed_from_a_file_is_the_requests_too(folder: Path) -> None:
    from bestiary.serve.cli.options import sampling_params

    (folder / PROJECT).write_text("seed = 5\n")
    with parsed("generate", "m") as context:
        assert sampling_params(context.params).seed == 5


def test_another_file_stands_in_place_of_both(folder: Path, user_file: Path, bestiary: Run) -> None:
    (folder / PROJECT).write_text("max_tokens = 1\n")
    user_file.write_text("top_k = 2\n")
    (folder / "other.toml").write_text("min_p = 0.5\n[plugins]\nSome = 'dist'\n")
    for arguments in (["config", "chat", "--config", "other.toml"], ["--config", "other.toml", "config", "chat"]):
        found = bestiary(*arguments, "--json").data
        rows = {row["option"]: row["value"] for row in found["commands"]["chat"]}
        assert (rows["max_tokens"], rows["top_k"], rows["min_p"]) == (1024, 0, 0.5)
        assert [each["state"] for each in found["files"]] == ["read"]
    assert "BESTIARY_CONFIG" not in os.environ
    choice = {"name": "Some", "distribution": "dist", "from": str(folder / "other.toml")}
    assert choice in bestiary("doctor", "--no-probe", "--config", "other.toml", "--json").data["plugin_choices"]


def test_the_variable_that_names_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / PROJECT).write_text("max_tokens = 1\n")
    (folder / "other.toml").write_text("top_k = 2\n")
    monkeypatch.setenv("BESTIARY_CONFIG", "other.toml")
    params = parsed("generate", "m").params
    assert (params["max_tokens"], params["top_k"]) == (256, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_tokns = 1", ["max_tokns", "did you mean max_tokens?"]),
        ("[chatt]\nmax_tokens = 1", ["chatt", "did you mean chat?"]),
        ("[chat]\nrepeats = 1", ["bestiary.toml [chat]", "repeats"]),
        ("[bench.latncy]\nrepeats = 1", ["[bench]", "latncy", "did you mean latency?"]),
        ("chat = true", ["chat is a command", "a table"]),
        ("json = true", ["json"]),
        ("plugin = {A = 'b'}", ["did you mean plugins?"]),
        ("ops = {A = 'b'}", ["did you mean op?"]),
        ("max_tokens = 1\nmax-tokens = 2", ["given twice"]),
        ("max_tokens =", ["not TOML", "at end of document"]),
        ("a = '\udcff'", ["not TOML"]),
        ("a = " + "[" * 10_000, ["not TOML"]),
        ("#" * (2**20 + 1), ["too large"]),
        ("max_tokens = 1.5", ["max_tokens is of the wrong kind", "a whole number"]),
        ("max_tokens = true", ["a whole number"]),
        ("max_tokens = '5'", ["a whole number"]),
        ("temperature = '1'", ["a number"]),
        ("stop = 'a'", ["a list of texts"]),
        ("stop = [1]", ["a list of texts"]),
        ("op = ['a=b']", ["a table of texts"]),
        ("enable_prefix_caching = 1", ["true or false"]),
        ("dtype = 16", ["text"]),
        ("hf_overrides = {a = 2020-01-01}", ["a table"]),
        ("pipeline_layers = '1,2'", ["a list of whole numbers"]),
        ("dtype = 'float8'", ["float8", "bfloat16", "(from bestiary.toml)"]),
        ("[plugins]\nA = 1", ["must map names to distributions"]),
        ("[generate]\ntop-p = 7.0", ["top_p must be", "top_p is set by bestiary.toml [generate]"]),
    ],
)
def test_what_is_wrong_in_a_file_is_an_error(text: str, words: list[str], folder: Path, bestiary: Run) -> None:
    (folder / PROJECT).write_text(text, errors="surrogateescape")
    result = bestiary("generate", "./nowhere", "hello")
    assert (result.code, result.out) == (1, "")
    assert all(word in result.err for word in words), result.err


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("MAX_TOKENS", "many", ["(from BESTIARY_MAX_TOKENS)", "many"]),
        ("ENABLE_PREFIX_CACHING", "perhaps", ["(from BESTIARY_ENABLE_PREFIX_CACHING)"]),
        ("STOP", '["a"', ["BESTIARY_STOP is no list of texts"]),
        ("STOP", "[1]", ["BESTIARY_STOP is no list of texts"]),
        ("OP", "linear", ["NAME=VALUE", "(from BESTIARY_OP)"]),
    ],
)
def test_what_is_wrong_in_the_environment_is_an_error(
    name: str, text: str, words: list[str], bestiary: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"BESTIARY_{name}", text)
    result = bestiary("generate", "./nowhere", "hello")
    assert result.code == 1
    assert all(word in result.err for word in words), result.err
    assert bestiary("config", "generate").code == 1
    assert bestiary("generate", "--help").code == 0


def test_what_is_wrong_for_a_model_says_who_set_it_unless_a_flag_did(
    folder: Path, bestiary: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / PROJECT).write_text("temperature = 0.5")
    monkeypatch.setenv("BESTIARY_TEMPERATURE", "-1")
    result = bestiary("generate", "./nowhere", "hello")
    assert result.code == 1 and "temperature is set by BESTIARY_TEMPERATURE" in result.err
    result = bestiary("generate", "./nowhere", "hello", "--temperature", "-2")
    assert result.code == 1 and "temperature must be" in result.err and "is set by" not in result.err


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BESTIARY_MAX_TOKENS", "")
    assert parsed("generate", "m").params["max_tokens"] == 256


def test_help_needs_no_file_that_is_right(folder: Path, bestiary: Run) -> None:
    (folder / PROJECT).write_text("nonsense")
    assert bestiary("chat", "--help").code == bestiary("--help").code == 0


@pytest.mark.parametrize("name", ["config.json", "weights.gguf", "model.safetensors"])
def test_what_lies_in_a_models_directory_is_not_read(
    name: str, folder: Path, user_file: Path, bestiary: Run, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (folder / PROJECT).write_text("max_tokens = 1\n[plugins]\nSome = 'dist'\n")
    user_file.write_text("top_k = 3\n")
    (folder / name).write_text("{}")
    rows = {row["option"]: row["value"] for row in bestiary("config", "chat", "--json").data["commands"]["chat"]}
    assert (rows["max_tokens"], rows["top_k"]) == (1024, 3)
    assert caplog.text.count("not read") == 1 and "model's directory" in caplog.text
    inside = folder / "inside"
    inside.mkdir()
    (folder / PROJECT).rename(inside / PROJECT)
    monkeypatch.chdir(inside)
    bestiary("generate", "..", "x", "--load-format", "dummy")
    assert caplog.text.count("not read") == 2
    bestiary("config")  # what lies above is nobody's model as long as nobody says so
    assert caplog.text.count("not read") == 2


def test_plugins_of_the_project(folder: Path, user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / PROJECT).write_text("[plugins]\nA = 'project'\nB = 'project'\nC = 'project'\n")
    user_file.write_text("[plugins]\nA = 'user'\nB = 'user'\nC = 'user'\nD = 'user'\n")
    monkeypatch.setenv("BESTIARY_PLUGINS", "A=environment,B=environment")
    with parsed("generate", "m", "--plugin", "A=flag") as context:
        chosen = choices.current(engine_args("m", context.params).plugin)
    assert chosen == {"A": "flag", "B": "environment", "C": "project", "D": "user"}


def test_doctor_says_where_a_choice_is_from(folder: Path, site: Site, bestiary: Run) -> None:
    (folder / PROJECT).write_text("[plugins]\nGoodForCausalLM = 'good-plugin'\n")
    (found,) = bestiary("doctor", "--no-probe", "--json").data["plugin_choices"]
    assert found == {"name": "GoodForCausalLM", "distribution": "good-plugin", "from": PROJECT}


def test_config_without_a_command_shows_what_is_set(
    folder: Path, bestiary: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "nothing is set" in bestiary("config").out
    (folder / PROJECT).write_text("[chat]\ntop_k = 5\n")
    monkeypatch.setenv("BESTIARY_MAX_TOKNES", "7")
    result = bestiary("config")
    rows = [line.split() for line in result.out.splitlines()]
    assert [PROJECT, "read"] in rows and ["top_k", "5", PROJECT, "[chat]"] in rows and ["BESTIARY_MAX_TOKNES"] in rows
    assert "# generate" not in result.out
    assert bestiary("config", "chta").code == 1


def test_every_option_of_every_command_has_a_key_of_its_own() -> None:
    context = click.Context(cli)
    for path, keys in keys_of(context, cli).items():
        command: click.Command | None = cli
        for name in path:
            assert isinstance(command, click.Group)
            command = command.get_command(context, name)
        assert command is not None
        if not isinstance(command, click.Group):
            options = [each for each in command.params if isinstance(each, click.Option)]
            assert len({key_of(each) for each in options}) == len(options)
            assert keys == frozenset(options_of(command))
            assert "config" in {key_of(each) for each in options}


def test_a_file_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        parsed("generate", "m", "--config", str(folder / "none.toml"))
    assert "BESTIARY_CONFIG" not in os.environ
