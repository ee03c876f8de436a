"""A Google Cloud Storage server on this machine: gcp-storage-emulator, with outages on request.

Beside the emulator it counts requests, tells generations of objects and keeps the precondition
ifGenerationMatch (0: there is no such object), can answer with an error or not at all, and can go
away and come back with all objects.
"""

import io
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from http import server as http
from urllib.parse import parse_qs, unquote, urlparse

from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

BUCKET = "mcl"


class Service:
    """The server; a context manager.

    Attributes:
      url: for STORAGE_EMULATOR_HOST.
      requests: how many there were, by method.
      outage: None, an HTTP status that answers everything, or "hang up".
      before: called with the method and the name of the object (of a listing: '') of every request,
        before it is answered.
    """

    def __init__(self):
        self.requests: Counter[str] = Counter()
        self.outage: int | str | None = None
        self.before: Callable[[str, str], object] = lambda method, name: None
        logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
        self.storage = Storage(use_memory_fs=True)
        buckets.create_bucket(BUCKET, self.storage)
        self.lock = threading.Lock()
        self._port = 0  # any
        self.start()
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listens; after `stop` at the same port, with what was stored before."""
        self.outage = None
        handler = partial(_Handler, self.storage, self)
        self._http = _Server(("127.0.0.1", self._port), handler)
        self._port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Nobody listens any more; connections that are open end without an answer."""
        self.outage = "hang up"
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def generation(self, name: str) -> str:
        """Of an object as it is now; '0' if there is none."""
        return self.storage.objects.get(BUCKET, {}).get(name, {"generation": "0"})["generation"]


class _Server(http.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Clients that hang up are none of ours."""


class _Handler(server.RequestHandler):
    def __init__(self, storage, service, *arguments):
        self._service = service
        super().__init__(storage, *arguments)

    def _serve(self, method):
        service, query = self._service, parse_qs(urlparse(self.path).query)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.rfile = io.BytesIO(body)
        service.before(method, _name(query, body) or _name_in(self.path))
        with service.lock:
            now = service.generation(_name(query, body))
            service.requests[method] += 1
            if service.outage == "hang up":
                self.close_connection = True
                self.connection.close()
            elif service.outage is not None:
                self.send_error(service.outage)
            elif query.get("ifGenerationMatch", [now]) != [now]:
                self.send_error(412)
            else:
                server.Router(self).handle(method)

    def end_headers(self):
        if self.command == "GET" and "alt=media" in self.path:
            self.send_header("x-goog-generation", self._service.generation(_name_in(self.path)))
        super().end_headers()

    def do_GET(self):
        self._serve("GET")

    def do_POST(self):
        self._serve("POST")

    def do_PUT(self):
        self._serve("PUT")

    def do_DELETE(self):
        self._serve("DELETE")

    def do_PATCH(self):
        self._serve("PATCH")


def _name(query, body):
    """Of the object that an upload is for."""
    if "name" in query:
        return unquote(query["name"][0])
    found = re.search(rb'"name": "([^"]*)"', body)
    return found[1].decode() if found else ""


def _name_in(path):
    """Of the object that a path means; '' for a bucket's."""
    return unquote(urlparse(path).path.partition("/o/")[2])
