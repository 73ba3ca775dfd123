"""Show what a finished run learned on a local web page: load the run → serve a page → answer what is drawn or chosen.

python demo.py run=last
"""

import contextlib
import json
import logging
import re
import sys
import threading
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cli.answers import Answers
from cli.build import load_run
from cli.main import main
from runs.format import one_line, printable

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "cli" / "demo.html"
MAX_BYTES = 20_000_000  # of what the page sends
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def demo(cfg: DictConfig, run_dir: Path) -> None:
    """Serve the page at 127.0.0.1 until Ctrl-C."""
    if type(cfg.port) is not int or not 0 <= cfg.port < 2**16:
        raise ValueError(f"port={cfg.port} must be a number from 0, which takes a free one, to 65535")
    stored, datamodule, model = load_run(cfg.run, cfg.checkpoint, cfg.get("data"))
    answers = Answers(stored.name, datamodule, model)
    try:
        server = Server(cfg.port, answers)
    except OSError as error:
        raise OSError(f"port={cfg.port} is taken by another program; port=0 takes a free one") from error
    with server:
        address = f"http://127.0.0.1:{server.server_port}"
        log.info("%s shows %s; Ctrl-C ends it", address, stored.name)
        if cfg.browser:
            webbrowser.open_new_tab(address)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


class Server(ThreadingHTTPServer):
    """A server of one page, on this machine only. Browsers open connections ahead, on which they send nothing.

    Args:
        port: 0 takes a free one.
        answers: what to say to the page.
    """

    def __init__(self, port: int, answers: Answers) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answers, self.lock = answers, threading.Lock()
        self.hosts = [f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing where the page has gone away before its answer came."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Serves the page, and answers no other one: a page from elsewhere has another host or origin."""

    server: Server

    def do_GET(self) -> None:
        if self.path != "/":
            self._send(404, "text/plain", "there is nothing here")
        elif self._is_ours():
            page = PAGE.read_text(encoding="utf-8")
            about = json.dumps(self.server.answers.about).replace("<", "\\u003c")
            self._send(200, "text/html; charset=utf-8", page.replace("{{ABOUT}}", about))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not self._is_ours():
            return
        if self.path != "/answer" or not re.fullmatch("[0-9]{1,10}", length) or int(length) > MAX_BYTES:
            self._send(413, "application/json", json.dumps({"error": "that is too much"}))
            return
        try:
            asked = json.loads(self.rfile.read(int(length)))
            with self.server.lock:  # the model computes one answer after the other
                answer = self.server.answers.answer(asked)
            self._send(200, "application/json", json.dumps(answer))
        except (ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
            self._send(400, "application/json", json.dumps({"error": printable(one_line(error))}))

    def _is_ours(self) -> bool:
        hosts = self.server.hosts
        origins = (None, *(f"http://{host}" for host in hosts))
        is_ours = self.headers.get("Host") in hosts and self.headers.get("Origin") in origins
        if not is_ours:
            self._send(403, "text/plain", "this page is for this machine")
        return is_ours

    def _send(self, code: int, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(code)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Log no requests."""


if __name__ == "__main__":
    main(demo, "demo")
