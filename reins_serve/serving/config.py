"""The application's configuration: which models are served, how each is steered and batched, and who may ask.

The same classes serve YAML (`args:` of a Serve configuration) and Python (`build(ApplicationConfig(...))`). A word that is
not known here is an error, so a misspelt safety setting never goes unnoticed.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from reins_serve.calibration.sampling import JudgingConfig, SamplingConfig
from reins_serve.content_credentials import CredentialsConfig
from reins_serve.errors import DirectionError, ReinsError
from reins_serve.models import catalog
from reins_serve.models.catalog import CatalogEntry
from reins_serve.models.options import LoadingOptions
from reins_serve.models.spec import SPECS, DenoiserSpec
from reins_serve.provenance import Private
from reins_serve.rollout.address import SCHEME, absolute
from reins_serve.rollout.signatures import read_key
from reins_serve.serving.jobs import RETENTION_S
from reins_serve.steering.policy import CANDIDATE, LIVE, SteeringPolicy

Host = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,252}(:[0-9]{1,5})?$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[A-Za-z0-9.\-\[\]:]+)$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

DATABASE_FILE = "jobs.sqlite3"
# Owners of jobs that were made without an API key: with the admin key, and where no keys are needed.
ADMIN, EVERYBODY = "admin", "everybody"

SOURCE_ROOT = Path(__file__).resolve().parents[2]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Autoscaling(_Strict):
    """How many replicas a model has, by its backlog in the table of jobs: as many as `target_per_replica` jobs each need.

    Attributes:
        min_replicas: 0: a model that nobody asks for gives its GPUs back; the next job waits until a replica has loaded.
        target_per_replica: Jobs, waiting or on their way, for each replica; None: as many as one pipeline call takes.
        upscale_delay_s, downscale_delay_s, downscale_to_zero_delay_s: For how long a wish for more or fewer replicas must last
            before Serve follows it; from zero it follows at once. The last is that of the step from 1 to 0; None: as the other.
    """

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(ge=1)
    target_per_replica: float | None = Field(None, gt=0, allow_inf_nan=False)
    upscale_delay_s: float = Field(10, ge=0, allow_inf_nan=False)
    downscale_delay_s: float = Field(600, ge=0, allow_inf_nan=False)
    downscale_to_zero_delay_s: float | None = Field(None, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _ordered(self) -> "Autoscaling":
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is below min_replicas ({self.min_replicas})")
        return self


class ModelConfig(_Strict):
    """One model: a deployment of its own, with `num_replicas` replicas, or as many as `autoscaling` finds right.

    Attributes:
        name: The catalogue's name; requests ask for the model by it.
        directions: Direction files by the name that policies use; `live` is what every request gets by default. A relative
            path is looked up in the working directory, then beside the installed package (see `find_file`).
        store: Folder or fsspec URL of the store of directions from which `live` comes instead, and a canary's candidate: what
            `reins-serve directions` or the API promotes there is taken up while the model serves.
        trusted_keys: Public keys (`ed25519:HEX`, or paths of PEM files) of which one must have signed every direction of this
            model, from a file or from the store. Empty: those in the environment variable REINS_TRUSTED_KEYS, if any.
        policy: What a request may ask for, and the operator's floor.
        entry: A catalogue entry of your own, of the same name, for a checkpoint that the catalogue does not have.
        specs: Entries of SPECS, by class name, for denoisers that steering does not know.
        task: What it makes, one of its entry's tasks; None: the first.
        loading: How its checkpoint is loaded and accelerated.
        sampling: What a replica stores of live traffic for the next recalibration; None: nothing.
        judging: Which of its clips a judge looks at, to compare the versions of a canary; None: none.
        torch_threads: Threads of one replica's arithmetic on the CPU; None leaves torch's own choice.
        num_replicas: How many replicas there always are, where `autoscaling` is not given.
        num_cpus, num_gpus: What Ray reserves for one replica: a part of a GPU, or several on one node.
        max_batch_size: Most requests of equal shape, steps and guidance that share one pipeline call.
        max_batch_wait_ms: How long the oldest waiting request waits for others to join.
        max_queued: Most jobs that may wait for this model; one more is refused with 429.
        file_metadata: What a clip's file says of its request beside how it was made: `prompt`, `seed`, or nothing.
        c2pa: Whose signature its clips carry (Content Credentials); None: none.
        log_prompts: Whether logs may show prompts; else they show their hash, and libraries log errors alone.
        generation_timeout_s: A job that takes longer than this, from its dispatch on, fails with `timeout`.
    """

    name: str
    directions: dict[str, str] = Field(default_factory=dict)
    store: str | None = Field(None, min_length=1)
    trusted_keys: tuple[str, ...] = ()
    policy: SteeringPolicy = SteeringPolicy()
    entry: CatalogEntry | None = None
    specs: dict[str, DenoiserSpec] = Field(default_factory=dict)
    task: str | None = None
    loading: LoadingOptions = LoadingOptions()
    sampling: SamplingConfig | None = None
    judging: JudgingConfig | None = None
    torch_threads: int | None = Field(None, ge=1)
    num_replicas: int = Field(1, ge=1)
    autoscaling: Autoscaling | None = None
    num_cpus: float = Field(1, ge=0)
    num_gpus: float = Field(0, ge=0)
    max_batch_size: int = Field(1, ge=1)
    max_batch_wait_ms: float = Field(0, ge=0, allow_inf_nan=False)
    max_queued: int = Field(64, ge=1)
    file_metadata: tuple[Private, ...] = ()
    c2pa: CredentialsConfig | None = None
    log_prompts: bool = False
    generation_timeout_s: float = Field(3600, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _live_direction(self) -> "ModelConfig":
        if self.store is not None and {LIVE, CANDIDATE} & set(self.directions):
            raise ValueError(
                f"model {self.name}: its live direction and its candidate come from the store; give other directions other names"
            )
        if self.policy.required and self.store is None and LIVE not in self.directions:
            raise ValueError(
                f"model {self.name}: name a direction file under directions.{LIVE} or a store, or say policy.required: false to "
                "serve clips that are marked as unsteered"
            )
        return self

    @model_validator(mode="after")
    def _sampled_as_it_is(self) -> "ModelConfig":
        if self.sampling is not None and (self.loading.compile is not None or self.loading.cache is not None):
            raise ValueError(
                f"model {self.name}: sampling reads the activations of every block and step, which a compiled or cached model "
                "does not show; leave loading.compile and loading.cache out where traffic is sampled"
            )
        return self

    @model_validator(mode="after")
    def _one_process(self) -> "ModelConfig":
        if self.loading.context_parallel is not None:
            raise ValueError(
                f"model {self.name}: context_parallel needs one process for each GPU, started by torchrun, and a replica is one "
                "process; several GPUs for a replica are num_gpus with loading.device_map: balanced"
            )
        return self

    @model_validator(mode="after")
    def _one_rule_of_replicas(self) -> "ModelConfig":
        if self.autoscaling is not None and "num_replicas" in self.model_fields_set:
            raise ValueError(f"model {self.name}: give num_replicas or autoscaling, not both")
        return self

    @model_validator(mode="after")
    def _own_entry(self) -> "ModelConfig":
        catalog.check_own(self.entry, self.name)
        return self

    def catalog_entry(self) -> CatalogEntry:
        """The model's catalogue entry. Makes its own entry and specs known in this process first.

        Raises:
            ReinsError: the catalogue has no such model (`model_not_found`), the model does not do the task, or it cannot make
                as many clips in one call as `max_batch_size` says.
        """
        SPECS.update(self.specs)
        if self.entry is not None:
            catalog.register(self.entry)
        entry = catalog.get(self.name)
        task = self.task or entry.tasks[0]
        if task not in entry.tasks:
            raise ReinsError(f"{self.name} does not do {task}; its tasks are: {', '.join(entry.tasks)}.", param="task")
        if task not in ("text-to-video", "image-to-video"):
            raise ReinsError(
                f"{self.name} is configured for {task}, and the HTTP API takes no video; use it through `reins_serve.attach` and "
                "`models.generation`, or choose another task.",
                param="task",
            )
        if entry.max_batch is not None and self.max_batch_size > entry.max_batch:
            raise ReinsError(
                f"{self.name} makes at most {entry.max_batch} clips in one call; lower max_batch_size from {self.max_batch_size}.",
                param="max_batch_size",
            )
        return entry

    @property
    def sources(self) -> dict[str, str]:
        """Where the directions come from, as `attach` takes it: files, and the store's address for the live one."""
        return self.directions if self.store is None else {**self.directions, LIVE: f"{SCHEME}{self.store}"}

    @property
    def min_replicas(self) -> int:
        """How many replicas there are at least, once all have started."""
        return self.num_replicas if self.autoscaling is None else self.autoscaling.min_replicas

    @property
    def in_flight_per_replica(self) -> int:
        """Jobs that the gateways hand to one replica at a time: one batch that runs and one that gathers."""
        return 2 * self.max_batch_size


