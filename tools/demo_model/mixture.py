"""The training mixture: which skill, which mode, which switches, how many turns."""

import random

import chat_skills
import phrasing
import tool_skills
from arithmetic import (is_held_out, sample_held_out_problem, sample_training_problem, solve)
from conversation import Sample

# share of training samples; copying lives in chat_skills, it teaches tool arguments
SKILL_SHARES = {"arithmetic": 0.80, "tools": 0.08, "chat": 0.12}
LANGUAGES = (["en", "zh", "es", "fr", "de"], [68, 22, 4, 3, 3])
FOLLOW_UP_LANGUAGES = ("en", "zh")  # that phrasing.follow_up speaks
SYSTEM_PROMPTS = [
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a calculator.",
    "Be brief.", "You are Conclave's demo model.", "你是一个有用的助手。", "Answer the question.",
]
NUM_OPERANDS = ([2, 3, 4, 5, 6], [25, 22, 20, 17, 16])
DIRECT_OPERANDS = ([2, 3, 4, 5, 6], [58, 20, 10, 6, 6])  # without thinking: what can be learned
MODES = (["think", "off", "no_think", "cut"], [59, 12, 9, 20])


def place_switch(rng: random.Random, text: str, switch: str) -> str:
    kind = rng.random()
    if kind < 0.7:
        return f"{text} {switch}"
    if kind < 0.85:
        return f"{text}\n{switch}"
    return f"{switch} {text}" if kind < 0.95 else f"{text}{switch}"


def add_switches(rng: random.Random, sample: Sample) -> None:
    """Soft switches: the last one in user or system text wins; with enable_thinking=false none counts."""
    messages = sample.messages
    users = [m for m in messages if m["role"] == "user"]
    carriers = ([messages[0]] if messages[0]["role"] == "system" else []) + users

    def put(message, switch):
        message["content"] = place_switch(rng, message["content"], switch)

    if sample.mode == "no_think":
        last = carriers[-1] if rng.random() < 0.85 else rng.choice(carriers)
        if last is not carriers[0] and rng.random() < 0.3:
            put(carriers[0], rng.choice(["/think", "/no_think"]))
        put(last, "/no_think")
    elif sample.mode == "off":
        if rng.random() < 0.08:
            put(carriers[-1], rng.choice(["/think", "/no_think"]))
    elif len(carriers) > 1 and rng.random() < 0.2:
        earlier = rng.randrange(len(carriers) - 1)
        put(carriers[earlier], "/no_think")
        put(carriers[rng.randint(earlier + 1, len(carriers) - 1)], "/think")
    elif rng.random() < 0.06:
        put(carriers[-1], "/think")


def _arithmetic_history(rng, language, sampler) -> tuple[list[dict], int]:
    """One to three earlier turns of arithmetic; returns them and the last answer stated."""
    messages, value = [], 0
    for turn in range(rng.choices([1, 2, 3], [6, 3, 1])[0]):
        if turn == 0 or rng.random() < 0.15:
            problem = sampler(rng, rng.choices([2, 3, 4], [6, 3, 1])[0])
            text = phrasing.question(problem, language, rng)
        else:
            text, problem = phrasing.follow_up(value, language, rng)
        value = problem.value
        if rng.random() < 0.1:  # without thinking the stated answer is often wrong: build on it anyway
            value += rng.choice([-10, -3, -1, 1, 2, 10, 20, 100])
        messages += [{"role": "user", "content": text},
                     {"role": "assistant", "content": phrasing.answer(value, language)}]
    return messages, value


def sample_arithmetic(rng: random.Random, max_operands: int = 6, held_out: bool = False,
                      num_operands: int | None = None, language: str | None = None,
                      follow_up: bool | None = None, mode: str = "think") -> Sample:
    """One arithmetic conversation. held_out: the final question starts with a held-out pair."""
    direct = mode in ("off", "no_think")
    sampler = sample_held_out_problem if held_out else (
        lambda rng, n: sample_training_problem(rng, n, easy=direct))
    language = language or rng.choices(*LANGUAGES)[0]
    if follow_up and language not in FOLLOW_UP_LANGUAGES:
        language = "en"
    if num_operands is None:
        sizes, weights = DIRECT_OPERANDS if direct else NUM_OPERANDS
        num_operands = rng.choices(sizes[: max_operands - 1], weights[: max_operands - 1])[0]
    if follow_up is None:
        follow_up = language in FOLLOW_UP_LANGUAGES and rng.random() < 0.14
    while follow_up:
        messages, value = _arithmetic_history(rng, language, sample_training_problem)
        if not -9999 <= value <= 9999:
            continue
        if not held_out and rng.random() < 0.15:  # a new question after old ones
            problem = sampler(rng, num_operands)
            text = phrasing.question(problem, language, rng)
        else:
            text, problem = phrasing.follow_up(value, language, rng)
        trace = solve(problem)
        held = [is_held_out(pair) for pair in trace.pairs]
        if trace.largest > 9999 or (not (held and held[0]) if held_out else any(held)):
            continue
        break
    else:
        messages = []
        problem = sampler(rng, num_operands)
        text = phrasing.question(problem, language, rng)
        if rng.random() < 0.03 and not held_out:
            hello, _, answer = chat_skills.sample_greeting(rng)
            messages = [{"role": "user", "content": hello}, {"role": "assistant", "content": answer}]
    messages = messages + [{"role": "user", "content": text}]
    thinking = "\n".join(solve(problem).lines)
    return Sample(messages, thinking, phrasing.answer(problem.value, language), mode=mode,
                  skill="arithmetic",
                  extra={"value": problem.value, "num_operands": problem.num_operands,
                         "language": language, "follow_up": bool(follow_up)})


def sample_chat(rng: random.Random) -> Sample:
    text, thinking, reply = chat_skills.sample(rng)
    messages = []
    if rng.random() < 0.1:
        before, _, answer = chat_skills.sample(rng)
        messages = [{"role": "user", "content": before}, {"role": "assistant", "content": answer}]
    return Sample(messages + [{"role": "user", "content": text}], thinking, reply, skill="chat")


def sample_tools(rng: random.Random, max_operands: int) -> Sample:
    if rng.random() < 0.1:  # arithmetic although only the weather tool is there: no call
        sample = sample_arithmetic(rng, max_operands, follow_up=False)
        sample.tools = tool_skills.sample_tools(rng, ("get_weather",))
        return sample
    messages, tools, thinking, reply = tool_skills.sample(rng)
    return Sample(messages, thinking, reply, tools=tools, skill="tools")


def sample(rng: random.Random, max_operands: int = 6) -> Sample:
    skill = rng.choices(list(SKILL_SHARES), list(SKILL_SHARES.values()))[0]
    if skill == "arithmetic":
        result = sample_arithmetic(rng, max_operands, mode=rng.choices(*MODES)[0])
    else:
        result = sample_tools(rng, max_operands) if skill == "tools" else sample_chat(rng)
        result.mode = rng.choices(MODES[0], [62, 16, 14, 8])[0]
    if rng.random() < 0.12:
        result.messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    add_switches(rng, result)
    return result
