"""The option that a response chooses: by its letter, by its letter and text, or by its text."""

import re
from collections.abc import Mapping

from vaopd.grading.clauses import main_clause
from vaopd.grading.commitments import Commitment, commitments
from vaopd.grading.markup import boxes_of, plain
from vaopd.grading.naming import (
    HEAD,
    SEVERAL,
    Options,
    by_head,
    by_mention,
    by_name,
    by_order_of_words,
    by_text,
    by_value,
    distinct,
    named_option,
    options_of,
)
from vaopd.grading.phrases import (
    HEDGE,
    NEGATION,
    REFUSAL,
    sentences,
    taken_back_at,
    undressed,
    without_pleasantries,
)
from vaopd.grading.pointing import last_pointed_at
from vaopd.grading.reading import Reading, Rule, no_answer, usable
from vaopd.grading.thinking import split_reasoning

MAX_LINE = 1000
"""Most characters of a line that is a bare answer."""

MAX_BARE_WORDS = 12
"""Most words of a bare answer that begins with a letter; a longer line is prose."""

_LIST_LINE = re.compile(r"^\W{0,10}(?:option\s|choice\s)?\(?([A-Z])[).:：](?!\w)", re.IGNORECASE)
_WHOLE = re.compile(
    r"\W{0,20}(?:(?:option|choice|answer|letter|选项|"
    r"选)\s{0,3}:?\s{0,3})?[(\[{\"'「【]{0,4}([A-Z])[)\]}\"'」】]{0,4}\W{0,20}",
    re.IGNORECASE,
)
_NOT_BUT = re.compile(r"\W{0,10}not\b.{1,20}\bbut\b|\W{0,10}不是.{1,20}而是", re.IGNORECASE)
_UNTICKED = re.compile(r"^\W{0,6}\[ \].*$|^\W{0,6}\[[xX]\](?=\s)", re.MULTILINE)
_REPLY = re.compile(r":\s")
"""Of "A: It is option C", where A stands for "answer"."""

_EITHER = re.compile(r"\beither\b.*\bor\b", re.IGNORECASE)
_JOINT = re.compile(r"\b(?:and|or|between|to|than)\b|[,;、和或]", re.IGNORECASE)
_LABELS = re.compile(r"[)\]}]{0,2}(?:[.:：、]\s|。)")
_REASONS = re.compile(
    r"[)\]\"'}]*\s*(?:$|,?\s*(?:because|since|as|due|is (?:the )?(?:correct|right|best))\b|"
    r"[,;\u2014-]\s|[,。]?(?:因为|由于|理由))"
)


def read_choice(
    response: str,
    options: Mapping[str, str],
    *,
    rule: Rule = "last_committed",
    is_truncated: bool = False,
) -> Reading:
    """Return the letter of the option that a response chooses.

    As in `read_answer`, the last commitment counts that names an option and is not taken back;
    without one a bare letter or option text; without that the option that the response calls
    right. Several options, hedges, refusals and negations are not an answer. An article, a pronoun
    and the name of a point are not a letter.
    """
    parts = split_reasoning(response)
    if parts.is_open:
        return no_answer("reasoning never ends", is_truncated=is_truncated)
    text = _UNTICKED.sub("", plain(parts.answer))
    known = options_of(options)
    if rule == "last_boxed":
        return _last_box(text, known, is_truncated)
    found = usable(commitments(text, is_choice=True), is_truncated=is_truncated)
    start = 0
    for one in found if rule == "first_committed" else reversed(found):
        letter = _committed(one, known)
        if letter is None:
            continue
        back = taken_back_at(text, one.end) if rule == "last_committed" else None
        if back is not None:
            start = back
            break
        if letter == SEVERAL:
            return no_answer("several options", is_truncated=is_truncated)
        return Reading(letter, one.rule, "committed", one.payload[:300], is_truncated)
    if is_truncated:
        return no_answer("cut before an answer", is_truncated=True)
    return _uncommitted(text[start:], known, has_commitment=bool(found) and start == 0)


def _last_box(text: str, options: Options, is_truncated: bool) -> Reading:
    boxes = boxes_of(text)
    letter = named_option(boxes[-1][1], options) if boxes else None
    if letter is None or letter == SEVERAL:
        return no_answer("no box", is_truncated=is_truncated)
    return Reading(letter, "box", "committed", boxes[-1][1], is_truncated)


def _committed(one: Commitment, options: Options) -> str | None:
    if one.rule == "choosing" and not HEAD.match(undressed(one.payload)):
        return None
    said = sentences(one.payload)
    is_question = bool(said) and said[0].endswith(("?", "？")) and len(undressed(one.payload)) > 1
    return None if is_question else named_option(one.payload, options)


