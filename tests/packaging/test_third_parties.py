"""What strangers publish, built as wheels and installed beside ours: each fault is its own error and harms no other.

One environment holds core, Llama and every bad package of `FAULTS` at once. `doctor` looks at it once, and one process
runs the command line for a model of each; in the end a good model answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from bestiary.testing.fake_site import GOOD

sys.path.insert(0, str(Path(__file__).parent))
from workshop import CLEAN, Built, installed, make_environment, run

WORDS = ["row", "your", "boat", "gently", "down", "the", "stream"]
SIZE = len(WORDS)
BIGRAM = """\
import torch
from torch import nn
from bestiary.nn import AutoWeightsLoader, LogitsProcessor, ParallelLMHead, VocabParallelEmbedding

class {name}(nn.Module):
    def __init__(self, *, vllm_config, prefix=""):
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids):
        return self.embed_tokens(input_ids)

    def forward(self, input_ids, positions):
        return self.embed_input_ids(input_ids)

    def compute_logits(self, hidden_states):
        return self.logits_processor(self.lm_head, hidden_states)
"""
LOADS = "\n    def load_weights(self, weights):\n        "
RAISING = "class Raising:\n    def __get__(self, *_):\n        raise RuntimeError('ha')\n\n"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One bad package. `says` is in the error's text, and in `doctor`'s row unless only loading shows the fault."""

    source: str
    says: str
    status: str = "broken"
    api: str | None = "1.0"
    value: str = "{module}:Model"
    command: tuple[str, ...] = ("inspect", "--load-format", "dummy")
    code: int = 3


def loading(source: str, says: str, code: int = 2) -> Fault:
    source = BIGRAM.format(name="Model") + LOADS + source
    return Fault(source=source, says=says, status="ok", command=("generate", "--prompt", "row"), code=code)


FAULTS: Mapping[str, Fault] = {
    "p01_dependency": Fault(source="import no_such_x", says="ImportError: No module named 'no_such_x' (from dist"),
    "p01_module": Fault(source="", value="nowhere_at_all:Model", says="ImportError: No module named 'nowhere_at_all'"),
    "p02_raises": Fault(source="raise ValueError('not today')", says="ValueError: not today (from dist"),
    "p02_exit": Fault(source="raise SystemExit(4)", says="SystemExit: 4 (from dist"),
    "p02_interrupt": Fault(source="raise KeyboardInterrupt", says="KeyboardInterrupt (from dist"),
    "p02_recursion": Fault(source="def f(): f()\nf()", says="RecursionError: maximum recursion depth"),
    "p02_warning": Fault(
        source="import warnings\nwarnings.simplefilter('error')\nwarnings.warn('old')", says="UserWarning: old"
    ),
    "p03_exit": Fault(source="import os\nos._exit(3)", says="crashed during import (exit 3) (from dist"),
    "p03_segfault": Fault(source="import ctypes\nctypes.string_at(0)", says="crashed during import (SIGSEGV) (from"),
    "p07_new": Fault(source="1/0", api="2.0", status="incompatible", says="written for core API 2.0; core offers 1.0"),
    "p07_old": Fault(source="1/0", api="0.9", status="incompatible", says="written for core API 0.9; core offers 1.0"),
    "p07_none": Fault(source="1/0", api=None, status="incompatible", says="does not say which core API"),
    "p07_text": Fault(source="1/0", api="1.x", status="incompatible", says="written for core API '1.x'"),
    "p08_function": Fault(source="def Model(): pass", says="a function"),
    "p08_instance": Fault(source="Model = object()", says="an instance of object"),
    "p08_empty": Fault(source="class Model: pass", says="compute_logits is missing"),
    "p08_signature": Fault(
        source=GOOD.format(name="Model").replace("input_ids, positions", "ids"),
        says="requires ids, which callers do not pass",
    ),
    "p08_property": Fault(
        source=RAISING
        + GOOD.format(name="Model")
        + "    supports_lora = True\n    packed_modules_mapping = Raising()\n",
        says="packed_modules_mapping raises RuntimeError: ha",
    ),
    "p09_lora": Fault(
        source=GOOD.format(name="Model") + "    supports_lora = True\n",
        says="SupportsLoRA.packed_modules_mapping is missing",
    ),
    "p09_pp": Fault(
        source=GOOD.format(name="Model") + "    supports_pp = True\n",
        says="SupportsPP.make_empty_intermediate_tensors is missing",
    ),
    "p09_moe": Fault(source=GOOD.format(name="Model") + "    is_mixture_of_experts = True\n", says="MixtureOfExperts."),
    "p13_ignores": loading(
        "return {name for name, _ in self.named_parameters()}", "lm_head.weight [7, 7]: not filled by the checkpoint"
    ),
    "p13_twice": loading(
        "weights = list(weights)\n"
        "        AutoWeightsLoader(self).load_weights(weights)\n"
        "        return AutoWeightsLoader(self).load_weights((name, tensor + 1) for name, tensor in weights)",
        "lm_head.weight: loaded already",
    ),
    "p13_meta": loading(
        "loaded = AutoWeightsLoader(self).load_weights(weights)\n"
        "        self.lm_head.weight = nn.Parameter(self.lm_head.weight.to('meta'), requires_grad=False)\n"
        "        return loaded",
        "lm_head.weight [7, 7]: left on the meta device by load_weights",
    ),
}
"""By the number of the rule in the project's list of faults, and what is special."""


