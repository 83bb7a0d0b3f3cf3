import pytest

from vaopd.report.mathematics import has_formula, mathml, readable


@pytest.mark.parametrize(
    "text",
    [r"$\frac{1}{2}$", r"\(x^2\)", r"\[\sqrt{x}\]", r"$$a+b$$", r"\boxed{45}",
     r"\boxed{\frac{1}{2}}"],
)  # fmt: skip
def test_every_way_to_write_a_formula_becomes_mathml(text: str):
    page = readable(f"so {text}.")
    assert page.startswith("so <math ")
    assert page.endswith("</math>.")


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
