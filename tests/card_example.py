"""The Python example of a model card, ready to be executed in the folder of the card."""

import re
from pathlib import Path

from PIL import Image

from vaopd.records import CARD


def card_example(folder: Path) -> str:
    """Return the code of a folder's card, and write the image that it opens into the folder."""
    Image.effect_noise((64, 64), 90).convert("RGB").save(folder / "image.png")
    text = (folder / CARD).read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "max_new_tokens=256" in code
    return code.replace("max_new_tokens=256", "max_new_tokens=12")
