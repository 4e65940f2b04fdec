"""Integers 0..999 written out in English and Chinese."""

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
_HAN = "零一二三四五六七八九"


def english(n: int) -> str:
    assert 0 <= n <= 999, n
    if n < 20:
        return _ONES[n]
    if n < 100:
        return _TENS[n // 10] + ("-" + _ONES[n % 10] if n % 10 else "")
    rest = " " + english(n % 100) if n % 100 else ""
    return f"{_ONES[n // 100]} hundred{rest}"


def chinese(n: int) -> str:
    assert 0 <= n <= 999, n
    if n < 10:
        return _HAN[n]
    if n < 100:
        tens = "" if n < 20 else _HAN[n // 10]
        return tens + "十" + (_HAN[n % 10] if n % 10 else "")
    text = _HAN[n // 100] + "百"
    rest = n % 100
    if rest == 0:
        return text
    if rest < 10:
        return text + "零" + _HAN[rest]
    return text + _HAN[rest // 10] + "十" + (_HAN[rest % 10] if rest % 10 else "")
