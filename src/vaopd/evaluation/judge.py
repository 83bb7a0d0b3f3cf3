"""Verdicts of a language model, to be compared with those of the rules."""

import hashlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vaopd.errors import ConfigError
from vaopd.evaluation.benchmark import Benchmark, Graded, Item
from vaopd.evaluation.engines.chat import ChatClient
from vaopd.evaluation.predictions import Prediction
from vaopd.records import append_row, read_rows, write_rows

PLACES = ("{question}", "{answer}", "{response}")
PROMPT = """You grade one reply to a question about an image. You cannot see the image; \
the reference answer is right.

Question:
{question}

Reference answer:
{answer}

Reply:
{response}

Does the reply's final answer mean the same as the reference answer? Another notation, another \
wording or the letter of the same option is the same. A reply that gives no final answer, or \
several, is wrong.
End with one line: "verdict: correct" or "verdict: wrong"."""
JUDGEMENTS = "judgements.jsonl"
MAX_TOKENS = 512
JudgementKey = tuple[str, int, str]
"""Item, sample, and a hash of the response."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A model on a server that gives verdicts on replies, at temperature 0."""

    client: ChatClient
    model: str
    prompt: str = PROMPT
    concurrency: int = 8

    def __post_init__(self) -> None:
        missing = [place for place in PLACES if place not in self.prompt]
        if missing:
            raise ConfigError(
                f"the judge prompt lacks {', '.join(missing)}; write the three places "
                f"{', '.join(PLACES)} into the file"
            )

    def judge(
        self,
        benchmark: Benchmark,
        items: Sequence[Item],
        runs: Sequence[Sequence[Prediction]],
        folder: Path,
        progress: Callable[[int], None] = lambda replies: None,
    ) -> dict[tuple[str, int], bool | None]:
        """Return the verdict on every response; earlier verdicts are read from the folder.

        It is ``None`` if the judge gave no verdict, which counts as wrong.
        """
        path = folder / JUDGEMENTS
        stored = self._stored(path)
        references = {item.id: item for item in items}
        flat = [prediction for run in runs for prediction in run]
        open_ones = [one for one in flat if _key(one) not in stored]
        progress(len(flat) - len(open_ones))
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            futures = {
                pool.submit(self._ask, benchmark, references[one.id], one): one for one in open_ones
            }
            for future in as_completed(futures):
                one, reply = futures[future], future.result()
                stored[_key(one)] = read_verdict(reply)
                id, sample, digest = _key(one)
                append_row(
                    path,
                    {
                        "id": id,
                        "sample": sample,
                        "response_sha256": digest,
                        "model": self.model,
                        "prompt_sha256": _digest(self.prompt),
                        "verdict": stored[_key(one)],
                        "reply": reply,
                    },
                )
                progress(1)
        except BaseException:
            self.client.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return {(one.id, one.sample): stored[_key(one)] for one in flat}

    def _stored(self, path: Path) -> dict[JudgementKey, bool | None]:
        """Return the saved verdicts of this judge; a response with another text is judged again."""
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            return {}
        rows = read_rows(path)
        # A killed process may leave half a row; the next row would be appended to it.
        if not path.read_bytes().endswith(b"\n"):
            write_rows(path, rows)
        mine = (self.model, _digest(self.prompt))
        return {
            (row["id"], row["sample"], row["response_sha256"]): row["verdict"]
            for row in rows
            if (row["model"], row["prompt_sha256"]) == mine
        }

    def _ask(self, benchmark: Benchmark, item: Item, prediction: Prediction) -> str:
        assert benchmark.judge_question is not None
        text = _filled(
            self.prompt,
            question=benchmark.judge_question(item),
            answer=reference_text(item),
            response=prediction.response,
        )
        payload: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        return self.client.complete(payload).text


def _key(prediction: Prediction) -> JudgementKey:
    return prediction.id, prediction.sample, _digest(prediction.response)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _filled(prompt: str, **values: str) -> str:
    # Not str.format: questions contain braces, and no text may replace a field in another text.
    parts = re.split(r"(\{question\}|\{answer\}|\{response\})", prompt)
    return "".join(values[p[1:-1]] if p in PLACES else p for p in parts)


def reference_text(item: Item) -> str:
    """Return the reference answer for the judge's prompt; an option has its letter and text."""
    reference = item.reference
    answer = reference.get("answers") or reference["answer"]
    options = reference.get("options") or {}
    if isinstance(answer, str) and options.get(answer):
        return f"{answer}. {options[answer]}"
    listed = [str(one) for one in answer] if isinstance(answer, list) else [str(answer)]
    details = [reference["details"]] if reference.get("details") else []
    return "\n".join([" or ".join(listed), *details])


def read_verdict(reply: str) -> bool | None:
    """Return the last verdict of a judge's reply, or ``None`` without one.

    Official prompts ask for other words, so a single ``correct``, ``yes`` or ``1`` on the last
    line, and their opposites, are read too.
    """
    marked = re.findall(r"verdict\W{0,5}(correct|wrong|incorrect)", reply, re.IGNORECASE)
    if marked:
        return marked[-1].lower() == "correct"
    lines = [line.strip(" .*`'\"").lower() for line in reply.strip().splitlines()]
    last = lines[-1].rpartition(":")[2].strip() if lines else ""
    if last in ("correct", "yes", "1", "true"):
        return True
    return False if last in ("incorrect", "wrong", "no", "0", "false") else None


@dataclass(frozen=True)
class Agreement:
    """Agreement of rules and judge over the responses of a benchmark."""

    share: float
    """Share of responses with the same verdict."""

    kappa: float | None
    """Cohen's kappa: agreement beyond chance; ``None`` if one of the two never varies."""

    only_rule: int
    """Number of responses that only the rules found right."""

    only_judge: int
    without_verdict: int


def agreement(
    graded: Sequence[Sequence[Graded]],
    runs: Sequence[Sequence[Prediction]],
    judged: dict[tuple[str, int], bool | None],
) -> Agreement:
    """Return the agreement of the judge's verdicts with those of the rules."""
    pairs = [
        (one.verdict.is_correct, judged[prediction.id, prediction.sample])
        for run, verdicts in zip(runs, graded, strict=True)
        for prediction, one in zip(run, verdicts, strict=True)
    ]
    total = len(pairs)
    same = sum(rule == bool(judge) for rule, judge in pairs) / total
    rule_share = sum(rule for rule, _ in pairs) / total
    judge_share = sum(bool(judge) for _, judge in pairs) / total
    chance = rule_share * judge_share + (1 - rule_share) * (1 - judge_share)
    return Agreement(
        share=same,
        kappa=None if chance == 1 else (same - chance) / (1 - chance),
        only_rule=sum(rule and not judge for rule, judge in pairs),
        only_judge=sum(bool(judge) and not rule for rule, judge in pairs),
        without_verdict=sum(judge is None for _, judge in pairs),
    )


def with_judge(
    graded: Sequence[Sequence[Graded]],
    runs: Sequence[Sequence[Prediction]],
    judged: dict[tuple[str, int], bool | None],
) -> list[list[Graded]]:
    """Return the same responses with the judge's verdicts instead of those of the rules."""
    return [
        [
            replace(one, verdict=replace(one.verdict, is_correct=bool(judged[p.id, p.sample])))
            for one, p in zip(verdicts, run, strict=True)
        ]
        for run, verdicts in zip(runs, graded, strict=True)
    ]
