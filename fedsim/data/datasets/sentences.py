"""The rated sentences of Hutto and Gilbert (VADER, ICWSM 2014): four kinds of text, each sentence rated by people.

Tables of the archive: an id, the mean of some twenty ratings from -4 (negative) to 4 (positive), the sentence.
"""

import tarfile

import numpy as np

from fedsim.config.data import DataConfig
from fedsim.data.assets import fetch
from fedsim.data.dataset import Indices, Source

TABLES = {  # site -> the archive's table
    "tweets": "tweets",
    "movie reviews": "movieReviewSnippets",
    "editorials": "nytEditorialSnippets",
    "product reviews": "amazonReviewSnippets",
}
ARCHIVE = "hutto_ICWSM_2014"
CLEAR_RATING = 0.5


def rated_sentences(config: DataConfig) -> Source:
    """The sentences whose mean rating is at least 0.5 or at most -0.5: negative or positive.

    Sites are the four kinds of text. Groups are the sentences of one editorial or product review, and those that read
    the same.
    """
    del config
    texts, ratings, groups, sites = _read()
    clear = np.abs(ratings) >= CLEAR_RATING
    return Source(
        images=np.empty((clear.sum(), 0), np.uint8),
        labels=(ratings[clear] > 0).astype(np.int64),
        class_names=("negative", "positive"),
        groups=groups[clear],
        divisible=True,
        sites=sites[clear],
        site_names=tuple(TABLES),
        texts=tuple((text,) for text, is_clear in zip(texts, clear, strict=True) if is_clear),
    )


def sentence_ratings(config: DataConfig) -> Source:
    """All sentences, with their mean rating as the number to be told; sites and groups as in ``rated_sentences``."""
    del config
    return _with_ratings(public_alone=False)


def neutral_sentences(config: DataConfig) -> Source:
    """The sentences that no document and no wording connects with ``rated_sentences``, with their mean rating.

    A public set beside a federation over ``rated_sentences``: whatever that set's split, nobody in it has one of these
    or another sentence of the same text. Mostly tweets and movie reviews.
    """
    del config
    return _with_ratings(public_alone=True)


def _with_ratings(public_alone: bool) -> Source:
    """Return all sentences, or those of groups in which none has a clear rating."""
    texts, ratings, groups, sites = _read()
    clear = groups[np.abs(ratings) >= CLEAR_RATING] if public_alone else groups[:0]
    kept = ~np.isin(groups, clear)
    return Source(
        images=np.empty((kept.sum(), 0), np.uint8),
        labels=np.zeros(kept.sum(), np.int64),
        class_names=("rating",),
        groups=groups[kept],
        divisible=True,
        sites=sites[kept],
        site_names=tuple(TABLES),
        texts=tuple((text,) for text, is_kept in zip(texts, kept, strict=True) if is_kept),
        targets=ratings[kept].astype(np.float32),
    )


def _read() -> tuple[list[str], np.ndarray, Indices, Indices]:
    """Return sentences, ratings, groups and sites, table after table."""
    texts, ratings, sites, documents = [], [], [], []
    with tarfile.open(fetch("rated_sentences") / f"{ARCHIVE}.tar.gz") as archive:
        for site, table in enumerate(TABLES.values()):
            file = archive.extractfile(f"{ARCHIVE}/{table}_GroundTruth.txt")
            assert file is not None, "the archive is the pinned one"
            for line in file.read().decode("utf-8", "replace").splitlines():
                identifier, rating, text = line.split("\t", 2)
                texts.append(text.strip())
                ratings.append(float(rating))
                sites.append(site)
                documents.append(f"{table} {identifier.partition('_')[0]}")
    return texts, np.array(ratings), _groups(documents, texts), np.array(sites, np.int64)


def _groups(documents: list[str], texts: list[str]) -> Indices:
    """Number the documents so that two that share a text, but for capitals, have one number."""
    leader = {document: document for document in documents}

    def root(document: str) -> str:
        while leader[document] != document:
            document = leader[document]
        return document

    first: dict[str, str] = {}
    for document, text in zip(documents, texts, strict=True):
        leader[root(document)] = root(first.setdefault(text.lower(), document))
    number = {name: place for place, name in enumerate(sorted({root(document) for document in documents}))}
    return np.array([number[root(document)] for document in documents], np.int64)