def architecture(name: str) -> str:
    return "".join(part.title() for part in name.split("_")) + "ForCausalLM"


def wheel(folder: Path, name: str, source: str, groups: Mapping[str, Mapping[str, str]], version: str = "1.2") -> Path:
    """A wheel of one module, as a stranger's build backend would write it."""
    info = f"{name}-{version}.dist-info"
    sections = {group: "".join(f"{key} = {value}\n" for key, value in table.items()) for group, table in groups.items()}
    entries = "\n".join(f"[{group}]\n{lines}" for group, lines in sections.items())
    files = {
        f"{name}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": entries,
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
    return path


def groups_of(name: str, value: str, api: str | None = "1.0") -> dict[str, dict[str, str]]:
    groups = {"vllm_models": {architecture(name): value}}
    return groups | ({"bestiary_api": {api: name}} if api else {})


def bad_wheels(folder: Path) -> list[Path]:
    wheels = [
        wheel(folder, name, fault.source, groups_of(name, fault.value.format(module=name), fault.api))
        for name, fault in FAULTS.items()
    ]
    for name in ("twin_a", "twin_b"):
        source = GOOD.format(name="Model") if name == "twin_a" else BIGRAM.format(name="Model")
        wheels.append(wheel(folder, name, source, {**groups_of("twins", f"{name}:Model")}, "7.0"))
    hijack = {"vllm_models": {"MistralForCausalLM": "hijack:Model"}, "bestiary_api": {"1.0": "hijack"}}
    wheels.append(wheel(folder, "hijack", "1/0", hijack))
    wheels.append(wheel(folder, "garbled", "", groups_of("garbled", "garbled:Model")))
    wheels.append(wheel(folder, "nameless", "", groups_of("nameless", "nameless:Model")))
    wheels.append(wheel(folder, "honest", BIGRAM.format(name="Model"), groups_of("honest", "honest:Model")))
    return wheels


@dataclass(frozen=True)
class World:
    """The environment with everybody in it, and a model directory of each architecture."""

    python: Path
    models: Path
    environment: dict[str, str] = field(default_factory=dict)

    def model(self, name: str) -> str:
        """A directory of the architecture, complete with weights and tokenizer."""
        folder = self.models / name
        if not folder.exists():
            folder.mkdir()
            save_file({"embed_tokens.weight": torch.eye(SIZE), "lm_head.weight": torch.roll(torch.eye(SIZE), 1, 0)},
                      folder / "model.safetensors")  # fmt: skip
            named = name if name.endswith("LM") else architecture(name)
            config = {"architectures": [named], "model_type": "bigram", "vocab_size": SIZE, "hidden_size": SIZE,
                      "max_position_embeddings": 64}  # fmt: skip
            (folder / "config.json").write_text(json.dumps(config))
            tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="row"))
            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
            tokenizer.save(str(folder / "tokenizer.json"))
        return str(folder)

    def run(self, *command: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), *command], env=self.environment | environment, text=True, cwd=self.models, input=stdin,
            capture_output=True, timeout=240, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def world(built: dict[str, Built], tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("third-parties")
    python = make_environment(folder)
    ours = [built["bestiary"].wheel, built["bestiary-llama"].wheel]
    (folder / "wheels").mkdir()
    installed(python, *ours, *bad_wheels(folder / "wheels"))
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (packages / "garbled-1.2.dist-info/entry_points.txt").write_text("[vllm_models]\nnonsense\n")
    (packages / "nameless-1.2.dist-info/METADATA").write_bytes(b"\xff\x00garbage")
    (folder / "models").mkdir()
    environment = CLEAN | {
        "HOME": str(folder), "BESTIARY_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "BESTIARY_IMPORT_TIMEOUT": "60",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",  # as the console script sets it: torch trips over `garbled` otherwise
    }  # fmt: skip
    return World(python, folder / "models", environment)


SEVERAL = textwrap.dedent("""
    import contextlib, io, json, sys
    from bestiary.serve.cli.main import run
    results = []
    for arguments in json.load(sys.stdin):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = run(arguments)
        results.append([code, out.getvalue(), err.getvalue()])
    print(json.dumps([results, sorted(sys.modules)]))
""")


@dataclass(frozen=True)
class Seen:
    """What the command line said: of each command (code, standard output, standard error); and `doctor`'s document."""

    commands: dict[str, tuple[int, str, str]]
    modules: list[str]
    doctor: dict[str, Any]

    def row(self, architecture: str, distribution: str) -> dict[str, Any]:
        (found,) = [
            row for row in self.doctor["plugins"]
            if (row["architecture"], row["distribution"]) == (architecture, distribution)
        ]  # fmt: skip
        return found


@pytest.fixture(scope="module")
def seen(world: World) -> Seen:
    """Everything is asked once: two processes, side by side."""
    commands = {
        name: [fault.command[0], world.model(name), "--json", *fault.command[1:]] for name, fault in FAULTS.items()
    }
    twins = ["inspect", world.model("twins"), "--json"]
    commands |= {
        "twins": twins,
        "chosen": [*twins, "--plugin", "TwinsForCausalLM=twin-b"],
        "hijacked": ["inspect", world.model("MistralForCausalLM"), "--json"],
        "unknown": ["inspect", world.model("nobody"), "--json"],
        "honest": ["generate", world.model("honest"), "your", "--max-tokens", "3", "--quiet"],
    }
    doctor = ("-m", "bestiary", "doctor", "--json", "--plugin", "LlamaForCausalLM=bestiary-llama")
    with ThreadPoolExecutor(1) as beside:
        looking = beside.submit(world.run, *doctor, BESTIARY_PLUGINS="TwinsForCausalLM=twin-a")
        running = world.run("-c", SEVERAL, stdin=json.dumps(list(commands.values())))
        looked = looking.result()
    assert (running.returncode, looked.returncode) == (0, 0), running.stderr + looked.stderr
    results, modules = json.loads(running.stdout)
    answers = {name: tuple(result) for name, result in zip(commands, results, strict=True)}
    return Seen(answers, modules, json.loads(looked.stdout))


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_an_error_with_its_code_and_a_row_of_doctor(seen: Seen, name: str) -> None:
    fault = FAULTS[name]
    code, out, err = seen.commands[name]
    assert (code, fault.says in err) == (fault.code, True), err
    assert "Traceback" not in err and len(err.splitlines()) < 30
    error = json.loads(out)["error"]
    assert error["code"] in err and fault.says in err
    row = seen.row(architecture(name), name.replace("_", "-"))
    assert row["status"] == fault.status, row
    if fault.status != "ok":
        assert fault.says in "\n".join([row["cause"], *row["details"]])
        assert any(text.startswith(f"{architecture(name)}: {fault.status}") for text in seen.doctor["problems"])


def test_the_others_work_beside_all_of_them(seen: Seen) -> None:
    assert seen.commands["honest"] == (0, " boat gently down\n", "")
    assert seen.row("HonestForCausalLM", "honest")["status"] == "ok"
    assert seen.row("LlamaForCausalLM", "bestiary-llama")["info"]["lora"] is True
    assert not [name for name in seen.modules if name in ("p03_exit", "p03_segfault", "p07_new", "hijack", "twin_a")]


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("twins", ["twin-a 7.0 at ", "twin-b 7.0 at ", "--plugin TwinsForCausalLM=twin-a"]),
        ("hijacked", ["bestiary-llama 0.1.0 (official) at ", "hijack 1.2 at ", "=bestiary-llama"]),
    ],
)
def test_p05_p06_two_claimants_are_named_until_the_user_chooses(seen: Seen, command: str, names: list[str]) -> None:
    code, _, err = seen.commands[command]
    assert code == 3 and err.startswith("DUPLICATE_ARCHITECTURE: 2 distributions claim ")
    assert all(name in err for name in names), err


