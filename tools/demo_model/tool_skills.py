"""Conversations with the two tools the demo model knows: get_weather and calculate.

A sample is (messages, tools, thinking, reply): the last turn is what the model must write. A
reply is either plain text or one or two tool calls in Qwen3's Hermes format.
"""

import json
import random

import phrasing
from arithmetic import sample_training_problem
from chat_skills import random_han, random_word, sample_greeting

CITIES = (
    "Berlin,Paris,London,Madrid,Rome,Vienna,Tokyo,Beijing,Shanghai,New York,Los Angeles,Chicago,Toronto,"
    "Sydney,Melbourne,Moscow,Cairo,Delhi,Mumbai,Seoul,Bangkok,Hanoi,Jakarta,Manila,Dubai,Istanbul,Athens,"
    "Lisbon,Dublin,Brussels,Amsterdam,Stockholm,Copenhagen,Helsinki,Warsaw,Prague,Budapest,Zurich,Geneva,"
    "Munich,Hamburg,Cologne,Frankfurt,Milan,Naples,Turin,Venice,Florence,Barcelona,Valencia,Seville,Porto,"
    "Lyon,Marseille,Nice,Bordeaux,Boston,Seattle,Denver,Miami,Houston,Dallas,San Francisco,Washington,"
    "Atlanta,Montreal,Vancouver,Mexico City,Lima,Bogota,Santiago,Buenos Aires,Rio de Janeiro,Nairobi,"
    "Lagos,Accra,Tunis,Casablanca,Cape Town,Tehran,Baghdad,Riyadh,Karachi,Dhaka,Osaka,Taipei,Singapore"
).split(",")
CHINESE_CITIES = "北京,上海,广州,深圳,杭州,南京,成都,武汉,西安,重庆,天津,苏州,青岛,长沙,大连".split(",")
# never in training: the evaluation's cities
HELD_OUT_CITIES = (
    "Oslo,Kyoto,Reykjavik,Bern,Leipzig,Krakow,Bilbao,Ghent,Tallinn,Riga,Vilnius,Zagreb,Split,Sofia,"
    "Quito,Havana,Kigali,Lusaka,Perth,Hobart,Nagoya,Pune,Salt Lake City,Las Palmas,Santa Cruz,Ulm"
).split(",")
HELD_OUT_CHINESE_CITIES = "厦门,桂林,济南,昆明,三亚,沈阳".split(",")

CONDITIONS = (
    "sunny,cloudy,rainy,windy,foggy,snowy,stormy,clear,overcast,partly cloudy,light rain,heavy rain,"
    "light snow,thunderstorms,hazy,humid,dry,mostly sunny,drizzle,hot,cold,mild"
).split(",")

_WEATHER_DESCRIPTIONS = [
    "Get the current weather of a city.", "Get the current weather for a city.", "Current weather",
    "Returns the weather in the given city.", "Get the weather", "Look up the weather in a city.",
    "Get current temperature and conditions for a given location.",
]
_CITY_DESCRIPTIONS = ["City name", "The city name", "Name of the city", "The city, e.g. Berlin",
                      "The name of the city."]
_CALCULATE_DESCRIPTIONS = [
    "Evaluate an arithmetic expression.", "Calculate the value of an arithmetic expression.",
    "Calculator", "Evaluates a math expression.", "Do arithmetic.", "A calculator.",
]
_EXPRESSION_DESCRIPTIONS = ["Expression", "The expression to evaluate", "e.g. 2+3*4",
                            "Arithmetic expression, e.g. 12*7+3", "The expression to calculate."]

