"""What a streamed chat of openai-python adds up to."""
import dataclasses


@dataclasses.dataclass
class Answer:
    content: str = ""
    reasoning: str = ""
    tool_calls: list = dataclasses.field(default_factory=list)  # (id, name, arguments)
    finish_reason: str | None = None
    usage: object = None
    thinking: dict | None = None  # the report, where it was asked for


def collect(chunks):
    """One choice, merged as clients merge it: a tool call's parts by their index."""
    answer = Answer()
    for chunk in chunks:
        answer.usage = chunk.usage or answer.usage
        for choice in chunk.choices:
            answer.thinking = (choice.model_extra or {}).get("thinking") or answer.thinking
            answer.finish_reason = choice.finish_reason or answer.finish_reason
            answer.content += choice.delta.content or ""
            answer.reasoning += (choice.delta.model_extra or {}).get("reasoning_content") or ""
            for part in choice.delta.tool_calls or []:
                if part.index == len(answer.tool_calls):
                    answer.tool_calls.append((part.id, part.function.name, ""))
                call_id, name, arguments = answer.tool_calls[part.index]
                answer.tool_calls[part.index] = (
                    call_id, name, arguments + (part.function.arguments or ""))
    return answer


def same_usage(usage):
    """Usage without what depends on who asked before: the prefix cache."""
    counts = usage.model_dump()
    counts.pop("prompt_tokens_details", None)
    return counts
