"""Text as a vector without a model: hashed words and character trigrams.

Nothing is downloaded and nothing is learned. The same text gives the same vector on every host, and
texts that share words, or parts of words, are close in cosine distance. It knows spelling, not
meaning: put a real model behind `embed` where meaning matters (and give the collection a new name).
"""

import math
import re
from collections.abc import Iterator
from zlib import crc32

DIMENSIONS = 1024


def embed(text: str) -> list[float]:
    """A vector of length one."""
    vector = [0.0] * DIMENSIONS
    for feature in features(text):
        vector[crc32(feature.encode()) % DIMENSIONS] += 1.0
    length = math.hypot(*vector)
    return [value / length for value in vector]


def features(text: str) -> Iterator[str]:
    for word in re.findall(r"\w+", text.lower()) or [text]:
        yield word
        edged = f"<{word}>"
        for start in range(len(edged) - 2):
            yield edged[start : start + 3]
