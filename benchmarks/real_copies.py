"""How many planted copies of real recordings are found, kind by kind, and what else is taken for a copy.

`python benchmarks/real_copies.py FOLDER [--copies 80] [--clips 3000] [--half 0]` takes every recording under FOLDER
that libsndfile reads, cut into clips of up to 10 s (14 of one file at most, none twice). Of `--copies` clips, spread
evenly over the folders below FOLDER, the first 5 s are remembered in place of the clip and planted in every kind; each
copy is looked for among all clips, as `python -m balance.audit` does: fingerprints propose, the judges decide.
Reported is what the first judge's threshold (correlation) alone finds, and what both find; precision counts as false
what is found in files that do not hold the very recording (correlation above 0.999). Then every clip is looked for
among those before it: pairs from different files that are found are listed, to be heard. `--half` takes the files
whose name hashes to 0 or 1: what is chosen on one half is reported on the other. Intervals are Wilson's, 95 %. Last
line: one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import av
import numpy as np
import scipy.signal
import soundfile

from balance.curation.judge import MIN_OVERLAP, MOST_FRAMES, required
from balance.curation.listener import Listener, Match
from balance.curation.log_mel import features

SUFFIXES = {".wav", ".ogg", ".flac", ".mp3"}
CLIP_S, PLANTED_S, LEAST_S, PER_FILE = 10.0, 5.0, 0.4, 14
THRESHOLD = 0.9


def clips(folder: Path, most: int, half: int | None, rng: np.random.Generator) -> list[tuple[Path, int, np.ndarray]]:
    """(file, rate, (samples, channels) float32), in random order."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if half is not None:
        files = [path for path in files if hashlib.sha1(path.name.encode()).digest()[0] % 2 == half]
    rng.shuffle(files)  # type: ignore[arg-type]
    found, seen = [], set()
    for path in files:
        if len(found) >= most:
            break
        try:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except soundfile.SoundFileError:
            continue
        step = int(CLIP_S * rate)
        for at in range(0, min(len(samples), PER_FILE * step), step):
            clip = samples[at : at + step]
            digest = hashlib.sha1(clip.tobytes()).digest()
            if len(clip) >= LEAST_S * rate and np.abs(clip).max() > 1e-3 and digest not in seen:
                seen.add(digest)
                found.append((path, rate, clip))
    return found


def resample(x: np.ndarray, rate: int, to: int) -> np.ndarray:
    common = int(np.gcd(to, rate))
    return scipy.signal.resample_poly(x, to // common, rate // common).astype(np.float32)


def mp3(x: np.ndarray, rate: int, kbps: int) -> tuple[np.ndarray, int]:
    """Through LAME, at the rate that such an mp3 has."""
    to = min({16: 16000, 32: 22050, 64: 32000}.get(kbps, 44100), rate if rate in (8000, 11025, 16000, 22050) else 44100)
    x, file = resample(x, rate, to), io.BytesIO()
    with av.open(file, "w", format="mp3") as out:
        stream = out.add_stream("libmp3lame", rate=to)
        stream.bit_rate, stream.layout = kbps * 1000, "mono"
        frame = av.AudioFrame.from_ndarray(np.clip(x, -1, 1)[None], format="fltp", layout="mono")
        frame.rate, frame.pts = to, 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)
    file.seek(0)
    with av.open(file) as opened:
        return np.concatenate([frame.to_ndarray().mean(axis=0) for frame in opened.decode(audio=0)]), to


