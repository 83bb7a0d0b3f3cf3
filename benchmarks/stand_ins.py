"""What the suite puts in the place of pydantic on a machine that has none.

The measured code uses pydantic only to check recipes. A GPU machine may have torch, transformers
and little else; there the suite fills in the defaults of the schema and checks nothing.
"""

import sys
from types import ModuleType
from typing import Any, ClassVar, get_args, get_type_hints


class BaseModel:
    """Takes values by name; the defaults are class attributes."""

    model_fields: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        del options

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    @classmethod
    def model_validate(cls, values: dict[str, Any]) -> "BaseModel":
        """Return the nested sections, unchecked."""
        hints = get_type_hints(cls)
        return cls(
            **{
                name: _section(hints[name], value).model_validate(value)
                if isinstance(value, dict)
                else value
                for name, value in values.items()
            }
        )


def _section(hint: Any, values: dict[str, Any]) -> type[BaseModel]:
    """Return the section of a field; of several, the one of that name, or the first."""
    sections = get_args(hint) or (hint,)
    wanted = [s for s in sections if values.get("name") in get_args(get_type_hints(s).get("name"))]
    return (wanted or sections)[0]


def _validator(**options: Any) -> Any:
    del options
    return lambda function: function


def install() -> None:
    """Make ``import pydantic`` give these few names."""
    module: Any = ModuleType("pydantic")
    module.BaseModel = BaseModel
    module.ConfigDict = dict
    module.Field = lambda **options: None
    module.ValidationError = ValueError
    module.model_validator = module.field_validator = lambda *args, **options: _validator()
    module.Discriminator = module.Tag = module.PrivateAttr = lambda *args, **options: None
    module.model_serializer = lambda function: function
    module.PositiveInt = int
    module.create_model = lambda *args, **options: BaseModel
    module.AfterValidator = module.BeforeValidator = lambda function: None
    sys.modules["pydantic"] = module
