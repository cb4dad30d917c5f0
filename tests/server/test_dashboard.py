"""The page at / in a real browser, over a real server; and what it is fed with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.browser import CHROMIUM, DRIVER, Browser, browser
from tests.server.fake_engine import FakeEngine
from tests.server.process import ServerProcess, serve
from tests.waiting import PATIENCE, wait_until

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium here: apt-get install chromium chromium-driver"
)
SMALL = ("--max-model-len", "256", "--max-num-seqs", "8", "--enable-prefix-caching", "--block-size", "16")
SPECULATION = '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "adaptive": false}'
PAGE_STATE = "document.getElementById('state').textContent"
PAGE = Path(__file__).parents[2] / "vllm/entrypoints/openai/dashboard.html"


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[ServerProcess]:
    options = (*SMALL, "--api-key", "secret", "--speculative-config", SPECULATION)
    with serve(tiny_llama, *options, env={"VLLM_NULL_STEP_MS": "5"}) as running:
        yield running


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    with browser() as window:
        yield window


def ask(server: ServerProcess, prompt: str, **fields: object) -> httpx.Response:
    body = {"prompt": prompt, "max_tokens": 20, "ignore_eos": True, **fields}
    headers = {"Authorization": "Bearer secret"}
    return httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=PATIENCE)


def test_figures_are_those_of_the_engine(server: ServerProcess) -> None:
    before = _figures(server)
    for _ in range(2):
        assert ask(server, "x" * 64, allowed_token_ids=[9]).status_code == 200
    after = _figures(server)
    assert after["counters"]["generation_tokens"] - before["counters"]["generation_tokens"] == 40
    assert after["counters"]["prompt_tokens"] > before["counters"]["prompt_tokens"]
    assert 0 < after["counters"]["cache_hits"] < after["counters"]["cache_queries"]
    assert after["counters"]["finished"]["length"] - before["counters"]["finished"]["length"] == 2
    drafts, tokens, accepted = (after["counters"][name] for name in ("drafts", "draft_tokens", "accepted_tokens"))
    assert 0 < drafts < accepted <= tokens <= 3 * drafts
    assert after["latency"]["first_token"]["count"] == before["latency"]["first_token"]["count"] + 2
    assert after["rows"] == {"used": 0, "total": 8} and after["waiting"] == 0
    assert after["models"] == ["test-model"] and after["target"] == "null" and after["ready"]
    assert after["time"] > before["time"]
    shapes = {(bucket["kind"], bucket["bucket"]): bucket for bucket in after["buckets"]}
    assert shapes and all(bucket["uses"] > 0 and bucket["tokens"] > 0 for bucket in shapes.values())


def test_data_needs_the_key_and_the_page_does_not(server: ServerProcess) -> None:
    assert httpx.get(f"{server.url}/dashboard/data").status_code == 401
    for path in ("/", "/dashboard"):
        response = httpx.get(server.url + path)
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
        assert "test-model" not in response.text
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy


def test_page_loads_nothing_from_outside() -> None:
    text = PAGE.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "").replace("'http://www.w3", "'")
    assert not re.findall(r"https?://|src=|@import|url\(", text)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)


async def test_page_can_be_left_out(make_client, engine: FakeEngine) -> None:  # type: ignore[no-untyped-def]
    client = await make_client("--disable-dashboard")
    assert [(await client.get(path)).status_code for path in ("/", "/dashboard", "/dashboard/data")] == [404] * 3


async def test_the_page_and_the_probe_agree(make_client, engine: FakeEngine) -> None:  # type: ignore[no-untyped-def]
    """E10: the page said "ready" while /health was 503."""
    client = await make_client()

    async def seen() -> tuple[int, str, bool]:
        data = (await client.get("/dashboard/data")).json()
        assert data["startup"] is None and not data["draining"]
        return (await client.get("/health")).status_code, data["state"], data["ready"]

    assert await seen() == (200, "ready", True)
    engine.stuck = True
    assert await seen() == (503, "stuck", False)
    engine.stuck, engine.errored = False, True
    assert await seen() == (503, "dead", False)


@needs_browser
def test_page_tells_of_a_stuck_and_a_dead_engine(tiny_llama: Path, page: Browser) -> None:
    """E10"""
    with serve(tiny_llama, *SMALL, env={"VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1"}) as server:
        page.open(server.url)
        page.wait_for(f"{PAGE_STATE} === 'ready'")
        engine = server.engine
        engine.suspend()
        page.wait_for(f"{PAGE_STATE} === 'engine stuck'")
        assert page.run("return document.getElementById('send').disabled")
        engine.resume()
        page.wait_for(f"{PAGE_STATE} === 'ready'")
        assert page.run("return document.getElementById('trouble-card').hidden")
        engine.kill()
        page.wait_for(f"{PAGE_STATE} === 'engine dead'")
        assert page.text("#trouble") == "The engine is not running"


@needs_browser
def test_page_asks_for_the_key(server: ServerProcess, page: Browser) -> None:
    page.open(f"{server.url}/dashboard")
    page.wait_for("!document.getElementById('key-card').hidden")
    assert page.text("#state") == "a key is needed"
    page.type("#key", "wrong\n")
    page.wait_for("document.getElementById('key-note').textContent.includes('does not know')")
    page.type("#key", "secret\n")
    page.wait_for(f"{PAGE_STATE} === 'ready'")
    assert page.run("return document.getElementById('key-card').hidden")
    assert page.text("#model") == "test-model"


@needs_browser
def test_page_shows_what_runs(server: ServerProcess, page: Browser) -> None:
    _open_with_key(server, page)
    body = {"prompt": ["x" * i for i in range(1, 6)], "max_tokens": 200, "ignore_eos": True, "stream": True}
    headers = {"Authorization": "Bearer secret"}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=headers, timeout=PATIENCE):
        page.wait_for("document.getElementById('rows-used').textContent === '5'")
        page.wait_for("document.querySelectorAll('#rows b.on').length === 5")
        assert page.run("return document.querySelectorAll('#rows b').length") == 8
        page.wait_for(f"{PAGE_STATE} === 'generating'")
        page.wait_for("Number(document.getElementById('generation-rate').textContent) > 0")
        page.wait_for("document.querySelectorAll('#throughput path').length === 4")
        page.wait_for("document.getElementById('between').textContent.includes('ms')")
    page.wait_for(f"{PAGE_STATE} === 'ready'")
    assert page.run("return document.querySelectorAll('#buckets .meter').length") > 0


@needs_browser
def test_chat_streams_into_the_page(server: ServerProcess, page: Browser) -> None:
    _open_with_key(server, page)
    page.run("document.getElementById('max-tokens').value = 60")
    page.type("#message", "Hello <b>there</b>\n")
    page.wait_for("document.getElementById('chat-note').textContent.includes('to the first token')")
    assert page.text(".said.mine") == "Hello <b>there</b>", "text is never markup"
    assert page.text(".said:not(.mine)")
    assert page.text("#send") == "Send"
    page.run("document.getElementById('max-tokens').value = -1")
    page.type("#message", "again\n")
    page.wait_for("document.querySelector('.said.fault')")
    assert "max_tokens" in page.text(".said.fault")


@needs_browser
def test_chat_can_be_stopped(server: ServerProcess, page: Browser) -> None:
    _open_with_key(server, page)
    page.run("document.getElementById('max-tokens').value = 200")
    page.type("#message", "Hello\n")
    page.wait_for("document.querySelector('.said:not(.mine)').textContent.length > 0")
    page.run("document.getElementById('send').click()")
    page.wait_for("document.getElementById('send').textContent === 'Send'")
    wait_until(server.is_idle)


@needs_browser
def test_page_fits_a_phone(server: ServerProcess, page: Browser) -> None:
    for dark in (False, True):
        page.resize(360, 740, dark=dark)
        _open_with_key(server, page)
        assert page.run("return document.documentElement.scrollWidth") <= 360
        assert page.run("return getComputedStyle(document.body).backgroundColor") == (
            "rgb(16, 21, 20)" if dark else "rgb(244, 246, 244)"
        )


@needs_browser
def test_page_shows_a_start(tiny_llama: Path, page: Browser) -> None:
    with serve(tiny_llama, *SMALL, starting=True) as server:
        page.open(server.url)
        page.wait_for(f"['starting', 'ready'].includes({PAGE_STATE})")
        page.wait_for(f"{PAGE_STATE} === 'ready'", 60)
        assert page.run("return document.getElementById('start-card').hidden")
    page.wait_for(f"{PAGE_STATE} === 'out of reach'")


@needs_browser
def test_page_never_fails(page: Browser) -> None:
    """Last: in all of the above no script failed, and the policy forbade nothing."""
    faults = [line for line in page.log() if "401" not in line and "400" not in line and "ERR_CONNECTION" not in line]
    assert not faults


def _figures(server: ServerProcess) -> dict[str, dict]:  # type: ignore[type-arg]
    response = httpx.get(f"{server.url}/dashboard/data", headers={"Authorization": "Bearer secret"})
    figures: dict[str, dict] = response.json()  # type: ignore[type-arg]
    return figures


def _open_with_key(server: ServerProcess, page: Browser) -> None:
    page.open(server.url)
    page.run("sessionStorage.setItem('vllm-key', 'secret')")
    page.open(server.url)
    page.wait_for(f"{PAGE_STATE} === 'ready'")
