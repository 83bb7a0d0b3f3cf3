"""The section ``tracking``: services that show the numbers of a run beside its folder."""

from typing import Annotated, Literal

from pydantic import Field

from vaopd.config.base import FreeOnResume, Section

TrackerName = Literal["trackio", "wandb", "tensorboard", "mlflow", "swanlab"]


class TrackingConfig(Section):
    """Services that also show a run; its folder has all records without them."""

    backend: FreeOnResume[tuple[TrackerName, ...]] = ()
    """Services, such as ``[wandb, tensorboard]``; each needs the package of its name."""

    project: FreeOnResume[Annotated[str, Field(min_length=1)]] = "vaopd"
    """Project, or experiment, of the service."""

    name: FreeOnResume[str | None] = None
    """Name of the run there; null = the name of the run folder."""

    offline: FreeOnResume[bool] = False
    """Send nothing and write into ``RUN/tracking/``, from where it can be sent later."""
