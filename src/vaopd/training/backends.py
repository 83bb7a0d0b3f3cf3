"""The trackers, one small class each; their packages are imported only when they are opened.

Tested versions and what each shows: docs/tracking.md.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from vaopd.config import RunConfig, TrackingConfig
from vaopd.errors import ConfigError


@dataclass(frozen=True)
class RunIdentity:
    """What a tracker needs to know of a run."""

    id: str
    """32 hexadecimal digits, the same after a resumption."""

    name: str
    project: str
    step: int
    """The last step that was taken; 0 in a new run."""

    folder: Path
    """Where a tracker may write."""

    is_offline: bool


class TrackerBackend(Protocol):
    """A place that shows runs."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers of a step."""
        ...

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show a table; all rows have the same columns."""
        ...

    def images(self, name: str, images: Mapping[str, Path], step: int) -> None:
        """Show image files by their captions."""
        ...

    def finish(self) -> None:
        """End the run there."""
        ...


def check_installed(tracking: TrackingConfig) -> None:
    """Check that the package of each tracker is there, without importing it.

    Raises:
        ConfigError: One is missing.
    """
    for name in tracking.backend:
        if find_spec(name) is None:
            raise ConfigError(
                f"tracking.backend names {name}, which is not installed; "
                f"pip install 'vaopd[{name}]', or leave it out"
            )


def _cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and the cells of a table."""
    columns = list(rows[0]) if rows else []
    return columns, [[row.get(column) for column in columns] for row in rows]


class Wandb:
    """Weights & Biases. ``wandb sync`` sends what was written offline."""

    def __init__(self, run: RunIdentity, config: RunConfig) -> None:
        self.wandb = importlib.import_module("wandb")
        run.folder.mkdir(exist_ok=True)
        self.run = self.wandb.init(
            project=run.project,
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.folder),
            config=config.model_dump(mode="json"),
            mode="offline" if run.is_offline else None,
        )

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers of a step."""
        self.run.log(dict(values), step=step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show a table."""
        columns, cells = _cells(rows)
        table = self.wandb.Table(columns=columns, data=cells, allow_mixed_types=True)
        self.run.log({name: table}, step=step)

    def images(self, name: str, images: Mapping[str, Path], step: int) -> None:
        """Show image files by their captions."""
        shown = [self.wandb.Image(str(path), caption=text) for text, path in images.items()]
        self.run.log({name: shown}, step=step)

    def finish(self) -> None:
        """End the run there."""
        self.run.finish()


class Trackio:
    """Trackio, which keeps runs on this machine unless TRACKIO_SPACE_ID names a Space."""

    def __init__(self, run: RunIdentity, config: RunConfig) -> None:
        if run.is_offline:
            run.folder.mkdir(exist_ok=True)
            # Read when the package is imported.
            os.environ["TRACKIO_DIR"] = str((run.folder / "trackio").resolve())
            os.environ.pop("TRACKIO_SPACE_ID", None)
        self.trackio = importlib.import_module("trackio")
        # Names are unique in a project only with a part of the id.
        self.trackio.init(
            project=run.project,
            name=f"{run.name}-{run.id[:6]}",
            config=config.model_dump(mode="json"),
            resume="allow",
            embed=False,
        )

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers of a step."""
        self.trackio.log(dict(values), step=step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show a table."""
        columns, cells = _cells(rows)
        self.trackio.log({name: self.trackio.Table(columns=columns, data=cells)}, step=step)

    def images(self, name: str, images: Mapping[str, Path], step: int) -> None:
        """Show image files, each by its number and caption."""
        shown = {
            f"{name}/{n}": self.trackio.Image(str(path), caption=text)
            for n, (text, path) in enumerate(images.items())
        }
        self.trackio.log(shown, step=step)

    def finish(self) -> None:
        """End the run there."""
        self.trackio.finish()


