"""The result of an audit."""

from dataclasses import dataclass, field
from pathlib import Path

from ma2mba.shards.reader import Damage


@dataclass
class AuditReport:
    """How much an audit read, the damage that it found, and what became of each damaged file.

    `sources`: what a repair read. `repaired`: files that are intact again. `unrepaired`: file -> why the repair failed.
    """

    folder: Path
    files: int = 0
    samples: int = 0
    bytes: int = 0
    damage: list[Damage] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    unrepaired: dict[str, str] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """True if the folder is intact now."""
        return {damage.file for damage in self.damage} <= set(self.repaired)
