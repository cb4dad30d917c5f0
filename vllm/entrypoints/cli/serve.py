"""`vllm serve [MODEL] [options]`."""

from __future__ import annotations

import argparse


def main(argv: list[str]) -> int:
    from vllm.entrypoints.openai import api_server
    from vllm.entrypoints.openai.cli_args import make_arg_parser, parse_server_args

    parser = make_arg_parser(argparse.ArgumentParser(prog="vllm serve", allow_abbrev=False))
    return api_server.run(parse_server_args(parser, argv))
