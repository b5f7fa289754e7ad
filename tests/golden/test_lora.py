"""LoRA layers, loss, gradients and metrics against the numbers of DEeR's released code (deer_lora.npz).

The release's own tolerance is 8e-6 (gradients 3e-5) against float64.
"""

import math

import pytest
import torch

from fedsim.algorithms.base import Step, Tensors
from fedsim.algorithms.lora.deer import DEeR
from fedsim.algorithms.lora.dp_dylora import DPDyLoRA, nested
from fedsim.algorithms.lora.ffa_lora import FFALoRA
from fedsim.models.lora_start import initial_factor
from fedsim.models.specs import ParamSpec
from fedsim.models.stacked import StackedModel
from fedsim.tasks.task import classification_metrics, cross_entropy
from tests.golden.clip import (
    as_params,
    assert_close,
    below,
    build,
    build_tower,
    find_num_heads,
    load,
    load_words,
    numbers,
    tags,
)
from tests.helpers import facts_of, step_of

GOLDEN, WORDS = load("deer_lora"), load_words("deer_lora")
BASE = below(GOLDEN, "base/")
IMAGE_SIZE = GOLDEN["x"].shape[-1]
RANKS = numbers(GOLDEN, r"r(\d+)/")
# The release's alpha is the same for every rank.
ALPHA = RANKS[0] * GOLDEN[f"r{RANKS[0]}/scaling"].item()
every_rank = pytest.mark.parametrize("r", RANKS)


def base_error(num_heads: int) -> float:
    with torch.no_grad():
        return (build_tower(BASE, IMAGE_SIZE, num_heads)(GOLDEN["x"]) - GOLDEN["base_out"]).abs().max().item()


NUM_HEADS = find_num_heads(BASE["trunk.cls_token"].shape[-1], base_error)


def golden_model(r: int) -> StackedModel:
    tower = build_tower(BASE, IMAGE_SIZE, NUM_HEADS)
    scale = GOLDEN[f"r{RANKS[0]}/logit_scale_init"].item()
    return build(tower, GOLDEN["loss/text_features"], IMAGE_SIZE, r, ALPHA, scale)


def test_base_tower() -> None:
    tower = build_tower(BASE, IMAGE_SIZE, NUM_HEADS)
    with torch.no_grad():
        found = {
            "base_out": tower(GOLDEN["x"]),
            "base_qkv_out": tower.blocks[0].attn.qkv(GOLDEN["tokens"]),
            "base_block0_out": tower.blocks[0](GOLDEN["tokens"]),
        }
    for name, value in found.items():
        assert_close(value, GOLDEN[name], name)


@every_rank
def test_outputs(r: int) -> None:
    model = golden_model(r)
    for layer in model.lora_layers:
        assert layer.module.scaling == GOLDEN[f"r{r}/scaling"]
        layer.bind(as_params(below(GOLDEN, f"r{r}/lora/")))
    block = model.net.blocks[0]
    with torch.no_grad():
        found = {
            "qkv_out": block.attn.qkv(GOLDEN["tokens"]),
            "block0_out": block(GOLDEN["tokens"]),
            "out": model.net(GOLDEN["x"]),
        }
    for name, value in found.items():
        assert_close(value, GOLDEN[f"r{r}/{name}"], name)


