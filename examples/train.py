"""A small, complete training run on a run's output: augmented set in, mAP on the evaluation clips out.

    python -m balance.run dataset=demo k=10
    python examples/train.py outputs/latest [--uniform] [--epochs 10]

A run of VIP-ANT indexes has everything in its `train_root/`; data sets of other formats are read where they lie.
Without an evaluation list every tenth clip is held out. The data set is small enough to keep its spectrograms in
memory; with a real one, give `sampler` to the DataLoader and drop `in_memory`. Under `torchrun`, wrap the model in
DistributedDataParallel: the sampler already gives each rank its own slice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader

from balance.audio.fbank import FrontEnd
from balance.data.config import ColumnsConfig, Format, MediaSource
from balance.errors import UserError
from balance.probe.ranking_metrics import Ranking
from balance.records import Index
from balance.results.training_data import TrainingData, read_training_data
from balance.training.dataset import ClipDataset, class_names, collate, load_index
from balance.training.sampler import DistributedWeightedSampler, sample_weights

# Demo clips last 2 to 5 s.
FRONT_END = FrontEnd(max_frames=400, num_mel_bins=64, mean=-5.0, std=6.0, zero_mean=True)


def read_vipant(root: Path) -> TrainingData:
    """`train_root/` as VIP-ANT sees it: one index to train on, and the evaluation list where there is one."""
    found = sorted(path for path in root.glob("src_augmented_k*.csv") if not path.stem.endswith("_weight"))
    if len(found) != 1:
        raise UserError(f"{root}: {len(found)} indexes src_augmented_k*.csv; give the folder of one run")
    evaluation = root / "src_eval_segments.csv"
    return TrainingData(
        train=[load_index(found[0])],
        evaluation=load_index(evaluation) if evaluation.is_file() else None,
        media=MediaSource(root=root, format=Format.vipant, columns=ColumnsConfig()),
        root=root,
    )


def read(run_dir: Path) -> tuple[TrainingData, list[Index]]:
    """(what to train on, what to evaluate on)"""
    root = run_dir / "train_root"
    is_vipant = root.is_dir() or not (run_dir / "manifest.json").is_file()
    data = read_vipant(root) if is_vipant else read_training_data(run_dir)
    if data.evaluation is not None:
        return data, [data.evaluation]
    print("no evaluation list: every tenth clip is held out")
    is_held_out = [np.arange(len(index)) % 10 == 0 for index in data.train]
    kept, held_out = (
        [index.take(np.flatnonzero(mask == wanted)) for index, mask in zip(data.train, is_held_out, strict=True)]
        for wanted in (False, True)
    )
    return replace(data, train=kept), held_out


def in_memory(indexes: Sequence[Index], media: MediaSource, **options: object) -> tuple[Tensor, Tensor]:
    """Spectrograms (n, 1, frames / 4, bins / 2), averaged 4 x 2, and labels (n, num_classes)."""
    clips = ConcatDataset([ClipDataset(index, media, **options) for index in indexes])
    batches = list(DataLoader(clips, batch_size=64, collate_fn=collate))
    audio = torch.cat([batch.audio for batch in batches])
    return nn.functional.avg_pool2d(audio[:, None], (4, 2)), torch.cat([batch.labels for batch in batches])


def network(num_classes: int) -> nn.Module:
    def block(inputs: int, outputs: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))

    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(block(1, 16), block(16, 32), block(32, 64), pooled, nn.Linear(64, num_classes))


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """mAP over the classes that have a positive and a negative; NaN where none has."""
    truth = scipy.sparse.csr_matrix(labels.numpy().astype(np.int32))
    precisions = Ranking(scores.numpy(), truth).figures().ap
    return float(np.nanmean(precisions)) if np.isfinite(precisions).any() else float("nan")


def train(run_dir: Path, *, epochs: int, uniform: bool) -> float:
    data, evaluation = read(run_dir)
    classes = class_names(*data.train, *evaluation, root=data.root)
    if not classes:
        raise UserError(f"{run_dir}: its clips have no labels: there is nothing to learn")
    options = {"classes": classes, "output": "spectrogram", "front_end": FRONT_END}
    audio, labels = in_memory(data.train, data.media, **options)
    eval_audio, eval_labels = in_memory(evaluation, data.media, **options, on_unreadable="skip")
    print(f"{run_dir.name}: {len(audio)} clips, {len(classes)} classes; evaluation: {len(eval_audio)} clips")

    torch.manual_seed(1213)
    weights = torch.ones(len(audio)) if uniform else sample_weights(*data.train)
    sampler = DistributedWeightedSampler(weights)
    model = network(len(classes))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=epochs * -(-len(sampler) // 32))
    figure = float("nan")
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        model.train()
        total = 0.0
        for rows in torch.tensor(list(sampler)).split(32):
            loss = nn.functional.binary_cross_entropy_with_logits(model(audio[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        model.eval()
        with torch.no_grad():
            figure = mean_average_precision(model(eval_audio), eval_labels)
        print(f"epoch {epoch + 1:2}: loss {total / len(sampler):.4f}, mAP {figure:.4f}")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="the folder of a run, as printed at its end")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--uniform", action="store_true", help="draw clips uniformly instead of by label weights")
    arguments = parser.parse_args()
    try:
        figure = train(arguments.run_dir, epochs=arguments.epochs, uniform=arguments.uniform)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"mAP {figure:.4f}")


if __name__ == "__main__":
    main()
