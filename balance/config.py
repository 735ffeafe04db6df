"""The whole configuration: every package's own keys composed, and Hydra's answer turned into it once, at the door.

Keys, defaults and checks are defined beside what they configure (`data/config.py`, `search/config.py`, …). Nothing
further in sees a DictConfig, and a stage receives its own keys, not these `Settings`. The `conf/` folder lies inside
an installed package and at the top of a checkout. What neither has, such as `local/default.yaml`, is looked for in
`conf/` of the working directory.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from balance import config_errors, help
from balance.atlas.config import AtlasConfig
from balance.audit.config import AuditConfig
from balance.curation.config import AugmentConfig
from balance.data.config import DatasetConfig, Format, IndexConfig, MediaSource
from balance.embed.config import EmbedConfig
from balance.encoders.config import EncoderConfig, Kind
from balance.engine import config as engine_config
from balance.engine.config import ExecutorConfig
from balance.errors import UserError
from balance.finetune.config import FinetuneConfig
from balance.probe.config import ProbeConfig
from balance.report.config import ReportConfig
from balance.runtime import files
from balance.runtime.command import errors_for_people, outputs_folder
from balance.runtime.cores import available_cores
from balance.runtime.keys import key
from balance.runtime.remote import AnyPath, check_url, is_url, place
from balance.runtime.terminal import SAID, Verbosity
from balance.search.config import SearchConfig

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parent
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())


@dataclass(kw_only=True, slots=True)
class Settings(EmbedConfig):
    """The whole configuration of a run. The embedding stage's keys stand at the top, as the contract has them."""

    k: int = key(100, "neighbours per seed", common=True)
    seed: int = key(1213, "every random choice", common=True)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    cache_dir: str = key("outputs/cache", "embeddings and neighbours, shared by all runs and users", common=True)
    verbosity: Verbosity = key(Verbosity.normal, SAID, common=True)

    def __post_init__(self) -> None:
        EmbedConfig.__post_init__(self)
        if self.k < 1:
            raise ValueError(f"k={self.k}: the number of neighbours per seed is at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: a whole number from 0 on")
        if not self.cache_dir:
            raise ValueError("cache_dir is empty: a folder for embeddings and neighbours, such as outputs/cache")
        check_url("cache_dir", self.cache_dir)
        if is_url(self.cache_dir):
            self._check_cache_url()

    def _check_cache_url(self) -> None:
        """ValueError where this cache cannot be behind a URL."""
        start = f"cache_dir={self.cache_dir}: "
        if self.cache_dir.startswith(("http://", "https://")):
            raise ValueError(f"{start}nothing can be written there: type a folder, or a bucket such as s3://…")
        if self.executor.kind is not engine_config.Kind.ray:
            raise ValueError(f"{start}only executor=ray keeps its cache behind a URL: type executor=ray, or a folder")
        if self.dataset.format is Format.embeddings:
            raise ValueError(
                f"{start}with dataset.format=embeddings your vectors are copied into the cache for the search: type "
                "a folder that every node sees"
            )

    @property
    def cache(self) -> AnyPath:
        return place(self.cache_dir).absolute()

    @property
    def cache_folder(self) -> Path:
        """The cache of a command that needs it on disk; UserError where it lies behind a URL."""
        if not isinstance(self.cache, Path):
            raise UserError(f"cache_dir={self.cache_dir}: a folder on disk is needed here, such as outputs/cache")
        return self.cache

    @property
    def root(self) -> AnyPath:
        """The folder of the index files; UserError if it is not given. Where the media hold the index, that of the
        media will do."""
        if self.dataset.root is None and self.dataset.media is not None and self.dataset.format.is_its_own_index:
            return place(self.dataset.media)
        if self.dataset.root is None:
            raise UserError(
                "dataset.root is not given: type dataset.root=/folder/with/index/files "
                "encoder.checkpoint=/path/to/00071478.pth, or try dataset=demo"
            )
        return place(self.dataset.root)

    @property
    def media_root(self) -> AnyPath:
        """The folder that media paths are relative to."""
        return place(self.dataset.media or self.root).absolute()

    @property
    def media(self) -> MediaSource:
        """Where the clips' bytes lie."""
        return MediaSource(root=self.media_root, format=self.dataset.format, columns=self.dataset.columns)

    @property
    def is_demo(self) -> bool:
        """Whether this is the generated data set, which always lives in `{cache_dir}/demo`."""
        return self.dataset.root is not None and Path(self.dataset.root) == self.cache / "demo"

    @property
    def hears_at_random(self) -> bool:
        """Whether the demo's own encoder hears, whose weights are random: said beside every figure."""
        return self.is_demo and self.encoder.kind is Kind.vipant


