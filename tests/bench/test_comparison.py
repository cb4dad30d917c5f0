"""The table of `compare_peers.py`: what counts, what a ratio means, how it is shown."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import compare_peers
import comparing
import machine
import pytest
from comparison import Run, cells, ratios, render
from engine_runs import Job
from machine import best_of, is_disturbed
from peers.base import Engine, PeerError, Rates, Service
from peers.llama_cpp import TOOLS, LlamaCpp
from peers.ours import Ours

QUIET = {"read_bytes": 100.0, "int8_ops": 1000.0}
LOUD = {"read_bytes": 84.0, "int8_ops": 1000.0}


def run(
    engine: str,
    value: float,
    *,
    metric: str = "decode 1",
    format: str = "q4_1",
    weights: str = "",
    variant: str = "",
    quiet: bool = True,
) -> Run:
    return Run(engine, format, weights or format, variant, metric, value, (QUIET, QUIET if quiet else LOUD))


def test_what_the_machine_gives_and_when_it_is_disturbed() -> None:
    assert best_of([{"x": float(i)} for i in (5, 1, 3, 2, 4, 9, 6, 8, 7)]) == {"x": 7.0}
    assert best_of([{"x": 1.0}, {"x": 2.0}]) == {"x": 2.0}
    assert not is_disturbed([QUIET, QUIET], QUIET)
    assert is_disturbed([QUIET, LOUD], QUIET) and is_disturbed([LOUD, QUIET], QUIET)


def test_a_cell_is_the_best_variants_median_of_undisturbed_runs() -> None:
    runs = [
        *(run("ours", value) for value in (10, 30, 20)),
        run("ours", 99, quiet=False),
        *(run("ours", value, variant="other") for value in (24, 26)),
        *(run("peer", value, quiet=False) for value in (3, 4, 8)),
        *(run("peer", value, metric="first token s", variant=str(value)) for value in (3, 2)),
    ]
    table = cells(runs, QUIET)
    ours = table["ours", "q4_1", "q4_1"]["decode 1"]
    assert (ours.value, ours.runs, ours.undisturbed) == (25, 2, 2)
    peer = table["peer", "q4_1", "q4_1"]
    assert (peer["decode 1"].value, peer["decode 1"].undisturbed) == (4, 0)
    assert peer["first token s"].value == 2, "less is better"


def table_of_three() -> dict[Any, Any]:
    int8 = {"format": "q8_0", "weights": "int8"}
    runs = [
        run("ours", 300),
        run("ours", 0.5, metric="first token s"),
        run("ours", 90, format="bf16"),
        run("a", 150),
        run("a", 0.4, metric="first token s"),
        run("a", 100, format="bf16"),
        run("b", 400, **int8),
        run("b", 2, metric="first token s", **int8),
        run("b", 7, metric="http 8", quiet=False, **int8),
    ]
    return cells(runs, QUIET)


def test_ratios_above_one_are_ours() -> None:
    assert ratios(table_of_three()) == [
        {"format": "q4_1", "against": "same width", "ratios": {"decode 1": 2.0, "first token s": 0.8}},
        {"format": "q4_1", "against": "any", "ratios": {"decode 1": 0.75, "first token s": 0.8}},
        {"format": "bf16", "against": "same width", "ratios": {"decode 1": 0.9}},
        {"format": "bf16", "against": "any", "ratios": {"decode 1": 0.225}},
    ]


def test_table() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in render(table_of_three()).splitlines()]
    assert rows[0] == ["engine", "weights", "decode 1", "first token s", "http 8"]
    assert rows[2:] == [
        ["ours", "q4_1", "300", "0.5", "–"],
        ["ours", "bf16", "90", "–", "–"],
        ["a", "q4_1", "150", "0.4", "–"],
        ["a", "bf16", "100", "–", "–"],
        ["b", "int8 of q8_0", "400", "2", "7*"],
        ["ours / best peer (same width)", "q4_1", "2.00 ×", "0.80 ×", ""],
        ["ours / best peer (any)", "q4_1", "0.75 ×", "0.80 ×", ""],
        ["ours / best peer (same width)", "bf16", "0.90 ×", "", ""],
        ["ours / best peer (any)", "bf16", "0.23 ×", "", ""],
    ]
    assert len({len(line) for line in render(table_of_three()).splitlines()}) == 1


# The runner, with engines that only say numbers.


class Fake(Engine):
    name = "ours"
    speed = 2.0
    served: list[str] = []

    def version(self) -> str:
        return "1"

    def own_format(self, format: str) -> str | None:
        return format

    def prepare(self, files: object, format: str) -> Path:
        return Path(format)

    def offline(self, model: Path, job: Job, variant: str) -> Rates:
        factor = self.speed * (1 + self.variants.index(variant))
        rates = {f"decode {batch}": factor * batch for batch in job.batches}
        return rates | ({"prefill 8": factor * 100} if job.prefill_len else {})

    def first_token_command(self, model: Path) -> list[str]:
        return [sys.executable, "-c", "print('first token', flush=True); import time; time.sleep(0.3)"]

    def serving(self, model: Path, service: Service) -> contextlib.AbstractContextManager[str]:
        return contextlib.nullcontext(f"http://{self.name}")


class FakePeer(Fake):
    name = "peer"
    speed = 1.0
    variants = ("plain", "tuned")

    def own_format(self, format: str) -> str | None:
        return "int4" if format.startswith("q4") else None

    def serving(self, model: Path, service: Service) -> None:  # type: ignore[override]
        return None


def arguments(tmp_path: Path, **changed: object) -> argparse.Namespace:
    source = tmp_path / "model.gguf"
    given = {
        "cache_dir": tmp_path, "threads": 1, "install_only": False, "model": str(source), "formats": ["q4_1", "q4_0"],
        "input_len": 4, "output_len": 4, "batches": [1, 4], "prefill_len": 8, "rounds": 2, "http": True,
        "streams": [2], "save": False,
    }  # fmt: skip
    return argparse.Namespace(**{**given, **changed})


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_peers, "measure_limits", lambda: QUIET)
    monkeypatch.setattr(compare_peers.ModelFiles, "gguf", lambda self, format: Path(format))
    rates = {"http 2": 5.0, "ttft ms 2": 1.0, "itl ms 2": 1.0}
    monkeypatch.setattr(compare_peers, "over_http", lambda url, streams, job, tokenizer: rates)


@pytest.mark.usefixtures("fakes")
def test_comparison_of_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare_peers.compare(arguments(tmp_path), [Fake, FakePeer])
    captured = capsys.readouterr()
    *table, line = captured.out.splitlines()
    result = json.loads(line)
    assert result["benchmark"] == "peers-model" and result["engines"] == {"ours": "1", "peer": "1"}
    assert {"cpu", "cores", "isa"} <= result["hardware"].keys() and result["limits"] == QUIET and result["commit"]
    rows = {(row["engine"], row["format"]): row["results"] for row in result["table"]}
    assert list(rows) == [("ours", "q4_1"), ("ours", "q4_0"), ("peer", "q4_1")], "int4 is run once"
    assert rows["ours", "q4_0"]["decode 4"] == {"value": 8.0, "runs": 2, "undisturbed": 2}
    assert rows["peer", "q4_1"]["decode 4"]["value"] == 8.0, "its better variant"
    assert rows["ours", "q4_1"]["prefill 8"]["runs"] == 2, "once a round, not with every number of sequences"
    assert "http 2" in rows["ours", "q4_1"] and "http 2" not in rows["peer", "q4_1"]
    assert rows["peer", "q4_1"]["first token s"]["value"] > 0
    assert result["ratios"][0]["ratios"]["decode 1"] == 1.0
    assert "1.00 ×" in "\n".join(table)
    order = [text.split(": ")[1] for text in captured.err.splitlines() if "round" in text]
    assert order == ["ours q4_1", "ours q4_0", "peer int4", "peer int4", "ours q4_0", "ours q4_1"]


class Failing(FakePeer):
    """Fails in the middle of its second variant."""

    cause: BaseException = PeerError("the peer ended with status 1")
    asked = 0

    def offline(self, model: Path, job: Job, variant: str) -> Rates:
        Failing.asked += 1
        if Failing.asked > 4:
            raise Failing.cause
        return super().offline(model, job, variant)


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("cause", [PeerError("the peer ended with status 1"), KeyboardInterrupt()])
def test_what_was_measured_is_shown_where_it_is_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cause: BaseException
) -> None:
    monkeypatch.setattr(Failing, "asked", 0)
    monkeypatch.setattr(Failing, "cause", cause)
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "results")
    with pytest.raises(type(cause)):
        compare_peers.compare(arguments(tmp_path, save=True), [Fake, Failing])
    captured = capsys.readouterr()
    *table, line = captured.out.splitlines()
    result = json.loads(line)
    assert result["cut_off"] == (str(cause) or "interrupted") and "cut off" in captured.err
    rows = {(row["engine"], row["format"]): row["results"] for row in result["table"]}
    assert rows["ours", "q4_1"]["decode 4"]["runs"] == 1
    peer = rows["peer", "q4_1"]
    assert (peer["decode 1"]["value"], peer["decode 4"]["value"]) == (2.0, 4.0), "its second variant, and its first"
    assert "ours / best peer" in "\n".join(table)
    assert not (tmp_path / "results").exists(), "no whole comparison is replaced by a part of one"


def test_a_signal_to_end_is_met_as_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match="interrupted"):
            comparing.run(lambda args, kinds: os.kill(os.getpid(), signal.SIGTERM), arguments(Path(), peers=[]))
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("fakes")
def test_install_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare_peers.compare(arguments(tmp_path, install_only=True), [Fake, FakePeer])
    assert capsys.readouterr().out == ""


def test_time_to_the_first_token() -> None:
    def seconds(code: str) -> float:
        return compare_peers.seconds_to_first_token([sys.executable, "-c", code], {})

    late = "print('first token', flush=True); import time; time.sleep(0.5)"
    silent = "import sys, time; sys.stderr.write('x' * 200000); time.sleep(0.5)"
    assert seconds(late) < seconds(silent)
    with pytest.raises(PeerError, match="no model"):
        seconds("import sys; sys.exit('no model')")


def test_llama_cpp_by_its_own_tools(tmp_path: Path) -> None:
    engine = LlamaCpp(tmp_path, threads=3)
    tools = engine.home / "build" / "bin"
    tools.mkdir(parents=True)
    for name in TOOLS:
        tool = tools / name
        tool.write_text(
            f'#!{sys.executable}\nimport json, sys\nprint("main: loading")\n'
            'at = dict(zip(sys.argv[1::2], sys.argv[2::2]))\nfor i, n in enumerate(at["-npl"].split(",")):\n'
            '    print(json.dumps({"pl": int(n), "speed_pp": 1000.0 + i, "speed_tg": 10.0 * int(n) + i}))\n'
            'open(sys.argv[0] + ".log", "a").write(" ".join(sys.argv[1:]) + chr(10))\n'
        )
        tool.chmod(0o755)
    rates = engine.offline(Path("m.gguf"), Job(128, 100, [1, 4], 512, repeats=3), "-fa on")
    assert rates == {"decode 1": 11.0, "decode 4": 41.0, "prefill 512": 1001.0}
    calls = (tools / "llama-batched-bench.log").read_text().splitlines()
    assert len(calls) == 3 and all("-t 3" in call and "-fa on" in call for call in calls)
    assert "-c 1024 -b 2048 -ub 512 -npp 128 -ntg 100 -npl 4,4,4" in calls[1]
    assert "-npp 512 -ntg 1 -npl 1,1,1" in calls[2]
    assert engine.first_token_command(Path("m.gguf"))[0] == str(tools / "llama-bench")


def test_ours_as_a_contender(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ours, "device", "null")
    engine = Ours(tmp_path, threads=1)
    rates = engine.offline(tiny_llama, Job(8, 4, [2, 3], 16, repeats=1), "default")
    assert rates.keys() == {"decode 2", "decode 3", "prefill 16"} and min(rates.values()) > 0
    seconds = compare_peers.seconds_to_first_token(engine.first_token_command(tiny_llama), engine.environment())
    assert seconds > 0
    with pytest.raises(PeerError, match="no/model"):
        engine.offline(Path("no/model"), Job(8, 4, [1], 16), "default")
