"""What a method asks of the trainer, and a method of the user's own as a section of a recipe."""

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    create_model,
    model_serializer,
    model_validator,
)

from vaopd.config.base import Section
from vaopd.config.explaining import explain


@dataclass(frozen=True, kw_only=True)
class PatchMask:
    """Square patches of an image that are black by chance."""

    fraction: float
    """Probability of each patch."""

    pixels: int
    """Side of a patch."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method asks of the trainer: who responds, what is scored, what its loss reads."""

    responses: Literal["student", "teacher", "references"] = "student"
    """Who writes the responses: the student (on-policy), the teacher, or the data set."""

    views: Literal[0, 1, 2] = 1
    """Views that the teacher scores: none, the image, or the image and its degraded copy."""

    view_divergence: bool = False
    """Whether the teacher compares both views over the whole vocabulary; needs two views."""

    degraded_hidden: bool = False
    """Whether the loss reads the teacher's hidden states of the degraded view; needs two views."""

    student_entropy: bool = False
    """Whether the entropy of the student's own distribution is measured at every token."""

    uniform_gradient: bool = False
    """Whether each step's gradient is scaled to the norm that uniform weights would give."""

    rewards: bool = False
    """Whether each response is graded against the problem's answer: 1 right, 0 wrong."""

    sampled_logprobs: bool = False
    """Whether the loss is a policy gradient: what was sampled must come from the student's own
    distribution, and a sampler with weights of its own reports the log-probs that it drew at."""

    reference_logprobs: bool = False
    """Whether the student before training scores the responses."""

    mask: PatchMask | None = None
    """Patches that are black when the student scores its responses a second time; none = it does
    not."""

    def __post_init__(self) -> None:
        if self.views < 2 and (self.view_divergence or self.degraded_hidden):
            raise ValueError(
                f"a method's needs have views={self.views}, but view_divergence and "
                "degraded_hidden are about both views; say views=2"
            )

    @property
    def sampling(self) -> bool:
        """Whether responses are sampled."""
        return self.responses != "references"

    @property
    def teacher(self) -> bool:
        """Whether there has to be a teacher."""
        return self.views > 0 or self.responses == "teacher"


class MethodOptions(Section):
    """Base of the options of a method, those of a user's own included."""

    @property
    def needs(self) -> Needs:
        """What the method asks of the trainer with these options."""
        return Needs()


class OwnMethodOptions(MethodOptions):
    """A method of the user's own: ``method.name=FILE.py:CLASS``, and the options of that class."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(pattern=r"^.+\.py:\w+$")]
    """The file, from the working folder, and the class in it; see docs/methods.md."""

    _method_class: Any = PrivateAttr(None)
    _options: MethodOptions = PrivateAttr(default_factory=MethodOptions)
    _method: Any = PrivateAttr(None)

    @model_validator(mode="after")
    def _load(self) -> "OwnMethodOptions":
        if self._method_class is not None:  # made by `of`, already loaded
            return self
        file, _, attribute = self.name.rpartition(":")
        found = getattr(_module(Path(file)), attribute, None)
        options_class = getattr(found, "Options", None)
        if not (isinstance(options_class, type) and issubclass(options_class, MethodOptions)):
            raise ValueError(
                f"method.name is {self.name!r}, but {file} has no class {attribute} derived from "
                "vaopd.Method; see docs/methods.md"
            )
        self._method_class = found
        recipe = create_model("Recipe", method=(options_class, ...))
        # Options that extend those of a built-in method have its name.
        name = options_class.model_fields.get("name")
        built_in = {} if name is None else {"name": get_args(name.annotation)[0]}
        try:
            checked = recipe.model_validate({"method": {**(self.model_extra or {}), **built_in}})
        except ValidationError as error:
            texts = [explain(item, recipe) for item in error.errors()]
            raise ValueError("; ".join(texts)) from None
        self._options = checked.method  # pyright: ignore[reportAttributeAccessIssue]
        _ = self._options.needs  # needs that contradict themselves raise here
        return self

    @model_serializer
    def _dump(self, info: Any) -> dict[str, Any]:
        """Return all options, so that a run records the defaults that it was made with."""
        options = self._options.model_dump(mode=info.mode, exclude={"name"})
        return {"name": self.name, **options}

    def free_on_resume(self) -> set[str]:
        """Return the names of the keys that a resumed run may change."""
        return self._options.free_on_resume()

    @property
    def label(self) -> str:
        """File and class without folders, for names of runs."""
        file, _, attribute = self.name.rpartition(":")
        return f"{Path(file).stem}-{attribute}"

    @property
    def code(self) -> str:
        """Hash of the file, which decides what is learned as much as the options."""
        return hashlib.sha256(Path(self.name.rpartition(":")[0]).read_bytes()).hexdigest()

    @property
    def method(self) -> Any:
        """The object that the Python API was given; none where the file has to make one."""
        return self._method

    @property
    def method_class(self) -> Any:
        """The class that ``name`` names."""
        return self._method_class

    @property
    def options(self) -> MethodOptions:
        """What the class is made with."""
        return self._options

    @property
    def needs(self) -> Needs:
        """What the method asks of the trainer."""
        return self._options.needs

    @classmethod
    def of(cls, method: Any, file: str) -> "OwnMethodOptions":
        """Return the section of a method that the Python API was given, without reading its file.

        Args:
            method: The method; its ``options`` are what it was made with.
            file: File that holds its class, for the record and for a resumed run.
        """
        method_class, options = type(method), method.options
        given = options.model_dump(exclude={"name"})
        section = cls.model_construct(name=f"{file}:{method_class.__name__}", **given)
        section._method_class, section._options, section._method = method_class, options, method
        return section


def _module(file: Path) -> ModuleType:
    """Return the module of a file, which is imported at most once in a process."""
    if not file.is_file():
        raise ValueError(
            f"method.name names the file {file}, which does not exist in {Path.cwd()}; give its "
            "path from the working folder"
        )
    digest = hashlib.sha256(str(file.resolve()).encode() + file.read_bytes()).hexdigest()[:12]
    name = f"vaopd_own_method_{file.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"method.name names {file}, which fails when read: {error!r}") from error
    return module