@every_rank
def test_start(r: int) -> None:
    model = golden_model(r)
    params = model.initial(seed=0)
    torch.testing.assert_close(params["logit_scale"], GOLDEN[f"r{r}/logit_scale_init"], rtol=1e-7, atol=0)
    assert params["logit_scale"].item() == pytest.approx(math.log(1 / 0.07), rel=1e-6)
    for layer in model.lora_layers:
        layer.bind(params)
    with torch.no_grad():
        out = model.net(GOLDEN["x"])
    assert_close(out, GOLDEN[f"r{r}/out_at_init"])

    bound = GOLDEN[f"r{r}/A_init_bound"].item()
    sample = GOLDEN[f"r{r}/A_init_sample"]
    shape = (3, r, sample.shape[-1])
    num_seeds = math.ceil(20_000 / math.prod(shape))
    drawn = torch.cat([initial_factor("x.lora_a", shape, seed).flatten() for seed in range(num_seeds)])
    assert drawn.abs().max() <= bound
    assert drawn.abs().max() > 0.999 * bound
    # The mean square of n uniform variables is bound^2 / 3, give or take (0.8 / n)^0.5 of it.
    for draws in (drawn, sample):
        within = 5 * math.sqrt(0.8 / draws.numel())
        assert draws.square().mean().item() == pytest.approx(bound**2 / 3, rel=within)
    assert GOLDEN[f"r{r}/B_init_all_zero"]
    assert all(not params[name].any() for name in params if name.endswith("lora_b"))


@every_rank
def test_what_trains(r: int) -> None:
    specs = golden_model(r).specs
    released = {key: set(WORDS[f"r{r}/{key}"]) for key in ("trainable", "trainable_FFA")}

    def trained(kinds: frozenset[str]) -> set[str]:
        """Which of the release's names train, with ours of three slices in place of the release's three."""
        ours = {name for name, spec in specs.items() if spec.kind in kinds}
        factors = {name: torch.zeros(1, 1) for name in released["trainable"] if "lora_" in name}
        every = {"logit_scale", *as_params(factors)}
        assert ours <= every
        return {
            name
            for name in released["trainable"]
            if name in ours or any(_is_slice_of(name, ours_name) for ours_name in ours)
        }

    (ffa,) = FFALoRA(None, facts_of(specs)).phases(1)
    phase_b, phase_a = DEeR(None, facts_of(specs)).phases(1)
    assert trained(ffa.kinds) == trained(phase_b.kinds) == released["trainable_FFA"]
    assert trained(phase_a.kinds) == {n for n in released["trainable"] if "linear_b" not in n}
    assert trained(phase_a.kinds | phase_b.kinds) == released["trainable"]


def _is_slice_of(released: str, ours: str) -> bool:
    layer, _, factor = ours.rpartition(".lora_")
    return f".{layer}.linear_{factor}_" in released


def test_loss_and_gradients() -> None:
    factors = below(GOLDEN, "loss/lora/")
    r = next(len(value) for name, value in factors.items() if "linear_a" in name)
    model = golden_model(r)
    start = as_params({**factors, "logit_scale": GOLDEN[f"r{r}/logit_scale_init"]})
    params = {name: value[None].clone().requires_grad_() for name, value in start.items()}
    labels = GOLDEN["loss/labels"][None]
    logits = model.forward(params, model.prefix(GOLDEN["x"])[None], training=True)
    weights = torch.full(labels.shape, 1 / labels.shape[1])
    (loss,) = cross_entropy(logits, labels, weights)
    loss.backward()

    for layer in model.lora_layers:
        layer.bind(start)
    with torch.no_grad():
        assert_close(model.net(GOLDEN["x"]), GOLDEN["loss/features"])
    assert_close(logits[0], GOLDEN["loss/logits"])
    assert_close(loss, GOLDEN["loss/loss"])
    expected = as_params(below(GOLDEN, "loss/grad/"))
    assert expected.keys() == params.keys()
    for name, value in expected.items():
        assert params[name].grad is not None
        assert_close(params[name].grad[0], value, name)


def test_metrics() -> None:
    # The golden scores are probabilities; ours are taken before the softmax, which undoes the logarithm.
    found = classification_metrics(GOLDEN["metrics/scores"].double().log(), GOLDEN["metrics/gt"])
    names = ("accuracy", "recall", "precision", "f1", "auroc")
    for name, value in zip(names, [*GOLDEN["metrics/acc_recall_prec_f1"], GOLDEN["metrics/auc"]], strict=True):
        assert found[name] == pytest.approx(value.item(), abs=1e-12)


MAX_RANK = int(GOLDEN["dylora/max_rank"])
DYNAMIC = tags(GOLDEN, r"dylora/dynamic/(\w+_frozen[01]_rank-?\d+)/out")