class Limits(_Strict):
    """Bounds on a single HTTP request; a model's own bounds are in the catalogue.

    Attributes:
        max_prompt_chars: Of a prompt, and of a negative prompt.
        max_body_bytes: Of a request's body, without the room for an image where a model takes one.
        max_image_bytes, max_image_pixels: Of an image that a clip begins with; pixels are counted before any is decoded.
        image_timeout_s: How long fetching one from another host may take, redirects included.
        max_pixels, max_frames: Of a clip: width times height, and length; None: what the model can.
    """

    max_prompt_chars: int = Field(2000, ge=1)
    max_body_bytes: int = Field(1 << 20, ge=1)
    max_image_bytes: int = Field(10 << 20, ge=1)
    max_image_pixels: int = Field(25_000_000, ge=1, le=80_000_000)
    image_timeout_s: float = Field(10, gt=0, allow_inf_nan=False)
    max_pixels: int | None = Field(None, ge=1)
    max_frames: int | None = Field(None, ge=1)


class ApiKey(_Strict):
    """A key that may use the API.

    Attributes:
        name: Its jobs belong to this name; a new key under the same name keeps them.
        sha256: SHA-256 digest of the key, hexadecimal.
        priority: Of the jobs that wait, those of higher priority go first.
    """

    name: Name
    sha256: Sha256
    priority: int = Field(0, ge=-100, le=100)


