import numpy as np
import pytest
from scipy import stats

from pliant.streams import generator, random_bits, stream_key, uniform


def test_a_number_depends_on_its_name_alone():
    key = stream_key(3, "fresh weights", 1)
    assert np.array_equal(uniform(key, 5, (2, 3)).ravel(), uniform(key, 0, 20)[5:11])


def test_keys_differ_in_every_word_and_in_its_type():
    keys = {stream_key(0, "a"), stream_key(1, "a"), stream_key(0, "b"), stream_key(0, "a", 1), stream_key(0, "a", "1")}
    assert len(keys) == 5


def test_it_is_splitmix64():
    """First outputs of the published generator from state 1234567."""
    assert random_bits(1234567, np.arange(3, dtype=np.uint64)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_numbers_are_uniform():
    key = stream_key(0, "distribution")
    assert stats.kstest(uniform(key, 0, 20_000), "uniform").pvalue > 1e-3


def test_generators_of_different_words_are_unrelated():
    a, b = (generator(0, "stream", word).standard_normal(5000) for word in ("a", "b"))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.06


@pytest.mark.parametrize("odd", ["1", 1.0, None, [1], np.zeros(2), object()])
def test_a_seed_a_start_a_shape_or_a_word_that_is_none_is_refused(odd):
    with pytest.raises(TypeError, match="seed is a whole number"):
        stream_key(odd)
    with pytest.raises(TypeError, match="start is a whole number"):
        uniform(1, odd, 2)
    with pytest.raises(TypeError, match="shape is a whole number"):
        uniform(1, 0, (2, odd))
    if not isinstance(odd, str):
        with pytest.raises(TypeError, match="a word of a stream"):
            stream_key(1, odd)


def test_numbers_below_zero_and_too_many_are_refused():
    for start, shape in [(-1, 2), (0, -1), (0, (2, -3)), (0, (-2, -3)), (1 << 64, 1)]:
        with pytest.raises(ValueError, match="0 or more"):
            uniform(1, start, shape)
    with pytest.raises(ValueError, match="GB of memory"):
        uniform(1, 0, 10**15)
    assert uniform(1, 0, ()).shape == ()
    assert uniform(1, 0, (0, 3)).shape == (0, 3)