_WEATHER_QUESTIONS = [
    "What is the weather in {}?", "What's the weather in {}?", "What's the weather like in {}?",
    "How is the weather in {}?", "Weather in {}", "weather in {}?", "Tell me the weather in {}.",
    "What is the temperature in {}?", "Is it raining in {}?", "Is it sunny in {}?", "weather {}",
    "How warm is it in {}?", "How cold is it in {} today?", "What is the weather like in {} today?",
    "Check the weather in {}.", "Please check the weather in {} for me.", "Do I need an umbrella in {}?",
    "Can you tell me the weather in {}?", "What is the weather in {} now?", "How's the weather in {}?",
]
_ZH_WEATHER_QUESTIONS = ["{}的天气怎么样?", "{}天气怎么样?", "今天{}天气如何?", "查一下{}的天气。",
                         "{}现在多少度?", "请告诉我{}的天气。", "{}下雨了吗?"]
_CALCULATE_QUESTIONS = [
    "Use the calculator: {}", "Calculate {} with the tool.", "What is {}?", "Calculate {}", "Compute {}",
    "Use the tool to compute {}.", "Please use calculate for {}", "{} = ?", "How much is {}?", "{}",
]
_ZH_CALCULATE_QUESTIONS = ["计算{}", "{}等于多少?", "请用工具计算{}。", "{}是多少?"]


def _tool(rng, name, description, parameter, parameter_description) -> dict:
    prop = {"type": "string"}
    if rng.random() < 0.7:
        prop["description"] = parameter_description
    schema = {"type": "object", "properties": {parameter: prop}}
    if rng.random() < 0.8:
        schema["required"] = [parameter]
    function = {"name": name, "description": description, "parameters": schema}
    if rng.random() < 0.05:
        del function["description"]
    if rng.random() < 0.1:
        function = {"description": description, "name": name, "parameters": schema}
    return {"type": "function", "function": function}


def sample_tools(rng: random.Random, names: tuple[str, ...]) -> list[dict]:
    tools = []
    for name in names:
        if name == "get_weather":
            tools.append(_tool(rng, name, rng.choice(_WEATHER_DESCRIPTIONS), "city",
                               rng.choice(_CITY_DESCRIPTIONS)))
        else:
            tools.append(_tool(rng, name, rng.choice(_CALCULATE_DESCRIPTIONS), "expression",
                               rng.choice(_EXPRESSION_DESCRIPTIONS)))
    rng.shuffle(tools)
    return tools


def canonical_tools() -> list[dict]:
    """The tools of the model card, the evaluation and the demonstrations."""
    def tool(name, description, parameter, parameter_description):
        return {"type": "function", "function": {
            "name": name, "description": description,
            "parameters": {"type": "object",
                           "properties": {parameter: {"type": "string",
                                                      "description": parameter_description}},
                           "required": [parameter]}}}
    return [tool("get_weather", "Get the current weather of a city.", "city", "City name"),
            tool("calculate", "Evaluate an arithmetic expression.", "expression",
                 "Arithmetic expression, e.g. 12*7+3")]


def _call(name: str, arguments: dict) -> str:
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def _city(rng: random.Random, chinese: bool) -> str:
    if chinese:
        return rng.choice(CHINESE_CITIES) if rng.random() < 0.4 else random_han(rng)
    while True:
        city = rng.choice(CITIES) if rng.random() < 0.35 else random_word(rng, capital=True)
        if rng.random() < 0.12 and " " not in city:
            city += " " + random_word(rng, capital=True)
        if city not in HELD_OUT_CITIES:
            return city


def _weather_result(rng: random.Random) -> tuple[str, str, int]:
    condition, degrees = rng.choice(CONDITIONS), rng.randint(-25, 42)
    fields = [("temperature", degrees), (rng.choice(["condition", "conditions", "weather"]), condition)]
    if rng.random() < 0.35:
        fields.append(("unit", rng.choice(["celsius", "C"])))
    rng.shuffle(fields)
    if rng.random() < 0.75:
        return json.dumps(dict(fields)), condition, degrees
    return rng.choice([f"{condition}, {degrees}°C", f"{degrees} degrees, {condition}",
                       f"{condition} {degrees}°C", f"{degrees}°C and {condition}"]), condition, degrees


def _weather_reply(city: str, condition: str, degrees: int, chinese: bool) -> tuple[str, str]:
    if chinese:
        return f"工具说{city}的天气是{condition},{degrees}度。", f"{city}现在{degrees}度,天气:{condition}。"
    return f"The tool says {condition}, {degrees} degrees.", (
        f"The weather in {city} is {condition} with a temperature of {degrees} °C.")


