"""Read the number that an answer ends with, as GSM8K's answers do (Cobbe et al. 2021)."""

from __future__ import annotations

import re
from fractions import Fraction

# A sign, a currency, digits with or without commas between thousands, decimals, an exponent, and
# the lower part of a fraction: -$1,234.50, 1.5e3, 3/4. \u2212 is the minus sign of typography. A
# sign with a space after it is a dash, or the bullet of a list.
_NUMBER = re.compile(
    r"(?<![\w.])([-\u2212+]?)(?:[$€£]\s?)?(\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(\.\d+)?"
    r"(?:[eE]([-+]?\d+))?(?:/(\d+))?"
)
# LaTeX's \frac{3}{4}; with a digit before it, it would be a part of a mixed number.
_LATEX_FRACTION = re.compile(r"(?<!\d)\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_LARGEST_EXPONENT = 308  # of a float; a larger one would only fill the memory
_MOST_DIGITS = 1000  # Python refuses to read more than 4,300
_MARK = "####"  # of GSM8K: the answer follows
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def answer_part(text: str) -> str:
    """Return the text between <answer> and </answer> if a response has these tags once, else it."""
    found = _ANSWER.findall(text)
    return found[0].strip() if len(found) == 1 else text


def final_number(text: str) -> Fraction | None:
    r"""Return the number that a text gives as its answer, exactly; None if there is none.

    It is the first number after the last `####`, or else in the last `\boxed{}`, or else the last
    number of the text. Signs, decimals, commas between thousands, fractions such as 3/4 and
    `\frac{3}{4}`, and currency signs are read; a unit after the number is ignored. The hyphen of a
    range or of a compound (`5-10`, `COVID-19`) is no sign. A number that is too long to read, or
    too large for a float, is none.
    """
    text = _LATEX_FRACTION.sub(r"\1/\2", text)
    if _MARK in text:
        found = _numbers(text.rpartition(_MARK)[2])
        return found[0] if found else None
    if boxed := re.findall(r"\\boxed\{([^{}]*)\}", text):
        found = _numbers(boxed[-1])
        return found[-1] if found else None
    found = _numbers(text)
    return found[-1] if found else None


def _numbers(text: str) -> list[Fraction | None]:
    """Return the numbers of a text in order; None for one that is too long or too large."""
    found: list[Fraction | None] = []
    for match in _NUMBER.finditer(text):
        sign, whole, decimals, exponent, below = match.groups()
        if not (whole or decimals):
            continue
        too_long = len(match[0]) > _MOST_DIGITS
        if too_long or (exponent and abs(int(exponent)) > _LARGEST_EXPONENT):
            found.append(None)
            continue
        number = Fraction((whole or "0").replace(",", "") + (decimals or ""))
        if exponent:
            number *= Fraction(10) ** int(exponent)
        if below and int(below):
            number /= int(below)
        found.append(-number if sign in ("-", "\u2212") else number)
    return found
