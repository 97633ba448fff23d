"""What the page is made of: files at fixed addresses with the right headers, and nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files

import httpx
import pytest

from bestiary.serve.web.page import POLICY, PREFIX, routes

from .fake_server import Fake, served

FILES = {file.name: file.read_bytes() for file in files("bestiary.serve.web").joinpath("static").iterdir()}
TEXTS = {name: content.decode() for name, content in FILES.items()}
FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc|"
    r"\beval\(|new Function|setAttribute\(\"on|javascript:"
)
ELSEWHERE = re.compile(r"(?:src|href|url|import|from)\s*[=(]?\s*[\"'(](?:https?:)?//")
NAMESPACE = "http://www.w3.org/2000/svg"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with served(Fake()) as url, httpx.Client(base_url=url, trust_env=False) as opened:
        yield opened


def address(name: str) -> str:
    return "/" if name == "index.html" else PREFIX + name


def test_there_is_one_route_a_file_and_no_pattern() -> None:
    assert sorted(route.path for route in routes()) == sorted(address(name) for name in FILES)
    assert all("{" not in route.path and set(route.methods or ()) == {"GET", "HEAD"} for route in routes())


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_comes_as_it_is_with_its_type_and_policy(client: httpx.Client, name: str) -> None:
    answer = client.get(address(name))
    types = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert answer.status_code == 200
    assert answer.content == FILES[name]
    assert answer.headers["content-type"].split(";")[0] == types[name.rsplit(".")[-1]]
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    etag = answer.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = client.get(address(name), headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get(address(name), headers={"if-none-match": '"other"'}).status_code == 200
    head = client.head(address(name))
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(FILES[name])))


def test_versions_differ_in_their_etags(client: httpx.Client) -> None:
    assert len({client.get(address(name)).headers["etag"] for name in FILES}) == len(FILES)


@pytest.mark.parametrize(
    "path",
    ["/web/", "/web", "/web/page.py", "/web/../page.py", "/web/%2e%2e/page.py", "/web/..%2fpage.py", "/web/app.js%00",
     "/web/static/app.js", "/web//app.js", "/web/app.js/", "/index.html", "/web/index.html", "/WEB/app.js"],
)  # fmt: skip
def test_there_is_no_other_address(client: httpx.Client, path: str) -> None:
    # (httpx would tidy up the dots.)
    raw = httpx.Request("GET", client.base_url, extensions={"target": path.encode()})
    assert client.send(raw).status_code in (404, 307)


def test_the_policy_lets_nothing_in_from_elsewhere() -> None:
    parts = dict(part.split(" ", 1) for part in POLICY.split("; "))
    for name in ("default-src", "connect-src", "style-src", "script-src"):
        assert parts[name] == "'self'"
    assert parts["img-src"] == "'self' data:"
    assert "unsafe" not in POLICY


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_no_file_needs_the_network_or_makes_markup_of_text(name: str) -> None:
    text = TEXTS[name].replace(NAMESPACE, "")
    assert ELSEWHERE.findall(text) == []
    assert FORBIDDEN.findall(text.replace("refuses innerHTML", "")) == []
    assert " style=" not in text and " onclick=" not in text  # the policy would refuse them


def test_every_module_is_used_and_every_used_one_is_there() -> None:
    imports = {
        name: set(re.findall(r'from "\./([\w.]+)"', text)) for name, text in TEXTS.items() if name.endswith(".js")
    }
    reached, waiting = set(), ["app.js"]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting += imports[name] - reached
    assert reached == set(imports) - {"theme.js"}


def test_every_symbol_and_element_that_is_named_exists() -> None:
    ids = set(re.findall(r'\bid="([\w-]+)"', TEXTS["index.html"]))
    scripts = "\n".join(text for name, text in TEXTS.items() if name.endswith(".js"))
    named = set(re.findall(r'byId\("([\w-]+)"\)', scripts)) | set(re.findall(r'href="#([\w-]+)"', TEXTS["index.html"]))
    named |= {f"i-{name}" for name in re.findall(r'\bicon(?:Button)?\("([\w-]+)"', scripts)}
    named |= set(re.findall(r'aria-(?:controls|labelledby|describedby)="([\w-]+)"', TEXTS["index.html"]))
    assert named - ids == set()


def test_files_are_short_enough_to_be_read() -> None:
    assert {
        name: text.count("\n") for name, text in TEXTS.items() if name.endswith(".js") and text.count("\n") > 250
    } == {}
    assert max(len(line) for name, text in TEXTS.items() if name.endswith(".js") for line in text.splitlines()) <= 120