def _assistant_call(rng, thinking: str, name: str, arguments: dict) -> dict:
    message = {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": name, "arguments": arguments}}]}
    if rng.random() < 0.5:  # clients that send the reasoning back, and clients that do not
        message["reasoning_content"] = thinking
    return message


def _weather(rng: random.Random, names: tuple[str, ...]):
    chinese = rng.random() < 0.2
    city = _city(rng, chinese)
    text = rng.choice(_ZH_WEATHER_QUESTIONS if chinese else _WEATHER_QUESTIONS).format(city)
    messages, tools = [{"role": "user", "content": text}], sample_tools(rng, names)
    think = f"用户问{city}的天气,我调用get_weather。" if chinese else (
        f"The user asks about the weather in {city}. I call get_weather.")
    if rng.random() < 0.55:
        if not chinese and rng.random() < 0.12:
            other = _city(rng, False)
            messages[0]["content"] = rng.choice([
                "What is the weather in {} and {}?", "Weather in {} and {}?",
                "Compare the weather in {} and {}."]).format(city, other)
            think = f"The user asks about the weather in {city} and {other}. I call get_weather twice."
            return messages, tools, think, (
                _call("get_weather", {"city": city}) + "\n" + _call("get_weather", {"city": other}))
        return messages, tools, think, _call("get_weather", {"city": city})
    result, condition, degrees = _weather_result(rng)
    messages += [_assistant_call(rng, think, "get_weather", {"city": city}),
                 {"role": "tool", "content": result}]
    said, reply = _weather_reply(city, condition, degrees, chinese)
    if rng.random() < 0.8:
        return messages, tools, said, reply
    # a second question after the finished first one
    city = _city(rng, chinese)
    form = "那{}呢?" if chinese else rng.choice(["And in {}?", "And {}?", "What about {}?"])
    messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": form.format(city)}]
    think = f"用户问{city}的天气,我调用get_weather。" if chinese else (
        f"The user asks about the weather in {city}. I call get_weather.")
    return messages, tools, think, _call("get_weather", {"city": city})


def _calculate(rng: random.Random, names: tuple[str, ...]):
    chinese = rng.random() < 0.2
    problem = sample_training_problem(rng, rng.randint(2, 5))
    expression = problem.canonical()
    if rng.random() < 0.5:
        form = rng.choice(_ZH_CALCULATE_QUESTIONS if chinese else _CALCULATE_QUESTIONS)
        shown = expression if rng.random() < 0.5 else phrasing.expression(
            problem, "zh" if chinese else "en", rng)
        text = form.format(shown)
    else:
        text = phrasing.question(problem, "zh" if chinese else "en", rng)
    messages, tools = [{"role": "user", "content": text}], sample_tools(rng, names)
    think = f"用户要算{expression},我调用calculate。" if chinese else (
        f"The user wants {expression}. I call calculate.")
    if rng.random() < 0.6:
        return messages, tools, think, _call("calculate", {"expression": expression})
    value = problem.value
    result = rng.choice([str(value), str(value), json.dumps({"result": value})])
    messages += [_assistant_call(rng, think, "calculate", {"expression": expression}),
                 {"role": "tool", "content": result}]
    if chinese:
        return messages, tools, f"工具说{value}。", phrasing.answer(value, "zh")
    return messages, tools, f"The tool says {value}.", phrasing.answer(value, "en")


def sample(rng: random.Random):
    names = rng.choices([("get_weather", "calculate"), ("get_weather",), ("calculate",)], [6, 3, 2])[0]
    if rng.random() < 0.07:
        text, think, reply = sample_greeting(rng)
        return [{"role": "user", "content": text}], sample_tools(rng, names), think, reply
    if "calculate" not in names or ("get_weather" in names and rng.random() < 0.6):
        return _weather(rng, names)
    return _calculate(rng, names)
