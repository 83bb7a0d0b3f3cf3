import importlib.util
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parent


def helper(name: str) -> object:
    """Return a module beside the tests, which are no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


helper("chat_server")
helper("synthetic")
helper("agreement")


@pytest.fixture
def ai2d_data(tmp_path: Path) -> Path:
    """A folder of benchmark data with four AI2D questions; the answers are A, B, A, B."""
    folder = tmp_path / "data" / "ai2d"
    folder.mkdir(parents=True)
    rows = []
    for number in range(4):
        Image.new("RGB", (40, 30), (number * 50, 0, 0)).save(folder / f"{number}.png")
        rows.append({"id": f"q{number}", "question": f"What is {number}?", "answer": number % 2,
                     "options": ["mitosis", "a cycle"], "image": f"{number}.png"})  # fmt: skip
    (folder / "sample.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"
