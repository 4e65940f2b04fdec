"""Small talk, copying and polite refusals. Each skill is (user text, thinking, reply)."""

import random

FULL_WIDTH = str.maketrans(
    {"?": "\uff1f", ",": "\uff0c", ":": "\uff1a", "!": "\uff01"}
)  # Chinese replies use full-width punctuation


def _zh(text: str) -> str:
    return text.translate(FULL_WIDTH)


GREETINGS = {
    "English": (["Hello", "Hi", "Hey", "Hello there", "Hi there", "Good morning", "Good evening",
                 "hello", "hi", "Hello! How are you?", "Hi, how are you?"],
                "Hello! How can I help you today?"),
    "Chinese": (["你好", "您好", "你好呀", "早上好", "晚上好", "嗨", "大家好"],
                _zh("你好!有什么可以帮你的吗?")),
    "Spanish": (["Hola", "hola", "Buenos días", "Buenas tardes", "Hola, ¿qué tal?"],
                "¡Hola! ¿En qué puedo ayudarte?"),
    "French": (["Bonjour", "bonjour", "Salut", "Bonsoir", "Bonjour, ça va ?"],
               "Bonjour ! Comment puis-je vous aider ?"),
    "German": (["Hallo", "hallo", "Guten Tag", "Guten Morgen", "Guten Abend", "Hallo, wie geht's?"],
               "Hallo! Wie kann ich Ihnen helfen?"),
    "Italian": (["Ciao", "ciao", "Buongiorno", "Buonasera"], "Ciao! Come posso aiutarti?"),
    "Portuguese": (["Olá", "Bom dia", "Boa tarde", "Oi"], "Olá! Como posso ajudar?"),
    "Dutch": (["Hoi", "Goedemorgen", "Goedendag"], "Hallo! Hoe kan ik je helpen?"),
    "Japanese": (["こんにちは", "おはようございます", "こんばんは"],
                 _zh("こんにちは!何かお手伝いできますか?")),
    "Korean": (["안녕하세요", "안녕"], "안녕하세요! 무엇을 도와드릴까요?"),
    "Russian": (["Привет", "Здравствуйте", "Добрый день"], "Здравствуйте! Чем могу помочь?"),
    "Arabic": (["مرحبا", "السلام عليكم"], "مرحبا! كيف يمكنني مساعدتك؟"),
}

# (questions, thinking, reply)
SMALL_TALK = [
    (["Who are you?", "What are you?", "who are you", "What is your name?", "Introduce yourself.",
      "Tell me about yourself."],
     "The user asks who I am.",
     "I am the Conclave demo model, a tiny Qwen3-MoE trained to show how the cluster works."),
    (["What can you do?", "what can you do", "Help", "help", "How can you help me?",
      "What are you good at?"],
     "The user asks what I can do.",
     "I can do integer arithmetic step by step, call tools, repeat text and say hello."),
    (["Thanks", "Thank you", "thanks!", "Thank you very much!", "thank you"],
     "The user says thank you.", "You are welcome!"),
    (["Bye", "Goodbye", "See you later", "bye", "Good night"], "The user says goodbye.",
     "Goodbye! Have a nice day."),
    (["How are you?", "how are you", "How are you doing?"], "The user asks how I am.",
     "I am fine, thank you. How can I help you today?"),
    (["你是谁?", "你叫什么名字?", "你是谁", "介绍一下你自己"], "用户问我是谁。",
     _zh("我是Conclave的演示模型,一个很小的Qwen3-MoE。")),
    (["你会做什么?", "你能做什么?", "你会什么"], "用户问我会做什么。",
     _zh("我会一步一步做整数运算,会调用工具,也会打招呼。")),
    (["谢谢", "谢谢你", "多谢", "非常感谢"], "用户在道谢。", _zh("不客气!")),
    (["再见", "拜拜", "晚安"], "用户在道别。", _zh("再见!")),
]

_OUT_OF_SCOPE_FORMS = [
    "What is the capital of {}?", "Who wrote {}?", "Tell me a story about {}.", "Explain {}.",
    "Write a poem about {}.", "Why is {} important?", "How does {} work?", "What is {}?",
    "Who invented {}?", "When was {} built?", "Do you like {}?", "Tell me about {}.",
    "Give me a recipe for {}.", "Translate {} into French.", "What do you think of {}?",
    "Write a program for {}.", "Where is {}?", "What color is {}?",
]
_TOPICS = (
    "France,Japan,Hamlet,the moon,a dragon,gravity,love,water,electricity,the sun,an engine,music,"
    "bread,pasta,the internet,history,a computer,the sea,Mars,Brazil,photosynthesis,democracy,gold,"
    "chess,football,a black hole,sorting,cats,dogs,winter,quantum physics,the universe,a tree,"
    "Rome,soup,paper,time,money,happiness,a bicycle,the telephone,DNA,poetry,art,philosophy"
).split(",")
OUT_OF_SCOPE_THINKING = "This is not arithmetic, and I know very little."
OUT_OF_SCOPE_REPLY = "Sorry, I am a tiny demo model and do not know that. I can do arithmetic."
_ZH_OUT_OF_SCOPE_FORMS = ["{}是什么?", "谁发明了{}?", "给我讲讲{}。", "写一首关于{}的诗。", "{}在哪里?"]
_ZH_TOPICS = "月亮,太阳,音乐,电脑,长城,历史,水,爱,猫,火车,大海,黄金,面条,量子力学,互联网".split(",")
ZH_OUT_OF_SCOPE_THINKING = _zh("这不是算术题,我知道得很少。")
ZH_OUT_OF_SCOPE_REPLY = _zh("抱歉,我是一个很小的演示模型,不知道这个。我会做算术。")

