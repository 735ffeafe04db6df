"""What the jobs of a sweep share, and what each of them does anew."""

from collections import Counter

import pytest

from balance import pipeline
from balance.config import Settings
from balance.curation import decontaminate
from balance.curation.config import AugmentConfig, Leaks
from balance.data.config import DatasetConfig
from balance.encoders.config import EncoderConfig
from tests import worlds


def test_a_sweep_compares_sound_once_per_level(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = worlds.make(tmp_path / "world", seeds=3, pool=10, evaluation=2)
    calls: Counter[str] = Counter()
    for name in ("decontaminate", "warn_of_copied_seeds"):
        found = getattr(decontaminate, name)

        def counted(level, *rest, name=name, found=found):
            calls[f"{name} {level.value}"] += 1
            return found(level, *rest)

        monkeypatch.setattr(decontaminate, name, counted)
    with pipeline.Kept() as kept:
        for number, (k, level) in enumerate([(2, Leaks.exact), (3, Leaks.exact), (3, Leaks.id), (4, Leaks.exact)]):
            settings = Settings(
                k=k,
                dataset=DatasetConfig(name="tiny", root=str(world.root)),
                encoder=EncoderConfig(checkpoint=str(world.checkpoint), device="cpu"),
                augment=AugmentConfig(leaks=level),
                cache_dir=str(tmp_path / "cache"),
                num_workers=2,
            )
            folder = tmp_path / str(number)
            folder.mkdir()
            pipeline.run(settings, folder, kept)
    assert set(calls.values()) == {1}
    assert len(calls) == 4
