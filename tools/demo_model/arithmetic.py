"""Integer arithmetic problems and the written steps that solve them.

A problem is a sum of terms; a term is a product of one or more factors. Its trace is what the
model writes between <think> and </think>:

    12+47*6-30        the problem, rewritten with digits and + - * (this is the reading step)
    47*6:             a product is split into decimal places ...
    40*6=240
    7*6=42
    240+42:           ... whose parts are added up, again one decimal place per line
    240+40=280
    280+2=282
    12+282-30         the problem with the products replaced
    12+282:
    12+200=212
    212+80=292
    292+2=294
    294-30=264        an operand with one non-zero digit needs no header line

Held-out pairs. A line that ends in ":" is a *step pair* (a, op, b). One step pair in 20, chosen
by a hash, is held out: no training trace may contain it anywhere. An evaluation problem always
starts with such a pair, so neither the problem nor its first step was ever seen.
"""

import random
import zlib
from dataclasses import dataclass

MAX_VALUE = 9999  # largest absolute value of any intermediate result
HELD_OUT_ONE_IN = 20


@dataclass(frozen=True)
class Term:
    sign: int  # +1 or -1
    factors: tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    terms: tuple[Term, ...]

    @property
    def num_operands(self) -> int:
        return sum(len(term.factors) for term in self.terms)

    @property
    def value(self) -> int:
        total = 0
        for term in self.terms:
            product = term.sign
            for factor in term.factors:
                product *= factor
            total += product
        return total

    def canonical(self) -> str:
        return join_terms([(term.sign, "*".join(map(str, term.factors))) for term in self.terms])


def join_terms(signed_texts: list[tuple[int, str]]) -> str:
    """[(1, "12"), (-1, "7*3")] -> "12-7*3"."""
    text = ""
    for i, (sign, body) in enumerate(signed_texts):
        if sign < 0:
            text += "-"
        elif i > 0:
            text += "+"
        text += body
    return text


def decimal_places(value: int) -> list[int]:
    """347 -> [300, 40, 7]; zero digits are skipped; 0 -> [0]."""
    digits = str(value)
    places = [int(d) * 10 ** (len(digits) - 1 - i) for i, d in enumerate(digits) if d != "0"]
    return places or [0]


@dataclass
class Trace:
    lines: list[str]
    pairs: list[tuple[int, str, int]]  # the step pairs, in order
    largest: int = 0

    def note(self, value: int) -> None:
        self.largest = max(self.largest, abs(value))


def _add(trace: Trace, total: int, sign: int, addend: int) -> int:
    """Appends the lines of total +- addend; returns the new total. addend >= 0."""
    op = "+" if sign > 0 else "-"
    places = decimal_places(addend)
    if len(places) > 1:
        trace.pairs.append((total, op, addend))
        trace.lines.append(f"{total}{op}{addend}:")
    for place in places:
        result = total + sign * place
        trace.lines.append(f"{total}{op}{place}={result}")
        trace.note(result)
        total = result
    return total


def _multiply(trace: Trace, a: int, b: int) -> int:
    """Appends the lines of a * b (both >= 0); returns the product."""
    a_places, b_places = decimal_places(a), decimal_places(b)
    trace.note(a * b)
    if len(a_places) > 1 or len(b_places) > 1:
        trace.pairs.append((a, "*", b))
        trace.lines.append(f"{a}*{b}:")
    parts = []
    for x in a_places:
        for y in b_places:
            trace.lines.append(f"{x}*{y}={x * y}")
            parts.append(x * y)
    total = parts[0]
    for part in parts[1:]:
        total = _add(trace, total, 1, part)
    return total


def solve(problem: Problem) -> Trace:
    trace = Trace(lines=[problem.canonical()], pairs=[])
    values = []
    for term in problem.terms:
        product = term.factors[0]
        for factor in term.factors[1:]:
            product = _multiply(trace, product, factor)
        trace.note(product)
        values.append(product)
    has_product = any(len(term.factors) > 1 for term in problem.terms)
    if has_product and len(values) > 1:
        signed = [(term.sign, str(value)) for term, value in zip(problem.terms, values)]
        trace.lines.append(join_terms(signed))
    total = problem.terms[0].sign * values[0]
    for term, value in zip(problem.terms[1:], values[1:]):
        total = _add(trace, total, term.sign, value)
    assert total == problem.value, (problem, total)
    return trace


def is_held_out(pair: tuple[int, str, int]) -> bool:
    a, op, b = pair
    if op != "-" and a > b:  # a+b and b+a are one pair
        a, b = b, a
    return zlib.crc32(f"{a}{op}{b}".encode()) % HELD_OUT_ONE_IN == 0


# --- sampling -----------------------------------------------------------------------------------


def _addend(rng: random.Random, magnitude: str) -> int:
    if magnitude == "small":
        return rng.randint(0, 20)
    if magnitude == "large" and rng.random() < 0.6:
        return rng.randint(100, 999)
    return rng.randint(1, 99)


def _product(rng: random.Random, num_factors: int, easy: bool) -> tuple[int, ...]:
    if num_factors == 3:
        return tuple(rng.randint(2, 9) for _ in range(3))
    kind = rng.random() * (0.5 if easy else 1.0)
    if kind < 0.25:
        factors = [rng.randint(0, 9), rng.randint(1, 12)]
    elif kind < 0.70:
        factors = [rng.randint(10, 99), rng.randint(2, 12)]
    elif kind < 0.93:
        factors = [rng.randint(10, 99), rng.randint(10, 99)]
    else:
        factors = [rng.randint(100, 999), rng.randint(2, 9)]
    rng.shuffle(factors)
    return tuple(factors)


def sample_problem(rng: random.Random, num_operands: int, easy: bool = False) -> Problem:
    """A random problem without regard to hold-out; every intermediate is within MAX_VALUE.

    easy: small numbers more often, for answers without thinking, which are hopeless otherwise.
    """
    while True:
        magnitude = rng.choices(["small", "normal", "large"], [30, 66, 4] if easy else [8, 70, 22])[0]
        product_share = rng.choice([0.0, 0.25, 0.5]) if num_operands > 2 else 0.35
        terms, left, num_products = [], num_operands, 0
        while left:
            size = 1
            if left >= 2 and num_products < 2 and rng.random() < product_share:
                size = 3 if left >= 3 and rng.random() < 0.12 else 2
                num_products += 1
            factors = _product(rng, size, easy) if size > 1 else (_addend(rng, magnitude),)
            sign = 1 if not terms or rng.random() < 0.55 else -1
            if not terms and size == 1 and factors[0] and rng.random() < 0.03:
                sign = -1
            terms.append(Term(sign, factors))
            left -= size
        problem = Problem(tuple(terms))
        trace = solve(problem)
        if trace.largest <= MAX_VALUE and len(trace.lines) <= 36:
            return problem


def sample_training_problem(rng, num_operands: int, easy: bool = False) -> Problem:
    while True:
        problem = sample_problem(rng, num_operands, easy)
        if not any(is_held_out(pair) for pair in solve(problem).pairs):
            return problem


def sample_held_out_problem(rng, num_operands: int) -> Problem:
    """The first step pair is one that no training trace contains."""
    while True:
        problem = sample_problem(rng, num_operands)
        pairs = solve(problem).pairs
        if pairs and is_held_out(pairs[0]):
            return problem