def tempo(x: np.ndarray, rate: int, factor: float) -> np.ndarray:
    """FFmpeg's atempo: faster with the same pitch."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=rate, format="fltp", layout="mono")
    change, sink = graph.add("atempo", str(factor)), graph.add("abuffersink")
    source.link_to(change)
    change.link_to(sink)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(x[None], format="fltp", layout="mono")
    frame.rate, frame.pts = rate, 0
    graph.push(frame)
    graph.push(None)
    out = []
    while True:
        try:
            out.append(graph.pull().to_ndarray()[0])
        except (EOFError, BlockingIOError):
            return np.concatenate(out)


def noise(x: np.ndarray, db: float, rng: np.random.Generator) -> np.ndarray:
    return x + np.sqrt((x**2).mean() * 10 ** (-db / 10)) * rng.standard_normal(len(x))


def equalise(x: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """A random curve of up to ±12 dB at 60, 400, 1,500 and 6,000 Hz."""
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(x), 1 / rate), 50))
    gain_db = np.interp(octaves, np.log2([60, 400, 1500, 6000]), rng.uniform(-12, 12, 4))
    return np.fft.irfft(np.fft.rfft(x) * 10 ** (gain_db / 20), len(x))


def reverberate(x: np.ndarray, rate: int, seconds: float, wet: float, rng: np.random.Generator) -> np.ndarray:
    """Exponentially decaying noise, 60 dB in `seconds`, with as much energy as the dry sound at wet = 0.5."""
    size = int(seconds * rate)
    tail = rng.standard_normal(size) * 10 ** (-3 * np.arange(size) / size)
    return (1 - wet) * x + wet * scipy.signal.fftconvolve(x, tail / np.sqrt((tail**2).sum()))[: len(x)]


def in_longer(x: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Somewhere in 10 s of noise 20 dB below it."""
    out = noise(np.zeros(int(CLIP_S * rate)), 0, rng) + np.sqrt((x**2).mean() / 100) * rng.standard_normal(
        int(CLIP_S * rate)
    )
    at = int(rng.uniform(0, len(out) - len(x)))
    out[at : at + len(x)] += x
    return out


def planted(clip: np.ndarray, rate: int, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, int]]:
    """Kind -> (samples, rate) of the copies of one clip; offsets only of clips that leave 3 s."""
    x = np.ascontiguousarray(clip[:, 0])
    low = scipy.signal.butter(6, min(3000, 0.4 * rate), fs=rate, output="sos")
    other_rate = 16000 if rate == 11025 else 11025
    same_rate = {
        "low-pass 3 kHz": scipy.signal.sosfilt(low, x),
        "gain -12 dB": x * 10 ** (-12 / 20),
        "peak +12 dB over full scale, clipped": np.clip(x / np.abs(x).max() * 10 ** (12 / 20), -1, 1),
        "noise 20 dB": noise(x, 20, rng),
        "noise 10 dB": noise(x, 10, rng),
        "equaliser": equalise(x, rate, rng),
        "in longer noisy clip": in_longer(x, rate, rng),
        "reverberation 0.4 s": reverberate(x, rate, 0.4, 0.4, rng),
        "reverberation 0.6 s, mostly wet": reverberate(x, rate, 0.6, 0.7, rng),
        **{f"speed {factor}": scipy.signal.resample(x, int(len(x) / factor)) for factor in (1.01, 1.03, 0.97)},
        **{f"tempo {factor}": tempo(x, rate, factor) for factor in (1.01, 1.05, 0.95)},
    }
    if clip.shape[1] > 1:
        same_rate["mono mix"] = clip.mean(axis=1)
    if len(x) >= 4.95 * rate:
        silence = np.zeros(len(x), dtype=np.float32)
        same_rate |= {
            f"offset {late} s": np.concatenate([silence[: int(late * rate)], x])[: len(x)] for late in (0.7, 1.5, 1.9)
        }
    return {
        **{kind: (samples.astype(np.float32), rate) for kind, samples in same_rate.items()},
        "resampling": (resample(x, rate, other_rate), other_rate),
        **{f"mp3 {kbps} kb/s": mp3(x, rate, kbps) for kbps in (128, 64, 32, 16)},
    }


