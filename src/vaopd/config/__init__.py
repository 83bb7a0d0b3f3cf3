"""The configuration of a run: sections, methods, cross-checks, recipes and overrides."""

from vaopd.config.base import OnBadRow, Section
from vaopd.config.explaining import explain
from vaopd.config.methods import AnyMethodOptions
from vaopd.config.own_method import MethodOptions, Needs, OwnMethodOptions, PatchMask
from vaopd.config.parsing import (
    load_config,
    load_yaml,
    parse_config,
    parse_overrides,
    read_recipe,
)
from vaopd.config.run import RunConfig
from vaopd.config.sections import (
    MAX_STORED_PIXELS,
    DataConfig,
    LoraConfig,
    SamplingConfig,
    StudentConfig,
    TeacherConfig,
    ValidationConfig,
    ViewConfig,
    VllmConfig,
)
from vaopd.config.tracking import TrackingConfig
from vaopd.config.training import TrainingConfig

__all__ = [
    "MAX_STORED_PIXELS",
    "AnyMethodOptions",
    "DataConfig",
    "LoraConfig",
    "MethodOptions",
    "Needs",
    "OnBadRow",
    "OwnMethodOptions",
    "PatchMask",
    "RunConfig",
    "SamplingConfig",
    "Section",
    "StudentConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainingConfig",
    "ValidationConfig",
    "ViewConfig",
    "VllmConfig",
    "explain",
    "load_config",
    "load_yaml",
    "parse_config",
    "parse_overrides",
    "read_recipe",
]
