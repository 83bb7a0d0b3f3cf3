import pytest

from vaopd.report.mathematics import has_formula, mathml, readable, rendered


@pytest.mark.parametrize(
    "text",
    [r"$\frac{1}{2}$", r"\(x^2\)", r"\[\sqrt{x}\]", r"$$a+b$$", r"\boxed{45}",
     r"\boxed{\frac{1}{2}}"],
)  # fmt: skip
def test_every_way_to_write_a_formula_becomes_mathml(text: str):
    page = readable(f"so {text}.")
    assert page.startswith("so <math ")
    assert page.endswith("</math>.")


@pytest.mark.parametrize(
    ("text", "is_shown"),
    [(r"so \boxed{45}.", False), (r"so $x + 5 = 7$ and \boxed{-1.5}", False), ("so 45", False),
     (r"bad $\frac{1$", False), (r"\boxed{\frac{1}{2}}", True), (r"\boxed{4} and $x^2$", True),
     (r"$a_1$", True)],
)  # fmt: skip
def test_text_is_rendered_only_where_it_reads_differently(text: str, is_shown: bool):
    assert rendered(text) == (readable(text) if is_shown else None)


def test_prices_are_no_formulas():
    assert not has_formula("It costs $5 and then $6 more.")


@pytest.mark.parametrize(
    "text",
    [r"$\frac{1$", r"$\begin{matrix}$", r"$a_$", r"$\nosuchcommand x$", r"\(" + "x" * 3000 + r"\)"],
)
def test_bad_latex_stays_as_it_is_written(text: str):
    assert readable(text) == f'<code class="raw-math">{text}</code>'


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        r"$\text{<img src=x onerror=alert(1)>}$",
        r"$\text{</math><script>alert(1)</script>}$",
        r"$\href{javascript:alert(1)}{x}$",
        r"$\style{background:url(x)}{x}$",
        r"$x \text{\"><b>}$",
        r"\boxed{<b>x</b>}",
    ],
)
def test_nothing_but_mathematics_gets_through(text: str):
    page = readable(text)
    assert "<script" not in page
    assert "<img" not in page
    assert "<b>" not in page
    assert "href=" not in page
    assert "style=" not in page


def test_aligned_lines_are_drawn_as_a_table():
    assert "mtable" in mathml(r"\begin{aligned}a&=b\\c&=d\end{aligned}")
