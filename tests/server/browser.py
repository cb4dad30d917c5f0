"""A headless Chromium, driven over the WebDriver protocol by what is installed anyway: httpx and chromedriver."""

from __future__ import annotations

import base64
import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import httpx

from tests.waiting import PATIENCE, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    """One window. Methods raise httpx.HTTPStatusError where the driver refuses."""

    def __init__(self, session_url: str, http: httpx.Client) -> None:
        self._url = session_url
        self._http = http

    def open(self, url: str) -> None:
        self._post("url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a function with this body returns."""
        return self._post("execute/sync", script=script, args=list(arguments))

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def wait_for(self, condition: str, seconds: float = 20) -> None:
        """Until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < deadline, f"never true: {condition}"
            time.sleep(0.1)

    def type(self, selector: str, text: str) -> None:
        element = self._post("element", using="css selector", value=selector)[_ELEMENT]
        self._post(f"element/{element}/value", text=text)

    def resize(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        self._devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, mobile=width < 600,
                       deviceScaleFactor=scale)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self) -> bytes:
        """PNG of the window."""
        return base64.b64decode(self._http.get(f"{self._url}/screenshot").raise_for_status().json()["value"])

    def log(self) -> list[str]:
        """What the console was told since this was last called; faults of scripts and policies too."""
        return [entry["message"] for entry in self._post("se/log", type="browser")]

    def _devtools(self, command: str, **parameters: Any) -> Any:
        return self._post("goog/cdp/execute", cmd=command, params=parameters)

    def _post(self, path: str, **body: Any) -> Any:
        return self._http.post(f"{self._url}/{path}", json=body).raise_for_status().json()["value"]


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Needs CHROMIUM and DRIVER."""
    with tempfile.TemporaryDirectory() as profile, httpx.Client(timeout=PATIENCE) as http:
        driver = subprocess.Popen([str(DRIVER), "--port=0"], stdout=subprocess.PIPE, text=True)
        try:
            assert driver.stdout is not None
            line = next(line for line in driver.stdout if "on port" in line and "successfully" in line)
            url = f"http://127.0.0.1:{line.rstrip().rstrip('.').rpartition(' ')[2]}"
            wait_until(lambda: http.get(f"{url}/status").json()["value"]["ready"])
            options = {"binary": CHROMIUM, "args": [*_FLAGS, f"--user-data-dir={profile}"]}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            answer = http.post(f"{url}/session", json={"capabilities": {"alwaysMatch": wanted}}).raise_for_status()
            session = f"{url}/session/{answer.json()['value']['sessionId']}"
            try:
                yield Browser(session, http)
            finally:
                http.delete(session)
        finally:
            driver.terminate()
            driver.wait(10)