@dataclass(kw_only=True, slots=True)
class ProbeSettings(Settings):
    """A run's configuration and the probe's own."""

    probe: ProbeConfig = field(default_factory=ProbeConfig)


@dataclass(kw_only=True, slots=True)
class AuditSettings(Settings):
    """A run's configuration and the audit's own."""

    audit: AuditConfig = field(default_factory=AuditConfig)


@dataclass(kw_only=True, slots=True)
class FinetuneSettings(ProbeSettings):
    """A probe's configuration and the trainings' own."""

    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)


@dataclass(kw_only=True, slots=True)
class IndexSettings:
    """The whole configuration of `python -m balance.index`."""

    index: IndexConfig = field(default_factory=IndexConfig)
    verbosity: Verbosity = key(Verbosity.normal, SAID)


@dataclass(kw_only=True, slots=True)
class AtlasSettings:
    """The whole configuration of `python -m balance.atlas`, beside the run that it shows."""

    atlas: AtlasConfig = field(default_factory=AtlasConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    num_workers: int | None = key(None, "decoder processes; default: the cores of this process", common=True)
    verbosity: Verbosity = key(Verbosity.normal, SAID)

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"num_workers={self.num_workers}: at least 1")

    @property
    def num_decoders(self) -> int:
        return self.num_workers or available_cores()


_COMPOSING = (HydraException, OmegaConfBaseException, yaml.YAMLError)  # what Hydra raises before a job
SCHEMAS = {
    "run": Settings,
    "probe": ProbeSettings,
    "finetune": FinetuneSettings,
    "audit": AuditSettings,
    "index": IndexSettings,
    "atlas": AtlasSettings,
}


class _WorkingDirectory(SearchPathPlugin):
    """Hydra looks in `conf/` of the working directory for what the program's own folder does not have."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        here = Path("conf").absolute()
        if here.is_dir() and here.resolve() != CONF:
            search_path.append("working directory", f"file://{here}")


def register() -> None:
    """Tell Hydra where it looks, and each command's typed schema (`conf/*.yaml` name theirs first)."""
    Plugins.instance().register(_WorkingDirectory)
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    unique = uuid.uuid4().hex[:6]  # jobs may start in the same second
    resolvers: dict[str, Callable[..., str]] = {
        "unique": lambda: unique,
        "file_name": lambda text: re.sub(r"[^\w.-]", "_", str(text)),
        # A variable that is set but empty counts as not set.
        "outputs": lambda: str(outputs_folder()),
        "cache": lambda: os.environ.get("BALANCE_CACHE") or "outputs/cache",
    }
    for name, resolver in resolvers.items():
        # A job in another process gets the value with its configuration.
        OmegaConf.register_new_resolver(name, resolver, replace=True, use_cache=name == "unique")


def as_omegaconf(values: dict[str, Any]) -> DictConfig:
    """The form in which published checkpoints pickle their configuration."""
    return OmegaConf.create(values)


