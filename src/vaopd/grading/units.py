"""Units of measurement: their dimensions and sizes."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

_BASES: dict[str, tuple[str, str | Fraction | int, str]] = {
    # names: dimension, size, other spellings
    "mm": ("length", Fraction(1, 1000), "millimeter millimetre 毫米"),
    "cm": ("length", Fraction(1, 100), "centimeter centimetre 厘米 公分"),
    "dm": ("length", Fraction(1, 10), "decimeter decimetre 分米"),
    "m": ("length", 1, "meter metre 米"),
    "km": ("length", 1000, "kilometer kilometre 千米 公里"),
    "μm": ("length", Fraction(1, 10**6), "um µm micrometer micrometre micron"),
    "nm": ("length", Fraction(1, 10**9), "nanometer nanometre"),
    "in": ("length", Fraction(254, 10000), "inch inches"),
    "ft": ("length", Fraction(3048, 10000), "foot feet"),
    "yd": ("length", Fraction(9144, 10000), "yard"),
    "mi": ("length", Fraction(1609344, 1000), "mile"),
    "mg": ("mass", Fraction(1, 10**6), "milligram 毫克"),
    "g": ("mass", Fraction(1, 1000), "gram gramme 克"),
    "kg": ("mass", 1, "kilogram kilo 千克 公斤"),
    "t": ("mass", 1000, "ton tonne 吨"),
    "lb": ("mass", Fraction(45359237, 10**8), "lbs pound"),
    "oz": ("mass", Fraction(45359237, 16 * 10**8), "ounce"),
    "ms": ("time", Fraction(1, 1000), "millisecond 毫秒"),
    "s": ("time", 1, "sec second secs 秒"),
    "min": ("time", 60, "minute mins 分钟"),
    "h": ("time", 3600, "hr hrs hour 小时"),
    "day": ("time", 86400, "天 日"),
    "week": ("time", 604800, "周"),
    "month": ("month", 1, "个月"),
    "year": ("month", 12, "yr yrs 年"),
    "°": ("angle", 1, "deg degree degs 度"),
    "rad": ("angle", "pi", "radian 弧度"),
    "%": ("percent", 1, "percent pct"),
    "¤": ("dollar", 1, "dollar usd 美元"),
    "¢": ("dollar", Fraction(1, 100), "cent"),
    "€": ("euro", 1, "euro eur"),
    "£": ("pound sterling", 1, "gbp"),
    "¥": ("yen", 1, "元 yuan rmb yen"),
    "₹": ("rupee", 1, "rupee"),
    "L": ("volume", Fraction(1, 1000), "l liter litre 升"),
    "mL": ("volume", Fraction(1, 10**6), "ml milliliter millilitre 毫升"),
    "N": ("force", 1, "newton 牛 牛顿"),
    "kN": ("force", 1000, "kilonewton"),
    "J": ("energy", 1, "joule 焦耳"),
    "kJ": ("energy", 1000, "kilojoule"),
    "cal": ("energy", Fraction(4184, 1000), "calorie"),
    "kcal": ("energy", 4184, "kilocalorie"),
    "W": ("power", 1, "watt 瓦"),
    "kW": ("power", 1000, "kilowatt"),
    "MW": ("power", 10**6, "megawatt"),
    "V": ("voltage", 1, "volt 伏"),
    "mV": ("voltage", Fraction(1, 1000), "millivolt"),
    "A": ("current", 1, "amp ampere amps 安"),
    "mA": ("current", Fraction(1, 1000), "milliamp milliampere"),
    "Ω": ("resistance", 1, "ohm \\Omega 欧姆"),
    "kΩ": ("resistance", 1000, "kiloohm k\\Omega"),
    "Hz": ("frequency", 1, "hertz 赫兹"),
    "kHz": ("frequency", 1000, "kilohertz"),
    "MHz": ("frequency", 10**6, "megahertz"),
    "Pa": ("pressure", 1, "pascal 帕"),
    "kPa": ("pressure", 1000, "kilopascal"),
    "atm": ("pressure", 101325, "atmosphere"),
    "K": ("kelvin", 1, "kelvin"),
    "°C": ("celsius", 1, "℃ celsius 摄氏度"),
    "°F": ("fahrenheit", 1, "℉ fahrenheit"),
    "mol": ("amount", 1, "mole 摩尔"),
    "mph": ("length/time", Fraction(1609344, 3600000), ""),
    "kmh": ("length/time", Fraction(1000, 3600), "kph"),
    "unit": ("", 1, "units u unit(s) 单位 个单位"),
}  # fmt: skip
_PI = Fraction(180) / Fraction("3.14159265358979323846")
_CASED = {
    "m",
    "M",
    "L",
    "l",
    "s",
    "S",
    "g",
    "G",
    "h",
    "t",
    "N",
    "J",
    "W",
    "V",
    "A",
    "K",
    "MW",
    "mW",
    "mA",
    "mV",
    "Pa",
    "u",
    "°C",
    "°F",
    "C",
    "F",
    "in",
    "T",
}
"""Symbols whose case matters: in another case they are another unit or not a unit."""

_POWERS = {
    "square": 2, "squared": 2, "sq": 2, "平方": 2, "cubic": 3, "cubed": 3, "cu": 3, "立方": 3,
}  # fmt: skip
_TEMPERATURE = re.compile(r"\bdeg(?:rees?)?\.? ([CF])(?:elsius|ahrenheit)?$", re.IGNORECASE)
_SUPER = {"²": 2, "³": 3, "⁻¹": -1, "⁻²": -2, "⁻³": -3}
_PIECE = re.compile(
    r"(?P<power>square|cubic|sq\.?|cu\.?|平方|立方)\s*|(?P<per>/|\bper\b|\bp(?=sec\b)|每)|"
    r"(?P<times>[·*.⋅×-]|\\cdot|\\times)"
    r"|(?P<name>°\s?[CF]\b|[°%¤€£¥₹¢℃℉Ω]|k?\\Omega|[A-Za-zμµΩ]+(?:\(s\))?|[\u4e00-\u9fff]+)\.?"
    r"(?:\s?\^?\s?\{?\s?(?P<raised>-?[1-3](?!\d)|²|³|⁻[¹²³])\s?\}?|\s+(?P<word>squared|cubed)\b)?"
)


def _table() -> dict[str, tuple[str, Fraction]]:
    table: dict[str, tuple[str, Fraction]] = {}
    for symbol, (dimension, size, names) in _BASES.items():
        value = (dimension, _PI if size == "pi" else Fraction(size))
        for name in (symbol, *names.split()):
            table[name] = value
            if name.isascii() and len(name) > 2 and name.isalpha():
                table.setdefault(name + "s", value)
    return table


_UNITS = _table()


@dataclass(frozen=True)
class Unit:
    """A product of powers of base units."""

    size: Fraction
    """Size in the base units of its dimensions."""

    dimensions: tuple[tuple[str, int], ...]
    """Dimension and power; empty for counts and for "units" of a figure."""

    @property
    def is_generic(self) -> bool:
        """Whether the unit has no dimension."""
        return not self.dimensions


NO_UNIT = Unit(Fraction(1), ())


@lru_cache(maxsize=8192)
def unit_of(text: str) -> Unit | None:
    """Return the unit in a text such as ``cm²`` or ``square feet``; else ``None``."""
    text = _TEMPERATURE.sub(lambda m: f"°{m[1].upper()}", text.strip().strip("()[]{}.").strip())
    if not text:
        return NO_UNIT
    if len(text) > 60:
        return None
    factors = _factors(text)
    if factors is None:
        return None
    size, powers = Fraction(1), dict[str, int]()
    for (kind, scale), power in factors:
        size *= scale**power
        for dimension, part in _parts(kind):
            powers[dimension] = powers.get(dimension, 0) + part * power
    return Unit(size, tuple(sorted((k, v) for k, v in powers.items() if v)))


def _factors(text: str) -> list[tuple[tuple[str, Fraction], int]] | None:
    """Return the base units of a text with their powers; ``None`` if a part is not a unit."""
    factors: list[tuple[tuple[str, Fraction], int]] = []
    position, sign, pending = 0, 1, 1
    while position < len(text):
        found = _PIECE.match(text, position)
        if found is None:
            return None
        position = _after_spaces(text, found.end())
        if found["power"]:
            pending = _POWERS[found["power"].rstrip(".")]
        elif found["per"]:
            sign = -1
        elif found["name"]:
            base = _base(found["name"])
            if base is None:
                return None
            factors.append((base, sign * pending * _power(found["raised"], found["word"])))
            pending = 1
        elif position == len(text) or sign < 0:
            return None
    return factors


def _parts(dimension: str) -> list[tuple[str, int]]:
    """Return base dimensions and powers; a litre is a cubed length."""
    if dimension == "volume":
        return [("length", 3)]
    if dimension == "length/time":
        return [("length", 1), ("time", -1)]
    return [(dimension, 1)] if dimension else []


def _base(name: str) -> tuple[str, Fraction] | None:
    name = name.replace(" ", "")
    if name in _UNITS:
        return _UNITS[name]
    low = name.lower()
    return _UNITS.get(low) if low not in _CASED and name not in _CASED else None


def _power(raised: str | None, word: str | None) -> int:
    if word:
        return _POWERS[word]
    return _SUPER.get(raised or "", 0) or int(raised or 1)


def _after_spaces(text: str, position: int) -> int:
    while position < len(text) and text[position] == " ":
        position += 1
    return position
