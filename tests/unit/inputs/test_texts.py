"""Texts through a whole simulation: padded by batch, and each client's result its own."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.data import Dataset
from fedsim.errors import UserError
from fedsim.inputs.texts import PADDING, tokenise
from fedsim.measure.scores import evaluate, evaluation_rows
from fedsim.models.encoders import load_encoder
from fedsim.models.export import export_peft
from fedsim.simulation import Simulation
from tests.helpers import furthest, make_config, make_dataset, make_simulation, play
from tests.unit.models.models_hugging_folders import WORDS, write_hugging

LORA = {"r": 2, "lora_alpha": 4, "target": ["q", "k", "v"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    write_hugging(path)
    return path


def make_texts(sizes: Sequence[int], pairs: bool, targets: bool) -> tuple[Dataset, list[np.ndarray]]:
    """Texts of 1 to 8 words; the first word tells the class, its place in the list the number."""
    num_train = sum(sizes)
    stream = np.random.default_rng(1)
    words = [[WORDS[w] for w in stream.integers(8, size=stream.integers(1, 9))] for _ in range(num_train + 24)]
    texts = tuple((" ".join(own), own[0]) if pairs else (" ".join(own),) for own in words)
    first = torch.tensor([WORDS.index(own[0]) for own in words])
    train, val, test = np.split(np.arange(len(words)), [num_train, num_train + 12])
    labels, names = (first * 0, ("place",)) if targets else (first // 4, ("low", "high"))
    numbers = first.float() if targets else None
    nothing = torch.zeros(len(words), 0, dtype=torch.uint8)
    dataset = Dataset("texts", nothing, labels, names, train, val, test, None, None, (), texts=texts, targets=numbers)
    return dataset, np.split(stream.permutation(train), np.cumsum(sizes)[:-1])


def simulate(
    folder: Path,
    per_block: int,
    *,
    pairs: bool = False,
    targets: bool = False,
    max_tokens: int | None = None,
    **model: Any,
) -> Simulation:
    sizes = (17, 5, 9)
    dataset, parts = make_texts(sizes, pairs, targets)
    config = make_config(
        model={"name": f"hf:{folder}", **model},
        clients={"count": len(sizes), "per_block": per_block},
        data={"name": "rated_sentences", "image_size": 28, "max_tokens": max_tokens},
        train={"batch_size": 4, "lr": 0.02, "epochs": 2},
        evaluate={"best_by": "loss", "batch_size": 5},
    )
    return make_simulation(config, dataset, parts)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
@pytest.mark.parametrize("targets", [False, True], ids=["classes", "numbers"])
@pytest.mark.parametrize("model", [{"lora": LORA}, {"train": "head"}, {"train": "all"}], ids=["lora", "head", "all"])
def test_a_block_gives_what_its_clients_give_one_by_one(folder: Path, model: Any, targets: bool, pairs: bool) -> None:
    """Whatever the texts of the others, whose length decides on the padding."""
    one, block = (simulate(folder, size, pairs=pairs, targets=targets, **model) for size in (1, 3))
    states = [play(sim, 2)[0] for sim in (one, block)]
    assert furthest(states[0].params, states[1].params)[0] < 1e-5
    metrics = [evaluate(sim, state.params) for sim, state in zip((one, block), states, strict=True)]
    assert metrics[0]["test"]["loss"] == pytest.approx(metrics[1]["test"]["loss"], rel=1e-4)
    before = evaluate(one, one.initial_state().params)
    assert metrics[0]["val"]["loss"] != before["val"]["loss"], "something was learned"


def test_batches_are_as_wide_as_their_longest_text(folder: Path) -> None:
    sim = simulate(folder, 1, lora=LORA)
    lengths = [len(text.split()) + 2 for (text,) in sim.dataset.texts or ()]
    short, long = int(np.argmin(lengths)), int(np.argmax(lengths))
    assert lengths[short] < lengths[long]
    for places, width in (([short], lengths[short]), ([short, long], lengths[long])):
        ids = sim.images.evaluation_batch(np.array(places))[0, :, 0]
        assert ids.shape[1] == width
        assert (ids[0] == PADDING).sum() == width - lengths[short]


@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
def test_the_exported_adapter_gives_the_scores_that_were_evaluated(folder: Path, pairs: bool, tmp_path: Path) -> None:
    """The README's own lines, in another process's place: texts in, scores out."""
    sim = simulate(folder, 3, pairs=pairs, max_tokens=6, lora=LORA)
    state = play(sim, 2)[0]
    export_peft(tmp_path, state.params, sim.model, sim.config.data.max_tokens)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    places = sim.dataset.test
    texts = [sim.dataset.texts[place] if pairs else sim.dataset.texts[place][0] for place in places]
    found: dict[str, Any] = {"FOLDER": str(tmp_path), "texts": texts}
    with torch.no_grad():
        exec(code, found)
    rows = evaluation_rows(sim.task, sim.model, state.params, sim.images, places, 5, sim.group)
    torch.testing.assert_close(found["logits"], rows, rtol=1e-4, atol=1e-5)


def test_ids_and_segments(folder: Path) -> None:
    config = make_config(model={"name": f"hf:{folder}", "train": "head"}).model
    tokenizer = load_encoder(config, 16, ["x"], 0).tokenizer
    tokens = tokenise((("Good scan", "mri"), ("a", "nonsense b")), tokenizer, None)
    assert tokens[:, 0].tolist() == [[2, 8, 11, 3, 10, 3], [2, 4, 3, 1, 5, 3]]
    assert tokens[:, 1].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    cut = tokenise((("a b c d",), ("a",)), tokenizer, 4)
    assert cut[:, 0].tolist() == [[2, 4, 5, 3], [2, 4, 3, PADDING]]
    assert tokenise((("a " * 50,),), tokenizer, None).shape == (1, 2, 20), "the model has 20 positions"
    with pytest.raises(UserError, match=r"data\.max_tokens: found 21; expected at most the model's 20"):
        tokenise((("a",),), tokenizer, 21)


def test_encoder_and_set_must_be_of_one_kind(folder: Path) -> None:
    dataset, parts = make_dataset([4])
    config = make_config(model={"name": f"hf:{folder}", "train": "head"}, clients={"per_block": 1})
    with pytest.raises(
        UserError, match=r"model\.name: found hf:.*, which takes texts, with made up; expected one for im"
    ):
        make_simulation(config, dataset, parts)
    texts, parts = make_texts([4], pairs=False, targets=False)
    with pytest.raises(UserError, match=r"which takes images, with texts; expected one for texts"):
        make_simulation(make_config(clients={"per_block": 1}), texts, parts)


def test_pairs_need_a_model_that_tells_two_texts_apart(tmp_path: Path) -> None:
    write_hugging(tmp_path, type_vocab_size=1)
    assert simulate(tmp_path, 3, train="head").images.num_elements > 0
    with pytest.raises(UserError, match="tokenizer that tells 2 kinds of text apart; expected the model's 1 at most"):
        simulate(tmp_path, 3, pairs=True, train="head")


def tokenizer_of(folder: Path, **changes: Any) -> Any:
    write_hugging(folder, **changes)
    config = make_config(model={"name": f"hf:{folder}", "train": "head"}).model
    return load_encoder(config, 16, ["x"], 0).tokenizer


def test_texts_of_which_the_tokenizer_knows_less_than_half(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path)
    known = tokenise((("good scan kidney",), ("bad lung liver",)), tokenizer, None)
    assert known[:, 0].tolist() == [[2, 8, 11, 1, 3], [2, 9, 1, 1, 3]]
    with pytest.raises(UserError, match=r"knows 2 of the texts' 5 words"):
        tokenise((("good scan kidney",), ("lung liver",)), tokenizer, None)


@pytest.mark.parametrize(("max_tokens", "where"), [(2, r"data\.max_tokens"), (1, r"data\.max_tokens")])
def test_no_room_for_words(tmp_path: Path, max_tokens: int, where: str) -> None:
    tokenizer = tokenizer_of(tmp_path)
    with pytest.raises(UserError, match=rf"{where}: found room for {max_tokens} tokens; expected more than the 2"):
        tokenise((("good",),), tokenizer, max_tokens)
    with pytest.raises(UserError, match="expected more than the 3"):
        tokenise((("good", "bad"),), tokenizer, 3)


@pytest.mark.parametrize("positions", [1, 2])
def test_a_model_without_room_for_words(tmp_path: Path, positions: int) -> None:
    tokenizer = tokenizer_of(tmp_path, max_position_embeddings=positions)
    with pytest.raises(UserError, match=rf"model\.name: found room for {positions} tokens"):
        tokenise((("good",),), tokenizer, None)
