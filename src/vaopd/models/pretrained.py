"""Reads Hugging Face folders; missing or unknown weights are an error.

transformers fills missing weights with random numbers, prints a table and continues.
"""

import json
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoProcessor, GenerationConfig
from transformers.utils.hub import cached_file

from vaopd.errors import ModelError, is_out_of_memory

FLOATS = ("F16", "BF16", "F32", "F64")
"""Types of safetensors that a weight may be stored in."""

NAMED = 3
"""Number of weights that a message names."""


def read_pretrained(loader: Any, source: str | Path, name: str, **options: Any) -> Any:
    """Return the result of ``loader.from_pretrained`` for a folder or hub name.

    Raises:
        ModelError: It cannot be loaded.
    """
    try:
        # False and not unset: transformers would ask at the terminal whether to run the code.
        return loader.from_pretrained(source, trust_remote_code=False, **options)
    except SafetensorError as error:
        raise ModelError(
            f"model {name!r} cannot be loaded: a file of its weights is damaged ({error}); "
            "download or copy the folder again"
        ) from error
    except (
        *(OSError, ValueError, ImportError, KeyError, RuntimeError),
        *(TypeError, AttributeError, RecursionError),  # from files with unexpected contents
    ) as error:
        if is_out_of_memory(error):
            raise
        if "contains custom code" in str(error):
            raise ModelError(
                f"model {name!r} needs the code of its own folder, which vaopd never runs; give a "
                "model of a family that transformers implements, see docs/models.md"
            ) from None
        raise ModelError(
            f"model {name!r} cannot be loaded ({loader.__name__}: {_one_line(error)}); give a hub "
            "name that is downloaded or reachable, or the path of a complete Hugging Face model "
            "folder with safetensors weights"
        ) from error


def read_processor(source: str | Path, name: str) -> Any:
    """Return the processor of a folder or hub name, after checking that it can create prompts.

    Raises:
        ModelError: The processor cannot be loaded, or it has no tokenizer, no image processor or
            no chat template.
    """
    try:
        processor = read_pretrained(AutoProcessor, source, name)
    except ModelError as error:
        if "video" in str(error).lower() and find_spec("torchvision") is None:
            raise ModelError(
                f"{error}; the processors of families with videos need torchvision: install it"
            ) from error
        raise
    missing = [p for p in ("image_processor", "tokenizer") if getattr(processor, p, None) is None]
    if missing or not processor.chat_template:
        raise ModelError(
            f"model {name!r} has no {missing[0] if missing else 'chat template'}, so its prompts "
            "cannot be made; give the folder of a chat model as it was published"
        )
    return processor


def read_model(loader: Any, source: str | Path, name: str, **options: Any) -> Any:
    """Return a transformers model after checking that every weight was read from the folder.

    Tied weights count once. The folder may hold parts that transformers does not implement, such
    as the multi-token prediction heads of Qwen3.5.

    Raises:
        ModelError: The model cannot be loaded, its weights do not match those of the folder, or its
            generation_config.json is damaged.
    """
    check_generation_settings(source, name)
    model, misfit = read_weights(loader, source, name, **options)
    if misfit:
        raise ModelError(
            f"model {name!r} cannot be used: {misfit}; what is missing would be random, so "
            "download or copy the folder again, with the config.json that belongs to its weights"
        )
    return model


