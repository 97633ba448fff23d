"""Certificates as they are kept, and what they are worth for what is installed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from bestiary import __version__
from bestiary.api import certificates, discovery, record
from bestiary.api.distributions import Distribution
from bestiary.testing.fake_site import Site


@pytest.fixture
def plugin(tmp_path: Path) -> Distribution:
    site = Site(tmp_path / "site")
    site.model("tiny-plugin", "TinyForCausalLM")
    return discovery.scan([str(site.root)]).plugins[0]


def certificate(plugin: Distribution, **changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "verdict": "certified",
        "distribution": plugin.name,
        "version": plugin.version,
        "record": record.content_digest(plugin),
        "core": __version__,
        "date": "2026-01-02T03:04:05+00:00",
        "counts": {"passed": 31, "failed": 0, "given_up": 1, "skipped": 2, "not_run": 0},
    } | changes


def standing(plugin: Distribution, folder: Path) -> str:
    return str(certificates.standings([plugin], folder).get(plugin, "-"))


def test_a_certificate_counts_for_its_build_only(plugin: Distribution, tmp_path: Path) -> None:
    assert standing(plugin, tmp_path) == "-"
    assert certificates.keep(certificate(plugin), tmp_path) is not None
    assert standing(plugin, tmp_path) == "certified 31/31"
    for change in ({"version": "0.9"}, {"core": "0.0.1"}, {"record": "0" * 64}):
        certificates.keep(certificate(plugin, **change), tmp_path)
        assert standing(plugin, tmp_path) == "other build"


def test_what_failed_is_counted(plugin: Distribution, tmp_path: Path) -> None:
    counts = {"passed": 28, "failed": 2, "given_up": 0, "skipped": 0, "not_run": 1}
    certificates.keep(certificate(plugin, verdict="failed", counts=counts), tmp_path)
    assert standing(plugin, tmp_path) == "failed 2/31"


def test_files_that_are_edited_in_place_are_not_compared(plugin: Distribution, tmp_path: Path) -> None:
    certificates.keep(certificate(plugin), tmp_path)
    Path(plugin.path, "direct_url.json").write_text('{"url": "file:///x", "dir_info": {"editable": true}}')
    assert standing(plugin, tmp_path) == "certified 31/31, editable"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1}', "[" * 5000])
def test_what_cannot_be_read_counts_as_absent(plugin: Distribution, tmp_path: Path, content: str) -> None:
    path = certificates.keep(certificate(plugin), tmp_path)
    assert path is not None
    path.write_text(content)
    assert standing(plugin, tmp_path) == "-"
    path.write_text(json.dumps(certificate(plugin, schema=2)))
    assert standing(plugin, tmp_path) == "-"


def test_a_cache_that_cannot_be_written_is_said(
    plugin: Distribution, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "bestiary.cache"):
        assert certificates.keep(certificate(plugin), tmp_path / "file") is None
    assert "the certificate is not kept" in caplog.text


def test_a_name_that_is_no_file_name_stays_in_the_folder(plugin: Distribution, tmp_path: Path) -> None:
    path = certificates.keep(certificate(plugin, distribution="../../evil"), tmp_path)
    assert path is not None and path.parent == tmp_path / "certificates"
