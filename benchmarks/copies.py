"""Which correlation makes two clips acoustic copies: planted copies against random and same-label pairs.

`python benchmarks/copies.py [--tiny] [--takes FOLDER]` makes scenes of 10 s (events over coloured noise, families of
five that share pitch, timbre and rhythm = "same label"), copies each by mp3 at 64 kb/s, gain, equaliser, offset up to
3 s, noise at 20 dB and all of it together, and correlates. It prints the curve of found copies and false pairs over the
threshold, what the false rate would mean at AudioSet size, and what the fingerprint alone proposes. Scenes are
synthetic: real recordings of one machine or one jingle are more alike, so the curve is a lower bound on false pairs.
With `--takes`, a folder of short `{word}_{speaker}_{take}.wav` (`recordings` of the Free Spoken Digit Dataset), all
pairs of takes of one word by one speaker are compared: how well less than 3 s of sound must agree. Last line: one JSON
object.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile

from balance.curation.acoustic import NUM_PROPOSALS
from balance.curation.config import AugmentConfig
from balance.curation.fingerprint import Fingerprints
from balance.curation.judge import MIN_OVERLAP, Profile, correlation, required
from balance.curation.log_mel import features

RATE_HZ = 22050
SECONDS = 10.0
FAMILY = 5
AUDIOSET_EVAL = 20_371
THRESHOLDS = np.arange(0.70, 0.995, 0.02).round(2)


def scene(family: int, rng: np.random.Generator) -> np.ndarray:
    """(samples,) float32 of one scene of a family."""
    kind = np.random.default_rng([1000, family])
    num = int(RATE_HZ * SECONDS)
    slope, density, pitch = kind.uniform(0.3, 1.5), kind.uniform(0.4, 4), kind.uniform(120, 1500)
    bend, noisy, length_s = kind.uniform(0.1, 1.0), kind.uniform(0, 1), kind.uniform(0.05, 1.0)
    colour = np.maximum(np.fft.rfftfreq(num, 1 / RATE_HZ), 50) ** -slope
    background = np.fft.irfft(np.fft.rfft(rng.standard_normal(num)) * colour, num)
    out = background / background.std() * 0.3 * 10 ** (rng.uniform(-50, -20) / 20)
    for _ in range(max(1, rng.poisson(density * SECONDS))):
        start = int(rng.uniform(0, num * 0.98))
        size = min(num - start, int(RATE_HZ * length_s * rng.uniform(0.5, 2)))
        if size < 50:
            continue
        t = np.arange(size) / RATE_HZ
        walk = np.cumsum(rng.normal(0, 1, size)) / RATE_HZ * bend * 3
        phase = 2 * np.pi * np.cumsum(pitch * 2 ** (rng.normal(0, 0.3) + walk)) / RATE_HZ
        harmonics = range(1, int(min(12, RATE_HZ / 3 / pitch)) + 1)
        tone = np.sum([np.sin(h * phase) / h ** rng.uniform(0.5, 1.5) for h in harmonics], axis=0)
        b, a = scipy.signal.butter(2, np.clip([pitch / RATE_HZ, 6 * pitch / RATE_HZ], 0.01, 0.95), "band")
        hiss = 2 * scipy.signal.lfilter(b, a, rng.standard_normal(size))
        envelope = np.minimum(t / 0.01, 1) * np.exp(-t / (length_s * rng.uniform(0.2, 1)))
        out[start : start + size] += envelope * ((1 - noisy) * tone + noisy * hiss) * 10 ** (rng.uniform(-15, 0) / 20)
    return np.asarray(out / np.abs(out).max() * rng.uniform(0.2, 0.9), dtype=np.float32)


def mp3(samples: np.ndarray) -> np.ndarray:
    """Through an mp3 of 64 kb/s."""
    for level in (0.5, 0.6, 0.7, 0.8, 0.9):
        file = io.BytesIO()
        soundfile.write(file, samples, RATE_HZ, format="MP3", bitrate_mode="CONSTANT", compression_level=level)
        if len(file.getvalue()) * 8 / SECONDS <= 66_000:
            break
    file.seek(0)
    return np.asarray(soundfile.read(file, dtype="float32")[0])


def equalise(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random curve of up to ±9 dB at 60, 400, 1,500 and 6,000 Hz."""
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(samples), 1 / RATE_HZ), 50))
    gain_db = np.interp(octaves, np.log2([60, 400, 1500, 6000]), rng.uniform(-9, 9, 4))
    return np.asarray(np.fft.irfft(np.fft.rfft(samples) * 10 ** (gain_db / 20), len(samples)), dtype=np.float32)


