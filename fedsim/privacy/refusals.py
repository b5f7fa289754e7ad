"""Claims that cannot hold, each refused with one line. Imports no torch."""

from collections.abc import Sequence

from fedsim.config.experiment import Config
from fedsim.config.privacy import ClientLevel, Mechanism, NoiseRegulator, PrivacyConfig, RecordLevel
from fedsim.errors import UserError


def check_claims(config: Config, sizes: Sequence[int]) -> None:
    """UserError where what the config claims about privacy cannot hold; ``sizes``: training images of each client."""
    words = config.privacy
    if words is None:
        return
    if config.evaluate.clients and not words.observe:
        found = "true with privacy.observe: false, which shows nothing of single clients"
        raise UserError("evaluate.clients", found, "false, or privacy.observe: true")
    if words.secure_aggregation is not None and config.clients.sampling == "poisson":
        found = "poisson with secure_aggregation: a round may have one client, whose message no mask hides"
        raise UserError("clients.sampling", found, "uniform, with per_round or all clients")
    if words.mechanism is None:
        return
    _check_delta(words, sizes)
    if words.noise_multiplier == 0 and words.budget is not None:
        found = f"{words.budget:g} with noise_multiplier: 0, which spends all there is in the first round"
        raise UserError("privacy.budget", found, "null, or noise")
    if isinstance(words.mechanism, NoiseRegulator) and words.mechanism.form == "released":
        for key, value in (("epsilon", words.epsilon), ("budget", words.budget)):
            if value is not None:
                found = f"{value:g} with form: released, whose sensitivity is known only while it runs"
                raise UserError(f"privacy.{key}", found, "noise_multiplier alone, or form: whitened")
    if isinstance(words.mechanism, RecordLevel):
        return
    if isinstance(words.mechanism, ClientLevel) and words.mechanism.noise == "local":
        if words.adjacency != "replace_one":
            found = "add_remove with noise: local: who gets each message knows who takes part"
            raise UserError("privacy.adjacency", found, "replace_one")
    elif is_drawn_in_secret(words.mechanism):
        _check_sampling(config, words, sum(size > 0 for size in sizes))


def is_drawn_in_secret(mechanism: Mechanism) -> bool:
    """Whether a client's noise has to protect it only from those who do not see who takes part in a round.

    The server sees it. Where noise is there to protect from the server, too, sampling the clients hides nothing.
    """
    return not isinstance(mechanism, ClientLevel) or mechanism.noise == "central"


def drawn_share(config: Config, number: int) -> float:
    """Return the share of the ``number`` clients with images that a round draws; with poisson, its expectation."""
    clients = config.clients
    if clients.sampling == "poisson":
        return clients.num_per_round / clients.count
    return min(clients.num_per_round, number) / number


def _check_delta(words: PrivacyConfig, sizes: Sequence[int]) -> None:
    assert words.delta is not None, "the config's words say so"
    is_record = isinstance(words.mechanism, RecordLevel)
    number = max(sizes) if is_record else sum(size > 0 for size in sizes)
    if words.delta >= 1 / number:
        of = "images of the largest client" if is_record else "clients"
        found = f"{words.delta:g}, at which one of the {number} {of} may be shown as it is"
        raise UserError("privacy.delta", found, f"less than {1 / number:.3g}")


def _check_sampling(config: Config, words: PrivacyConfig, number: int) -> None:
    """The accountant must have an event for how clients are drawn; all in every round needs none."""
    clients = config.clients
    if clients.sampling in ("volume", "multinomial"):
        found = f"{clients.sampling}, which no accountant has an event for"
        raise UserError("clients.sampling", found, "poisson, or per_round: all")
    if drawn_share(config, number) == 1:
        return
    if clients.sampling == "uniform":
        if words.adjacency != "replace_one" or words.accountant != "rdp":
            found = f"uniform with adjacency: {words.adjacency} and accountant: {words.accountant}"
            expected = "poisson; or adjacency: replace_one with accountant: rdp, which has an event for a fixed number"
            raise UserError("clients.sampling", found, f"{expected}; or per_round: all")
    elif words.adjacency != "add_remove":
        found = f"replace_one with clients.sampling: {clients.sampling}"
        raise UserError("privacy.adjacency", found, "add_remove, for which sampling has an event; or per_round: all")
