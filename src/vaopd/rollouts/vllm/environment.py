"""Where ``vaopd setup-vllm`` records the environment that it built."""

import json
import os
from pathlib import Path

from vaopd.records import write_json


def record_path() -> Path:
    """Return the file in the user's folder of settings."""
    settings = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(settings) / "vaopd" / "vllm.json"


def recorded_python() -> str | None:
    """Return the interpreter of the environment that was built last; None if there is none."""
    try:
        python = json.loads(record_path().read_text(encoding="utf-8"))["python"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return python if isinstance(python, str) else None


def record(python: Path) -> None:
    """Make an interpreter the one that runs find."""
    path = record_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"python": str(python)})
