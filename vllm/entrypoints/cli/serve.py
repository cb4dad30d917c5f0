"""`vllm serve [MODEL] [options]`."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    from vllm.entrypoints.openai import api_server
    from vllm.entrypoints.openai.cli_args import make_arg_parser, parse_server_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    return api_server.run(parse_server_args(parser, argv))
