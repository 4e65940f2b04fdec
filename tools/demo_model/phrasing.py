"""Turns an arithmetic problem into a question: symbols, words, paraphrases, stories, languages."""

import random

import number_words
from arithmetic import Problem, Term
from chat_skills import FULL_WIDTH

# answer sentences; the number is always digits
ANSWERS = {
    "en": "The answer is {}.",
    "zh": "答案是{}。",
    "es": "La respuesta es {}.",
    "fr": "La réponse est {}.",
    "de": "Die Antwort ist {}.",
}

_EXPRESSION_TEMPLATES = {
    "en": [
        "What is {}?", "What is {}?", "What's {}?", "what is {}", "Calculate {}", "Calculate {}.",
        "Compute {}", "Compute {}.", "compute {}", "calculate {}", "{}", "{} = ?", "{}=", "{}=?",
        "How much is {}?", "how much is {}", "Work out {}.", "Can you work out {}?",
        "Please solve {}", "Solve: {}", "Please calculate {}.", "Tell me what {} is.",
        "What does {} equal?", "What is the result of {}?", "What is the value of {}?",
        "Find {}.", "Evaluate {}", "Could you compute {} for me?", "I need the value of {}, please.",
        "Do you know what {} is?", "Help me with this: {}", "Hi! What is {}?",
    ],
    "zh": [
        "{}等于多少?", "{}等于多少?", "{}是多少?", "{}等于几?", "计算{}", "计算:{}", "请计算{}。",
        "请问{}等于多少?", "算一下{}", "帮我算一下{}", "{}=?", "{}的结果是多少?", "求{}的值。",
        "{}得多少?", "你能算出{}吗?",
    ],
    "es": ["¿Cuánto es {}?", "Calcula {}", "¿Cuál es el resultado de {}?", "Cuánto es {}"],
    "fr": ["Combien font {} ?", "Calcule {}", "Quel est le résultat de {} ?", "Combien font {}?"],
    "de": ["Was ist {}?", "Berechne {}", "Wie viel ist {}?", "Was ergibt {}?"],
}

_WORD_OPS = {
    "en": [("plus", "minus", "times"), ("plus", "minus", "multiplied by"), ("and", "minus", "times")],
    "zh": [("加", "减", "乘以"), ("加上", "减去", "乘以"), ("加", "减", "乘")],
    "es": [("más", "menos", "por")],
    "fr": [("plus", "moins", "fois")],
    "de": [("plus", "minus", "mal")],
}

_NAMES = ("Tom Anna Ben Lucy Omar Mia Sam Nina Leo Eva Jack Rosa Max Lena Paul Ivy Hugo Zoe Karl Maya "
          "Emma Liam Noah Sara Kim Amir Bob Alice").split()
_ITEMS = ("apples books coins stamps marbles pencils cards eggs oranges cookies stickers balls flowers "
          "candies shells toys tickets pens bottles cakes").split()
_GAIN = ["buys {} more", "gets {} more", "finds {}", "finds {} more", "receives {} more",
         "picks up {}", "wins {}", "is given {} more"]
_LOSE = ["gives away {}", "loses {}", "sells {}", "uses {}", "eats {}", "drops {}",
         "gives {} to a friend"]
_ZH_NAMES = ["小明", "小红", "小华", "小李", "小王", "小丽", "小刚", "妈妈", "老师", "他"]
_ZH_ITEMS = ["个苹果", "本书", "支铅笔", "块糖", "张卡片", "枚邮票", "个鸡蛋", "朵花", "个橙子", "元钱"]
_ZH_GAIN = ["又买了{}", "又得到{}", "捡到{}", "朋友送来{}"]
_ZH_LOSE = ["送给朋友{}", "丢了{}", "用掉{}", "卖掉{}"]


def _number(n: int, language: str, spell: bool) -> str:
    if spell and language == "en" and 0 <= n <= 999:
        return number_words.english(n)
    if spell and language == "zh" and 0 <= n <= 999:
        return number_words.chinese(n)
    return str(n)