def settings_from(config: DictConfig, overrides: Sequence[str], choices: Mapping[str, str]) -> Any:
    """The command's settings object of a composed configuration; UserError says what is wrong with a value.

    overrides: as typed; choices: the option of each configuration group. `dataset=demo` keeps of `dataset.*` and
    `encoder.checkpoint` only what was typed: paths that `conf/local/default.yaml` sets for a real data set do not reach
    the demo.
    """
    typed = {override.lstrip("+").split("=", 1)[0] for override in overrides}
    demo_data, demo_encoder = (choices.get(group) == "demo" for group in ("dataset", "encoder"))
    if demo_encoder and not demo_data:
        raise UserError(
            "encoder=demo has random weights and belongs to dataset=demo only; "
            "type encoder=vipant encoder.checkpoint=/path/to/00071478.pth"
        )
    if demo_data:
        config = _demo(config, typed, demo_encoder)
    try:
        return OmegaConf.to_object(config)
    except OmegaConfBaseException:
        raise
    except ValueError as error:  # a configuration's own check
        raise UserError(str(error)) from error


def _demo(config: DictConfig, typed: set[str], demo_encoder: bool) -> DictConfig:
    for name in ("dataset.root", "dataset.media", *(["encoder.checkpoint"] if demo_encoder else [])):
        if name in typed:
            raise UserError(f"dataset=demo makes its own files in {config.cache_dir}/demo: leave out {name}=…")
    if is_url(config.cache_dir):
        raise UserError("dataset=demo makes its files in cache_dir, which must then be a folder, such as outputs/cache")
    root = Path(config.cache_dir).expanduser().absolute() / "demo"
    fresh = OmegaConf.structured(DatasetConfig(name="demo", root=str(root), media=str(root)))
    for name in DatasetConfig.__dataclass_fields__:
        if f"dataset.{name}" in typed or any(given.startswith(f"dataset.{name}.") for given in typed):
            fresh[name] = config.dataset[name]
    config = config.copy()
    config.dataset = fresh
    if demo_encoder:
        config.encoder.checkpoint = str(root / "checkpoint.pth")
    elif "encoder.checkpoint" not in typed:
        config.encoder.checkpoint = None
    return config


def _absolute(settings: Settings) -> Settings:
    """The settings with their folders and files absolute: questions asked later come from any working directory."""

    def path(value: str | None) -> str | None:
        return None if value is None else str(place(value).absolute())

    def index(value: str) -> str:
        """A path that was found in the working directory; one under the root means the same from everywhere."""
        if is_url(value):
            return value
        path = Path(value)
        is_here = "/" in value and path.parent.is_dir() and any(path.parent.glob(f"{glob.escape(path.name)}*"))
        return str(path.absolute()) if is_here else value

    given = settings.dataset
    dataset = replace(
        given,
        root=path(given.root),
        media=path(given.media),
        ontology=path(given.ontology),
        balanced=index(given.balanced),
        unbalanced=index(given.unbalanced),
        eval=None if given.eval is None else index(given.eval),
    )
    encoder = replace(settings.encoder, checkpoint=path(settings.encoder.checkpoint))
    own = settings.augment
    augment = replace(own, exclude=path(own.exclude), include=path(own.include), per_seed_k=path(own.per_seed_k))
    return replace(settings, dataset=dataset, encoder=encoder, augment=augment, cache_dir=str(settings.cache))


