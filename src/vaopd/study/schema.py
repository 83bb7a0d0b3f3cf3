"""The schema of a study recipe: tables of arms over one base recipe, seeds, grids."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from vaopd.config import Section

Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
Overrides = tuple[str, ...]


class AxisConfig(Section):
    """The place of a table on an axis of the regime map."""

    name: str
    """Name of the quantity that varies; tables of one name share a plot."""

    value: float
    """Value of this table on the axis."""


Grid = dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]
"""Values to choose among, by key; all their combinations are tried."""


class ArmConfig(Section):
    """One arm of a table; a plain list in the recipe is its ``set``."""

    set: Overrides = ()
    """Settings of the arm."""

    grid: Grid = Field(default_factory=dict)
    """Settings of the arm that are chosen among values; by default the table's grid."""


def _arm_of(value: Any) -> Any:
    return {"set": value} if isinstance(value, list | tuple) else value


class TuningConfig(Section):
    """How grids are searched: on seeds and problems that no comparison uses."""

    seeds: Seeds
    overrides: Overrides = ()
    """Settings of the tuning runs that win over an arm's, such as other held-out problems."""


class TableConfig(Section):
    """Arms that are compared with one baseline."""

    title: str
    """Heading in the report."""

    baseline: str
    """The arm that all others are compared with."""

    arms: Annotated[dict[str, Annotated[ArmConfig, BeforeValidator(_arm_of)]], Field(min_length=1)]
    """Name and settings of each arm; ``base`` is the untrained student and has no settings."""

    grid: Grid = Field(default_factory=dict)
    """Values that each arm without a grid of its own chooses among."""

    overrides: Overrides = ()
    """Settings of all arms of the table."""

    figures: tuple[Literal["intervals", "curves", "sparsity"], ...] = ("intervals",)
    """Plots below the table."""

    axis: AxisConfig | None = None
    """Makes the table one point of a regime map."""

    seeds: Seeds | None = None
    """Seeds of this table; by default the study's. ``--seeds`` can only leave some out."""


class QuickConfig(Section):
    """Changes by ``--quick``."""

    seeds: Seeds
    overrides: Overrides = ()
    tables: tuple[str, ...]
    tuning: TuningConfig | None = None
    """In place of the study's."""


class StudyConfig(Section):
    """A study recipe: a base recipe, tables of arms, seeds."""

    recipe: str
    """Base recipe: a path relative to this file, or the name of one that ships."""

    tables: Annotated[dict[str, TableConfig], Field(min_length=1)]
    seeds: Seeds
    overrides: Overrides = ()
    """Settings of all runs."""

    tuning: TuningConfig | None = None
    """Needed where a table or an arm has a grid."""

    quick: QuickConfig | None = None
