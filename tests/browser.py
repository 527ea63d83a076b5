"""Opens a page in headless Chromium, over the DevTools protocol on a pipe; no further package.

``python -m tests.browser report.html picture.webp --width 1100 --dark`` takes a picture of it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PATIENCE = 60.0


def find_chromium() -> str | None:
    """The browser on the PATH, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Visit:
    """What happened while a page was open.

    Attributes:
        complaints: what stands in the console: errors, warnings, violations of the policy.
        requests: every address that was asked for, but the page itself and what lies inside it;
            what the page's own policy stopped was not.
        results: values of the expressions that were evaluated.
        picture: the file's content, where one was wanted.
    """

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    picture: bytes = b""


class Browser:
    """A headless Chromium with a profile of its own."""

    def __init__(self, command: str, profile: str) -> None:
        to_browser, from_us = os.pipe()
        from_browser, to_us = os.pipe()
        self._read, self._write = from_browser, from_us

        def give_pipe() -> None:  # Chromium reads from 3 and writes to 4.
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, to_us)]
            for place, end in enumerate(ends, start=3):
                os.dup2(end, place)

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += ["--no-first-run", "--disable-component-update", "--disable-sync"]
        self._process = subprocess.Popen(
            [command, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
            preexec_fn=give_pipe,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(to_us)
        self._number = 0
        self._buffer = b""
        self._events: list[dict[str, Any]] = []

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(OSError, TimeoutError):
            self._ask("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def visit(
        self,
        page: Path,
        width: int = 1100,
        *,
        dark: bool = False,
        vision: str = "none",
        evaluate: tuple[str, ...] = (),
        picture: str | None = None,
        scale: float = 1.0,
        clip: tuple[int, int] | None = None,
    ) -> Visit:
        """Open a page, wait until it has loaded, look.

        Args:
            page: the file.
            width: of the window, in pixels.
            dark: as a reader whose system is dark sees it.
            vision: ``none``, or e.g. ``achromatopsia`` or ``deuteranopia``, simulated.
            evaluate: expressions in JavaScript.
            picture: take one of the whole page: ``png`` or ``webp``.
            scale: pixels of the picture for a pixel of the page.
            clip: from where to where, downwards, the picture goes; None: all.
        """
        visit, self._events = Visit(), []
        context = self._ask("Target.createBrowserContext")["browserContextId"]
        opened = {"url": "about:blank", "browserContextId": context}
        target = self._ask("Target.createTarget", **opened)["targetId"]
        session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable", session)
        size = {"width": width, "height": 900, "deviceScaleFactor": scale, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", session, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", session, features=[scheme])
        self._ask("Emulation.setEmulatedVisionDeficiency", session, type=vision)
        address = page.resolve().as_uri()
        self._ask("Page.navigate", session, url=address)
        self._wait_for("Page.loadEventFired")
        time.sleep(0.2)  # What is loaded late would be asked for now.
        for expression in evaluate:
            told = self._ask("Runtime.evaluate", session, expression=expression, returnByValue=True)
            visit.results.append(told["result"].get("value"))
        if picture:
            metrics = self._ask("Page.getLayoutMetrics", session)["cssContentSize"]
            top, bottom = clip or (0, int(metrics["height"]))
            box = {"x": 0, "y": top, "width": width, "height": bottom - top, "scale": 1}
            how = {"clip": box, "captureBeyondViewport": True, "format": picture}
            how |= {"quality": 85} if picture == "webp" else {}
            shot = self._ask("Page.captureScreenshot", session, **how)
            visit.picture = base64.b64decode(shot["data"])
        self._ask("Target.disposeBrowserContext", browserContextId=context)
        stopped = {
            event["params"]["requestId"]
            for event in self._events
            if event.get("method") == "Network.loadingFailed"
            and event["params"].get("blockedReason") == "csp"
        }
        for event in self._events:
            if event.get("params", {}).get("requestId") not in stopped:
                _note(visit, event, address)
        return visit

    def _ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._events.append(answer)

    def _wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self._events):
            self._events.append(self._next())

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + _PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            more = os.read(self._read, 1 << 20) if ready else b""
            if not more:
                raise TimeoutError("Chromium does not answer.")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


def _note(visit: Visit, event: dict[str, Any], address: str) -> None:
    method, params = event.get("method"), event.get("params", {})
    if method == "Network.requestWillBeSent":
        url = params["request"]["url"]
        if url != address and not url.startswith("data:"):
            visit.requests.append(url)
    elif method == "Log.entryAdded":
        visit.complaints.append(params["entry"]["text"])
    elif method == "Runtime.consoleAPICalled":
        visit.complaints.append(str(params["args"]))
    elif method == "Runtime.exceptionThrown":
        visit.complaints.append(str(params["exceptionDetails"]))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium, and end it.

    Raises:
        FileNotFoundError: where there is none.
    """
    command = find_chromium()
    if command is None:
        raise FileNotFoundError(f"Expected one of {', '.join(NAMES)} on the PATH, found none.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        opened = Browser(command, profile)
        try:
            yield opened
        finally:
            opened.close()


def _main() -> None:
    parser = argparse.ArgumentParser(description="Take a picture of a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--vision", default="none")
    parser.add_argument("--clip", type=int, nargs=2, metavar=("FROM", "TO"))
    told = parser.parse_args()
    with browser() as opened:
        visit = opened.visit(
            told.page,
            told.width,
            dark=told.dark,
            vision=told.vision,
            picture=told.picture.suffix[1:],
            scale=told.scale,
            clip=tuple(told.clip) if told.clip else None,
        )
    told.picture.write_bytes(visit.picture)


if __name__ == "__main__":
    _main()
