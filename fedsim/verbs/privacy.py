"""What a config spends and who sees what, without training: the answer of ``launch.py privacy``."""

import math
from collections.abc import Callable, Iterator

from fedsim.algorithms.base import Algorithm, Phase
from fedsim.build import assemble, load_parts
from fedsim.comm.group import open_group
from fedsim.config.experiment import Config
from fedsim.config.privacy import ClientLevel, NoiseRegulator, PrivacyConfig
from fedsim.errors import UserError
from fedsim.privacy import deer_release
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.refusals import check_claims

Rows = Iterator[tuple[str, str]]


def describe(config: Config, progress: Callable[[str], object] = str) -> list[tuple[str, str]]:
    """Load data and model and return the ledger as rows of name and text; ``progress`` gets a line per slow step."""
    if config.privacy is None:
        expected = "a section, such as privacy='{mechanism: {name: client, bound: 1.0}, epsilon: 8, delta: 1e-3}'"
        raise UserError("privacy", "null", expected)
    words = config.privacy
    with open_group() as group:
        parts = load_parts(config, group.device)
        sizes = parts.clients.sizes
        if words.mechanism is None:
            check_claims(config, sizes)
            return [("protects", "nothing: there is no mechanism, and epsilon is infinite"), *seen(words)]
        sim = assemble(config, group, parts, progress=progress)
        ledger = sim.ledger
        assert ledger is not None, "there is a mechanism"
    return [*statement(ledger), *noise(ledger), *spent(ledger), *seen(words), *released(ledger, sim.algorithm)]


def statement(ledger: Ledger) -> Rows:
    """What is protected, from whom, and between which data sets."""
    words, clients = ledger.words, ledger.config.clients
    unit = "image" if ledger.is_record_level else "client"
    yield "protects", "single images of every client" if ledger.is_record_level else "whole clients"
    neighbours = {"add_remove": f"one {unit} more or less", "replace_one": f"one {unit} replaced by any other"}
    yield "neighbours", f"{neighbours[words.adjacency]} ({words.adjacency}); delta {ledger.delta:g}"
    if ledger.is_record_level:
        size = ledger.config.train.batch_size
        yield "sampling", f"Poisson: every image is in a batch with probability {size} over its client's images"
    elif not ledger.is_amplified:
        reason = "" if ledger.rate == 1 else ", since the server sees who takes part"
        yield "sampling", f"not counted on: every client is taken to be in every round{reason}"
    else:
        scheme = "Poisson" if clients.sampling == "poisson" else "a fixed number without replacement"
        yield "sampling", f"{scheme}: a client is in a round with probability {ledger.rate:g}"


def noise(ledger: Ledger) -> Rows:
    """The mechanism in numbers."""
    mechanism, words = ledger.mechanism, ledger.words
    kinds = mechanism.model_dump(mode="json")
    kinds |= {key: value["name"] for key, value in kinds.items() if isinstance(value, dict)}
    yield "mechanism", ", ".join(f"{key} {value}" for key, value in kinds.items())
    how = f"solved for epsilon {words.epsilon:g}" if words.epsilon else "given"
    yield "noise multiplier", f"{ledger.multiplier:g} ({how}), over the sensitivity to one more or less"
    if ledger.multiplier == 0:
        yield "remark", "noise_multiplier 0 clips only: nothing is private, epsilon is infinite"
    if ledger.is_record_level:
        yield "sensitivity", f"{mechanism.bound:g}, of the sum of a batch's gradients"
        yield "sigma", f"{ledger.multiplier * mechanism.bound:g}, on that sum"
        return
    if ledger.is_measured:
        yield "sensitivity", f"depends on the factors: every matrix by itself is clipped to {mechanism.bound:g}"
        deviation = ledger.multiplier * mechanism.bound / math.sqrt(len(ledger.facts.sizes))
        yield "sigma", f"{deviation:g}, of every client's noise before the other factor shapes it"
        return
    weight = 1.0 if ledger.is_local else ledger.largest_weight
    of = "of a client's message" if ledger.is_local else f"of the mean: the largest weight {weight:g} times the bound"
    times = 2 if words.adjacency == "replace_one" else 1
    yield "sensitivity", f"{times * weight * mechanism.bound:g}, {of}" + (", and twice that" if times == 2 else "")
    yield "sigma", f"{ledger.update_multiplier * weight * mechanism.bound:g}"
    if ledger.update_multiplier != ledger.multiplier:
        yield "remark", "of the noise multiplier a part goes to the count of unclipped clients"


