"""Serve the built book on this machine alone and open it in a browser.

python tools/serve.py
"""

import sys
import webbrowser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BOOK = Path(__file__).resolve().parent.parent / "_build" / "html"


def server(folder: Path, port: int = 8000) -> ThreadingHTTPServer:
    """A server on the port, or on any free one where that is taken.

    Raises FileNotFoundError when the folder holds no book.
    """
    if not (folder / "index.html").exists():
        raise FileNotFoundError(f"There is no book in {folder}: build it with `make book`.")
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError:
        return ThreadingHTTPServer(("127.0.0.1", 0), handler)


if __name__ == "__main__":
    try:
        book = server(BOOK)
    except FileNotFoundError as error:
        sys.exit(str(error))
    url = f"http://127.0.0.1:{book.server_port}/"
    print(f"The book is at {url} (Ctrl-C ends this).", flush=True)
    webbrowser.open(url)
    try:
        book.serve_forever()
    except KeyboardInterrupt:
        print()
