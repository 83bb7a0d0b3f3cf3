"""Sampling protocol: the settings that two runs must share to be compared or continued."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vaopd.config import DataConfig, read_recipe
from vaopd.errors import ConfigError
from vaopd.problems.problem import Problem
from vaopd.records import read_json, write_json

PROTOCOL = "protocol.json"
ENDS_BYTES = 1_000_000
TINY_MIN_PIXELS = 1024
EngineName = Literal["transformers", "vllm", "openai"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Sampling settings; the defaults are those of the paper where the paper states them."""

    model: str
    engine: EngineName = "transformers"
    samples: int = 8
    """Number of independent responses for each item; 8 gives avg@8."""

    temperature: float = 1.0
    top_p: float = 1.0
    """Not stated in the paper."""

    top_k: int = 0
    """Number of most likely tokens to sample from; 0 = all."""

    max_new_tokens: int = 4096
    """Not stated in the paper."""

    seed: int = 42
    min_pixels: int = 262_144
    max_pixels: int = 4_194_304
    weights: str | None = None
    """Fingerprint of a local model folder, because its weights may change."""

    base_url: str | None = None
    """Address of the server, for the ``openai`` engine."""

    prompt_suffix: str = ""
    """Text on a separate line after every prompt."""

    system_prompt: str = ""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Values for the model's chat template, such as ``enable_thinking``."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("samples", 1, 10_000),
            ("temperature", 0, 100),
            ("top_k", 0, 10**7),
            ("max_new_tokens", 1, 10**7),
            ("min_pixels", 1, self.max_pixels),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {value}, expected {low} to {high}"
                )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p}, expected above 0 and at most 1")
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(
                f"--samples is {self.samples} at --temperature 0, where all samples are the same; "
                "use --samples 1"
            )


def model_folder(model: str) -> str:
    """Return ``final/`` for the folder of a finished run, and any other name as it is.

    Raises:
        ConfigError: The run has not ended.
    """
    run = Path(model)
    if not _is_run(run):
        return model
    if not (run / "final").is_dir():
        raise ConfigError(
            f"run {model} has no final/ yet; let it end (vaopd train .. --resume), or name one of "
            f"its models, such as {run / 'checkpoints' / 'best'}"
        )
    return str(run / "final")


def _is_run(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.yaml", "environment.json"))


def weights_of(model: str) -> str | None:
    """Return a fingerprint of the weights in a local folder; ``None`` for names on a hub.

    It covers the size, the beginning and the end of each file, which every further step changes;
    whole files have gigabytes.
    """
    files = sorted(Path(model).glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            size = file.stat().st_size
            digest.update(f"{file.name} {size} ".encode() + stream.read(ENDS_BYTES))
            stream.seek(max(0, size - ENDS_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()[:16] if files else None


def min_pixels_of(model: str) -> int:
    """Return the pixel budget that a model was trained with, or the default of recipes.

    The budget is read from the recipe of the run that contains the model folder; the shipped tiny
    models read figures of 96 pixels without scaling.
    """
    if model.startswith("tiny:"):
        return TINY_MIN_PIXELS
    data = trained_on(model)
    return Protocol.min_pixels if data is None else data.min_pixels


def trained_on(model: str) -> DataConfig | None:
    """Return the section ``data`` of the run that contains a model folder; None without a run."""
    for folder in Path(model).resolve().parents[:2] if Path(model).is_dir() else ():
        if _is_run(folder):
            # The recipe is not checked as a whole: the file of a user's method may be elsewhere.
            data = read_recipe(folder / "config.yaml").get("data", {})
            return DataConfig.model_validate(data)
    return None


def asked(problem: Problem, protocol: Protocol) -> Problem:
    """Return a problem with the text that the protocol adds to its prompt."""
    if not protocol.prompt_suffix:
        return problem
    return replace(problem, prompt=f"{problem.prompt}\n{protocol.prompt_suffix}")


def claim_folder(output: Path, protocol: Protocol) -> None:
    """Write the protocol into a new output folder, or check that the folder has the same one.

    Raises:
        ConfigError: The folder holds responses of another protocol, or other files.
    """
    path = output / PROTOCOL
    mine = asdict(protocol)
    if path.is_file():
        # Folders of earlier versions lack settings that always had their default value.
        theirs = asdict(Protocol(model="")) | read_json(path)
        if theirs["samples"] < mine["samples"]:
            # More samples of the same kind are allowed; the existing ones stay.
            theirs["samples"] = mine["samples"]
        different = [name for name, value in mine.items() if theirs.get(name) != value]
        if different:
            name = different[0]
            raise ConfigError(
                f"output {output} holds responses with {name}={theirs.get(name)!r}, not "
                f"{mine[name]!r}; give the same options to go on, or another --output"
            )
        write_json(path, mine)
        return
    # A process that was killed here may have left a hidden file.
    if output.exists() and not (
        output.is_dir() and {p.name for p in output.iterdir()} <= {f".{PROTOCOL}.partial"}
    ):
        raise ConfigError(
            f"output {output} exists and is not an evaluation; choose another folder or remove it"
        )
    write_json(path, mine)


def protocol_in(folder: Path) -> dict[str, Any] | None:
    """Return the protocol of an output folder; ``None`` where it was not written by vaopd."""
    path = folder / PROTOCOL
    return asdict(Protocol(model="")) | read_json(path) if path.is_file() else None