def spent(ledger: Ledger) -> Rows:
    """Releases, and epsilon over the rounds."""
    rounds = ledger.config.rounds
    what = "steps of the busiest client" if ledger.is_record_level else "releases"
    yield what, f"{ledger.releases(1):,} a round, {ledger.releases(rounds):,} in all {rounds} rounds"
    if ledger.is_measured:
        yield "epsilon", "depends on the factors: it is added up while the run goes on, and stands in metrics.jsonl"
        return
    yield "accountant", f"{ledger.words.accountant}; dp-accounting"
    for number in milestones(rounds):
        found = {name: ledger.epsilon_by(name, number) for name in ("pld", "rdp")}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items() if value is not None)
        yield f"epsilon, {number} round{'s' if number > 1 else ''}", shown
    worst = ledger.worst_client(rounds)
    if worst is not None:
        yield "worst client", f"{worst}, with {ledger.facts.sizes[worst]} images; of no other more is spent"
    if ledger.words.budget is not None:
        yield "budget", f"{ledger.words.budget:g}: the last round is {ledger.last_round(ledger.words.budget)}"


def milestones(rounds: int) -> list[int]:
    """The rounds 1, 2, 5, 10, 20 ... and the last one."""
    steps = [lead * 10**power for power in range(len(str(rounds))) for lead in (1, 2, 5)]
    return [*(step for step in steps if step < rounds), rounds]


def seen(words: PrivacyConfig) -> Rows:
    """What who would see that runs the server."""
    masked = words.secure_aggregation is not None
    mechanism = words.mechanism
    if isinstance(mechanism, ClientLevel) and mechanism.noise == "local":
        before = "noised by the client itself"
    elif mechanism is None or mechanism.name in ("client", "noise_regulator"):
        before = "without noise; to be private from the server, too, it takes secure_aggregation and noise: distributed"
    else:
        before = "of noised steps"
    message = "sums over a round's clients alone" if masked else f"every client's message, {before}"
    yield "the server sees", f"{message}; who takes part; the largest element of every tensor, for its grid"
    if words.observe:
        seen = "losses, norms and scores of single clients in the log, and who takes part, are not private"
        yield "simulation only", f"{seen}; observe: false"
    yield "noise", "follows from the config's seed: in a simulation who knows that knows the noise"


def released(ledger: Ledger, algorithm: Algorithm) -> Rows:
    """What DEeR's published code claims for this noise, beside what is true of it."""
    is_theirs = isinstance(ledger.mechanism, NoiseRegulator) or ledger.config.algorithm.name == "deer"
    if not is_theirs or ledger.is_record_level or ledger.multiplier == 0:
        return
    train, rounds = ledger.config.train, ledger.config.rounds
    sizes, clients = ledger.facts.sizes, len(ledger.facts.sizes)
    epochs = train.epochs or train.steps * train.batch_size * clients / sum(sizes)  # type: ignore[operator]  # one of both
    plan = (rounds, epochs, train.batch_size, sizes)
    multiplier, claimed = ledger.multiplier, ledger.words.epsilon
    if claimed is None:
        claimed = deer_release.claimed_epsilon(multiplier, 1 / clients, *deer_release.plan(*plan))
    else:
        multiplier = deer_release.noise_multiplier(claimed, 1 / clients, *plan)
    matrices = max(count_matrices(algorithm, phase) for phase in algorithm.phases(1))
    true = deer_release.true_epsilon(multiplier, matrices, ledger.releases(rounds), ledger.delta)
    yield (
        "DEeR's release",
        f"claims epsilon {claimed:.3g} at delta {1 / clients:.3g} for noise multiplier {multiplier:g}",
    )
    yield (
        "which is truly",
        f"epsilon {true:,.1f} at delta {ledger.delta:g} for a whole client: {matrices} matrices clipped one by one, "
        f"{ledger.releases(rounds)} releases, without the regulator",
    )


def count_matrices(algorithm: Algorithm, phase: Phase) -> int:
    """Return how many LoRA matrices a phase trains: q, k and v of a layer are one tensor and three matrices."""
    lora = [spec for spec in algorithm.specs.values() if spec.kind in ("lora_a", "lora_b")]
    return sum(math.prod(spec.shape[:-2]) for spec in lora if spec.kind in phase.kinds)