def dylora(form: str, frozen: bool = False, shape: tuple[int, ...] = (1, 1, MAX_RANK)) -> DPDyLoRA:
    config = DPDyLoRA.Config.model_validate({"form": form, "frozen": frozen})
    return DPDyLoRA(config, facts_of({"b": ParamSpec(shape, "lora_b")}))


@pytest.mark.parametrize("case", DYNAMIC)
def test_nested_ranks(case: str) -> None:
    """The release counts from 0, clamps to one too many, and counts that one in the factor."""
    golden = below(GOLDEN, f"dylora/dynamic/{case}/")
    value, columns = GOLDEN["dylora/dynamic/in"], golden["out"].shape[1]
    index = int(golden["get_rank"])
    weights = torch.zeros(value.shape)
    weights[:, :columns] = torch.arange(1.0, golden["out"].numel() + 1).view(golden["out"].shape)
    seen: list[torch.Tensor] = []

    def grad_of(params: Tensors) -> Tensors:
        seen.append(params["b"])
        return {"b": weights.expand_as(params["b"])}

    if case.startswith("train") and index < MAX_RANK:
        method = dylora("released", "frozen1" in case, (1, *value.shape))
        step = Step(**step_of(chance=torch.tensor([index / MAX_RANK], dtype=torch.float64)))
        grad = method.gradient({"b": value[None, None]}, grad_of, step)["b"][0, 0]
        (found,) = seen
    else:
        scale = nested(torch.tensor(index + 1), MAX_RANK).float()
        found, grad = (value * scale)[None, None], weights * scale
    assert_close(found[0, 0, :, :columns], golden["out"], "out")
    assert not found[..., columns:].any()
    assert_close(grad, golden["grad_of_weighted_sum"], "gradient")


def outputs_at(params: Tensors) -> dict[str, torch.Tensor]:
    model = golden_model(MAX_RANK)
    for layer in model.lora_layers:
        layer.bind(params)
    with torch.no_grad():
        return {"qkv_out": model.net.blocks[0].attn.qkv(GOLDEN["tokens"]), "out": model.net(GOLDEN["x"])}


@pytest.mark.parametrize("form", ["paper", "released"])
def test_models_of_every_rank(form: str) -> None:
    specs = golden_model(MAX_RANK).specs
    method = DPDyLoRA(DPDyLoRA.Config.model_validate({"form": form}), facts_of(specs))
    params = as_params(below(GOLDEN, "dylora/lora/"))
    indices = numbers(GOLDEN, r"dylora/rank(\d+)/")
    models = {rank: method.choices(params)[rank] for rank in method.choices(params)}
    # In the paper's form rank b is the release's index b - 1; the release's own validation sets the index to b.
    less = 1 if form == "paper" else 0
    assert {rank - less for rank in models} <= set(indices)
    assert MAX_RANK in models
    for rank, model in models.items():
        for name, value in outputs_at(model).items():
            assert_close(value, GOLDEN[f"dylora/rank{rank - less}/{name}"], f"{rank}, {name}")
    for index in indices:
        found = outputs_at(method.scaled(params, nested(torch.tensor(index + 1), MAX_RANK)))
        for name, value in found.items():
            assert_close(value, GOLDEN[f"dylora/rank{index}/{name}"], f"index {index}, {name}")


def test_drawn_ranks() -> None:
    (draws,) = (value for name, value in GOLDEN.items() if name.startswith("dylora/randint_draws_"))
    drawn = set()
    for chance in torch.linspace(0, 1, 101, dtype=torch.float64)[:-1]:
        step = Step(**step_of(chance=chance[None]))
        grads = dylora("released").gradient({"b": torch.ones(1, 1, 1, MAX_RANK)}, lambda params: params, step)
        drawn.add(int((grads["b"] != 0).sum()) - 1)
    assert set(draws.tolist()) <= drawn == set(range(MAX_RANK))
