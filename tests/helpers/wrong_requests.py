"""Some hundred requests that a server must refuse."""

import json
from collections.abc import Iterator

from helpers.serving import CONTEXT
from helpers.sockets import CHAT, COMPLETIONS, JSON, Case, post

CHAT_BODY = '{"model": "chatty", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}'
HUGE = ("1e999", "1" + "0" * 400, "1" + "0" * 5000, "NaN", "Infinity", "-Infinity")
OTHER = ('"x"', "[]", "{}", "true", '[{"a": [1]}]')
INTEGER = (*HUGE, *OTHER, "1.5", "-1")
NUMBER = (*HUGE, *OTHER, "-3", "1000")
WRONG = {
    "model": ("5", "[]", "{}", "true", '"unknown"', '"\\ud800"', '"plain/../plain"'),
    "temperature": NUMBER,
    "top_p": (*NUMBER, "0"),
    "top_k": (*INTEGER, "0"),
    "min_p": NUMBER,
    "repetition_penalty": (*NUMBER, "0", "1e-300"),
    "frequency_penalty": NUMBER,
    "presence_penalty": NUMBER,
    "logit_bias": (
        *HUGE, '"x"', "[1]", '{"x": 1}', '{"1": "x"}', '{"-1": 1}', '{"1": 1000}', '{"99999999": 1}', '{"\\ud800": 1}'
    ),
    "n": (*INTEGER, "0", "9", "1000"),
    "stop": ("5", "{}", '""', '["a", ""]', "[1]", '[["a"]]', json.dumps(["a"] * 17)),
    "seed": (*HUGE, '"x"', "[]", "{}", "1.5"),
    "stream": ('"x"', "1", "[]", "{}"),
    "stream_options": ("true", '"x"', "[]", '{"x": 1}', '{"include_usage": 1}'),
    "user": ("5", "[]"),
    "tempature": ("1",),
    "\\ud800": ("1",),
}  # fmt: skip
WRONG_COMPLETIONS = {
    "prompt": (
        "5", "true", "{}", "[]", "[[]]", '[1, "a"]', "[-1]", "[1.5]", "[99999999]", "[1" + "0" * 30 + "]",
        "[[1], [99999999]]",
        '"\\ud800"', '["a", "\\udc00b"]', "[null]", json.dumps("The cat " * CONTEXT), json.dumps("a" * 300_000),
        json.dumps([1] * CONTEXT), json.dumps(["a"] * 9), json.dumps([1.5] * 100_000), json.dumps([{}] * 200_000),
    ),
    "max_tokens": (*INTEGER, str(CONTEXT)),
    "logprobs": (*INTEGER, "21"),
    "echo": ("1", '"x"', "[]"),
    "best_of": ("2", '"x"'),
    "suffix": ('"x"',),
    "return_tokens": ("1",),
    "max_tokens\": 0, \"n": ("2",),
}  # fmt: skip
WRONG_CHAT = {
    "messages": (
        "5", '"x"', "{}", "[]", "[5]", "[{}]", '[{"role": "user"}]', '[{"role": 5, "content": "a"}]', "[null]",
        '[{"role": "user", "content": "\\ud800"}]', '[{"role": "user", "content": [{"type": "image"}]}]',
        json.dumps([{"role": "user", "content": "The cat " * CONTEXT}]), json.dumps([{}] * 200_000),
        json.dumps([{"role": "user", "content": "a" * 300_000}]),
    ),
    "max_tokens": (*INTEGER, "0", str(CONTEXT)),
    "max_completion_tokens": (*INTEGER, "0", str(CONTEXT)),
    "logprobs": ("1", '"x"'),
    "top_logprobs": (*INTEGER, "21"),
    "tools": ("[]",),
}  # fmt: skip
BODIES = {
    "empty": b"", "no JSON": b"hello", "broken": b'{"prompt": "a"', "two objects": b"{}{}", "a list": b"[]",
    "null": b"null", "a string": b'"a"', "a number": b"1", "not UTF-8": b'{"prompt": "\xff"}',
    "half a character": b'{"prompt": "\xe4\xbb"}', "NUL": b"\x00", "NUL in a string": b'{"prompt": "\x00"}',
    "single quotes": b"{'prompt': 'a'}", "a comment": b"{} // a",
    "UTF-16 cut off": '{"prompt": "a"}'.encode("utf-16")[:-3], "a bare escape": b'{"prompt": "\\x"}',
    "many names": json.dumps(dict.fromkeys(map(str, range(50_000)))).encode(),
    "zip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "a form": b"prompt=a&max_tokens=3",
}  # fmt: skip