def expression(problem: Problem, language: str, rng: random.Random) -> str:
    """The problem as an expression in symbols ("12 + 7*3") or words ("twelve plus 7 times 3")."""
    spoken = rng.random() < 0.3
    spell = spoken and language in ("en", "zh") and rng.random() < 0.5
    if spoken:
        plus, minus, times = rng.choice(_WORD_OPS[language])
        gap = "" if language == "zh" else " "
    else:
        plus, minus = "+", rng.choice(["-"] * 9 + ["−"])
        times = rng.choices(["*", "×", "x"], [6, 4, 1])[0]
        gap = "" if rng.random() < 0.4 and times != "x" else " "
    text = ""
    for i, term in enumerate(problem.terms):
        if i == 0:
            text += ("minus " if spoken and language == "en" else "-") if term.sign < 0 else ""
        else:
            text += gap + (plus if term.sign > 0 else minus) + gap
        text += f"{gap}{times}{gap}".join(_number(f, language, spell) for f in term.factors)
    return text


def _list_text(items: list[str], language: str, rng: random.Random) -> str:
    if language == "zh":
        return "、".join(items[:-1]) + "和" + items[-1]
    joined = ", ".join(items[:-1])
    return joined + (", and " if len(items) > 2 and rng.random() < 0.4 else " and ") + items[-1]


def _named_operation(problem: Problem, language: str, rng: random.Random) -> str | None:
    """"Add 5 and 7", "the product of ...", "从a里减去b": needs a problem of that shape."""
    spell = rng.random() < 0.15
    if len(problem.terms) == 1 and len(problem.terms[0].factors) == 2:
        a, b = (_number(f, language, spell) for f in problem.terms[0].factors)
        forms = {
            "en": [f"What is the product of {a} and {b}?", f"Multiply {a} by {b}.",
                   f"multiply {a} and {b}", f"Find the product of {a} and {b}."],
            "zh": [f"{a}和{b}的积是多少?", f"{a}与{b}的乘积是多少?", f"{b}个{a}是多少?"],
        }
        return rng.choice(forms[language])
    if any(len(term.factors) > 1 for term in problem.terms) or problem.terms[0].sign < 0:
        return None
    numbers = [_number(term.factors[0], language, spell) for term in problem.terms]
    signs = [term.sign for term in problem.terms]
    if all(sign > 0 for sign in signs) and len(numbers) > 1:
        listed = _list_text(numbers, language, rng)
        forms = {
            "en": [f"What is the sum of {listed}?", f"Add {listed}.", f"add {listed}",
                   f"Add up {listed}.", f"Find the sum of {listed}."],
            "zh": [f"{listed}的和是多少?", f"求{listed}的和。", f"把{listed}加起来。"],
        }
        return rng.choice(forms[language])
    if len(numbers) == 2 and signs[1] < 0:
        a, b = numbers
        forms = {
            "en": [f"Subtract {b} from {a}.", f"What is the difference between {a} and {b}?",
                   f"Take {b} away from {a}.", f"What is {a} take away {b}?"],
            "zh": [f"{a}和{b}的差是多少?", f"从{a}里减去{b}是多少?", f"{a}比{b}多多少?"],
        }
        return rng.choice(forms[language])
    if language == "en":
        verbs = [f"add {n}" if s > 0 else f"subtract {n}" for n, s in zip(numbers[1:], signs[1:])]
        return f"Start with {numbers[0]}, then {', '.join(verbs)}. What do you get?"
    steps = [f"加上{n}" if s > 0 else f"减去{n}" for n, s in zip(numbers[1:], signs[1:])]
    return f"从{numbers[0]}开始,{','.join(steps)},结果是多少?"


def _story(problem: Problem, language: str, rng: random.Random) -> str | None:
    """A word problem; only for sums of plain numbers, or one product of two."""
    spell = language == "en" and rng.random() < 0.1
    num = lambda n: _number(n, language, spell)
    if len(problem.terms) == 1 and len(problem.terms[0].factors) == 2:
        a, b = problem.terms[0].factors
        item = rng.choice(_ITEMS if language == "en" else _ZH_ITEMS)
        if language == "en":
            return rng.choice([
                f"There are {num(a)} boxes with {num(b)} {item} each. How many {item} are there?",
                f"{rng.choice(_NAMES)} has {num(a)} bags of {num(b)} {item}. How many {item} in total?",
                f"How many {item} are in {num(a)} boxes of {num(b)}?"])
        return f"一共有{a}盒,每盒{b}{item},总共有多少{item}?"
    if any(len(term.factors) > 1 for term in problem.terms) or problem.terms[0].sign < 0:
        return None
    total = 0
    for term in problem.terms:  # nobody has fewer than no apples
        total += term.sign * term.factors[0]
        if total < 0:
            return None
    start, rest = problem.terms[0].factors[0], problem.terms[1:]
    if language == "en":
        name, item = rng.choice(_NAMES), rng.choice(_ITEMS)
        acts = [rng.choice(_GAIN if t.sign > 0 else _LOSE).format(num(t.factors[0])) for t in rest]
        end = rng.choice([f"How many {item} are left?", f"How many {item} does {name} have now?",
                          "How many are there now?", f"How many {item} does {name} have?"])
        return f"{name} has {num(start)} {item}, {_list_text(acts, 'en', rng) if len(acts) > 1 else acts[0]}. {end}"
    name, item = rng.choice(_ZH_NAMES), rng.choice(_ZH_ITEMS)
    acts = [rng.choice(_ZH_GAIN if t.sign > 0 else _ZH_LOSE).format(f"{t.factors[0]}{item[0]}")
            for t in rest]
    return f"{name}有{start}{item}," + ",".join(acts) + rng.choice(
        [f",现在有多少{item}?", f",还剩多少{item}?", f"。{name}现在有多少{item}?"])


