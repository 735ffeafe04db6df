"""The networks: their inputs against the libraries called directly, and what cannot be read is said."""

import numpy as np
import pytest
import torch
import transformers

from balance.audio.fbank import FrontEnd, LogMel
from balance.errors import UserError
from balance.finetune.config import FinetuneConfig
from balance.finetune.networks import network_of

WAVE = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny AST with its feature extractor, as a user has it on disk."""
    folder = tmp_path_factory.mktemp("ast")
    config = transformers.ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_length=98,
        num_mel_bins=32, num_labels=5,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ASTForAudioClassification(config).save_pretrained(folder)
    transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=98).save_pretrained(folder)
    return folder


def test_the_small_cnn_hears_log_mel_and_answers_logits():
    network = network_of(FinetuneConfig(max_duration_s=1.0))
    front_end = FrontEnd(max_frames=98, num_mel_bins=64, mean=None, std=None, zero_mean=True)
    centred = torch.from_numpy(WAVE - WAVE.mean(dtype=np.float64).astype(np.float32))
    expected = LogMel(front_end)(centred[None], [16_000], 16_000)[0]
    np.testing.assert_array_equal(network.prepare(WAVE), expected)
    model = network.build(7, torch.tensor(-3.0), torch.tensor(2.0)).eval()
    batch = expected.repeat(2, 1, 1)
    assert model(batch).shape == (2, 7)
    moved = network.build(7, torch.tensor(0.0), torch.tensor(1.0)).eval()
    moved.load_state_dict({**model.state_dict(), "mean": torch.tensor(0.0), "std": torch.tensor(1.0)})
    torch.testing.assert_close(moved((batch + 3.0) / 2.0), model(batch))


def test_a_transformers_model_has_its_own_extractor_and_weights(folder):
    network = network_of(FinetuneConfig(model=str(folder), max_duration_s=1.0))
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    expected = extractor(WAVE, sampling_rate=16_000, return_tensors="np")["input_values"][0]
    np.testing.assert_array_equal(network.prepare(WAVE), expected)
    assert network.shape == expected.shape
    direct = transformers.ASTForAudioClassification.from_pretrained(folder)
    inputs = torch.from_numpy(expected)[None]
    same_labels = network.build(5, torch.tensor(0.0), torch.tensor(1.0)).eval()
    torch.testing.assert_close(same_labels(inputs), direct.eval()(inputs).logits)
    mine = network.build(3, torch.tensor(0.0), torch.tensor(1.0)).eval()
    assert mine(inputs).shape == (1, 3)
    name = "audio_spectrogram_transformer.layernorm.weight"
    torch.testing.assert_close(mine.model.state_dict()[name], direct.state_dict()[name])


def test_from_scratch_the_weights_are_random(folder):
    network = network_of(FinetuneConfig(model=str(folder), from_scratch=True, max_duration_s=1.0))
    torch.manual_seed(1)
    mine = network.build(5, torch.tensor(0.0), torch.tensor(1.0))
    name = "classifier.dense.weight"
    kept = transformers.ASTForAudioClassification.from_pretrained(folder).state_dict()[name]
    assert not torch.equal(mine.model.state_dict()[name], kept)


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(UserError, match="cannot be read as an audio classifier"):
        network_of(FinetuneConfig(model=str(tmp_path)))
