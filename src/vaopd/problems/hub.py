"""Rows of data sets on the Hugging Face hub."""

import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaopd.errors import ProblemError, VaopdError
from vaopd.problems.rows import NO_COLUMNS, VIRL39K_NAME, VIRL39K_PARQUET, Row, parquet_rows
from vaopd.problems.streaming import Stream, streamed_table
from vaopd.problems.tables import table_rows


@dataclass(frozen=True)
class HubName:
    """A split of a data set on the hub."""

    name: str
    split: str = "train"
    config: str | None = None
    """Name of one of its configurations; None = the only one, or its default."""

    revision: str | None = None
    """Branch, tag or commit; None = the main branch."""

    stream: Stream | None = None
    """Rows that are streamed; None = the data set is downloaded whole."""

    @property
    def full(self) -> str:
        """Name with the revision, where one is named."""
        return f"{self} ({self.revision})" if self.revision else str(self)

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"{self.name}{config}@{self.split}"


def hub_rows(hub: HubName, columns: Mapping[str, str] = NO_COLUMNS) -> Iterator[Row]:
    """Yield the rows of a data set on the hub.

    Raises:
        ConfigError: A column that a recipe maps does not exist, or a stream has fewer rows than are
            taken.
        ProblemError: The hub cannot be reached or has no such data set, configuration or split.
    """
    # Imported here, because it takes one and a half seconds and local files do not need it.
    import datasets

    options: dict[str, Any] = {"split": hub.split, "revision": hub.revision}
    try:
        if hub.stream is None:
            data = datasets.load_dataset(hub.name, hub.config, **options)
        else:
            data = streamed_table(
                hub.full,
                hub.stream,
                lambda: datasets.load_dataset(hub.name, hub.config, streaming=True, **options),
            )
    except VaopdError:
        raise
    # Unreachable, unknown and gated names are OSErrors; an unknown configuration or split is a
    # ValueError.
    except (OSError, ValueError) as error:
        if "onfig" not in str(error).split("\n")[0]:
            raise unreachable(str(hub), error) from error
        # A configuration is missing or unknown; the second line lists those there are.
        reason = " ".join(" ".join(str(error).split("\n")[:2]).split())[:400]
        raise ProblemError(f"{hub} cannot be loaded ({reason}); append ?config=NAME") from error
    assert isinstance(data, datasets.Dataset)
    yield from table_rows(data, str(hub), columns)


def virl39k_rows(columns: Mapping[str, str] = NO_COLUMNS) -> Iterator[Row]:
    """Yield the rows of ViRL39K, whose images are in a zip file next to the parquet on the hub.

    Raises:
        ProblemError: The hub cannot be reached.
    """
    import huggingface_hub

    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                VIRL39K_NAME, repo_type="dataset", allow_patterns=[VIRL39K_PARQUET, "images.zip"]
            )
        )
    except (OSError, ValueError) as error:
        raise unreachable(VIRL39K_NAME, error) from error
    if not (folder / "images").is_dir():
        # Unpacked to another name and renamed, so an interrupted run leaves no incomplete folder.
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            with zipfile.ZipFile(folder / "images.zip") as archive:
                archive.extractall(aside)
            (Path(aside) / "images").rename(folder / "images")
    yield from parquet_rows(folder / VIRL39K_PARQUET, columns=columns)


def unreachable(name: str, error: Exception) -> ProblemError:
    """Return the error of a hub data set that cannot be loaded."""
    reason = str(error).strip().split("\n")[0]
    return ProblemError(
        f"{name} cannot be loaded from the hub ({reason}); where there is no connection, download "
        "it elsewhere and name the folder or parquet file"
    )