def _wrong() -> Iterator[tuple[str, Case]]:
    whole = {COMPLETIONS: '{"max_tokens": 4, "prompt": "a"}', CHAT: CHAT_BODY}
    for path, own in ((COMPLETIONS, WRONG_COMPLETIONS), (CHAT, WRONG_CHAT)):
        for name, values in (WRONG | own).items():
            for value in values:  # the last of two equal names counts
                yield f"{path} {name} {value[:30]}", post(path, f'{whole[path][:-1]}, "{name}": {value}}}'.encode())
    for path in (COMPLETIONS, CHAT, "/api/tokenize", "/api/attention"):
        for name, body in BODIES.items():
            if (path, name) != (COMPLETIONS, "many names"):
                yield f"{path} {name}", post(path, body)
    for depth in (100, 900, *range(950, 1000, 2), 5000, 100_000):
        yield f"depth {depth}", post(COMPLETIONS, b'{"user": ' + b"[" * depth + b"]" * depth + b"}")
        yield f"depth {depth} of objects", post(CHAT, b'{"n": ' + b'{"a": ' * depth + b"1" + b"}" * (depth + 1))
    for name, body in {
        "text": '{"text": 5}', "no text": "{}", "long": json.dumps({"text": "a" * 300_000}),
        "surrogate": '{"text": "\\ud800"}', "model": '{"model": "x", "text": "a"}', "more": '{"text": "a", "b": 1}',
    }.items():  # fmt: skip
        yield f"tokenize {name}", post("/api/tokenize", body.encode())
    for ids, position in (
        ([], 0), ([1], 1), ([1], -1), ([10**6], 0), ([-1], 0), ([1] * 500, 499), ([1], None), ([1], 10**30), ("a", 0),
        ([1.5], 0),
    ):  # fmt: skip
        yield (
            f"attention {ids} {position}"[:40],
            post("/api/attention", json.dumps({"ids": ids, "position": position}).encode()),
        )
    for path in (COMPLETIONS, CHAT, "/v1/models", "/", "/health", "/metrics", "/page/page.js", "/api/tokenize"):
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"):
            posted = path.startswith(("/v1/co", "/v1/ch", "/api"))
            if method != ("POST" if posted else "GET"):
                yield f"{method} {path}", (method, path, JSON, b"{}")
    for path in (
        "/x", "/v1", "/v1/", "/v1/models/x", "/v1/models/%00", "/v1/models/..%2f", "/v2/completions", "/page/",
        "/page/x.js", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/../app.py", "/page/%00.js",
        "/page//etc/passwd", "/page/app.py", "/" + "a" * 10_000, "/page/" + "a" * 5000 + ".js", "/%ff%fe",
        "/page/%ff.js", "/page/page.js/",
    ):  # fmt: skip
        yield f"path {path[:30]}", ("GET", path, {}, b"")
    body = b'{"prompt": "a"}'
    for kind in (
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=a",
        "json",
        "\xe9",
    ):
        yield f"type {kind!a}", post(COMPLETIONS, body, Content_Type=kind)
    yield "no type", ("POST", COMPLETIONS, {}, body)
    yield "compressed", post(COMPLETIONS, b"\x1f\x8b\x08", Content_Encoding="gzip")


CASES = dict(_wrong())
