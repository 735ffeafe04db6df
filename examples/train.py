"""A small, complete training run on a run's output: augmented index in, mAP on the evaluation clips out.

    python -m balance.run dataset=demo k=10
    python examples/train.py outputs/runs/…/… [--uniform] [--epochs 10]

Everything comes from the run's `train_root/`: index, media and evaluation list. The data set is small enough to keep
its spectrograms in memory; with a real one, give `sampler` to the DataLoader and drop `in_memory`. Under
`torchrun`, wrap the model in DistributedDataParallel: the sampler already gives each rank its own slice.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from balance.audio.fbank import FrontEnd
from balance.errors import UserError
from balance.probe.ranking_metrics import Ranking
from balance.training.dataset import ClipDataset, class_names, collate, load_index
from balance.training.sampler import DistributedWeightedSampler, sample_weights

# Demo clips last 2 to 5 s.
FRONT_END = FrontEnd(max_frames=400, num_mel_bins=64, mean=-5.0, std=6.0, zero_mean=True)


def in_memory(dataset: ClipDataset) -> tuple[Tensor, Tensor]:
    """Spectrograms (n, 1, frames / 4, bins / 2), averaged 4 x 2, and labels (n, num_classes)."""
    batches = list(DataLoader(dataset, batch_size=64, collate_fn=collate))
    audio = torch.cat([batch.audio for batch in batches])
    return nn.functional.avg_pool2d(audio[:, None], (4, 2)), torch.cat([batch.labels for batch in batches])


def network(num_classes: int) -> nn.Module:
    def block(inputs: int, outputs: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))

    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(block(1, 16), block(16, 32), block(32, 64), pooled, nn.Linear(64, num_classes))


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """mAP over the classes that have a positive and a negative."""
    truth = scipy.sparse.csr_matrix(labels.numpy().astype(np.int32))
    return float(np.nanmean(Ranking(scores.numpy(), truth).figures().ap))


def train(run_dir: Path, *, epochs: int, uniform: bool) -> float:
    root = run_dir / "train_root"
    found = sorted(path for path in root.glob("src_augmented_k*.csv") if not path.stem.endswith("_weight"))
    if len(found) != 1:
        raise UserError(f"{root}: {len(found)} indexes src_augmented_k*.csv; give the folder of one run")
    augmented, evaluation = load_index(found[0]), load_index(root / "src_eval_segments.csv")
    classes = class_names(augmented, evaluation, root=root)
    options = {"classes": classes, "output": "spectrogram", "front_end": FRONT_END}
    audio, labels = in_memory(ClipDataset(augmented, root, **options))
    eval_audio, eval_labels = in_memory(ClipDataset(evaluation, root, **options))
    print(f"{found[0].name}: {len(audio)} clips, {len(classes)} classes; evaluation: {len(eval_audio)} clips")

    torch.manual_seed(1213)
    weights = torch.ones(len(audio)) if uniform else sample_weights(augmented)
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
