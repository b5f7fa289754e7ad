"""Amplitude normalisation by hand, against whole spectra of numpy, and in front of stacked models."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.config.amplitude import AmplitudeNormConfig
from fedsim.models.amplitude import AmplitudeNorm, low_frequencies
from fedsim.models.export import export_peft
from fedsim.models.specs import AMPLITUDE, AMPLITUDE_IS_FIXED
from tests.helpers import LORA, TINY_VIT, cohort_of, play, simulate, train_alone

CLOSE = {"rtol": 0, "atol": 1e-6}
SHAPES = [(1, 1, 4, 4), (3, 3, 8, 6), (2, 5, 7, 9), (4, 2, 5, 8)]


def make_norm(shape: tuple[int, ...], **words: Any) -> AmplitudeNorm:
    return AmplitudeNorm(AmplitudeNormConfig(**words), *shape[-3:])


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_two_pixels_by_hand() -> None:
    """The spectrum of a pair of pixels is their sum and their difference."""
    norm = make_norm((1, 1, 2), momentum=0.5)
    first = torch.tensor([[[[3.0, 1.0]]], [[[0.0, 4.0]]]])
    # Sums 4 and 4, differences 2 and -4: the target is 4, 3.
    assert norm(first).flatten().tolist() == pytest.approx([3.5, 0.5, 0.5, 3.5])
    assert norm.amplitude.flatten().tolist() == pytest.approx([4, 3])
    # Sum 8, difference 0, which has no phase: half way to it the target is 6, 1.5.
    assert norm(torch.full((1, 1, 1, 2), 4.0)).flatten().tolist() == pytest.approx([3, 3])
    assert norm.amplitude.flatten().tolist() == pytest.approx([6, 1.5])


@pytest.mark.parametrize("fraction", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_whole_spectra_of_numpy(shape: tuple[int, ...], fraction: float) -> None:
    images = pixels(*shape)
    found = make_norm(shape, low_freq_fraction=fraction)(images).numpy()
    spectra = np.fft.fftshift(np.fft.fft2(images.double().numpy()), axes=(-2, -1))
    bound = max(shape) if fraction == 1 else int(min(shape[-2:]) * fraction)
    rows, columns = (slice(max(0, size // 2 - bound), size // 2 + bound + 1) for size in shape[-2:])
    target = np.abs(spectra).mean(0)[..., rows, columns]
    spectra[..., rows, columns] = target * np.exp(1j * np.angle(spectra[..., rows, columns]))
    expected = np.fft.ifft2(np.fft.ifftshift(spectra, axes=(-2, -1)))
    assert np.abs(expected.imag).max() < 1e-12
    np.testing.assert_allclose(found, expected.real, rtol=0, atol=1e-6)


def test_window_by_hand() -> None:
    assert low_frequencies(5, 6, 0.2).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [0] * 4, [1, 1, 0, 0]]
    # At 1 all is inside, however long one side is.
    assert low_frequencies(4, 64, 1.0).all()
    assert not low_frequencies(4, 64, 0.9).all()


def test_only_training_moves_the_target_and_only_while_it_is_free() -> None:
    norm = make_norm((3, 8, 8))
    images = pixels(2, 3, 8, 8)
    assert torch.equal(norm.eval()(images), images), "there is no target yet"
    norm.train()(images)
    before = norm.amplitude.clone()
    changed = norm.eval()(2 * images)
    assert torch.equal(norm.amplitude, before)
    torch.testing.assert_close(changed, norm(images), **CLOSE)
    norm.is_fixed.fill_(True)
    torch.testing.assert_close(norm.train()(2 * images), changed, **CLOSE)
    assert torch.equal(norm.amplitude, before)
    assert set(norm.state_dict()) == {"amplitude", "is_fixed"}


def test_a_blank_image_stays_blank() -> None:
    """All but its sum is rounding: that must not be raised to anything."""
    norm = make_norm((1, 8, 8)).eval()
    norm.amplitude.fill_(1.0)
    for grey in (0.0, 0.1, 0.7, 1.0, -0.3):
        found = norm(torch.full((1, 1, 8, 8), grey))
        torch.testing.assert_close(found, torch.full((1, 1, 8, 8), -1 / 64 if grey < 0 else 1 / 64), **CLOSE)


def test_clients_of_a_block_have_targets_of_their_own() -> None:
    images = pixels(3, 4, 2, 6, 5)
    together = make_norm((2, 6, 5))
    together.amplitude = torch.zeros(3, 2, 6, 3)
    together.is_fixed = torch.tensor([False, False, True])
    for seed in (1, 2):
        found = together(images + pixels(3, 4, 2, 6, 5, seed=seed))
    for client in range(3):
        alone = make_norm((2, 6, 5))
        alone.is_fixed = together.is_fixed[client]
        for seed in (1, 2):
            expected = alone((images + pixels(3, 4, 2, 6, 5, seed=seed))[client])
        torch.testing.assert_close(found[client], expected, **CLOSE)
        torch.testing.assert_close(together.amplitude[client], alone.amplitude, **CLOSE)


@pytest.mark.parametrize("train", ["head", "lora", "all"])
def test_a_model_sees_harmonised_images(train: str) -> None:
    """What is cached are images; with the target in its place the rest of the model works as on images with it."""
    words = {**TINY_VIT, "train": train, **({"lora": LORA} if train == "lora" else {})}
    sim = simulate([20], 1, model={**words, "amplitude_norm": {}})
    plain = simulate([20], 1, model=words)
    end, _ = play(sim, 1)
    places = torch.from_numpy(sim.parts[0])
    images = sim.images.images[places].float() / 255
    assert torch.equal(sim.images.plain_batch(places[None])[0], images)
    norm = make_norm(images.shape).eval()
    norm.amplitude.copy_(end.params[AMPLITUDE])
    own = {name: value for name, value in end.params.items() if name in plain.model.specs}
    with torch.no_grad():
        found = sim.model.forward(end.params, images[None], training=False)
        expected = plain.model.forward(own, plain.model.prefix(norm(images))[None], training=False)
    torch.testing.assert_close(found, expected)


def test_target_of_a_client_is_the_running_mean_of_its_own_batches() -> None:
    """Batches of 8, 8 and 4: the places that the last leaves empty do not count."""
    model = {**TINY_VIT, "lora": LORA, "amplitude_norm": {"momentum": 0.25}}
    for method in ("fedavg", "fedsam"):
        train = {"batch_size": 8, "shuffle": False}
        sim = simulate([20, 33], 2, model=model, train=train, algorithm={"name": method})
        state = sim.initial_state()
        update, _ = sim.trainer.train((1, 0), cohort_of(1, 0), state, sim.algorithm.phases(1)[0], [{}, {}])
        norm = make_norm((3, 14, 14), momentum=0.25)
        for places in torch.from_numpy(sim.parts[0]).split(8):
            norm(sim.images.images[places].float() / 255)
        torch.testing.assert_close(update.after[AMPLITUDE][1], norm.amplitude)
        assert not update.after[AMPLITUDE_IS_FIXED].any()


def test_an_adapter_brings_the_target(tmp_path: Path) -> None:
    """What its README says gives the trained model's scores."""
    model = {**TINY_VIT, "lora": LORA, "amplitude_norm": {"low_freq_fraction": 0.3}}
    sim = simulate([20], 1, model=model)
    end, _ = play(sim, 1)
    export_peft(tmp_path, end.params, sim.model)
    load, normalise = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    names = {"FOLDER": str(tmp_path), "images": sim.images.images[:5].float() / 255}
    exec(normalise, names)
    mean, std = (torch.tensor(getattr(sim.model.encoder, name)).view(1, 3, 1, 1) for name in ("mean", "std"))
    names["images"] = (names["images"] - mean) / std
    with torch.no_grad():
        exec(load, names)
        expected = sim.model.forward(end.params, sim.images.plain_batch(torch.arange(5)[None]), training=False)[0]
    torch.testing.assert_close(names["logits"], expected, rtol=1e-4, atol=1e-5)


def test_released_form_is_the_mean_of_the_first_batch() -> None:
    model = {**TINY_VIT, "train": "head", "amplitude_norm": {"form": "released"}}
    sim = simulate([20], 1, model=model, train={"batch_size": 8, "shuffle": False, "epochs": 2})
    target = train_alone(sim, 0, sim.initial_state()).after[AMPLITUDE][0]
    first = sim.images.images[torch.from_numpy(sim.parts[0][:8])].double() / 255
    expected = torch.fft.rfft2(first).abs().mean(0).float()
    torch.testing.assert_close(target, expected, rtol=1e-5, atol=1e-5)
