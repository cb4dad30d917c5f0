"""Which LoRA adapter a request uses."""

from __future__ import annotations

import msgspec


class LoRARequest(msgspec.Struct, omit_defaults=True):
    """lora_name: as users call it. lora_int_id: its number, from 1 on. lora_path: where its weights are."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    load_inplace: bool = False

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValueError(f"lora_int_id must be at least 1, got {self.lora_int_id}")

    @property
    def name(self) -> str:
        return self.lora_name

    @property
    def adapter_id(self) -> int:
        return self.lora_int_id

    @property
    def path(self) -> str:
        return self.lora_path
