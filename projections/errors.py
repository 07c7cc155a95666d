"""The errors of gradsift that callers may want to catch.

    GradsiftError
    ├── UnsupportedLayerError   a trainable layer that no rule covers
    ├── NonDeterministicError   a loss that is not a function of one example alone
    ├── NonFiniteError          a NaN or an infinity, with the ids of the examples
    ├── DataError               a file or a row that cannot be read, with its line
    ├── StoreMismatchError      artefacts that do not belong together, or are damaged
    ├── ConvergenceError        an iteration that did not reach its tolerance
    └── LostRankError           another process of the run died, or stopped with an error

Mistakes in arguments are plain `ValueError` and `TypeError`.
"""


class GradsiftError(Exception):
    """Base class of all errors below."""


class UnsupportedLayerError(GradsiftError):
    """A trainable layer has no rule for its per-example gradient."""


class NonDeterministicError(GradsiftError):
    """The loss of an example depends on chance or on the rest of its batch."""


class NonFiniteError(GradsiftError):
    """A loss or a gradient is NaN or infinite."""


class DataError(GradsiftError):
    """A file or a row does not hold what was asked of it."""


class StoreMismatchError(GradsiftError):
    """Two artefacts do not belong together, or one of them is damaged."""


class ConvergenceError(GradsiftError):
    """An iteration ended before it reached its tolerance."""


class LostRankError(GradsiftError):
    """Another rank of the run died, or stopped with an error."""