class TensorBoard:
    """Event files in ``RUN/tracking/tensorboard``, for ``tensorboard --logdir``."""

    def __init__(self, run: RunIdentity, config: RunConfig) -> None:
        module = importlib.import_module("torch.utils.tensorboard")
        purge = run.step + 1 if run.step else None
        self.writer = module.SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge)
        self.writer.add_text("recipe", f"```\n{config.to_yaml()}\n```", 0)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers of a step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show a table as Markdown text."""
        columns, cells = _cells(rows)
        lines = [columns, ["---"] * len(columns), *cells]
        text = "\n".join("|".join(["", *map(_plain, line), ""]) for line in lines)
        self.writer.add_text(name, text, step)

    def images(self, name: str, images: Mapping[str, Path], step: int) -> None:
        """Show image files by their captions."""
        import numpy as np

        for text, path in images.items():
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self.writer.add_image(f"{name}/{text}", pixels, step, dataformats="HWC")

    def finish(self) -> None:
        """Write what is left."""
        self.writer.close()


def _plain(value: Any) -> str:
    """Return a cell as one line of Markdown."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("\n", "↵").replace("|", "\\|")


class MLflow:
    """MLflow at MLFLOW_TRACKING_URI, or its default; offline, a database in the run folder."""

    def __init__(self, run: RunIdentity, config: RunConfig) -> None:
        self.mlflow = mlflow = importlib.import_module("mlflow")
        place = None
        if run.is_offline:
            folder = (run.folder / "mlflow").resolve()
            folder.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
            place = (folder / "artifacts").as_uri()
        if mlflow.get_experiment_by_name(run.project) is None:
            mlflow.create_experiment(run.project, artifact_location=place)
        mlflow.set_experiment(run.project)
        found = mlflow.search_runs(
            filter_string=f"tags.vaopd_id = '{run.id}'", output_format="list", max_results=1
        )
        if found:
            mlflow.start_run(run_id=found[0].info.run_id)
        else:
            mlflow.start_run(run_name=run.name, tags={"vaopd_id": run.id})
            mlflow.log_dict(config.model_dump(mode="json"), "recipe.json")

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers of a step."""
        self.mlflow.log_metrics(dict(values), step=step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Store a table as an artifact of the step."""
        columns, cells = _cells(rows)
        data = {column: [row[n] for row in cells] for n, column in enumerate(columns)}
        self.mlflow.log_table(data, f"{name}/step_{step:06d}.json")

    def images(self, name: str, images: Mapping[str, Path], step: int) -> None:
        """Store image files as artifacts of the step."""
        for path in images.values():
            self.mlflow.log_artifact(str(path), f"{name}/step_{step:06d}")

    def finish(self) -> None:
        """End the run there."""
        self.mlflow.end_run()


class SwanLab:
    """SwanLab. ``swanlab sync`` sends what was written offline."""

    def __init__(self, run: RunIdentity, config: RunConfig) -> None:
        self.swanlab = importlib.import_module("swanlab")
        folder = run.folder / "swanlab"
        folder.mkdir(parents=True, exist_ok=True)
        self.swanlab.init(
            project=run.project,
            name=run.name,
            id=run.id[:21],
            resume="allow",
            config=config.model_dump(mode="json"),
            log_dir=str(folder),
            mode="offline" if run.is_offline else None,
        )

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers of a step."""
        self.swanlab.log(dict(values), step=step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show a table."""
        columns, cells = _cells(rows)
        table = self.swanlab.echarts.Table()
        table.add(columns, [[_plain(cell) for cell in row] for row in cells])
        self.swanlab.log({name: table}, step=step)

    def images(self, name: str, images: Mapping[str, Path], step: int) -> None:
        """Show image files by their captions."""
        shown = [self.swanlab.Image(str(path), caption=text) for text, path in images.items()]
        self.swanlab.log({name: shown}, step=step)

    def finish(self) -> None:
        """End the run there."""
        self.swanlab.finish()


OPENERS: dict[str, Callable[[RunIdentity, RunConfig], TrackerBackend]] = {
    "trackio": Trackio,
    "wandb": Wandb,
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "swanlab": SwanLab,
}
"""By name, what opens a tracker."""