class ApplicationConfig(_Strict):
    """The whole application.

    Attributes:
        models: What is served; a request that names no model gets the first.
        output_dir: Folder of the finished clips, relative to the working directory, or an fsspec URL such as s3://bucket/clips.
        database: SQLAlchemy URL of the database of jobs; None: an SQLite file in `output_dir`. Serve shows the configuration in
            its dashboard and logs, so a password does not belong in it: PostgreSQL finds one in PGPASSWORD or PGPASSFILE.
        retention_s: How long a job that has ended is kept, with its files. None: for ever.
        num_gateways: Processes that answer HTTP and take jobs to replicas. They share nothing but the database and the files:
            more than one needs PostgreSQL and shared storage, or, on a single machine, the same SQLite file and folder.
        drain_s: How long a gateway that goes away waits for its clips before it hands their jobs back to the queue; None: as
            long as the longest `generation_timeout_s`.
        api_keys: The keys that may use the API. Empty: everybody who reaches the port may, which is meant for a server that
            listens on the loopback interface only.
        admin_key_sha256: Digest of the key that may turn steering off. None: nobody may.
        steering_figures: Who is told how near a clip's prompt came to what steering prevents (its displacement, score, moved and
            guarded): the job's owner, whom they help to search for a way around steering, or only who shows the admin key.
        cors_origins: Origins, such as `https://studio.example.com`, whose pages may use the API from a browser; `*`: all.
        image_hosts: Hosts, as `host` or `host:port`, from which images are fetched over https; empty: no image is fetched.
        limits: Bounds on a single HTTP request.
    """

    models: tuple[ModelConfig, ...] = Field(min_length=1)
    output_dir: str = Field("reins-clips", min_length=1)
    database: str | None = Field(None, min_length=1)
    retention_s: float | None = Field(RETENTION_S, gt=0, allow_inf_nan=False)
    num_gateways: int = Field(1, ge=1)
    drain_s: float | None = Field(None, ge=0, allow_inf_nan=False)
    api_keys: tuple[ApiKey, ...] = ()
    admin_key_sha256: Sha256 | None = None
    steering_figures: Literal["owner", "admin"] = "owner"
    cors_origins: tuple[Origin, ...] = ()
    image_hosts: tuple[Host, ...] = ()
    limits: Limits = Limits()

    @field_validator("models")
    @classmethod
    def _different_names(cls, models: tuple[ModelConfig, ...]) -> tuple[ModelConfig, ...]:
        if len({model.name for model in models}) != len(models):
            raise ValueError("every model may be listed once; raise num_replicas to serve it more often")
        return models

    @field_validator("models")
    @classmethod
    def _one_store(cls, models: tuple[ModelConfig, ...]) -> tuple[ModelConfig, ...]:
        if len({model.store for model in models} - {None}) > 1:
            raise ValueError("one registry keeps one store: give all models that have a store the same one")
        return models

    @field_validator("database")
    @classmethod
    def _readable_database(cls, database: str | None) -> str | None:
        if database is None:
            return None
        try:
            url = make_url(database)
        except ArgumentError:
            raise ValueError(
                "database is no URL that SQLAlchemy reads; write sqlite:////absolute/path or postgresql://user@host/name"
            ) from None
        if url.get_backend_name() not in ("sqlite", "postgresql"):
            raise ValueError(
                "database is SQLite or PostgreSQL: sqlite:////absolute/path or postgresql://user@host/name"
            )
        if url.password is not None or "password" in url.query:
            raise ValueError(
                "database has a password in it, which Serve would show in its dashboard and logs; leave it out, and set PGPASSWORD "
                "or PGPASSFILE in the environment of the whole cluster"
            )
        return database

    @model_validator(mode="after")
    def _a_place_for_jobs(self) -> "ApplicationConfig":
        if self.database is None and "://" in self.output_dir:
            raise ValueError("name a database: the default, an SQLite file in output_dir, needs a local folder there")
        return self

    @field_validator("api_keys")
    @classmethod
    def _different_keys(cls, keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        for values in ([key.name for key in keys], [key.sha256 for key in keys]):
            if len(set(values)) != len(values):
                raise ValueError("every API key needs a name and a digest of its own")
        if reserved := {key.name for key in keys} & {ADMIN, EVERYBODY}:
            raise ValueError(f"{reserved.pop()} is no name for an API key: others' jobs have it; choose another")
        return keys

    @property
    def drain_timeout_s(self) -> float:
        """How long a gateway waits for its clips when it goes away."""
        return max(model.generation_timeout_s for model in self.models) if self.drain_s is None else self.drain_s

    @property
    def database_url(self) -> str:
        """Where the jobs are."""
        return self.database or f"sqlite:///{Path(self.output_dir) / DATABASE_FILE}"

    @property
    def store(self) -> str | None:
        """The store of directions, if a model has one."""
        return next((model.store for model in self.models if model.store is not None), None)

    def model(self, name: str) -> ModelConfig | None:
        """The configuration of a served model, or None."""
        return next((model for model in self.models if model.name == name), None)


def hash_key(key: str) -> str:
    """The SHA-256 digest by which the configuration knows a key; keys should be long and random."""
    return hashlib.sha256(key.encode()).hexdigest()


def find_file(path: str) -> Path:
    """Resolve a path of the configuration to an absolute one.

    An absolute path stands as it is. A relative one is looked up in the working directory of the process that calls
    `build`, then in the folder that holds the package `reins_serve` (a checkout, whose `directions/` ships with it).

    Raises:
        DirectionError: there is no such file in either place.
    """
    places = list(dict.fromkeys((Path.cwd() / path, SOURCE_ROOT / path)))  # one place, if the path is absolute
    for place in places:
        if place.is_file():
            return place.resolve()
    raise DirectionError(
        f"There is no direction file at {' or '.join(map(str, places))}. Correct the path under `directions:`, or give an "
        "absolute one.",
        param="directions",
    )


def resolved(config: ApplicationConfig) -> ApplicationConfig:
    """The same configuration with absolute paths and keys themselves, so that no later process depends on its working directory.

    Raises:
        DirectionError: a direction file is not where the configuration says.
        ReinsError: a trusted key is none.
    """
    models = tuple(
        model.model_copy(
            update={
                "directions": {name: str(find_file(path)) for name, path in model.directions.items()},
                "store": None if model.store is None else absolute(model.store),
                "trusted_keys": tuple(map(read_key, model.trusted_keys)),
            }
        )
        for model in config.models
    )
    return config.model_copy(
        update={"models": models, "output_dir": absolute(config.output_dir), "database": _absolute_database(config)}
    )


def _absolute_database(config: ApplicationConfig) -> str | None:
    """The database's URL with an absolute path, if it is a file of SQLite."""
    if config.database is None:
        return None
    url = make_url(config.database)
    if url.get_backend_name() != "sqlite" or not url.database or url.database.startswith((":", "file:")):
        return config.database
    return str(url.set(database=str(Path(url.database).absolute())))
