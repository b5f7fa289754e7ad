"""What a run spends: a pure function of the config, of public facts and of the number of rounds. Imports no torch.

A run that was killed and goes on draws the same noise for a round that it repeats. That is the same release, so nothing
is counted twice, and nothing that was let out is forgotten.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dp_accounting import DpEvent

from fedsim.config.experiment import Config
from fedsim.config.privacy import ClientLevel, NoiseRegulator, PrivacyConfig, QuantileClipping, RecordLevel
from fedsim.errors import UserError
from fedsim.privacy import accounting
from fedsim.privacy.refusals import check_claims, drawn_share, is_drawn_in_secret

#: Of less noise no double holds the epsilon.
LEAST_MULTIPLIER = 1e-8


@dataclass(frozen=True)
class PublicFacts:
    """What everybody may know: ``sizes``, each client's training images; ``steps``, its local steps in a phase.

    ``trainings``: the phases of a round; ``phases``: those of them in which clients send something; ``numbers``: how
    many numbers the largest message has.
    """

    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    trainings: int
    phases: int
    numbers: int

    @property
    def present(self) -> list[int]:
        """The clients that have images; the others never take part."""
        return [client for client, size in enumerate(self.sizes) if size > 0]


@dataclass(frozen=True)
class Spending:
    """What one unit spends at most: ``times`` independent repetitions of an event in a round; of a ``client``'s images
    or, without one, of any client."""

    event: DpEvent
    times: int = 1
    client: int | None = None


class Ledger:
    """Epsilon of a run with a mechanism at the config's delta. UserError where the claim cannot hold.

    ``multiplier``: the noise multiplier, relative to the sensitivity to one client or image more or less; solved where
    the config gives an epsilon, with a line to ``progress`` for every try, since one takes seconds.
    """

    def __init__(self, config: Config, facts: PublicFacts, progress: Callable[[str], object] = str) -> None:
        assert config.privacy is not None
        assert config.privacy.mechanism is not None, "there is something to account"
        if not facts.phases:
            raise UserError(
                "privacy.mechanism", f"{config.algorithm.name}, whose clients send nothing", "privacy: null"
            )
        check_claims(config, facts.sizes)
        self.config, self.facts = config, facts
        self.words: PrivacyConfig = config.privacy
        self.mechanism = config.privacy.mechanism
        assert self.words.delta is not None, "the config's words say so"
        self.delta = self.words.delta
        multiplier = self.words.noise_multiplier
        self.multiplier = self._solved(progress) if multiplier is None else multiplier
        if 0 < self.multiplier < LEAST_MULTIPLIER:
            raise UserError("privacy.noise_multiplier", f"{self.multiplier:g}", f"0, or {LEAST_MULTIPLIER:g} or more")
        if multiplier is not None and self.words.epsilon is not None:
            self._check_epsilon(self.words.epsilon)

    @property
    def is_record_level(self) -> bool:
        """Whether single images are protected, not clients."""
        return isinstance(self.mechanism, RecordLevel)

    @property
    def is_measured(self) -> bool:
        """Whether the sensitivity depends on earlier releases, so that the layer has to add up what is spent."""
        return isinstance(self.mechanism, NoiseRegulator) and self.mechanism.form == "released"

    @property
    def is_local(self) -> bool:
        """Whether every client's message has all the noise."""
        return isinstance(self.mechanism, ClientLevel) and self.mechanism.noise == "local"

    @property
    def is_amplified(self) -> bool:
        """Whether it counts that not all clients are in a round: only where whom noise protects from cannot see it."""
        return not self.is_record_level and is_drawn_in_secret(self.mechanism) and self.rate < 1

    @property
    def rate(self) -> float:
        """The share of the clients that a round draws."""
        return drawn_share(self.config, len(self.facts.present))

    @property
    def largest_weight(self) -> float:
        """The largest weight of a client in the mean: its share of all clients over the share that a round draws.

        Weights are fixed numbers, whoever is drawn, so that one client more or less changes its own term alone.
        """
        sizes = [self.facts.sizes[client] for client in self.facts.present]
        share = max(sizes) / sum(sizes) if self.config.clients.weighting == "samples" else 1 / len(sizes)
        return share / self.rate

    @property
    def numbers(self) -> int:
        """How many numbers of a message get noise on a lattice, not in floating point; quantile clipping adds one."""
        if self.is_record_level or self.is_measured:
            return 0
        has_count = isinstance(self.mechanism, ClientLevel) and isinstance(self.mechanism.clipping, QuantileClipping)
        return self.facts.numbers + has_count

    @property
    def update_multiplier(self) -> float:
        """The multiplier of the noise on the update itself, which quantile clipping shares with that on its count."""
        clipping = self.mechanism.clipping if isinstance(self.mechanism, ClientLevel) else None
        if not isinstance(clipping, QuantileClipping) or not self.multiplier:
            return self.multiplier
        return accounting.beside_count(self.multiplier, clipping.count_noise)

    def releases(self, rounds: int) -> int:
        """Return how often the server is told something of a client, or at record level how many steps one takes."""
        if self.is_record_level:
            return rounds * max(self.facts.steps) * self.facts.trainings
        return rounds * self.facts.phases

    def worst_client(self, rounds: int) -> int | None:
        """Return at record level the client whose images spend most; None where all clients spend alike."""
        return self._worst(self.multiplier, rounds, self.words.accountant)[1]

    def last_round(self, budget: float) -> int:
        """Return the last round, of those that the config has, after which no more than ``budget`` is spent."""
        low, high = 0, self.config.rounds
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.epsilon(middle) <= budget else (low, middle - 1)
        return low

    def epsilon(self, rounds: int) -> float:
        """Return epsilon after so many rounds, at the config's delta and by its accountant."""
        assert not self.is_measured, "the layer adds up what is spent, see epsilon_of"
        return self._worst(self.multiplier, rounds, self.words.accountant)[0]

    def epsilon_by(self, accountant: accounting.Accountant, rounds: int) -> float | None:
        """Return epsilon after so many rounds by one of the accountants; None where it has no event for the scheme."""
        if accountant == "pld" and self._has_fixed_size:
            return None
        return self._worst(self.multiplier, rounds, accountant)[0]

    def epsilon_of(self, squared_mu: float) -> float:
        """Return epsilon of what a layer has added up over its releases: (sensitivity to one client / deviation)^2.

        Each is a Gaussian release whose sensitivity follows from earlier ones. With a total that was fixed beforehand
        all together are as private as one of multiplier total^(-1/2) (Smith and Thakurta, arXiv 2210.17520); of a
        total that was not, this says what it would be.
        """
        mu = math.sqrt(squared_mu) * (2 if self.words.adjacency == "replace_one" else 1)
        return accounting.exact_epsilon(mu, self.delta)

    @property
    def _has_fixed_size(self) -> bool:
        return self.is_amplified and self.config.clients.sampling == "uniform"

    def _check_epsilon(self, most: float) -> None:
        spent = self.epsilon(self.config.rounds)
        if spent > most:
            found = f"{self.multiplier:g}, with which epsilon is {spent:.4g} after {self.config.rounds} rounds"
            raise UserError("privacy.noise_multiplier", found, f"null, or so much that it is {most:g} at most")

    def _solved(self, progress: Callable[[str], object]) -> float:
        target, rounds = self.words.epsilon, self.config.rounds
        assert target is not None, "the config's words say so"

        def tried(multiplier: float) -> float:
            found = self._worst(multiplier, rounds, self.words.accountant)[0]
            progress(f"noise multiplier {multiplier:.4g}: epsilon {found:.4g} after {rounds} rounds")
            return found

        # What the quicker accountant finds is close.
        start = accounting.solve(lambda multiplier: self._worst(multiplier, rounds, "rdp")[0], target)
        return start if self.words.accountant == "rdp" else accounting.solve(tried, target, start)

    def _worst(self, multiplier: float, rounds: int, accountant: accounting.Accountant) -> tuple[float, int | None]:
        """Return the largest epsilon of all units after so many rounds, and whose it is."""
        if rounds == 0:
            return 0.0, None
        if multiplier == 0:
            return math.inf, None
        delta = accounting.before_lattice(self.delta) if self.numbers else self.delta
        found: tuple[float, int | None] = (-1.0, None)
        # Who spends less by a quick bound than another one truly does need not be looked at more closely.
        times = {spending: spending.times * rounds for spending in self.spendings(multiplier)}
        bounds = {
            spending: accounting.epsilon_bound(spending.event, number, delta) for spending, number in times.items()
        }
        for spending in sorted(bounds, key=lambda one: -bounds[one]):
            if bounds[spending] <= found[0]:
                break
            spent = accounting.epsilon(spending.event, times[spending], delta, accountant)
            found = max(found, (spent, spending.client), key=lambda pair: pair[0])
        if self.numbers:
            return accounting.after_lattice(found[0], self.delta, self.numbers, self.releases(rounds)), found[1]
        return found

    def spendings(self, multiplier: float) -> Iterator[Spending]:
        """Give what units may spend in a round with a noise multiplier; what some spend more of than others, once."""
        phases = self.facts.phases
        if self.is_record_level:
            yield from self._record_spendings(multiplier)
            return
        multiplier = accounting.on_lattice(multiplier, self.numbers)
        if self.words.adjacency == "replace_one":
            multiplier /= 2  # one client's term goes and another's comes: twice the sensitivity
        if self._has_fixed_size:
            population = len(self.facts.present)
            drawn = min(self.config.clients.num_per_round, population)
            yield Spending(accounting.fixed_size(multiplier, phases, drawn, population))
        else:
            yield Spending(accounting.gaussian(multiplier, phases, self.rate if self.is_amplified else 1.0))

    def _record_spendings(self, multiplier: float) -> Iterator[Spending]:
        """Of the clients that take as many steps the smallest one, whose images are drawn most often."""
        batch, smallest = self.config.train.batch_size, {}
        for client in sorted(self.facts.present, key=lambda client: -self.facts.sizes[client]):
            smallest[self.facts.steps[client]] = client
        for steps, client in smallest.items():
            rate = min(1.0, batch / self.facts.sizes[client])
            # What is trained and not sent shapes what is sent later.
            yield Spending(accounting.gaussian(multiplier, rate=rate), steps * self.facts.trainings, client)