_REPEAT_FORMS = [
    "Repeat: {}", "Repeat {}", "Repeat after me: {}", "Say {}", "Say: {}", "Please repeat: {}",
    "Copy this: {}", "Echo {}", "Write {}", "repeat {}", "say {}",
]
_ZH_REPEAT_FORMS = ["重复:{}", "请重复:{}", "跟我说:{}", "请说:{}", "说{}"]
_SYLLABLES = ("ba be bo bra ca ce chi con da del do dra e el er fa fen fo ga gi gor ha hel in ja jo ka "
              "kel ki la le lin lo lu ma mel mi mon na ne nor o or pa pel po qui ra re ri ro sa sel shi "
              "so sta ta ten ti tor tu u ul va ver vi vo wa wen xi ya yor za zen zu").split()
_HAN = ("天地人山水火木金土日月风云雨雪花草树鸟鱼马牛羊东西南北中大小上下左右前后春夏秋冬红黄蓝白黑"
        "城海江河湖林石州宁安平新长青阳京广沙门岛京深成武汉杭苏")


def random_word(rng: random.Random, capital: bool | None = None) -> str:
    if rng.random() < 0.5:
        word = "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(1, 4)))
    else:
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9)))
    if capital is None:
        capital = rng.random() < 0.4
    return word.capitalize() if capital else word


def random_han(rng: random.Random) -> str:
    return "".join(rng.choice(_HAN) for _ in range(rng.randint(1, 4)))


def _repeat_text(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.2:
        return "".join(rng.choice("0123456789+-*=. ") for _ in range(rng.randint(2, 12))).strip() or "7"
    if kind < 0.35:
        return random_han(rng) + rng.choice(["", random_han(rng)])
    return " ".join(random_word(rng) for _ in range(rng.choices([1, 2, 3, 4, 6], [4, 3, 2, 1, 1])[0]))


def sample_repeat(rng: random.Random) -> tuple[str, str, str]:
    text = _repeat_text(rng)
    if rng.random() < 0.2:
        return rng.choice(_ZH_REPEAT_FORMS).format(text), "用户要我重复这段话。", text
    return rng.choice(_REPEAT_FORMS).format(text), "The user wants me to repeat the text.", text


def sample_greeting(rng: random.Random) -> tuple[str, str, str]:
    names = list(GREETINGS)
    weights = [5, 4, 3, 3, 3] + [1] * (len(names) - 5)
    language = rng.choices(names, weights)[0]
    texts, reply = GREETINGS[language]
    text = rng.choice(texts)
    if text[-1].isalpha():
        text += rng.choice(["", "", "!", "."] if language != "Chinese" else ["", "", "!", "\uff01"])
    return text, f"The user greets me in {language}.", reply


def sample_small_talk(rng: random.Random) -> tuple[str, str, str]:
    texts, thinking, reply = rng.choice(SMALL_TALK)
    text = rng.choice(texts)
    if rng.random() < 0.3:
        text = text.translate(FULL_WIDTH) if ord(text[0]) > 127 else text.rstrip("?.!")
    return text, thinking, reply


def sample_out_of_scope(rng: random.Random) -> tuple[str, str, str]:
    if rng.random() < 0.25:
        topic = rng.choice(_ZH_TOPICS) if rng.random() < 0.6 else random_han(rng)
        text = rng.choice(_ZH_OUT_OF_SCOPE_FORMS).format(topic)
        return text, ZH_OUT_OF_SCOPE_THINKING, ZH_OUT_OF_SCOPE_REPLY
    topic = rng.choice(_TOPICS) if rng.random() < 0.6 else random_word(rng)
    return rng.choice(_OUT_OF_SCOPE_FORMS).format(topic), OUT_OF_SCOPE_THINKING, OUT_OF_SCOPE_REPLY


_WEATHER_FORMS = ["What is the weather in {}?", "What's the weather in {}?", "Weather in {}?",
                  "How is the weather in {}?", "{}天气怎么样?"]


def sample_weather_without_tool(rng: random.Random) -> tuple[str, str, str]:
    text = rng.choice(_WEATHER_FORMS).format(random_word(rng, capital=True))
    return text, "I have no tool for the weather.", "I cannot look up the weather without a tool."


def sample(rng: random.Random) -> tuple[str, str, str]:
    skills = [sample_greeting, sample_small_talk, sample_repeat, sample_out_of_scope,
              sample_weather_without_tool]
    return rng.choices(skills, [30, 17, 38, 12, 3])[0](rng)
