"""Every key of the configuration, typed, in one place; the only module besides the entry points that knows Hydra.

The components' own dataclasses are composed into `Settings`. `settings_from` turns Hydra's DictConfig into it once, at
the door; nothing further in sees a DictConfig.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from balance.curation.decontaminate import AugmentConfig
from balance.data.formats import ColumnsConfig, Format
from balance.encoders.vipant import EncoderConfig
from balance.records import UserError
from balance.search.top_k import SearchConfig

CONF = Path(__file__).resolve().parent.parent / "conf"


@dataclass(kw_only=True, slots=True)
class DatasetConfig:
    """Which index files and media; see the table in the README."""

    name: str = "audioset"
    format: Format = Format.vipant
    root: str | None = None
    media: str | None = None
    balanced: str = "balanced_train_segments"
    unbalanced: str = "unbalanced_train_segments"
    eval: str | None = "eval_segments"
    ontology: str | None = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"dataset.name={self.name}: a name for folders, without slashes")


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """media_base: where the page's audio links point instead of `dataset.media` (a path or a URL)."""

    media_base: str | None = None


@dataclass(kw_only=True, slots=True)
class Settings:
    """The whole configuration of a run."""

    k: int = 100
    seed: int = 1213
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    max_failures: float = 0.01
    max_missing: float = 0.01
    num_workers: int | None = None
    num_processes: int | str = "auto"
    queue_bytes: int = 1 << 30
    clip_timeout_s: float = 60.0
    retry_failures: bool = False
    refresh: bool = False
    cache_dir: str = "outputs/cache"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k}: the number of neighbours a seed is at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: a whole number from 0 on")
        for name in ("max_failures", "max_missing"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: a share between 0 and 1, such as {name}=0.05")
        if self.num_workers is None:
            self.num_workers = available_cores()
        if self.num_workers < 1:
            raise ValueError(f"num_workers={self.num_workers}: at least 1")
        if isinstance(self.num_processes, str) and self.num_processes != "auto":
            raise ValueError(f"num_processes={self.num_processes}: auto, or a number of encoder processes")
        if isinstance(self.num_processes, int) and self.num_processes < 1:
            raise ValueError(f"num_processes={self.num_processes}: at least 1")
        if self.queue_bytes < 1 << 20:
            raise ValueError(f"queue_bytes={self.queue_bytes}: at least 1048576 (1 MiB)")
        if not 0 < self.clip_timeout_s <= 86_400:
            raise ValueError(
                f"clip_timeout_s={self.clip_timeout_s}: seconds that a clip may take to decode, up to 86400"
            )
        if not self.cache_dir:
            raise ValueError("cache_dir is empty: a folder for embeddings and neighbours, such as outputs/cache")

    @property
    def cache(self) -> Path:
        return Path(self.cache_dir).expanduser().absolute()

    @property
    def root(self) -> Path:
        """The folder of the index files; UserError if it is not given."""
        if self.dataset.root is None:
            raise UserError(
                "dataset.root is not given: type dataset.root=/folder/with/index/files "
                "encoder.checkpoint=/path/to/00071478.pth, or try dataset=demo"
            )
        return Path(self.dataset.root).expanduser()

    @property
    def media_root(self) -> Path:
        """The folder that media paths are relative to."""
        return Path(self.dataset.media or self.root).expanduser().absolute()

    @property
    def is_demo(self) -> bool:
        """Whether this is the generated data set, which always lives in `{cache_dir}/demo`."""
        return self.dataset.root is not None and Path(self.dataset.root) == self.cache / "demo"


def available_cores() -> int:
    """The cores that this process may use: affinity, cgroup quota, `SLURM_CPUS_PER_TASK`; the least of them."""
    cores = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores.append(max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2, or no quota ("max")
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit():
        cores.append(max(1, int(slurm)))
    return min(cores)


def as_omegaconf(values: dict[str, Any]) -> DictConfig:
    """The form in which published checkpoints pickle their configuration."""
    return OmegaConf.create(values)


def register(name: str, schema: type) -> None:
    """Register a command's typed schema, which `conf/<name>.yaml` names first in its defaults list."""
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)


def register_resolvers() -> None:
    """`${run_pid:}`: with microseconds it makes run directories unique."""
    OmegaConf.register_new_resolver("run_pid", os.getpid, replace=True)


def settings_from(config: DictConfig) -> Any:
    """The command's settings object of a composed configuration; UserError says what is wrong with a value.

    `dataset=demo` keeps of `dataset.*` and `encoder.checkpoint` only what was typed on the command line: paths that
    `conf/local/default.yaml` sets for a real data set do not reach the demo.
    """
    hydra = HydraConfig.get()
    typed = {override.lstrip("+").split("=", 1)[0] for override in hydra.overrides.task}
    demo_data, demo_encoder = (hydra.runtime.choices.get(group) == "demo" for group in ("dataset", "encoder"))
    if demo_encoder and not demo_data:
        raise UserError(
            "encoder=demo has random weights and belongs to dataset=demo only; "
            "type encoder=vipant encoder.checkpoint=/path/to/00071478.pth"
        )
    try:
        if demo_data:
            config = _demo(config, typed, demo_encoder)
        settings = OmegaConf.to_object(config)
    except ValueError as error:
        raise UserError(str(error)) from error
    except (OmegaConfBaseException, AttributeError, TypeError) as error:  # the last two: a key added with +
        raise UserError(f"configuration: {str(error).splitlines()[0]}") from error
    return settings


def _demo(config: DictConfig, typed: set[str], demo_encoder: bool) -> DictConfig:
    for key in ("dataset.root", "dataset.media", *(["encoder.checkpoint"] if demo_encoder else [])):
        if key in typed:
            raise UserError(f"dataset=demo makes its own files in {config.cache_dir}/demo: leave out {key}=…")
    root = Path(config.cache_dir).expanduser().absolute() / "demo"
    fresh = OmegaConf.structured(DatasetConfig(name="demo", root=str(root), media=str(root)))
    for key in DatasetConfig.__dataclass_fields__:
        if f"dataset.{key}" in typed or any(name.startswith(f"dataset.{key}.") for name in typed):
            fresh[key] = config.dataset[key]
    config = config.copy()
    config.dataset = fresh
    if demo_encoder:
        config.encoder.checkpoint = str(root / "checkpoint.pth")
    elif "encoder.checkpoint" not in typed:
        config.encoder.checkpoint = None
    return config