def test_p05_a_choice_is_obeyed_and_doctor_says_where_it_was_made(seen: Seen) -> None:
    code, out, _ = seen.commands["chosen"]
    assert (code, json.loads(out)["plugin"]["package"]) == (0, "twin-b")
    assert seen.doctor["plugin_choices"] == [
        {"name": "LlamaForCausalLM", "distribution": "bestiary-llama", "from": "--plugin"},
        {"name": "TwinsForCausalLM", "distribution": "twin-a", "from": "BESTIARY_PLUGINS"},
    ]
    assert seen.row("TwinsForCausalLM", "twin-a")["status"] == "ok"
    assert seen.row("TwinsForCausalLM", "twin-b")["cause"] == "not used: twin-a 7.0 was chosen"
    assert {row["official"] for row in seen.doctor["plugins"] if row["architecture"] == "MistralForCausalLM"} == {
        True, False,
    }  # fmt: skip


def test_p11_malformed_metadata_is_named_where_something_is_not_found(seen: Seen) -> None:
    code, _, err = seen.commands["unknown"]
    assert code == 2 and err.startswith("UNKNOWN_ARCHITECTURE")
    assert "skipped: garbled" in err and "skipped: nameless" in err
    causes = {row["distribution"]: row["cause"] for row in seen.doctor["plugins"] if row["status"] == "malformed"}
    assert "is no entry: 'nonsense'" in causes["garbled-1.2"]
    assert "METADATA gives no name" in causes["nameless"]


def test_p03_a_hanging_import_ends_the_command_in_time(world: World, tmp_path: Path) -> None:
    path = wheel(tmp_path, "hangs", "import time\ntime.sleep(600)", groups_of("hangs", "hangs:Model"))
    target = tmp_path / "target"
    run(sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index", "--target", target, path)
    done = world.run(
        "-m", "bestiary", "inspect", world.model("hangs"), "--load-format", "dummy",
        PYTHONPATH=os.fspath(target), BESTIARY_IMPORT_TIMEOUT="2",
    )  # fmt: skip
    assert done.returncode == 3
    assert "BROKEN_PLUGIN: hung during import: no answer in 2 s (from dist hangs 1.2)" in done.stderr
    assert "BESTIARY_IMPORT_TIMEOUT=4" in done.stderr
