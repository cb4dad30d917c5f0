"""Options of vLLM's server that mean nothing here, or cannot be had: known by name, so that the answer is a reason."""

from __future__ import annotations

import argparse

from vllm.engine.foreign_args import ForeignOption
from vllm.logger import init_logger

logger = init_logger(__name__)

_CODE = "code from outside is not loaded or run; see --tool-call-parser for what there is"
_OWN_ENGINE = "a server starts its own engine, and no other's; run more servers behind a load balancer"

FOREIGN_FRONTEND_OPTIONS: dict[str, ForeignOption] = {
    "tool_server": ForeignOption(None, _CODE, refused=True),
    "enable_reasoning": ForeignOption(False, "--reasoning-parser suffices", type=bool),
    "prompt_adapters": ForeignOption(None, "prompt adapters are not served, LoRA adapters are", refused=True),
    "headless": ForeignOption(False, _OWN_ENGINE, refused=True, type=bool),
    "enable_tokenizer_info_endpoint": ForeignOption(False, "/tokenizer_info is not served", refused=True, type=bool),
    "enable_per_request_metrics": ForeignOption(False, "responses carry no metrics", refused=True, type=bool),
    "enable_offline_docs": ForeignOption(False, "/docs loads its scripts from the net", refused=True, type=bool),
    "log_error_stack": ForeignOption(False, "unexpected errors are always logged whole", type=bool),
    "fingerprint_mode": ForeignOption("full", "responses carry no fingerprint"),
    "disable_frontend_multiprocessing": ForeignOption(False, "the engine has its own process", type=bool),
}


def add_foreign_args(parser: argparse.ArgumentParser) -> None:
    """The default of each is None: whoever does not write an option hears nothing of it."""
    group = parser.add_argument_group("Known options of the server of no use here")
    for name, option in FOREIGN_FRONTEND_OPTIONS.items():
        effect = "Refused" if option.refused else "No effect"
        flag, text = f"--{name.replace('_', '-')}", f"{effect}: {option.reason}."
        if option.type is bool:
            group.add_argument(flag, dest=name, default=None, help=text, action=argparse.BooleanOptionalAction)
        else:
            group.add_argument(flag, dest=name, default=None, help=text, type=option.type)


def check_foreign_args(args: argparse.Namespace) -> None:
    """Raises ValueError for the first option that asks for what cannot be had; notes those without effect."""
    for name, option in FOREIGN_FRONTEND_OPTIONS.items():
        value = getattr(args, name, None)
        if option.asks_for_nothing(value):
            continue
        flag = f"--{name.replace('_', '-')}"
        if option.refused:
            raise ValueError(f"{flag} is not supported: {option.reason}")
        logger.warning("%s has no effect: %s", flag, option.reason)
