import math

import pytest

from app.embedding import DIMENSIONS, embed


def similarity(one: str, other: str) -> float:
    return sum(a * b for a, b in zip(embed(one), embed(other)))


@pytest.mark.parametrize("text", ["anvil", "A heavy iron block", "!!!", " ", "железо 鉄"])
def test_a_vector_has_length_one(text):
    assert len(embed(text)) == DIMENSIONS
    assert math.hypot(*embed(text)) == pytest.approx(1)


def test_shared_words_and_parts_of_words_are_near():
    assert similarity("iron block", "blocks of iron") > similarity("iron block", "a silk scarf")
    assert similarity("Iron!", "iron") == pytest.approx(1)
