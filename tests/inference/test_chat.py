"""Prompts of chats against `apply_chat_template` of transformers."""

from typing import Any

import pytest
import tokenizers
from helpers.models import make
from helpers.texts import DOCUMENTS, NASTY
from transformers import PreTrainedTokenizerFast

from lit_lm.inference.chat import MAX_TEMPLATE, chat_ids
from lit_lm.inference.language_model import LanguageModel
from lit_lm.tokenizer.tokenizer import Tokenizer

SPECIAL = ("<|user|>", "<|assistant|>", "<|system|>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]")
TEMPLATES = {
    "roles": (
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "ChatML": (
        "{%- for message in messages -%}\n"
        "    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' -}}\n"
        "{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    ),
    "pairs, with a system message": (
        "{% if messages[0]['role'] == 'system' %}\n"
        "    {% set system = messages[0]['content'] %}\n"
        "    {% set rest = messages[1:] %}\n"
        "{% else %}\n"
        "    {% set system, rest = '', messages %}\n"
        "{% endif %}\n"
        "{{ bos_token }}\n"
        "{% for message in rest %}\n"
        "    {% if loop.first and system %}{{ system ~ '\n\n' }}{% endif %}\n"
        "    {% if (message.role == 'user') != (loop.index0 % 2 == 0) %}\n"
        "        {{ raise_exception('user and assistant must take turns') }}\n"
        "    {% elif message.role == 'user' %}[INST] {{ message.content }} [/INST]\n"
        "    {% else %} {{ message.content }} {{ eos_token }}{% endif %}\n"
        "{% endfor %}\n"
    ),
    "macros and namespaces": (
        "{%- macro told(message) -%}<|{{ message.role }}|>{{ message.content.upper() }}{%- endmacro -%}\n"
        "{% set state = namespace(count=0) %}\n"
        "{% for message in messages if message.content %}\n"
        "{% set state.count = state.count + 1 %}\n"
        "    {{ told(message) }} ({{ state.count }} of {{ messages | length }})\n"
        "{% endfor %}\n"
        "{{ messages[-1].content.split()[0] | default('nothing', true) }}<|assistant|>"
    ),
    "loop controls and tools": (
        "{%- if tools is not none %}{{ tools | tojson(indent=4) }}{% endif -%}\n"
        "{%- for message in messages -%}\n"
        "    {%- if message.role == 'system' %}{% continue %}{% endif -%}\n"
        "    {{- '<|' + message.role + '|>' + message.content | tojson + '\n' -}}\n"
        "    {%- if loop.index == 2 %}{% break %}{% endif -%}\n"
        "{%- endfor -%}<|assistant|>{{ strftime_now('%%') }}"
    ),
    "no names": "{{ messages | map(attribute='content') | join('\n') }}",
}
USER, ASSISTANT, SYSTEM = ({"role": role} for role in ("user", "assistant", "system"))
CHATS = {
    "one": [USER | {"content": "Hello, cat!"}],
    "three": [
        USER | {"content": " What a day! "},
        ASSISTANT | {"content": "The dog ran.\n"},
        USER | {"content": "从前有一只小狗"},
    ],
    "system": [SYSTEM | {"content": "You are a cat."}, USER | {"content": "Who are you?"}],
    "names of special tokens": [USER | {"content": "a<|assistant|>b <|endoftext|> [INST]<|im_end|> <|user|"}],
    "nasty": [USER | {"content": " ".join(NASTY)}],
}
WRONG = {
    "wrong in its form": "{% for %}",
    "not closed": "{% if messages %}",
    "an unknown filter": "{{ messages | nonsense }}",
    "refuses": "{{ raise_exception('no cats') }}",
    "an unknown name": "{{ nothing.there }}",
    "an unknown key": "{{ messages[0].content.nothing.there }}",
    "an index too high": "{{ messages[7].content }}",
    "a division by zero": "{{ 1 / 0 }}",
    "a wrong type": "{{ 'a' + 1 }}",
    "a file": "{% include '/etc/passwd' %}",
    "another file": "{% import 'os' as os %}",
    "a loop without an end": "{% for i in range(10 ** 9) %}a{% endfor %}",
    "its class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "its class, as an item": "{{ ''['__class__'].__mro__ }}",
    "its class, by a filter": "{{ ('' | attr('__class__')).mro() }}",
    "its globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "globals of a function": "{{ lipsum.__globals__['os'].system('id') }}",
    "globals of an error": "{{ raise_exception.__globals__['os'] }}",
    "its template": "{{ self.__init__.__globals__ }}",
    "a format": "{{ '{0.__class__.__init__.__globals__}'.format(joiner) }}",
    "a mapped format": "{{ ['{0.__class__.__mro__}'] | map('format', 1) | first | upper }}{{ ''.__class__ }}",
    "changes the messages": "{{ messages.append(1) }}",
    "changes a message": "{{ messages[0].update(content='other') }}",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(DOCUMENTS, 420, special_tokens=SPECIAL)


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer) -> Any:
    end = tokenizer.end_token
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, pad_token=end)


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS.keys())
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_the_ids_are_those_of_transformers(
    template: str, chat: list[dict[str, str]], tokenizer: Tokenizer, theirs: Any
) -> None:
    ids = chat_ids(tokenizer, template, chat)
    assert ids == theirs.apply_chat_template(
        chat, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=False
    )


def test_names_of_special_tokens_become_these_tokens(tokenizer: Tokenizer) -> None:
    special = tokenizer.special_tokens
    ids = chat_ids(tokenizer, TEMPLATES["roles"], CHATS["one"])
    assert ids == [
        special["<|user|>"],
        *tokenizer.encode("Hello, cat!"),
        tokenizer.end_id,
        special["<|assistant|>"],
    ]


def test_an_empty_prompt_is_the_end_of_text_token(tokenizer: Tokenizer) -> None:
    assert chat_ids(tokenizer, "", CHATS["one"]) == [tokenizer.end_id]


@pytest.mark.parametrize("template", WRONG.values(), ids=WRONG.keys())
def test_a_template_that_is_wrong_or_wants_out_of_its_sandbox_is_refused(template: str, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    with pytest.raises(ValueError, match="the chat template cannot be used with these messages: "):
        chat_ids(tokenizer, template, messages)
    assert messages == [{"role": "user", "content": "Hello"}]


def test_its_own_message_is_shown(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"messages: user and assistant must take turns$"):
        chat_ids(tokenizer, TEMPLATES["pairs, with a system message"], CHATS["one"] * 2)


def test_no_template_and_a_long_one_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="the model has no chat template"):
        chat_ids(tokenizer, None, CHATS["one"])
    with pytest.raises(ValueError, match="the chat template has 65,537 characters; it may have 65,536"):
        chat_ids(tokenizer, "a" * (MAX_TEMPLATE + 1), CHATS["one"])


def test_a_model_answers_a_chat(tokenizer: Tokenizer) -> None:
    template = TEMPLATES["no names"]
    model = LanguageModel(make(vocab_size=tokenizer.vocab_size, context_length=64), tokenizer, chat_template=template)
    answer = model.chat(CHATS["one"], seed=3, max_new_tokens=10)
    assert answer == model.generate("Hello, cat!", seed=3, max_new_tokens=10).continuation
    assert model.chat(CHATS["one"], seed=3, max_new_tokens=10, stop=[answer[1]]) == answer[: answer.index(answer[1])]
