"""Tiny models of transformers with random weights, each saved to a folder with its feature extractor."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import transformers

RATE_HZ = 16_000
_WAV2VEC2 = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (8, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_CLAP_AUDIO = {
    "spec_size": 64,
    "num_mel_bins": 16,
    "patch_size": 4,
    "patch_stride": [4, 4],
    "window_size": 4,
    "patch_embeds_hidden_size": 16,
    "depths": [2, 2],
    "num_attention_heads": [2, 2],
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "projection_dim": 24,
    "num_classes": 5,
}
_CLAP_TEXT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def make(kind: str, folder: Path) -> Path:
    """kind: ast, clap, clap_fused, wav2vec2 (group norm), wav2vec2_layer, hubert, wavlm, whisper."""
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, extractor = _MAKERS[kind]()
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
    return folder


def _ast() -> tuple[torch.nn.Module, transformers.FeatureExtractionMixin]:
    config = transformers.ASTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_length=64, num_mel_bins=32
    )
    model = transformers.ASTForAudioClassification(config)  # as AudioSet's checkpoints are: the classifier is not used
    return model, transformers.ASTFeatureExtractor(max_length=64, num_mel_bins=32)


def _clap(truncation: str, fused: bool) -> tuple[torch.nn.Module, transformers.FeatureExtractionMixin]:
    config = transformers.ClapConfig(
        audio_config={**_CLAP_AUDIO, "enable_fusion": fused}, text_config=_CLAP_TEXT, projection_dim=24
    )
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16, sampling_rate=RATE_HZ, hop_length=160, max_length_s=1, truncation=truncation
    )
    return transformers.ClapModel(config), extractor


def _wav2vec2(model: type, config: type, norm: str) -> tuple[torch.nn.Module, transformers.FeatureExtractionMixin]:
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")
    given = {**_WAV2VEC2, "feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer"}
    return model(config(**given)), extractor


def _whisper() -> tuple[torch.nn.Module, transformers.FeatureExtractionMixin]:
    config = transformers.WhisperConfig(
        vocab_size=50,
        num_mel_bins=20,
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return transformers.WhisperForConditionalGeneration(config), transformers.WhisperFeatureExtractor(
        feature_size=20, chunk_length=2
    )


_MAKERS = {
    "ast": _ast,
    "clap": lambda: _clap("rand_trunc", False),
    "clap_fused": lambda: _clap("fusion", True),
    "wav2vec2": lambda: _wav2vec2(transformers.Wav2Vec2Model, transformers.Wav2Vec2Config, "group"),
    "wav2vec2_layer": lambda: _wav2vec2(transformers.Wav2Vec2ForCTC, transformers.Wav2Vec2Config, "layer"),
    "hubert": lambda: _wav2vec2(transformers.HubertModel, transformers.HubertConfig, "layer"),
    "wavlm": lambda: _wav2vec2(transformers.WavLMModel, transformers.WavLMConfig, "layer"),
    "whisper": _whisper,
}
