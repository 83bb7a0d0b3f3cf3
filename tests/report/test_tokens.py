from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vaopd.models import tiny
from vaopd.report.tokens import Span, align


def pieces(text: str, cuts: list[int]) -> list[str]:
    """Return what a byte-level tokenizer that cuts there decodes each token to."""
    encoded = text.encode()
    edges = sorted({0, len(encoded), *(cut % (len(encoded) + 1) for cut in cuts)})
    return [encoded[first:last].decode("utf-8", "replace") for first, last in pairwise(edges)]


def test_whole_tokens_keep_their_own_spans():
    assert align(["Two", " ", "\n", "lines"], "Two \nlines") == [
        Span("Two", 0, 1),
        Span(" ", 1, 1),
        Span("\n", 2, 1),
        Span("lines", 3, 1),
    ]


def test_tokens_that_share_a_character_share_a_span():
    # 中 is E4 B8 AD: a token of one byte and one of two; 文 is one token of three.
    assert align(["a", "\ufffd", "\ufffd\ufffd", "文"], "a中文") == [
        Span("a", 0, 1),
        Span("中", 1, 2),
        Span("文", 3, 1),
    ]


def test_neighbouring_characters_in_pieces_are_told_apart():
    # 中 as E4 B8 | AD and 文 as E6 | 96 87: four tokens, two characters.
    spans = align(["\ufffd", "\ufffd", "\ufffd", "\ufffd\ufffd"], "中文")
    assert spans == [Span("中", 0, 2), Span("文", 2, 2)]


def test_an_emoji_with_a_skin_tone_stays_in_one_piece():
    assert align(["👍", "🏽", "!"], "👍🏽!") == [Span("👍🏽", 0, 2), Span("!", 2, 1)]


def test_tokens_that_the_decoder_removed_are_named_and_take_no_text():
    spans = align(["Yes", "<|im_end|>", "."], "Yes.")
    assert spans == [Span("Yes", 0, 1), Span("", 1, 1, special="<|im_end|>"), Span(".", 2, 1)]


def test_a_space_that_single_tokens_lose_goes_to_the_word_after_it():
    assert align(["Hello", "world"], "Hello world") == [Span("Hello", 0, 1), Span(" world", 1, 1)]


def test_a_response_cut_within_a_character_keeps_its_last_bytes():
    assert align(["a", "\ufffd"], "a\ufffd") == [Span("a", 0, 1), Span("\ufffd", 1, 1)]


@given(st.text(max_size=30), st.lists(st.integers(0, 200)), st.booleans())
def test_spans_join_to_the_response_and_hold_every_token_once(
    text: str, cuts: list[int], has_end: bool
):
    tokens = pieces(text, cuts) + ["<|im_end|>"] * has_end
    tokens = [token for token in tokens if token]
    spans = align(tokens, text)
    assert "".join(span.text for span in spans) == text
    assert [n for s in spans for n in range(s.first, s.first + s.count)] == list(range(len(tokens)))
    if not has_end:
        assert all(span.text for span in spans if span.count)


@given(st.lists(st.text(max_size=4), max_size=8), st.text(max_size=20))
def test_even_tokens_of_another_text_leave_the_response_whole(tokens: list[str], text: str):
    spans = align(tokens, text)
    assert "".join(span.text for span in spans) == text
    assert sum(span.count for span in spans) == len(tokens)


def test_a_real_byte_level_tokenizer_lines_up():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.asset_folder("tokenizer"))
    text = "The angle 角度 is 45° 🙂 שלום."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = [tokenizer.decode([i]) for i in ids]
    assert any("\ufffd" in token for token in tokens)
    spans = align(tokens, text)
    assert "".join(span.text for span in spans) == text
    assert {"角", "度", "🙂"} <= {span.text.strip() for span in spans}
