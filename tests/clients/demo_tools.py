"""The two tools that the demo model was trained for: what clients say of them, and what they do."""
import json
import re

TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "Get the current weather of a city.",
        "parameters": {"type": "object",
                       "properties": {"city": {"type": "string", "description": "City name"}},
                       "required": ["city"]}}},
    {"type": "function", "function": {
        "name": "calculate", "description": "Evaluate an arithmetic expression.",
        "parameters": {"type": "object",
                       "properties": {"expression": {
                           "type": "string",
                           "description": "Arithmetic expression, e.g. 12*7+3"}},
                       "required": ["expression"]}}},
]
WEATHER_TOOL, CALCULATE_TOOL = TOOLS


def get_weather(city):
    return json.dumps({"temperature": 21, "condition": "sunny"} if city else {})


def calculate(expression):
    if not re.fullmatch(r"[\d+*\- ]+", expression):
        raise ValueError(f"expression is {expression!r}, want numbers, + - *")
    return str(eval(expression))  # only digits and three operators get here


def call(name, arguments):
    """What a tool answers to a call as the model wrote it: a name and the JSON of the arguments."""
    return {"get_weather": get_weather, "calculate": calculate}[name](**json.loads(arguments))