def question(problem: Problem, language: str, rng: random.Random) -> str:
    style = rng.random()
    text = None
    if language in ("en", "zh"):
        if style < 0.12:
            text = _named_operation(problem, language, rng)
        elif style < 0.26:
            text = _story(problem, language, rng)
    if text is None:
        text = rng.choice(_EXPRESSION_TEMPLATES[language]).format(expression(problem, language, rng))
    if language == "zh" and rng.random() < 0.5:
        text = text.translate(FULL_WIDTH)
    return text


def answer(value: int, language: str) -> str:
    return ANSWERS[language].format(value)


# --- follow-ups: "now add 7 to that" ------------------------------------------------------------


def follow_up(previous: int, language: str, rng: random.Random) -> tuple[str, Problem]:
    """A question about the previous answer, and the problem that it makes."""
    kind = rng.choices(["add", "sub", "mul", "add2"], [4, 4, 2, 1])[0]
    if kind == "mul" and not 0 <= previous <= 999:
        kind = "add"
    first = Term(1 if previous >= 0 else -1, (abs(previous),))
    n = rng.randint(1, 99) if rng.random() < 0.85 else rng.randint(100, 999)
    if kind == "mul":
        n = rng.choice([2, 2, 3, 4, 5, 6, 7, 8, 9, 10])
        forms = {
            "en": [f"Multiply that by {n}.", f"Now multiply it by {n}", f"times {n}?",
                   f"And times {n}?", f"What is that times {n}?"] + (
                       ["Double it.", "Now double that.", "Now double it"] if n == 2 else []),
            "zh": [f"再乘以{n}", f"乘以{n}呢?", f"把它乘以{n}。", f"然后乘以{n}等于多少?"],
        }
        return rng.choice(forms[language]), Problem((Term(1, (previous, n)),))
    if kind == "add2":
        m = rng.randint(1, 99)
        forms = {
            "en": [f"Now add {n} and subtract {m}.", f"Add {n}, then subtract {m}."],
            "zh": [f"再加上{n},减去{m}。", f"先加{n}再减{m}。"],
        }
        return rng.choice(forms[language]), Problem((first, Term(1, (n,)), Term(-1, (m,))))
    if kind == "add":
        forms = {
            "en": [f"Now add {n} to that.", f"Now add {n}", f"Add {n} to it.", f"add {n}",
                   f"Plus {n}?", f"And plus {n}?", f"What if you add {n}?", f"Now add {n} to that",
                   f"now add {n} to that", f"And {n} more?", f"Add {n} to the result."],
            "zh": [f"再加上{n}", f"再加{n}呢?", f"加{n}等于多少?", f"那再加上{n}是多少?",
                   f"现在加上{n}。"],
        }
        return rng.choice(forms[language]), Problem((first, Term(1, (n,))))
    forms = {
        "en": [f"Now subtract {n} from that.", f"Subtract {n} from it.", f"Minus {n}?",
               f"Now take away {n}.", f"And minus {n}?", f"subtract {n}", f"Now subtract {n}",
               f"Take {n} away from that.", f"Subtract {n} from the result."],
        "zh": [f"再减去{n}", f"再减{n}呢?", f"减{n}等于多少?", f"那再减去{n}是多少?",
               f"现在减去{n}。"],
    }
    return rng.choice(forms[language]), Problem((first, Term(-1, (n,))))