def noise(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise 20 dB below the clip."""
    scale = np.sqrt((samples**2).mean() / 100)
    return np.asarray(samples + scale * rng.standard_normal(len(samples)), dtype=np.float32)


def planted(samples: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The copies of one scene."""
    late = samples[int(rng.uniform(0.2, 3) * RATE_HZ) :]
    return {
        "mp3": mp3(samples),
        "gain": np.asarray(samples * 10 ** (rng.uniform(-20, 0) / 20), dtype=np.float32),
        "equaliser": equalise(samples, rng),
        "offset": late,
        "noise": noise(samples, rng),
        "all together": noise(equalise(mp3(late), rng), rng),
    }


def takes(folder: Path, num_takes: int, threshold: float) -> dict[str, float]:
    """Of all pairs of takes of one word by one speaker: the share at `threshold` and at what their length requires."""
    words: dict[tuple[str, str], list[Profile]] = defaultdict(list)
    for file in sorted(folder.glob("*_*_*.wav")):
        word, speaker, take = file.stem.split("_")
        if int(take) < num_takes:
            samples, rate_hz = soundfile.read(file, dtype="float32")
            profile = Profile.of(features(samples, rate_hz))
            if profile.num_frames:
                words[word, speaker].append(profile)
    pairs = [pair for clips in words.values() for pair in itertools.combinations(clips, 2)]
    values = np.array([correlation(*pair) for pair in pairs])
    limits = np.array([required(threshold, min(a.num_frames, b.num_frames) / MIN_OVERLAP) for a, b in pairs])
    found = {
        "pairs": len(pairs),
        "largest": float(values.max()),
        "at_threshold": float((values >= threshold).mean()),
        "at_required": float((values >= limits).mean()),
    }
    print(
        f"{len(pairs):,} pairs of takes of one word by one speaker: {found['at_threshold']:.2%} reach {threshold}, "
        f"{found['at_required']:.2%} what their length requires; the largest is {found['largest']:.3f}"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--takes", type=Path, help="a folder of {word}_{speaker}_{take}.wav")
    given = parser.parse_args()
    num_scenes = 30 if given.tiny else 460
    rng = np.random.default_rng(0)
    scenes = [scene(i // FAMILY, rng) for i in range(num_scenes)]
    started = time.perf_counter()
    log_mels = [features(x, RATE_HZ) for x in scenes]
    profiles = [Profile.of(log_mel) for log_mel in log_mels]
    feature_ms = (time.perf_counter() - started) / num_scenes * 1e3
    prints = Fingerprints(num_scenes)
    prints.add(dict(enumerate(log_mels)))
    found: dict[str, list[float]] = {}
    proposed: dict[str, list[bool]] = {}
    for i in range(min(num_scenes, 100)):
        for name, copy in planted(scenes[i], rng).items():
            log_mel = features(copy, RATE_HZ)
            found.setdefault(name, []).append(correlation(profiles[i], Profile.of(log_mel)))
            proposed.setdefault(name, []).append(i in [one.clip for one in prints.similar(num_scenes, log_mel)])
    started = time.perf_counter()
    pairs = [(i, j) for i in range(num_scenes) for j in range(i)]
    values = np.array([correlation(profiles[i], profiles[j]) for i, j in pairs])
    pair_ms = (time.perf_counter() - started) / len(pairs) * 1e3
    same = np.array([i // FAMILY == j // FAMILY for i, j in pairs])
    everything = np.concatenate([np.array(x) for x in found.values()])
    print(f"{len(pairs):,} pairs ({int(same.sum()):,} of one label), {len(everything):,} planted copies")
    print(f"features {feature_ms:.1f} ms per clip, comparison {pair_ms:.2f} ms per pair")
    print("threshold  found  " + "  ".join(f"{name:>12}" for name in found) + "   false  same-label false")
    for t in THRESHOLDS:
        shares = "  ".join(f"{np.mean(np.array(x) >= t):12.1%}" for x in found.values())
        false, false_same = int((values >= t).sum()), int((values[same] >= t).sum())
        print(f"{t:9.2f}  {np.mean(everything >= t):5.1%}  {shares}  {false:6d}  {false_same:6d}")
    print("the fingerprint alone proposes " + ", ".join(f"{name} {np.mean(x):.1%}" for name, x in proposed.items()))
    threshold = AugmentConfig().copy_threshold
    false = int((values >= threshold).sum())
    num_proposed = AUDIOSET_EVAL * NUM_PROPOSALS
    # With none seen in n pairs the rate is below 3 / n (95 %).
    most = (false if false else 3) / len(pairs) * num_proposed
    print(
        f"at the default {threshold}: {np.mean(everything >= threshold):.1%} found, {false} false in {len(pairs):,}; "
        f"AudioSet's embeddings propose {num_proposed:,} pairs: "
        f"{'about' if false else 'fewer than'} {most:,.0f} false copies"
    )
    result = {
        "threshold": threshold,
        "planted_found": float(np.mean(everything >= threshold)),
        "planted_found_by_kind": {k: float(np.mean(np.array(x) >= threshold)) for k, x in found.items()},
        "pairs": len(pairs),
        "false": false,
        "false_same_label": int((values[same] >= threshold).sum()),
        "largest_false": float(values.max()),
        "expected_false_leaks_at_audioset": most,
        "feature_ms": feature_ms,
        "pair_ms": pair_ms,
        "proposed_by_fingerprint": {name: float(np.mean(x)) for name, x in proposed.items()},
    }
    if given.takes:
        result["takes"] = takes(given.takes, 5 if given.tiny else 30, threshold)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
