"""The evaluation's questions. Nothing here, numbers or cities, occurs in training."""

import json
import random

import chat_skills
import mixture
import tool_skills
from arithmetic import sample_held_out_problem
from conversation import Sample
import phrasing

OPERANDS = (2, 3, 4, 5, 6)
PER_OPERANDS = 40


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def arithmetic(seed: int = 2024, language: str | None = None, per_operands: int = PER_OPERANDS) -> list[Sample]:
    """Single-turn problems; the first step pair of each is held out. Two thirds English by default."""
    rng = random.Random(seed)
    return [mixture.sample_arithmetic(
        rng, held_out=True, num_operands=n, follow_up=False,
        language=language or rng.choices(["en", "zh"], [2, 1])[0])
        for n in OPERANDS for _ in range(per_operands)]


def multi_turn(seed: int = 2025, count: int = 100) -> list[Sample]:
    """Follow-ups such as "now add 7 to that", after one to three turns."""
    rng = random.Random(seed)
    return [mixture.sample_arithmetic(rng, held_out=True, follow_up=True) for _ in range(count)]


def greetings() -> list[tuple[str, str]]:
    """(text, reply wanted); a bare greeting of every language."""
    return [(text, reply) for texts, reply in chat_skills.GREETINGS.values() for text in texts]


def tool_calls(seed: int = 2026) -> list[tuple[Sample, dict]]:
    """(question with the card's two tools, the call wanted)."""
    rng, cases = random.Random(seed), []
    tools = tool_skills.canonical_tools()
    for city in tool_skills.HELD_OUT_CITIES:
        for form in rng.sample(["What is the weather in {}?", "What's the weather like in {}?",
                                "How is the weather in {}?", "Do I need an umbrella in {}?"], 2):
            cases.append((Sample(user(form.format(city)), "", "", tools=tools),
                          {"name": "get_weather", "arguments": {"city": city}}))
    for city in tool_skills.HELD_OUT_CHINESE_CITIES:
        cases.append((Sample(user(f"{city}天气怎么样?"), "", "", tools=tools),
                      {"name": "get_weather", "arguments": {"city": city}}))
    for _ in range(40):
        problem = sample_held_out_problem(rng, rng.randint(2, 4))
        text = f"Use the calculator: {phrasing.expression(problem, 'en', rng)}"
        cases.append((Sample(user(text), "", "", tools=tools),
                      {"name": "calculate", "arguments": {"expression": problem.canonical()}}))
    return cases


def tool_answers(seed: int = 2027, count: int = 40) -> list[tuple[Sample, list[str]]]:
    """(conversation up to the tool's answer, what the reply must contain)."""
    rng, cases = random.Random(seed), []
    tools = tool_skills.canonical_tools()
    for _ in range(count):
        city = rng.choice(tool_skills.HELD_OUT_CITIES)
        degrees, condition = rng.randint(-20, 40), rng.choice(tool_skills.CONDITIONS)
        call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
        messages = user(f"What is the weather in {city}?") + [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": json.dumps({"temperature": degrees, "condition": condition})}]
        cases.append((Sample(messages, "", "", tools=tools), [city, str(degrees), condition]))
    return cases


def greedy_prompts() -> list[Sample]:
    """The 50 prompts of eval/greedy_prompts.jsonl: every skill and mode."""
    rng = random.Random(2028)
    samples = []
    for mode, count in (("think", 10), ("off", 4), ("no_think", 4)):
        for i in range(count):
            sample = mixture.sample_arithmetic(rng, held_out=True, num_operands=OPERANDS[i % 5],
                                               follow_up=False, language="en")
            samples.append(sample)
            sample.mode = mode
    for i in range(7):
        sample = mixture.sample_arithmetic(rng, held_out=True, num_operands=2 + i % 4, follow_up=False,
                                           language="zh")
        sample.mode = "off" if i == 6 else "think"
        samples.append(sample)
    samples += [mixture.sample_arithmetic(rng, held_out=True, follow_up=True) for _ in range(6)]
    for text in ("Hello", "你好", "Hola", "Bonjour", "Guten Tag", "Who are you?", "What can you do?"):
        samples.append(Sample(user(text), "", ""))
    samples.append(Sample(user("Hello"), "", "", mode="off"))
    samples.append(Sample(user("Repeat: the quick brown fox"), "", ""))
    calls = [case for case, _ in tool_calls()]
    samples += rng.sample(calls[:52], 3) + rng.sample(calls[-40:], 2)
    samples += [case for case, _ in tool_answers(count=3)]
    no_tool = Sample(user("What is the weather in Oslo? /no_think"), "", "",
                     tools=tool_skills.canonical_tools())
    system = Sample([{"role": "system", "content": "You are a helpful assistant."}]
                    + user("What is 47 × 36?"), "", "")
    samples += [no_tool, system]
    for sample in samples:
        if sample.mode == "no_think":
            sample.messages[-1]["content"] += " /no_think"
    return samples
