"""The main clause of a sentence: without openings, reasons, and what follows them."""

import re
from functools import lru_cache

from vaopd.grading.phrases import undressed
from vaopd.grading.spoken import WORD

MIN_CLAUSE_WORDS = 3
"""Fewest words of a clause without a known verb, so that what follows is subordinate."""
MAX_RESULTS = 20
"""Most places of "so" that are tried in a sentence, so that long repetitions stay fast."""
SUBORDINATE = re.compile(
    r"\s*(?:,\s*(?:which|who|because|since|as|where|with|given|assuming|when|if|but|while|just|"
    r"unlike|away|(?:\w+ ){1,3}of (?:whom|which|them|these)|"
    r"(?:\w+ ){1,2}(?:more|less|fewer|higher|lower)|"
    r"(?:a few|some|others|the others?|the rest)|well|ahead|even though|although|though|"
    r"and (?:the|it|this|that|we)|making|meaning|using|based|due|after|for|not|rather|according|"
    r"whereas|indicating|rounded|corresponding|matching|option|that is|i\.e\.?|or (?:about|"
    r"approximately|roughly)|followed by|compared to)\b|\b(?:because|since|"
    r"(?<!known )(?<!fied )(?<!bed )as (?:shown|it|"
    r"the|indicated|seen|given|per|can|required|stated|we)|which (?:is|means|has|was|can|"
    r"matches|corresponds)|"
    r"due to|according to|based on|when (?:you|we|it|the)|"
    r"(?:at|when|for|where)(?= [a-z]\s?=)|so that|rounded to|when rounded|rather than|instead of|"
    r"by (?:using|applying)|using)\b|\s-\s(?=[A-Za-z]{2})|\u2014|因为|由于|,(?=[\u4e00-\u9fff]))",
    re.IGNORECASE,
)
DEPENDENT = re.compile(
    r"(?:(?:so|and|but|now|then|therefore|thus|hence),?\s+)?(?:since|because|as|given|if|"
    r"when|using|from|with|after|by|according|based|in|for|looking|to|at|on|under|"
    r"substituting|combining|out of|of the|among|adding|reading|dividing|multiplying|solving|"
    r"considering|since|examining|observing|counting|考虑|根据|由于|因为|从|由)(?:\b|(?=[\u4e00-\u9fff]))",
    re.IGNORECASE,
)
COPULA = re.compile(
    r"(?:\b(?:is|are|was|were|equals?|becomes?|be|gives?|has|have|"
    r"(?<!out )(?<!half )(?<!third )(?<!thirds )(?<!quarter )(?<!quarters )(?<!fourth )"
    r"(?<!% )(?<!percent )(?<!sum )(?<!product )(?<!root )(?<!each )(?<!average )of|contains?|"
    r"shows?|reads?|measures?|costs?|totals?|says?|"
    r"leaves?(?: us)?(?: with)?|yields?|results? in|amounts? to|"
    r"(?:comes?|adds?|sums?)(?: up)? to|arrive at|makes?|"
    r"(?:differs?|differed|(?:in|de)creas(?:es|ed)|rises?|rose|falls?|fell|drop(?:s|ped)|"
    r"gr[eo]ws?|went (?:up|down)|(?<=\d,)) by|(?:brings|leads)(?: us)? to|"
    r"(?:you|which|it|they) gets?|"
    r"holds?|looks?|needs?|requires?|takes?|weighs?|travel(?:s|ed)|covers?|"
    r"pays?|paid|spends?|spent|earn(?:s|ed)|(?:length|area|radius|volume|value|measure|width|height|"
    r"perimeter|slope|side|diameter|mass|speed)(?=\s+[-\d\\])|there (?:is|are)|approximately|"
    r"about|we (?:get|have|find|obtain)|to be|as|corresponds? to|match(?:es)?)\b|=|≈|:(?=\s)|"
    r"[是为有]|等于|→|⇒)"
    r"(?:\s+(?:equal to|approximately|about|around|roughly|exactly|therefore|thus|also|now|"
    r"given by|found to be|a total of|only|just|called|named|known as|likely|probably|"
    r"clearly|located|indeed|precisely|shown|written))?",
    re.IGNORECASE,
)
STRONG_COPULA = re.compile(
    r"\b(?:is|are|was|were|equals?|becomes?|be)\b|=|≈|[是为]|等于", re.IGNORECASE
)
_SEEMS = re.compile(
    r"\b(?:might|may|seems?|appears?|at first|thought|looks like|think|expect)\b", re.IGNORECASE
)
_RESULT = re.compile(
    r"(?:,|;|\u2014|\s-)\s+(?:and\s+)?(?:so|thus|hence|therefore|giving|making|leaving|yielding|"
    r"which (?:gives|gave|yields|makes(?: it|(?! sense))|made|"
    r"leaves|left|means(?: that)?|results? in|resulted in|"
    r"(?:is|was) (?:an?|the) [a-z]+ of)|or(?= \d+ [a-z])|resulting in|"
    r"(?:for )?an? (?:total|difference|gap|increase|decrease) of)"
    r"(?: us)?,?\s+|"
    r"\b\d+(?P<variable>[a-z])\s?=\s?[^,=]{1,20}?\s(?:and|so|→)\s(?=(?P=variable)\s?=)|"
    r"\s*[⇒⟹∴]\s*|,\s*(?:则|所以|因此|故|解得|可?得|即|从而|于是)[出到]?",
    re.IGNORECASE,
)
"""Words before the result of a sentence."""
_ENUMERATED = re.compile(
    rf"((?!step|figure|part|case)[^:,.\d]{{0,80}}\b(?:{WORD}|\d+)(?: [a-z]+){{1,4}}): ",
    re.IGNORECASE,
)
"""A count before its parts, as in "there are four dogs: two here and two there"."""
_CONTRACTED = re.compile(r"\b(it|that|this|there|he|she)'s\b", re.IGNORECASE)
_COMMA = re.compile(r",\s+|,(?=[\u4e00-\u9fff])|(?<=[\u4e00-\u9fff]),")
_REASON = re.compile(
    r"(?:(?:so|and|but|now|then|therefore|thus|hence),?\s+)?(?:since|because|as|given that|if|when|"
    r"由于|因为)\b",
    re.IGNORECASE,
)
_REFERS_BACK = re.compile(r"(?:that|this|it)(?:'s| is) (?:the|our|my)\s+[a-z-]+$", re.IGNORECASE)
_RELATES = re.compile(r"\s*,\s*(?!\s|and\b|but\b)")
_INSERTED = re.compile(
    r",\s*(?!and\b|or\b|but\b|that is\b|i\.e)[^,]{1,100}"
    r"(?=,\s*(?:is|are|was|were|has|had|(?:now )?(?:costs|measures|equals|weighs|takes))\b),"
)


