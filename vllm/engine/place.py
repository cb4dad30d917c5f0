"""Which of several front ends of one core this is."""

from __future__ import annotations

from dataclasses import dataclass

RECORDER = 0
"""Index of the front end that records what concerns the engine as a whole, so that it is counted once."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which front this is, of how many."""

    index: int = 0
    count: int = 1

    @property
    def is_recorder(self) -> bool:
        return self.index == RECORDER

    def core_id(self, req_id: str) -> str:
        """The request's id in the core, unlike that of any other front: users may give the same id to several."""
        return req_id if self.count == 1 else f"{self.index}:{req_id}"

    def numbered(self, nth: int) -> int:
        """The number among all fronts' requests of this one's nth: no two are equal."""
        return nth * self.count + self.index
