"""What each command does: a frozen set of options, and one call that carries them out.

Every command writes its resolved options beside its output, goes on where an earlier run
with the same options stopped, and returns the lines that say what it did.
"""

from gradsift.commands.attributing import Attribute
from gradsift.commands.components import Components
from gradsift.commands.covering import Cover
from gradsift.commands.deduplication import Dedup
from gradsift.commands.dsir import Dsir
from gradsift.commands.explaining import Explain
from gradsift.commands.gio import Gio
from gradsift.commands.indexing import Index
from gradsift.commands.list_indexes import StoreIndex
from gradsift.commands.options import Command, command_from_json
from gradsift.commands.pages import Demo, Report
from gradsift.commands.planning import Plan
from gradsift.commands.pruning import Prune
from gradsift.commands.retrieval import Retrieve
from gradsift.commands.scoring import Score
from gradsift.commands.stores import StoreCompact, StoreDelete, StoreMerge, StoreVerify

__all__ = ["COMMANDS", "SHARED", "Command", "command_from_json"]

COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "index": Index,
    "retrieve": Retrieve,
    "attribute": Attribute,
    "score": Score,
    "prune": Prune,
    "components": Components,
    "gio": Gio,
    "cover": Cover,
    "dedup": Dedup,
    "dsir": Dsir,
    "plan": Plan,
    "report": Report,
    "explain": Explain,
    "store-index": StoreIndex,
    "store-verify": StoreVerify,
    "store-delete": StoreDelete,
    "store-compact": StoreCompact,
    "store-merge": StoreMerge,
}
"""The commands by name; a new one is a file here and a line in this table."""

SHARED = (Index, Score, Attribute, Components, Retrieve, StoreIndex)
"""The commands whose work all ranks of a launcher share; rank 0 runs the others alone."""
