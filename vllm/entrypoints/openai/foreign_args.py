"""Options of vLLM's server that mean nothing here, or cannot be had: known by name, so that the answer is a reason."""

from __future__ import annotations

import argparse

from vllm.engine.foreign_args import ForeignOption, refused, without_effect
from vllm.logger import init_logger

logger = init_logger(__name__)

_CODE = "code from outside is not loaded or run; see --tool-call-parser for what there is"
_OWN_ENGINE = "a server starts its own engine, and no other's; run more servers behind a load balancer"

_OF_COHERE = "Cohere's API is not served"

FOREIGN_FRONTEND_OPTIONS: dict[str, ForeignOption] = {
    **refused(_CODE, tool_server=None),
    **refused("prompt adapters are not served, LoRA adapters are", prompt_adapters=None),
    **refused(_OWN_ENGINE, headless=False),
    **refused("/tokenizer_info is not served", enable_tokenizer_info_endpoint=False),
    **refused("responses carry no metrics", enable_per_request_metrics=False),
    **refused("/docs loads its scripts from the net", enable_offline_docs=False),
    **refused("the server speaks HTTP", grpc=False, grpc_port=0),
    **refused("the library's own ciphers are used", ssl_ciphers=None),
    **refused("prompts are made and outputs are read in one place", enable_scale_out=False),
    **refused("`thinking` of type disabled is told to the template", anthropic_disabled_thinking_effort="auto"),
    **without_effect("--reasoning-parser suffices", enable_reasoning=False),
    **without_effect("unexpected errors are always logged whole", log_error_stack=False),
    **without_effect("responses carry no fingerprint", fingerprint_mode="full", fingerprint_value=None),
    **without_effect("the engine has its own process", disable_frontend_multiprocessing=False),
    **without_effect("outputs are logged once they are whole", enable_log_deltas=True),
    **without_effect("start the server again with the new certificate", enable_ssl_refresh=False),
    **without_effect("images are prepared as the checkpoint says", trust_request_mm_kwargs=False),
    **without_effect(_OF_COHERE, cohere_format="cmd4", cohere_is_reasoning_model=True),
    **without_effect("no model here scores pairs", enable_flash_late_interaction=True),
    **without_effect(
        _OWN_ENGINE, data_parallel_supervisor_port=9256, dp_supervisor_probe_interval_s=5.0,
        dp_supervisor_probe_timeout_s=5.0, dp_supervisor_probe_failure_threshold=3,
    ),
}  # fmt: skip


def add_foreign_args(parser: argparse.ArgumentParser) -> None:
    """The default of each is None: whoever does not write an option hears nothing of it."""
    group = parser.add_argument_group("Known options of the server of no use here")
    for name, option in FOREIGN_FRONTEND_OPTIONS.items():
        effect = "Refused" if option.refused else "No effect"
        flag, text = f"--{name.replace('_', '-')}", f"{effect}: {option.reason}."
        group.add_argument(flag, dest=name, default=None, help=text, **option.argument)


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
