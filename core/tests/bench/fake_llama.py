"""`llama-bench` and `llama-server` as far as a client sees them: the test gives this file both names.

Its model is a text: "well" is answered, "short" has answers of one token too few, "odd" has rates that are no JSON.
"""

from __future__ import annotations

import http.server
import json
import sys
from pathlib import Path

MODEL = Path(sys.argv[sys.argv.index("-m") + 1]).read_text()


def word(flag: str) -> int:
    return int(sys.argv[sys.argv.index(flag) + 1])


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._say({"status": "ok"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._say({"tokens_predicted": asked["n_predict"] - (MODEL == "short")})

    def _say(self, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64


def main() -> None:
    if Path(sys.argv[0]).name == "llama-server":
        Server(("127.0.0.1", word("--port")), Handler).serve_forever()
    if MODEL == "odd":
        print("main: error: no such model", file=sys.stderr)
        print("[")
        return
    rate = 200.0 if word("-p") else 50.0
    print(json.dumps([{"build_number": 42, "build_commit": "abc", "avg_ts": rate, "samples_ts": [rate]}]))


if __name__ == "__main__":
    main()
