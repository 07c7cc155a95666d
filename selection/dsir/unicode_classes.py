r"""Tables of Unicode: is a character part of a word, and what is it in lower case?

The classes are those of the regular expression ``\w+|[^\w\s]+`` of Python, which NLTK's
``WordPunctTokenizer`` has made the usual cheap tokenizer. Not in the tables: the two
characters whose lower case is no single character of its own, ``SPECIAL``.
"""

import re
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

NUM_POINTS = 0x110000
SPACE, WORD, OTHER = 0, 1, 2
CLASS_BITS = 3  # of an entry; the others are those of a hash
GOLDEN, MIXER = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xFF51AFD7ED558CCD)
HALF = np.uint64(32)
SPECIAL = "\u03a3\u0130"  # final sigma depends on its neighbours; dotted I becomes two


@dataclass(frozen=True)
class Characters:
    """What the tokenizer knows of every code point.

    Args:
        classes: ``SPACE``, ``WORD`` or ``OTHER``, of the character in lower case.
        lowers: The code point of its lower case.
    """

    classes: np.ndarray
    lowers: np.ndarray

    @cached_property
    def entries(self) -> np.ndarray:
        """A hash of the lower case with the class in its last bits: one look finds both."""
        spread = (self.lowers.astype(np.uint64) + np.uint64(1)) * GOLDEN
        spread = (spread ^ (spread >> HALF)) * MIXER
        return ((spread ^ (spread >> HALF)) & ~np.uint64(CLASS_BITS)) | self.classes


@cache
def characters() -> Characters:
    """Return the tables of this Python's version of Unicode.

    Example:
        >>> table = characters()
        >>> [int(table.classes[ord(letter)]) for letter in " a_.é"]
        [0, 1, 1, 2, 1]
        >>> chr(table.lowers[ord("É")])
        'é'
    """
    points = np.arange(NUM_POINTS, dtype=np.uint32)
    text = _text(points).replace("\u0130", "\u0131").lower()
    lowers = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    classes = np.full(NUM_POINTS, OTHER, dtype=np.uint8)
    for pattern, number in ((r"\w+", WORD), (r"\s+", SPACE)):
        for run in re.finditer(pattern, _text(points)):
            classes[run.start() : run.end()] = number
    return Characters(classes[lowers], lowers)


def _text(points: np.ndarray) -> str:
    """Return the characters of some code points."""
    return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
