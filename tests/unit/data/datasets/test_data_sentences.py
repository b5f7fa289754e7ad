"""The packaged sentences, as published."""

import numpy as np
import pytest

from tests.helpers import class_counts, load_set


def test_rated_sentences_have_their_sites_and_classes() -> None:
    data = load_set("rated_sentences")
    assert data.images.shape == (19459, 0)
    assert len(data.texts) == len(data.labels) == 19459
    assert data.site_names == ("tweets", "movie reviews", "editorials", "product reviews")
    # "Somehow I was blessed with some really amazing friends", rated 2.7, is the first.
    assert data.texts[0][0].startswith("Somehow I was blessed")
    assert data.labels[0] == 1
    for part, share in (("train", 0.65), ("val", 0.15), ("test", 0.2)):
        np.testing.assert_allclose(np.array(class_counts(data, part)) / np.bincount(data.labels), share, atol=0.01)


def test_neutral_sentences_are_no_part_of_the_rated_ones() -> None:
    public, rated = load_set("neutral_sentences"), load_set("rated_sentences")
    assert len(public.texts) == 1316
    assert np.bincount(public.sites).tolist() == [768, 533, 9, 6]
    assert public.targets.abs().max() < 0.5
    assert not {text.lower() for (text,) in public.texts} & {text.lower() for (text,) in rated.texts}
    assert not set(public.groups.tolist()) & set(rated.groups.tolist())
    everything = load_set("sentence_ratings")
    assert {text for (text,) in public.texts} <= {text for (text,) in everything.texts}


def test_no_document_and_no_sentence_is_in_two_splits() -> None:
    data = load_set("rated_sentences")
    for marks in (data.groups, np.array([text.lower() for (text,) in data.texts])):
        held = [set(marks[part].tolist()) for part in (data.train, data.val, data.test)]
        assert sum(map(len, held)) == len(held[0] | held[1] | held[2])


def test_ratings_are_all_sentences_with_a_number() -> None:
    data = load_set("sentence_ratings")
    assert data.targets.shape == (len(data.texts),) == (23703,)
    assert data.targets[0] == pytest.approx(2.726315789)
    assert -4 <= data.targets.min() < data.targets.max() <= 4
    assert data.class_names == ("rating",)
