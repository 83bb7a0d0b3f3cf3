"""Writes ``README.md``, the model card of an exported model; without torch.

A card may be edited: it has no checksum in the folder, and a card whose text was changed is not
written again. Its last line holds the digest of what vaopd wrote.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader

from vaopd.config import RunConfig, load_config, read_recipe
from vaopd.errors import ConfigError
from vaopd.evaluation.statistics import Interval
from vaopd.hub.origin import Origin
from vaopd.hub.results import HeldOut, change, evaluations, held_out
from vaopd.masking import masked
from vaopd.records import CARD, read_json, write_text

MARK = "<!-- written by vaopd {}; once edited, it is not written again -->\n"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
PAPER = "[arXiv 2605.21924](https://arxiv.org/abs/2605.21924)"

METHODS = {
    "va_opd": f"visual-advantage on-policy distillation ({PAPER}): the student answers, and the "
    "teacher's distribution is the target at every token; answers and tokens that gain from the "
    "detail of the image weigh more",
    "rollout_only": f"the ablation of visual-advantage on-policy distillation ({PAPER}) that "
    "weighs answers and no tokens",
    "token_only": f"the ablation of visual-advantage on-policy distillation ({PAPER}) that weighs "
    "tokens and no answers",
    "opd": "on-policy distillation: the student answers, and the teacher's distribution is the "
    "target at every token, with equal weights",
    "off_policy_kd": "supervised training on answers that the teacher sampled",
    "sft": "supervised training on the answers of the data set",
}


def write_card(folder: Path, origin: Origin, *, dtype: str, name: str = ".") -> bool:
    """Write the card of a model folder, unless a user edited the one that is there.

    Args:
        folder: The exported model.
        origin: Where its weights come from.
        dtype: Precision of the files.
        name: What the example of the card loads: a name on the hub, or ``.`` for the folder.

    Returns:
        Whether the card was written.
    """
    path = folder / CARD
    if path.is_file() and not is_unedited(path.read_text(encoding="utf-8")):
        return False
    text = card(origin, dtype=dtype, name=name)
    write_text(path, text + MARK.format(_digest(text)))
    return True


def is_unedited(text: str) -> bool:
    """Return whether a card is as vaopd wrote it."""
    body, _, last = text.rstrip("\n").rpartition("\n")
    return last + "\n" == MARK.format(_digest(body + "\n"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def card(origin: Origin, *, dtype: str, name: str = ".") -> str:
    """Return the text of a card, from the records of the run and nothing else."""
    environment = Environment(
        loader=PackageLoader("vaopd.hub"), trim_blocks=True, keep_trailing_newline=True
    )
    values = _of_run(origin.run, origin) if origin.run else _unknown()
    scores = evaluations(origin)
    values["unmeasured"] += _unmeasured(origin, scores, dtype)
    return environment.get_template("card.md.jinja").render(
        name=name, scores=[_score_row(score) for score in scores], **values
    )


def _unknown() -> dict[str, Any]:
    front = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    return {
        "front": _yaml(front | {"tags": ["vaopd"]}),
        "title": "Exported by vaopd",
        "about": "A vision-language model as one plain Hugging Face folder.",
        "unmeasured": ["Everything: nothing of this model is known to vaopd."],
    }


def _of_run(run: Path, origin: Origin) -> dict[str, Any]:
    recipe = read_recipe(run / "config.yaml")
    try:
        config = load_config(run / "config.yaml")
    except ConfigError:  # such as a method whose file is elsewhere
        config = None
    student, method = recipe["student"]["model"], recipe["method"]["name"]
    has_teacher = method != "sft" if config is None else config.loads_teacher
    teacher = _short(recipe["teacher"]["model"]) if has_teacher else None
    what = METHODS.get(method, f"a method of its own, `{method.rpartition(':')[2]}`")
    taught = f" with {_link(teacher)} as the teacher" if teacher else ""
    after = held_out(run, origin.step) if origin.step is not None else None
    before = held_out(run, 0)
    return {
        "front": _front(student, method, recipe["data"]["train"], config),
        "title": f"{_short(student).rpartition('/')[2]}, trained by {_short(method)}",
        "about": f"{_link(_short(student))} after {origin.step} steps{taught}. Method: {what}.",
        "pixels": (config.data.min_pixels, config.data.max_pixels) if config else None,
        "facts": _facts(run, recipe["data"], teacher, origin.step),
        "recipe": _changed(config) if config else None,
        "rows": _accuracy_rows(before, after),
        "difference": _difference(run, origin.step) if after and before else "",
        "unmeasured": [] if after else ["Accuracy on held-out problems at this step."],
    }


def _front(student: str, method: str, data: str, config: RunConfig | None) -> str:
    is_on_policy = config is not None and config.method.needs.responses == "student"
    tags = ["vaopd", *([method] if method in METHODS else [])]
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": [*tags, *(["on-policy-distillation"] if is_on_policy else [])],
    }
    if _is_hub_name(student):
        front |= {"base_model": student, "base_model_relation": "finetune"}
    if license := _license(student):
        front["license"] = license
    source = data.partition("?")[0].partition("@")[0]
    if _is_hub_name(source):
        front["datasets"] = [source]
    return _yaml(front)


def _is_hub_name(name: str) -> bool:
    return HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def _license(student: str) -> str | None:
    """Return the licence that the card of the base model names, if that card is on this machine."""
    if student.startswith("tiny:"):
        return "apache-2.0"  # that of vaopd, which the tiny models are part of
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.repocard import metadata_load

    found = Path(student) / CARD
    if not found.is_file() and _is_hub_name(student):
        cached = try_to_load_from_cache(student, CARD)
        found = Path(cached) if isinstance(cached, str) else found
    try:
        named = (metadata_load(found) or {}).get("license") if found.is_file() else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    # ``other`` needs further fields, which say nothing without the text they point to.
    return named if isinstance(named, str) and named != "other" else None


def _facts(
    run: Path, data: dict[str, Any], teacher: str | None, step: int | None
) -> list[tuple[str, str]]:
    environment = read_json(run / "environment.json")
    packages = environment.get("packages") or {}
    command = environment.get("command") or []
    facts = [("teacher", _link(teacher))] if teacher else []
    facts += [("data", f"`{_short(data['train'])}`")]
    if held := data.get("validation"):
        facts += [("held-out problems", f"`{_short(held)}`")]
    if command[1:2] == ["train"]:
        words = ["vaopd", *map(_short, masked(command)[1:])]
        facts += [("command", f"`{' '.join(words)}`")]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    device = f"{environment.get('device')}, {environment.get('processes')} process(es)"
    facts += [("commit of vaopd", str(environment.get("commit") or "not run from a checkout"))]
    return [*facts, ("versions", versions), ("device", device), ("steps", str(step))]


def _changed(config: RunConfig) -> str:
    """Return the keys that decide what was learned and are not at their default, as YAML."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    for section in [*values]:
        free = getattr(config, section).free_on_resume()
        values[section] = {k: v for k, v in values[section].items() if k not in free}
    values["method"] = {"name": config.method.name} | values.get("method", {})
    if not config.loads_teacher:
        values.pop("teacher", None)
    named = {section: _shortened(keys) for section, keys in values.items() if keys}
    return _yaml({name: named[name] for name in type(config).model_fields if name in named})


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shortened(inner) for inner in value]
    return _short(value) if isinstance(value, str) else value