def _uncommitted(text: str, options: Options, *, has_commitment: bool) -> Reading:
    """Return the option of a response without a marker or a box that commits to one."""
    lines = without_pleasantries([line for line in text.split("\n") if undressed(line)])
    if not lines:
        return no_answer("empty")
    whole = "\n".join(lines)
    listed = {m[1].upper() for line in lines if (m := _LIST_LINE.match(line))}
    is_list = len(listed & options.texts.keys()) > 1
    for line in dict.fromkeys((lines[-1], lines[0])):
        letter = _bare(line, options, is_alone=len(lines) == 1, is_list=is_list)
        if letter == SEVERAL:
            if last_pointed_at(whole, options):
                break
            return no_answer("several options")
        if letter:
            return Reading(
                letter, "bare reply" if len(lines) == 1 else "bare line", "bare", line[:300]
            )
    last = (sentences(lines[-1]) or lines)[-1]
    if (letter := _bare(last, options, is_alone=False, is_list=is_list)) and letter != SEVERAL:
        return Reading(letter, "bare last sentence", "bare", last[:300])
    letter = last_pointed_at(whole, options)
    if letter:
        return Reading(letter, "said to be right", "guessed", whole[-300:])
    if has_commitment:
        return no_answer("no option named")
    if is_list and _LIST_LINE.match(lines[-1]):
        return no_answer("a list of options")
    return _from_words(lines, options)


def _bare(line: str, options: Options, *, is_alone: bool, is_list: bool) -> str | None:
    """Return the option that is the whole line, or that begins the line as an answer."""
    if len(line) > MAX_LINE or (is_list and _LIST_LINE.match(line)):
        return None
    if is_alone and _NOT_BUT.match(line):
        return named_option(line, options)
    whole = _WHOLE.fullmatch(line)
    if whole and whole[1].upper() in options.texts:
        is_marked = whole[1].isupper() or is_alone or ")" in line or "." in line
        return whole[1].upper() if is_marked else None
    body = undressed(line)
    if (exact := by_text(body.rstrip(".。!"), options)) is not None:
        return exact
    if is_list or body.endswith(("?", "？")):
        return None
    return _at_head(body, options, is_alone=is_alone)


def _at_head(body: str, options: Options, *, is_alone: bool) -> str | None:
    """Return the letter that begins a line as an answer: "B. red", "B because ..", "(B) ..."."""
    head, letter = HEAD.match(body), by_head(body, options)
    if head is None or letter is None:
        return None
    if letter == SEVERAL:
        return SEVERAL if is_alone and len(body.split()) <= MAX_BARE_WORDS else None
    after = body[head.end(1) :]
    if (back := taken_back_at(body, head.end())) is not None:
        return named_option(body[back:], options)
    if letter == "A" and _REPLY.match(after) and (named := by_name(after, options)):
        return named
    if _LABELS.match(after + " "):
        return letter
    reasons = _REASONS.match(after)
    if head["close"] or "option" in head[0].lower():
        is_short = is_alone or len(body.split()) <= MAX_BARE_WORDS
        return letter if is_short or reasons else None
    is_article = letter in "AI" and re.match(r"\s+as\b", after) and not is_alone
    return letter if reasons and not is_article else None


def _offers_refusal(options: Options) -> bool:
    """Whether the text of an option is a refusal, such as "cannot be determined"."""
    return any(REFUSAL.search(text) for text in options.texts.values())


def _from_words(lines: list[str], options: Options) -> Reading:
    """Return the option whose text is in the last sentence or in a short reply."""
    said = sentences("\n".join(lines))
    candidates = [said[-1]] if len(said) > 2 else [*reversed(said)]
    for whole in candidates:
        before, _, after = whole.partition(", but ")
        sentence = after if after and HEDGE.search(before) else whole
        is_unsure = bool(REFUSAL.search(sentence) or HEDGE.search(sentence))
        is_open = sentence.endswith(("?", "？")) or _EITHER.search(sentence)
        if is_open or (is_unsure and not _offers_refusal(options)):
            return no_answer("refusal or hedge")
        body = undressed(sentence).rstrip(".。!")
        letter = (
            by_name(sentence, options)
            or by_mention(main_clause(body), options)
            or by_mention(sentence, options)
            or (
                None
                if NEGATION.search(main_clause(body))
                else by_value(sentence, options, is_prose=True)
            )
            or by_order_of_words(sentence, options)
            or (by_mention(main_clause(body), own) if (own := distinct(options)) else None)
        )
        if letter == SEVERAL and not _JOINT.search(sentence):
            # "A square with a side of 5 cm has a perimeter of 20 cm" states one value.
            letter = by_value(sentence, options, is_prose=True) or SEVERAL
        if letter == SEVERAL:
            return no_answer("several options")
        if letter:
            return Reading(letter, "option text", "guessed", sentence[:300])
    return no_answer("no commitment")
