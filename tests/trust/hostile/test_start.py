"""Bad models and bad packages, as `serve` ends over them: C02, C07, M01, M08, P01."""

from __future__ import annotations

import json
import pickle
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bestiary.testing.fake_site import Site

from ..support.server import Server

BROKEN = "BrokenForCausalLM"


def config(**changes):
    def damage(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


class _Evil:
    def __reduce__(self):
        return Path.touch, (Path("evil-was-here"),)


def pickled(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil()))


def misshapen(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    save_file(tensors, model / "model.safetensors")


CASES = {
    "C02": (config(architectures=["LamaForCausalLM"]), 2, ["UNKNOWN_ARCHITECTURE", "LlamaForCausalLM"]),
    "C07": (config(hidden_size=-1), 2, ["hidden_size", "-1"]),
    "M01": (pickled, 2, ["PICKLE_REFUSED"]),
    "M08": (misshapen, 2, ["WEIGHTS_MISMATCH", "model.norm.weight", "[63]", "[64]"]),
    "P01": (config(architectures=[BROKEN]), 3, ["BROKEN_PLUGIN", "broken-plugin", "no_such_module"]),
}


@pytest.fixture(scope="module")
def broken_plugin(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("broken")
        source = "import no_such_module"
        Site(root).add(
            "broken-plugin", models={BROKEN: f"broken_plugin:{BROKEN}"}, module="broken_plugin", source=source
        )
        patch.syspath_prepend(str(root))
        yield


def test_serve_ends_with_the_reason(t0, broken_plugin, tmp_path, case):
    """All at once, since each takes the time of a start."""
    with ExitStack() as stack:
        servers = {}
        for id_, (damage, _, _) in CASES.items():
            model = Path(shutil.copytree(t0, tmp_path / id_))
            damage(model)
            servers[id_] = stack.enter_context(Server(model))
        ends = {id_: (server.exit_code(), server) for id_, server in servers.items()}
    for id_ in CASES:
        case(id_)
    for id_, (_, code, words) in CASES.items():
        found, server = ends[id_]
        text = server.text
        assert found == code and all(word in text for word in words), (id_, found, text)
        assert "Traceback" not in text and len(text.splitlines()) < 40, (id_, text)
    assert not Path("evil-was-here").exists()
