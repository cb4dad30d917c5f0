"""What a user asks of a pooling model. Accepted so that programs import; no target here runs such a model."""

from __future__ import annotations

from typing import Any

import msgspec

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind


class PoolingParams(msgspec.Struct, omit_defaults=True):
    """dimensions: of the embedding, for models trained for several. task: "embed", "classify", "score", ..."""

    use_activation: bool | None = None
    dimensions: int | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None
    task: str | None = None
    extra_kwargs: dict[str, Any] | None = None
    requires_token_ids: bool = False
    skip_reading_prefix_cache: bool | None = None
    late_interaction_params: Any = None
    output_kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY

    def __post_init__(self) -> None:
        if self.output_kind is not RequestOutputKind.FINAL_ONLY:
            raise VLLMValidationError(
                "pooling has one output: output_kind must be FINAL_ONLY.", parameter="output_kind"
            )