def _short(text: str) -> str:
    """Return a text without the folders of absolute paths, which name a machine and its user."""
    return re.sub(r"(?<![\w:/.-])(?:~|\.{0,2})/(?:[^\s/=]+/)*(?=[^\s/])", "", text)


def _link(name: str) -> str:
    return f"[{name}](https://huggingface.co/{name})" if _is_hub_name(name) else f"`{name}`"


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _accuracy_rows(before: HeldOut | None, after: HeldOut | None) -> list[tuple[str, ...]]:
    if after is None:
        return []
    size = f", {after.num_problems} problems" if after.num_problems else ""
    rows = [(f"accuracy{size}", *(_percent(one and one.accuracy) for one in (before, after)))]
    blind = [one.accuracy_pixelated if one else None for one in (before, after)]
    if blind[1] is not None:
        shown = ["-" if share is None else f"{share:.1%}" for share in blind]
        rows.append(("accuracy with pixelated images", *shown))
    return rows


def _percent(share: Interval | None) -> str:
    if share is None:
        return "-"
    return f"{share.mean:.1%}" + _ends(share.low, share.high, 100.0)


def _ends(low: float | None, high: float | None, scale: float = 1.0, sign: str = "") -> str:
    if low is None or high is None:
        return " (no interval)"
    return f" ({low * scale:{sign}.1f} to {high * scale:{sign}.1f})"


def _difference(run: Path, step: int | None) -> str:
    gap = change(run, 0, step) if step else None
    if gap is None:
        return ""
    shown = f"{100 * gap.mean:+.1f} points{_ends(gap.low, gap.high, 100.0, '+')}"
    unclear = ", which is not distinguishable from zero" if gap.is_none else ""
    return f"Difference, paired by problem: {shown}{unclear}."


def _score_row(score: dict[str, Any]) -> tuple[str, ...]:
    value = score["value"]
    return (
        score["name"],
        f"{score.get('items', '-')} x {score.get('samples', '-')}",
        score.get("headline", "-"),
        "-" if value is None else f"{value:.1f}{_ends(score['low'], score['high'])}",
        f"{score['unparsed']:.1%}" if score.get("unparsed") is not None else "-",
        score["sampling"],
    )


def _unmeasured(origin: Origin, scores: list[dict[str, Any]], dtype: str) -> list[str]:
    lines = ["Benchmarks other than those above." if scores else "Any benchmark."]
    if origin.run is None:
        return lines
    if origin.is_best:
        lines += [
            "Accuracy on problems that did not choose the step: this step was chosen by the "
            "validation above, whose accuracy is therefore too high."
        ]
    if dtype != "float32":
        lines += [f"The effect of rounding to {dtype}: the numbers are of the model in training."]
    return [
        *lines,
        "Differences between training seeds: this is one run.",
        "Safety, bias, and questions unlike the training data.",
    ]
