"""What an audit found."""

from dataclasses import dataclass, field
from pathlib import Path

from ma2mba.shards.reader import Damage


@dataclass
class AuditReport:
    """What an audit read and found: `damage`, files `repaired`, and `unrepaired` files with the reason."""

    folder: Path
    files: int = 0
    samples: int = 0
    bytes: int = 0
    damage: list[Damage] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    unrepaired: dict[str, str] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether the folder is whole now."""
        return {damage.file for damage in self.damage} <= set(self.repaired)
