"""Rows of data sets on the Hugging Face hub."""

import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from vaopd.errors import ProblemError
from vaopd.problems.columns import check_columns
from vaopd.problems.rows import NO_COLUMNS, VIRL39K_NAME, VIRL39K_PARQUET, Row, parquet_rows


def hub_rows(name: str, split: str, columns: Mapping[str, str] = NO_COLUMNS) -> Iterator[Row]:
    """Yield the rows of a data set on the hub.

    Raises:
        ConfigError: A column that a recipe maps does not exist.
        ProblemError: The hub cannot be reached or has no such data set or split.
    """
    # Imported here, because it takes one and a half seconds and local files do not need it.
    import datasets
    import datasets.config
    import huggingface_hub

    try:
        data = datasets.load_dataset(name, split=split)
    # Unreachable, unknown and gated names are OSErrors, an unknown split is a ValueError.
    except (OSError, ValueError) as error:
        raise unreachable(f"{name}@{split}", error) from error
    assert isinstance(data, datasets.Dataset)
    check_columns(data.column_names, columns, f"{name}@{split}")
    mapped = columns.get("image", "image")
    for column in {"images", "image", mapped}.intersection(data.column_names):
        # Not decoded: encoded bytes are small and exact, and decoding takes time.
        data = data.cast_column(column, datasets.List(datasets.Image(decode=False)))
    # Data sets of image files name files of these two folders.
    caches = (datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE)
    roots = tuple(Path(cache).resolve() for cache in caches)
    for number, cells in enumerate(data, start=1):
        yield Row(f"{name}@{split} row {number}", dict(cells), Path(), roots)


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
