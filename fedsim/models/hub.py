"""Building library models: failures become one line with the cause, without minutes of retries."""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session

from fedsim.errors import UserError

PROBE_TIMEOUT_SECONDS = 5.0
CAUSE_CHARACTERS = 300


@functools.cache
def hub_problem() -> str | None:
    """Why the model hub cannot be reached; None if it answers. Asked once per process."""
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_TIMEOUT_SECONDS)
    except Exception as error:  # the client's error classes change between hub versions; any of them means no
        return f"{constants.ENDPOINT} did not answer ({type(error).__name__}: {error})"
    return None


@contextmanager
def hub_access(where: str, expected: str) -> Iterator[None]:
    """``user_errors``, in which the hub is reduced to its local cache where it does not answer.

    Its client would retry every file for half a minute; one probe spares that.
    """
    problem = hub_problem()
    before, silenced = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    constants.HF_HUB_OFFLINE = before or problem is not None
    logging.disable(logging.ERROR)  # open_clip and the hub log what the UserError will say
    try:
        with user_errors(where, expected, problem):
            yield
    finally:
        constants.HF_HUB_OFFLINE = before
        logging.disable(silenced)


@contextmanager
def user_errors(where: str, expected: str, circumstance: str | None = None) -> Iterator[None]:
    """Turn what a library raises over names, files, shapes and networks into a UserError with the cause.

    Any exception: no list of types is complete, and over what a person gave it a library fails with all of them. So
    only calls of libraries belong inside; our own mistakes must show.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:CAUSE_CHARACTERS]}"
        raise UserError(where, f"{circumstance}; {cause}" if circumstance else cause, expected) from error