def as_plain(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values, enums by their names and paths absolute, for the manifest."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(_absolute(settings)), default=lambda member: member.value))
    return plain


@dataclass(frozen=True, slots=True)
class Job:
    """Where a job's files go. sweep: the root of the sweep that it belongs to, else None."""

    folder: Path
    sweep: Path | None


class _Task:
    """What Hydra calls for a job; picklable, for launchers that run it in another process (Submitit's)."""

    def __init__(self, name: str, job: Callable[[Any, Job], None]) -> None:
        self._name, self._job = name, job

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        register()  # in a process that has not composed the configuration

    def __call__(self, config: DictConfig) -> None:
        composed = HydraConfig.get()
        with errors_for_people():
            try:
                if composed.job.chdir:
                    raise UserError("hydra.job.chdir=true would change what relative paths mean: leave it out")
                where = Job(Path(composed.runtime.output_dir), _sweep_root(composed))
                self._job(_settings(self._name, config, composed), where)
            except UserError:
                _remove_empty_run(composed)
                raise


def keys(name: str) -> list[str]:
    """The dotted names of a command's keys."""
    return [row.name for row in help.rows(SCHEMAS[name])]


def printed_help(name: str, given: Sequence[str]) -> bool:
    """Whether help was asked for, and printed."""
    asked = list(given) in (["--help"], ["-h"], ["--help", "all"])
    if asked:
        print(help.text(name, SCHEMAS[name], CONF, every_key=given[-1] == "all"))
    return asked


def run_command(name: str, job: Callable[[Any, Job], None]) -> None:
    """Compose a command's configuration as typed and run `job(settings, where)` once, or for each job of a sweep."""
    if printed_help(name, sys.argv[1:]):
        return
    register()
    sys.argv[1:] = [_as_hydra(typed) for typed in sys.argv[1:]]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises what is wrong with the configuration: said here

    with _said(name, sys.argv[1:], _COMPOSING):
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(_Task(name, job))()


def _as_hydra(override: str) -> str:
    """`probe.encoder=NAME` as Hydra writes a group at another place; any other override as it is."""
    return f"encoder@{override}" if override.startswith("probe.encoder=") else override


def link_latest(where: Job) -> None:
    """`outputs/latest` -> the folder of a finished run. Something else of that name stays as it is."""
    link = outputs_folder() / "latest"
    if link.exists() and not link.is_symlink():
        log.warning("%s is no link: it is left alone and does not lead to this run", link)
        return
    target = os.path.relpath(where.folder.resolve(), link.parent.resolve())
    with contextlib.suppress(OSError):  # a file system without links
        files.atomic_symlink(target, link)


def _settings(name: str, config: DictConfig, composed: Any) -> Any:
    """composed: the configuration of Hydra itself."""
    overrides: Any = OmegaConf.to_container(composed.overrides.task, resolve=False)
    with _said(name, overrides, config_errors.ERRORS):
        return settings_from(config, overrides, composed.runtime.choices)


def compose(name: str, overrides: Sequence[str]) -> tuple[Any, Job]:
    """What a command typed with these overrides would get: its settings, and where its files go. UserError."""
    register()
    with (
        _said(name, overrides, _COMPOSING),
        hydra.initialize_config_dir(config_dir=str(CONF), job_name=name, version_base="1.3"),
    ):
        config = hydra.compose(
            config_name=name, overrides=[_as_hydra(typed) for typed in overrides], return_hydra_config=True
        )
        composed, folder = config.hydra, Path(config.hydra.run.dir)
    with open_dict(config):
        del config["hydra"]
    return _settings(name, config, composed), Job(folder, None)


@contextlib.contextmanager
def _said(command: str, overrides: Sequence[str], kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Errors of these kinds as UserError, in the words of `config_errors`. overrides: as typed."""
    try:
        yield
    except kinds as error:
        names = [*keys(command), "dataset", "encoder", "executor", "augment"]
        raise UserError(config_errors.words(error, overrides, names)) from error


def _sweep_root(composed: Any) -> Path | None:
    return Path(composed.sweep.dir) if composed.mode == RunMode.MULTIRUN else None


def _remove_empty_run(composed: Any) -> None:
    """Take away the folder of a job that was refused, if it holds nothing but its log."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.close()
    for folder in (Path(composed.runtime.output_dir), _sweep_root(composed)):
        names = {path.name for path in folder.iterdir()} if folder is not None and folder.is_dir() else {""}
        if folder is not None and names <= {f"{composed.job.name}.log", "multirun.yaml"}:
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):  # the day's folder, if this was the only one
                folder.parent.rmdir()