def read_weights(loader: Any, source: str | Path, name: str, **options: Any) -> tuple[Any, str]:
    """Return a transformers model, and a text on how its weights differ from those of the folder.

    The text is empty if they match.

    Raises:
        ModelError: The model cannot be loaded.
    """
    with _without_table() as tables:
        try:
            # Without ignore_mismatched_sizes a different shape raises an error without the name.
            model, report = read_pretrained(
                *(loader, source, name),
                use_safetensors=True,  # other weights are pickled, and may hold code
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
        except ModelError as error:
            # The error message of a conversion refers to the table.
            if not tables:
                raise
            raise ModelError(f"{error} [{' '.join(tables[0].split())[-400:]}]") from error
    return model, _misfit(report)


def check_generation_settings(source: str | Path, name: str) -> None:
    """Check that generation_config.json is a JSON object, if the model has one.

    transformers ignores a damaged one, and with it the ids that end a response.

    Raises:
        ModelError: It is not.
    """
    file = _cached(source, "generation_config.json", local_files_only=False)
    if file is None:
        return
    try:
        value = json.loads(Path(file).read_bytes())
        reason = "" if isinstance(value, dict) else f"{type(value).__name__} and not an object"
    except (ValueError, RecursionError) as error:
        reason = _one_line(error)
    if reason:
        raise ModelError(
            f"model {name!r} cannot be used: its generation_config.json, which names the ids that "
            f"end a response, is damaged ({reason}); download or copy it again"
        )


def read_generation_settings(source: str | Path, name: str) -> GenerationConfig | None:
    """Return what generation_config.json says, such as which ids end a response; None without one.

    Raises:
        ModelError: It is damaged.
    """
    check_generation_settings(source, name)
    if _cached(source, "generation_config.json") is None:
        return None
    return read_pretrained(GenerationConfig, source, name)


def check_finite(model: Any, name: str) -> None:
    """Check that no weight is NaN or infinite.

    Raises:
        ModelError: Names the first weights that are.
    """
    bad = [
        key
        for key, weight in model.named_parameters()
        if weight.is_floating_point() and not weight.isfinite().all()
    ]
    if bad:
        raise ModelError(
            f"model {name!r} cannot be used: {listed(bad, 'NaN or infinite')}; its training or its "
            "copy failed, so take an earlier checkpoint or download it again"
        )


def check_stored(model: Any, source: str | Path, name: str) -> None:
    """Check that the files hold floating numbers where the model has them.

    transformers would convert integers, booleans and numbers of 8 bits, which stand for other
    weights, such as those of a quantized model without its configuration.

    Raises:
        ModelError: Names the first weights of another type.
    """
    wanted = {key for key, weight in model.named_parameters() if weight.is_floating_point()}
    found: dict[str, str] = {}
    for file in _weight_files(source):
        with safe_open(file, "pt") as weights:
            kinds = {key: weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
        found |= {key: kind for key, kind in kinds.items() if kind not in FLOATS}
    if bad := {f"{key} ({kind})" for key, kind in found.items() if key in wanted}:
        raise ModelError(
            f"model {name!r} cannot be used: {listed(bad, 'not of 16, 32 or 64 bits')}; give the "
            "model as it was before it was quantized, see student.quantization"
        )


def _weight_files(source: str | Path) -> list[str]:
    """Return the safetensors files that transformers has just read."""
    if whole := _cached(source, "model.safetensors"):
        return [whole]
    index = _cached(source, "model.safetensors.index.json")
    if index is None:
        return []
    names = json.loads(Path(index).read_bytes())["weight_map"].values()
    return [file for name in sorted(set(names)) if (file := _cached(source, name))]


def _cached(source: str | Path, name: str, *, local_files_only: bool = True) -> str | None:
    """Return the path of a file of a folder or hub model, None if it is not there."""
    return cached_file(
        *(str(source), name),
        local_files_only=local_files_only,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def _misfit(report: dict[str, Any]) -> str:
    shapes = {
        f"{name} ({_shape(found)} instead of {_shape(wanted)})"
        for name, found, wanted in report["mismatched_keys"]
    }
    parts = [
        listed(report["missing_keys"], "missing"),
        listed(report["unexpected_keys"], "unknown to this architecture"),
        listed(shapes, "of another shape"),
        "; ".join(report["error_msgs"]),
    ]
    return ", ".join(filter(None, parts))


def listed(names: Collection[str], what: str) -> str:
    """Return the number of weights and the first names as text; '' if there are no weights."""
    if not names:
        return ""
    shown = ", ".join(sorted(names)[:NAMED]) + (", .." if len(names) > NAMED else "")
    return f"{len(names)} {'weight is' if len(names) == 1 else 'weights are'} {what}: {shown}"


def _shape(size: Collection[int]) -> str:
    return " x ".join(map(str, size)) or "a single number"


@contextmanager
def _without_table() -> Iterator[list[str]]:
    """Remove transformers' tables of failed loads from the log and yield them for the error."""
    tables: list[str] = []

    def is_other(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if "LOAD REPORT" not in message:
            return True
        tables.append(message)
        return False

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        yield tables
    finally:
        logger.removeFilter(is_other)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
