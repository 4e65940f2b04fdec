"""A training sample, its text as the chat template renders it, and its token ids.

The template is Qwen3's own file. Prompt ids are what a server computes: the rendered prompt in one
encode call. The reply is appended as text, except that a trace cut by a thinking budget is appended
as ids, which is how a server inserts the early-stop text.
"""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE_PATH = Path(__file__).with_name("qwen3_chat_template.jinja")

# What a server may insert when the thinking budget is used up. The first is Qwen3's own text.
EARLY_STOP_TEXT = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking "
    "directly now.\n</think>\n\n")
PLAIN_STOP_TEXT = "\n</think>\n\n"
OTHER_STOP_TEXTS = ["\n\n</think>\n\n", "</think>\n\n", "\n\nTime is up.\n</think>\n\n",
                    "\n\nI have to answer now.\n</think>\n\n"]


@dataclass
class Sample:
    messages: list[dict]
    thinking: str
    reply: str
    tools: list[dict] | None = None
    # "think": thinks. "off": enable_thinking=false. "no_think": soft switch. "cut": thinking cut.
    mode: str = "think"
    skill: str = ""
    extra: dict = field(default_factory=dict)


class Template:
    """Qwen3's chat template in the environment that transformers gives it."""

    def __init__(self, path: Path = TEMPLATE_PATH):
        env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        env.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._template = env.from_string(path.read_text(encoding="utf-8"))

    def prompt(self, sample: Sample) -> str:
        variables = {"messages": sample.messages, "tools": sample.tools, "add_generation_prompt": True}
        if sample.mode == "off":
            variables["enable_thinking"] = False
        return self._template.render(**variables)


def reply_text(sample: Sample) -> str:
    """What the model writes after the prompt, without cuts."""
    if sample.mode == "off":
        return f"{sample.reply}<|im_end|>"
    if sample.mode == "no_think":
        return f"<think>\n\n</think>\n\n{sample.reply}<|im_end|>"
    return f"<think>\n{sample.thinking}\n</think>\n\n{sample.reply}<|im_end|>"


def stop_text(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.45:
        return EARLY_STOP_TEXT
    return PLAIN_STOP_TEXT if kind < 0.9 else rng.choice(OTHER_STOP_TEXTS)


class Encoder:
    """Samples to (ids, loss mask). The mask is true where the token is the model's own choice."""

    def __init__(self, tokenizer, template: Template):
        self._tokenizer = tokenizer
        self._template = template

    def ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode(self, sample: Sample, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        prompt = self.ids(self._template.prompt(sample))
        if sample.mode == "cut":
            body = self.ids(f"<think>\n{sample.thinking}\n")
            kept = body[: 1 + rng.randint(0, len(body) - 1)]  # <think> and 0.. tokens after it
            forced = self.ids(stop_text(rng))
            answer = self.ids(f"{sample.reply}<|im_end|>")
            parts = [(prompt, False), (kept, True), (forced, False), (answer, True)]
        else:
            parts = [(prompt, False), (self.ids(reply_text(sample)), True)]
        ids = np.concatenate([np.asarray(p, np.int32) for p, _ in parts])
        mask = np.concatenate([np.full(len(p), own) for p, own in parts])
        return ids, mask
