"""The command line: sub-commands, options, files of options."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.conftest import server_args
from vllm.entrypoints.cli.main import COMMANDS, main
from vllm.entrypoints.openai.cli_args import make_arg_parser, parse_server_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.version import __version__


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in COMMANDS)
    assert main([]) == 2


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sevre"]) == 2
    assert "'serve'" in capsys.readouterr().err


def test_collect_env_shows_no_secret(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "very-secret")
    assert main(["collect-env"]) == 0
    text = capsys.readouterr().out
    assert __version__ in text and "VLLM_API_KEY" in text and "very-secret" not in text


@pytest.mark.parametrize("command", ["chat", "complete"])
def test_clients_say_that_no_server_answers(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--url", "http://127.0.0.1:9/v1", "-q", "hello"]) == 1
    assert "no server answers at http://127.0.0.1:9/v1" in capsys.readouterr().err


def test_defaults() -> None:
    args = server_args()
    assert (args.host, args.port, args.api_key, args.allowed_origins) == (None, 8000, None, [])
    assert args.model == "fake/model"
    assert not args.trust_request_chat_template and args.shutdown_timeout == 0


def test_options() -> None:
    args = server_args(
        "--api-key", "a", "b", "--allowed-origins", '["x"]', "--middleware", "m.A", "--middleware", "m.B",
        "--default-chat-template-kwargs", '{"k": 1}', "--no-disable-fastapi-docs",
        "--h11-max-incomplete-event-size", "9", "--sse_keep_alive_interval", "2.5",
    )  # fmt: skip
    assert args.api_key == ["a", "b"] and args.middleware == ["m.A", "m.B"]
    assert args.allowed_origins == ["x"] and args.default_chat_template_kwargs == {"k": 1}
    assert args.max_header_bytes == 9 and args.sse_keep_alive_interval == 2.5
    assert server_args().middleware == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ssl-keyfile", "k"], "--ssl-certfile"),
        (["--allow-credentials", "--allowed-origins", '["*"]'], "--allowed-origins"),
        (["--uds", "/tmp/x", "--host", "0.0.0.0"], "--uds"),
        (["--api-key", ""], "--api-key"),
        (["--max-body-bytes", "0"], "--max-body-bytes"),
        (["--allowed-origins", "["], "not JSON"),
        (["--port", "http"], "--port"),
        (["--config", "/nowhere/x.yaml"], "/nowhere/x.yaml"),
        (["--config", "/nowhere/x.json"], "YAML"),
        (["--no-such-option"], "--no-such-option"),
        (["--max-model-lenn", "9"], "did you mean --max-model-len?"),
        (["stray"], "'stray'"),
        (["--enable-auto-tool-choice"], "--tool-call-parser"),
        (["--tool-call-parser", "hermess"], "hermes"),
        (["--tool-parser-plugin", "/nowhere/x.py"], "cannot be run"),
        (["--tool-call-parser", "hermess"], "hermes"),
        (["--api-server-count", "0"], "from 1 to 64, not 0"),
        (["--api-server-count", "-2"], "from 1 to 64, not -2"),
        (["--api-server-count", "100000"], "from 1 to 64, not 100000"),
        (["--api-server-count", "two"], "--api-server-count"),
        (["--headless"], "load balancer"),
    ],
)
def test_faults_end_with_status_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        server_args(*words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_options_of_vllm_that_ask_for_nothing() -> None:
    server_args("--no-headless", "--no-enable-auto-tool-choice", "--log-error-stack", "--fingerprint-mode", "x")


@pytest.mark.parametrize(
    ("asked", "shown", "hidden"),
    [
        ("max-num-seqs", ["--max-num-seqs"], ["--max-num-queued-reqs", "--port"]),
        ("max_num_seqs", ["--max-num-seqs"], ["--port"]),
        ("ModelConfig", ["ModelConfig:", "--dtype", "--chat-template"], ["--max-num-seqs", "--port"]),
        ("queued", ["--max-num-queued-reqs", "--max-num-queued-tokens"], ["--port"]),
        ("carries a comment", ["--sse-keep-alive-interval"], []),
        ("listgroup", ["--help=ModelConfig", "--help=Frontend"], ["--port"]),
        ("all", ["--port", "--max-num-seqs"], []),
    ],
)
def test_help_about(asked: str, shown: list[str], hidden: list[str], capsys: pytest.CaptureFixture[str]) -> None:  # A21
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help=" + asked, "model"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(word in out for word in shown) and not any(f"{word} " in out for word in hidden)


def test_help_about_nothing_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help=max-model-lem"])
    assert ended.value.code == 2 and "did you mean --max-model-len?" in capsys.readouterr().err
    parser = FlexibleArgumentParser()
    parser.add_argument("words", nargs="*")
    assert parser.parse_args(["--", "--help=x"]).words == ["--help=x"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("serve:\n  port: 9000\n", "'serve' is not an option, and the file has no sections"),
        ("prot: 9000\n", "unknown option 'prot'; did you mean 'port'?"),
        ("additional-confg.a: 1\n", "additional-confg"),
    ],
)
def test_file_with_what_is_no_option(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit):
        parse_server_args(make_arg_parser(FlexibleArgumentParser()), ["model", "--config", str(file)])
    assert says in capsys.readouterr().err
    file.write_text("additional-config.override_neuron_config.enable_bucketing: false\n")
    args = parse_server_args(make_arg_parser(FlexibleArgumentParser()), ["model", "--config", str(file)])
    assert args.additional_config == {"override_neuron_config": {"enable_bucketing": False}}


def test_file_of_options(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("port: 9000\nresponse_role: bot\napi-key: [a, b]\ndisable-fastapi-docs: true\nuds: null\n")
    parser = make_arg_parser(FlexibleArgumentParser())
    args = parse_server_args(parser, ["model", "--config", str(file), "--port", "9001"])
    assert (args.port, args.response_role, args.api_key, args.disable_fastapi_docs) == (9001, "bot", ["a", "b"], True)
    assert args.model == "model"
