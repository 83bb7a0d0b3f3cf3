"""Reads the configuration of a model that a recipe names; no weights are read."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from vaopd.errors import ModelError
from vaopd.models import tiny
from vaopd.models.adapters import is_adapter_folder, read_base


def read_config(name: str) -> Any:
    """Return the configuration of the model that a recipe names.

    Raises:
        ModelError: It cannot be found or read.
    """
    if name.startswith("tiny:new-"):
        size = name.removeprefix("tiny:new-")
        if size not in tiny.SIZES:
            raise ModelError(f"no tiny architecture is called {size!r}; use one of {[*tiny.SIZES]}")
        return tiny.config(AutoTokenizer.from_pretrained(tiny.asset_folder("tokenizer")), size)
    if is_adapter_folder(name):
        return read_config(read_base(Path(name))[0])
    source = tiny.asset_folder(name.removeprefix("tiny:")) if name.startswith("tiny:") else name
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"the configuration of model {name!r} cannot be read ({reason[:160]}); give a hub name "
            "that is downloaded or reachable, or a folder with its config.json"
        ) from error