def wilson(found: int, of: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z, share = 1.96, found / of
    middle, half = share + z**2 / (2 * of), z * np.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    return float((middle - half) / (1 + z**2 / of)), float((middle + half) / (1 + z**2 / of))


def shown(found: int, of: int) -> str:
    low, high = wilson(found, of)
    return f"{found / of:.3f} ({low:.3f} to {high:.3f})"


def same_recording(listener: Listener, log_mels: list[np.ndarray], i: int) -> list[int]:
    """Clips that hold the very recording of clip i: packages share some."""
    return [match.other for match in listener.copies_of(len(log_mels), log_mels[i]) if match.heard.correlation > 0.999]


def by_first(match: Match, log_mels: list[np.ndarray]) -> bool:
    """Whether the first judge's threshold is reached."""
    return match.heard.correlation >= required(THRESHOLD, len(log_mels[match.other]) / MIN_OVERLAP)


def chosen(all_clips: list[tuple[Path, int, np.ndarray]], folder: Path, num: int) -> list[int]:
    """Clips of at least 3 s, in turn from each folder below `folder`."""
    by_folder: dict[str, list[int]] = defaultdict(list)
    for i, (path, rate, clip) in enumerate(all_clips):
        if len(clip) >= 3 * rate:
            by_folder[path.relative_to(folder).parts[0]].append(i)
    turns = [some[turn : turn + 1] for turn in range(num) for _, some in sorted(by_folder.items())]
    return [i for some in turns for i in some][:num]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copies", type=int, default=80)
    parser.add_argument("--clips", type=int, default=3000)
    parser.add_argument("--half", type=int, choices=(0, 1))
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    all_clips = clips(given.folder, given.clips, given.half, rng)
    log_mels = [features(np.ascontiguousarray(clip[:, 0]), rate)[:MOST_FRAMES] for _, rate, clip in all_clips]
    plants = [i for i in chosen(all_clips, given.folder, given.copies) if len(log_mels[i])]
    copies: list[tuple[str, int, np.ndarray]] = []
    for i in plants:
        _, rate, clip = all_clips[i]
        clip = clip[: int(PLANTED_S * rate)]
        log_mels[i] = features(np.ascontiguousarray(clip[:, 0]), rate)[:MOST_FRAMES]
        copies += [(kind, i, features(x, r)[:MOST_FRAMES]) for kind, (x, r) in planted(clip, rate, rng).items()]
    result: dict[str, object] = {"clips": len(all_clips), "planted": len(plants), "recall": {}}
    with tempfile.TemporaryFile() as file:
        listener = Listener(file, len(log_mels), THRESHOLD)
        listener.remember({i: log_mel for i, log_mel in enumerate(log_mels) if len(log_mel)})
        found: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
        taken: list[tuple[bool, bool]] = []  # (the first judge's, is right) of each pair that was found
        twins = {i: same_recording(listener, log_mels, i) for i in plants}
        started = time.perf_counter()
        for kind, i, log_mel in copies:
            matches = listener.copies_of(len(log_mels), log_mel)
            right = [match for match in matches if match.other == i]
            found[kind].append((any(by_first(match, log_mels) for match in right), bool(right)))
            files = {all_clips[other][0] for other in (i, *twins[i])}
            others = [match for match in matches if all_clips[match.other][0] not in files]
            taken += [(by_first(match, log_mels), match.other == i) for match in [*right, *others]]
        print(f"{len(all_clips):,} clips, {len(copies):,} copies of {len(plants)}")
        print(f"{(time.perf_counter() - started) / len(copies) * 1e3:.1f} ms per copy that is looked for")
        print(f"{'recall':38s} of   correlation {THRESHOLD} alone       both judges")
        for kind, hits in sorted(found.items()):
            columns = [shown(sum(column), len(hits)) for column in zip(*hits, strict=True)]
            print(f"{kind:38s} {len(hits):3d}  {columns[0]:24s}  {columns[1]}")
            result["recall"][kind] = [float(x) for x in (*np.mean(hits, axis=0), len(hits))]  # type: ignore[index]
        for name, some in (("first", [right for first, right in taken if first]), ("both", [x for _, x in taken])):
            print(f"precision, {name:27s} {len(some):3d}  {shown(sum(some), len(some))}")
            result[f"precision_{name}"] = [sum(some), len(some)]
        pairs = [
            (match, all_clips[match.other][0], all_clips[i][0])
            for i, log_mel in enumerate(log_mels)
            if len(log_mel)
            for match in listener.copies_of(i, log_mel)
        ]
    others = [pair for pair in pairs if pair[1] != pair[2]]
    print(f"{len(pairs):,} pairs of clips are found, {len(others):,} of them from different files:")
    for match, one, other in others:
        heard = f"{match.heard.correlation:.2f} {match.heard.agreement:.2f} {match.pace.speed:.3f}"
        print(f"  {heard}  {one.relative_to(given.folder)}  {other.relative_to(given.folder)}")
    result |= {"pairs": len(log_mels) * (len(log_mels) - 1) // 2, "found": len(pairs), "other_files": len(others)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
