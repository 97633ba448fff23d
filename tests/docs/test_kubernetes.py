"""Ray and Kubernetes: commands exist with these options, manifests are well formed, and their parts fit together."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from bestiary.serve.cli.main import cli

from .run_document import blocks, check_options

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "kubernetes"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
CONTROLLER = {"LWS_LEADER_ADDRESS": "bestiary-0.bestiary.default", "LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1"}


def objects(path: Path, kind: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text("utf-8")) if each["kind"] == kind]


def templates(path: Path) -> dict[str, dict[str, Any]]:
    (workers,) = objects(path, "LeaderWorkerSet")
    assert workers["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    group = workers["spec"]["leaderWorkerTemplate"]
    assert str(group["size"]) == CONTROLLER["LWS_GROUP_SIZE"]
    return {name: group[name] for name in ("leaderTemplate", "workerTemplate") if name in group}


def commands(template: dict[str, Any]) -> list[list[str]]:
    """What the container's shell runs, with the controller's variables in their places."""
    (container,) = template["spec"]["containers"]
    assert container["command"] == ["sh", "-c"]
    (script,) = container["args"]
    text = re.sub(r"\$(\w+)", lambda found: CONTROLLER[found[1]], script)
    return [[word for word in shlex.split(line) if word != "exec"] for line in text.splitlines()]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_commands_of_a_manifest_exist_and_use_every_gpu(path: Path) -> None:
    found: dict[str, dict[str, Any]] = {}
    for template in templates(path).values():
        for program, *arguments in commands(template):
            if program == "bestiary":
                command = cli.get_command(None, arguments[0])  # type: ignore[arg-type]
                assert command is not None
                found[arguments[0]] = command.make_context(arguments[0], arguments[1:]).params
    ((name, options),) = found.items()
    ranks = options["tensor_parallel_size"] * options["pipeline_parallel_size"]
    assert ranks == int(CONTROLLER["LWS_GROUP_SIZE"])  # one GPU each
    if name == "generate":
        assert (options["nnodes"], options["node_rank"]) == (2, 1)
        assert options["master_addr"] == CONTROLLER["LWS_LEADER_ADDRESS"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_parts_of_a_manifest_fit_together(path: Path) -> None:
    labels = [template["metadata"]["labels"] for template in templates(path).values()]
    (policy,) = objects(path, "NetworkPolicy")
    assert all(policy["spec"]["podSelector"]["matchLabels"].items() <= each.items() for each in labels)
    for service in objects(path, "Service"):
        assert sum(service["spec"]["selector"].items() <= each.items() for each in labels) == 1
    for template in templates(path).values():
        (container,) = template["spec"]["containers"]
        assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}


def test_the_commands_of_the_page_exist() -> None:
    consoles = [block for block in blocks((FOLDER.parent / "ray.md").read_text("utf-8")) if block.language == "console"]
    assert len(consoles) > 2
    for block in consoles:
        check_options(block)