@lru_cache(maxsize=8192)
def main_clause(body: str) -> str:
    """Return the sentence without a clause of reasons before or after it."""
    body = _without_opening(_CONTRACTED.sub(r"\1 is", body))
    counted = _ENUMERATED.match(body)
    if counted and not _RESULT.search(body, counted.end()):
        body = counted[1]
    before, but, after = body.partition(", but ")
    if but and _SEEMS.search(before):
        body = after
    body = _result(body)
    for cut in SUBORDINATE.finditer(body):
        before = body[: cut.start()]
        is_clause = _RELATES.match(cut[0]) and len(before.split()) >= MIN_CLAUSE_WORDS
        if inserted := _INSERTED.match(body, cut.start()):
            return main_clause(before + body[inserted.end() :])
        if is_clause or COPULA.search(before):
            return before
    return body


def _without_opening(body: str) -> str:
    """Return the sentence without an opening such as "Since AB is 5," or "In the figure,"."""
    if not DEPENDENT.match(body):
        return body
    commas = [comma for comma in _COMMA.finditer(body) if _is_outside(body[: comma.start()])]
    rests = [body[comma.end() :] for comma in commas]
    stated = [rest for rest in rests if COPULA.search(rest)]
    if stated:
        return stated[0]
    is_reason = _REASON.match(body) is not None
    if not rests or (not is_reason and STRONG_COPULA.search(body, 0, commas[0].start())):
        return body
    return rests[0]


def _is_outside(before: str) -> bool:
    return before.count("(") <= before.count(")")


def _result(body: str) -> str:
    """Return what follows the last "so" or "which gives", if that states anything new."""
    for result in reversed(list(_RESULT.finditer(body))[-MAX_RESULTS:]):
        after = undressed(body[result.end() :])
        if _REFERS_BACK.match(after):
            return body[: result.start()]
        is_named = result[0].endswith(" it ") and not re.search(r"\d", body)
        if is_named or STRONG_COPULA.search(after) or re.search(r"\d", after):
            return after
    return body
