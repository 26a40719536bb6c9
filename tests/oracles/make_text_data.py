#!/usr/bin/env python3
"""Writes tests/data/text: small tokenizers, strings with their tokens, and rendered chat templates.

The expected values come from the Python packages tokenizers and jinja2, set up as transformers sets
them up, so the C++ tests need no Python. Deterministic for one version of the packages:

    pip install tokenizers jinja2
    python3 tests/oracles/make_text_data.py [--qa QUESTIONS.jsonl.gz]

needle_prompts.jsonl is written from the first short questions of that file.
"""

import argparse
import datetime
import gzip
import json
import pathlib
import random

import jinja2
import jinja2.ext
import jinja2.sandbox
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests" / "data" / "text"

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

WORDS = (
    "the a of in to and is was that for with his her they from said when where city river mountain "
    "doctor lantern secret code harbour quiet seven eleven remember access panther curious winter "
    "I'll don't WE'RE it's Zürich naïve café Привет мир здравствуй данные こんにちは 世界 東京 中文 "
    "文本 한국어 שלום مرحبا नमस्ते สวัสดี 👍 🚀 👩‍👩‍👧 ∑ → € def return self.value = { } ( ) [1,2] "
    "http://example.org/path?x=1 3.14159 2024 1000000 x_y camelCase"
).split()

FRAGMENTS = [
    " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\u00a0", "\u3000", "\u2003", "\u0085",
    "\u200b", "\u200d", "\ufeff", "\u180e", "\u2028", "e\u0301", "\u0301", "A\u030a", "\uac00",
    "\u1112\u1161\u11ab", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "👍🏽", "漢字", "ひらがな", "ﬁ", "ſ", "K",
    "'S", "'ſ", "'ll", "'LL", "’s", "0", "12", "1234567", "٣٤٥", "Ⅷ", "½", "²", "①", "...", "!!!",
    "?!\n", "<s>", "</s>", "<unk>", "<|eot|>", "<|begin|>", "<|eot", "|>", "<think>", "▁", "▁▁",
    "<0x41>", "<0xE2>", "Ġ", "\x00", "\x1c", "\x7f", "\u00ad", "\ud7ff", "\ue000", "\uffff",
    "\U0001f600", "\U00020000", "\U0010ffff", "ǅ", "İ", "ß", "ŉ", "क्षि", "ก็", "a", "B", "_", "-",
    "the ", " code", "Zürich", "\\n", "\"", "{%", "{{",
]

SPECIAL = ["<|begin|>", "<|eot|>", "<|header|>"]


def corpus(rng):
    for _ in range(1500):
        yield "".join(
            rng.choice(WORDS) + rng.choice([" ", " ", " ", " ", "\n", ", ", ".  ", "\t", ""])
            for _ in range(rng.randint(3, 30))
        )


def byte_level(rng, pre, normalizer=None, prefix=False, ignore_merges=False, added=()):
    tok = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tok.normalizer = normalizer
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        corpus(rng),
        trainers.BpeTrainer(vocab_size=800, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                            special_tokens=SPECIAL, show_progress=False))
    tok.add_tokens(list(added))
    return tok


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def sentencepiece(rng, normalizer, pre, decoder, alphabet_limit=120, byte_tokens=True,
                  normalized_special=False, fuse_unk=True):
    """BPE as converted from SentencePiece: byte tokens first, then learned pieces."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    if normalizer:
        trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(
        corpus(rng),
        trainers.BpeTrainer(vocab_size=700, limit_alphabet=alphabet_limit,
                            special_tokens=["<unk>", "<s>", "</s>"], show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>"]
    if byte_tokens:
        names += [f"<0x{b:02X}>" for b in range(256)]
    names += [t for t in sorted(learned["vocab"], key=learned["vocab"].get) if t not in names]
    tok = Tokenizer(models.BPE(
        vocab={t: i for i, t in enumerate(names)}, merges=[tuple(m) for m in learned["merges"]],
        unk_token="<unk>", fuse_unk=fuse_unk, byte_fallback=byte_tokens))
    if normalizer:
        tok.normalizer = normalizer
    if pre:
        tok.pre_tokenizer = pre
    tok.decoder = decoder
    tok.add_special_tokens([AddedToken(t, normalized=normalized_special, special=True)
                            for t in ("<unk>", "<s>", "</s>")])
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tok


def llama2_decoder():
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                              decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def build_tokenizers():
    rng = random.Random(20260101)
    prepend = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    result = {}
    t = byte_level(rng, split_then_bytes(LLAMA3), ignore_merges=True)
    t.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A $B",
                                      special_tokens=[("<|begin|>", 0)])])
    result["llama3"] = t
    result["qwen2"] = byte_level(
        rng, split_then_bytes(QWEN2), normalizer=normalizers.NFC(),
        added=[AddedToken("<think>", special=False, normalized=False),
               AddedToken("</think>", special=False, normalized=False)])
    result["gpt2"] = byte_level(rng, pre_tokenizers.ByteLevel(add_prefix_space=False))
    result["gpt2-prefix"] = byte_level(
        rng, pre_tokenizers.ByteLevel(add_prefix_space=True),
        added=[AddedToken("<mask>", lstrip=True, special=True),
               AddedToken("<sep>", rstrip=True, special=False, normalized=False),
               AddedToken("word", single_word=True, special=False, normalized=True)])
    result["digits-removed"] = byte_level(rng, pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Split("q", "merged_with_next"),
        pre_tokenizers.Split("z", "merged_with_previous"),
        pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\p{L}\p{N}]+"), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    result["llama2"] = sentencepiece(rng, prepend, None, llama2_decoder())
    result["llama2-normalized"] = sentencepiece(rng, prepend, None, llama2_decoder(),
                                                normalized_special=True)
    for scheme in ("first", "always", "never"):
        result[f"metaspace-{scheme}"] = sentencepiece(
            rng, None, pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme != "first"),
            decoders.Metaspace(prepend_scheme=scheme) if scheme != "first" else llama2_decoder(),
            byte_tokens=scheme == "first", fuse_unk=scheme == "always")
    return result


def make_strings(rng):
    strings = ["", " ", "a", "Hello world", "word", "words word\nword.", "a <mask> b<sep>  c",
               "x" * 300, " " * 70 + "x", "\n" * 40, "1" * 50, "the code of " * 20]
    while len(strings) < 420:
        strings.append("".join(
            rng.choice(FRAGMENTS) if rng.random() < 0.6 else
            rng.choice(WORDS) + rng.choice(["", " "]) for _ in range(rng.randint(1, 14))))
    raw = [s.encode() for s in strings]
    while len(raw) < 520:  # malformed UTF-8
        data = bytearray("".join(rng.choice(FRAGMENTS) for _ in range(rng.randint(1, 8))).encode())
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data) + 1)
            if rng.random() < 0.5:
                data.insert(at, rng.choice([0x80, 0xBF, 0xC0, 0xC3, 0xE2, 0xED, 0xF0, 0xF5, 0xFF]))
            else:
                del data[at:at + 1]
        raw.append(bytes(data))
    return raw


def byte_runs_are_clean(tok, ids):
    """False where HF drops whole characters for one broken byte beside them in a run of bytes."""
    run = b""
    for token in [tok.id_to_token(i) for i in ids] + [""]:
        if token and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            run += bytes([int(token[3:5], 16)])
            continue
        try:
            run.decode()
        except UnicodeDecodeError:
            if any(len(c.encode()) and c != "\ufffd" for c in run.decode(errors="replace")):
                return False
        run = b""
    return True


def write_tokenizers():
    rng = random.Random(20260102)
    lines = []
    for name, tok in build_tokenizers().items():
        folder = OUT / "tokenizers"
        folder.mkdir(parents=True, exist_ok=True)
        data = json.loads(tok.to_str())
        (folder / f"{name}.json").write_text(
            json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n")
        vocab = max(tok.get_vocab().values()) + 1
        for raw in make_strings(rng):
            text = raw.decode(errors="replace")
            tok.encode_special_tokens = True
            plain = tok.encode(text, add_special_tokens=False).ids
            tok.encode_special_tokens = False
            parsed = tok.encode(text, add_special_tokens=False).ids
            case = {"tokenizer": name, "hex": raw.hex(), "ids": plain,
                    "decoded": tok.decode(plain, skip_special_tokens=False)}
            if raw == text.encode():
                del case["hex"]
                case["text"] = text
            if parsed != plain:
                case["ids_parsed"] = parsed
            with_bos = tok.encode(text).ids
            if with_bos != parsed:
                case["ids_with_bos"] = with_bos
            lines.append(case)
        for _ in range(150):  # random tokens, for decoding
            pool = range(vocab) if rng.random() < 0.5 else range(min(260, vocab))
            ids = [rng.choice(pool) for _ in range(rng.randint(1, 20))]
            # In tokenizers 0.23 a normalized special token loses its own text in decoding.
            if name == "llama2-normalized":
                ids = [i for i in ids if i > 2]
            if byte_runs_are_clean(tok, ids):
                lines.append({"tokenizer": name, "decode": ids,
                              "with_special": tok.decode(ids, skip_special_tokens=False),
                              "without_special": tok.decode(ids, skip_special_tokens=True)})
    with open(OUT / "tokenizer_cases.jsonl", "w") as out:
        for line in lines:
            out.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(len(lines), "tokenizer cases")


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}, a block without effect here."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols])

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    now = datetime.datetime(2026, 3, 9, 12, 30, 5)
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda fmt: now.strftime(fmt)
    return env


def render(env, source, messages, generation):
    try:
        text = env.from_string(source).render(
            messages=messages, add_generation_prompt=generation, tools=None, documents=None,
            bos_token="<s>", eos_token="</s>")
        return {"text": text}
    except jinja2.exceptions.UndefinedError:
        return {"error": ""}
    except jinja2.exceptions.TemplateError as error:
        return {"error": str(error)}
    except (TypeError, ZeroDivisionError):
        return {"error": ""}


def conversations(rng):
    def turn(role, content):
        return {"role": role, "content": content}

    contents = ["Hello", "  padded\n\n", "", "<|eot_id|> <s>[INST] <|im_end|>", "日本語 👍🏽",
                "a\r\nb\tc", "\u3000x\u00a0", "<think>\nplan\n</think>\n\nanswer",
                "x</think>y<think>z", "<tool_response>r</tool_response>", "{{ bos_token }} {% if %}",
                "\"quoted\" \\ back", "É" * 5, "system"]
    lists = [[], [turn("user", "Hi")], [turn("system", "S")], [turn("assistant", "A")],
             [turn("system", " be brief "), turn("user", " hi ")],
             [turn("user", "a"), turn("user", "b")],
             [turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
             [turn("tool", "t")], [turn("user", "u"), turn("tool", "result")]]
    while len(lists) < 90:
        messages = []
        if rng.random() < 0.4:
            messages.append(turn("system", rng.choice(contents)))
        if rng.random() < 0.75:
            for i in range(rng.randint(1, 5)):
                messages.append(turn(["user", "assistant"][i % 2], rng.choice(contents)))
        else:
            for _ in range(rng.randint(1, 4)):
                messages.append(turn(rng.choice(["user", "assistant", "system", "tool", "ipython"]),
                                     rng.choice(contents)))
        lists.append(messages)
    return lists


# Pieces of the language on their own: each is a template over the messages below.
SNIPPETS = [
    "{{ 1 + 2 * 3 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 7 / 2 }} {{ 6 / 2 }}",
    "{{ 1 < 2 < 3 }} {{ 1 < 2 > 3 }} {{ 'a' in 'abc' }} {{ 'z' not in ['a'] }} {{ 1 == 1.0 }}",
    "{{ 'x' if true else 'y' }}{{ 'x' if false }}{{ 'x' if none else 'y' if 0 else 'z' }}",
    "{{ not true or true and false }} {{ 'a' ~ 1 ~ none ~ true }} {{ 'ab' * 3 }}",
    "{{ 'hello'[1] }} {{ 'hello'[-1] }} {{ 'hello'[1:3] }} {{ 'hello'[::-1] }} {{ 'héllo'[:-1] }}",
    "{{ [1,2,3][::-1] }} {{ [1,2,3][1:] }} {{ [1,2,3][-2:] }} {{ (1, 2) | list }} {{ [] }}",
    "{{ {'a': 1, 'b': [true, none]} }} {{ {'a': 1}['a'] }} {{ {'a': {'b': 2}}.a.b }}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }}{% if not loop.last %}, {% endif %}"
    "{% endfor %}",
    "{% for m in messages %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.first }}/{{ loop.last }}/"
    "{{ loop.length }}/{{ loop.revindex }}/{{ loop.revindex0 }};{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{% else %}none"
    "{% endfor %}",
    "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}"
    "{% if loop.index > 3 %}{% break %}{% endif %}{{ m['role'] }}{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined else '-' }}>"
    "{{ loop.nextitem.role if not loop.last else '-' }} {% endfor %}",
    "{% set x = 1 %}{% for i in range(3) %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(n=0, s='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.s = ns.s ~ m.role[0] %}{% endfor %}{{ ns.n }}{{ ns.s }}",
    "{% set a, b = 1, 'two' %}{{ a }}{{ b }}{% set c %}in {{ a }} block{% endset %}[{{ c }}]",
    "{% macro f(a, b='dflt') %}<{{ a }}|{{ b }}>{% endmacro %}{{ f(1) }}{{ f(2, b=3) }}{{ f() }}",
    "{% macro g(n) %}{{ n }}{% if n > 0 %}{{ g(n - 1) }}{% endif %}{% endmacro %}{{ g(5) }}",
    "{{ messages | map(attribute='role') | join(', ') }} {{ ['b', 'a'] | map('upper') | list }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} "
    "{{ messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | list }}",
    "{{ [1, 2, 3, 4] | select('odd') | list }} {{ ['a', 'b'] | reject('equalto', 'a') | join }}",
    "{{ '  x ' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ 'aB c' | upper }}|{{ 'aB C' | lower }}|"
    "{{ 'hello wORLD' | capitalize }}|{{ 'hello wORLD' | title }}",
    "{{ undefined_name | default('d') }} {{ '' | default('e', true) }} {{ none | default('f') }}",
    "{{ messages | length }} {{ 'héé' | length }} {{ {'a': 1} | length }} {{ nothing | length }}",
    "{{ [3, 1] | first }} {{ [3, 1] | last }} {{ 'abc' | first }} {{ [1, 2] | sum }} {{ -3 | abs }}",
    "{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a b c'.split(' ', 1) }} "
    "{{ 'a-b-c'.rsplit('-', 1) }} {{ 'x\\ny\\n'.splitlines() }}",
    "{{ 'xay'.strip('xy') }} {{ '  a '.lstrip() }}| {{ ' a  '.rstrip() }}| {{ 'abc'.startswith('ab') }}"
    " {{ 'abc'.endswith(('x', 'c')) }} {{ 'a.b'.replace('.', '--') }} {{ 'banana'.count('an') }} "
    "{{ 'banana'.find('n') }}",
    "{{ 'x' is string }} {{ 1 is number }} {{ messages is iterable }} {{ messages is mapping }} "
    "{{ {} is mapping }} {{ none is none }} {{ 3 is odd }} {{ 4 is even }} {{ true is true }} "
    "{{ false is false }} {{ messages is sequence }} {{ 1 is true }} {{ 6 is divisibleby 3 }}",
    "{{ foo is defined }} {{ foo is undefined }} {{ messages[0].foo is defined }} "
    "{{ messages is not none }} {{ not foo is defined }}",
    "{{ messages | tojson }}", "{{ {'k': ['é', 1, 2.5, none, true, '\\n\"']} | tojson(indent=2) }}",
    "{{ [] | tojson }} {{ {} | tojson(indent=4) }} {{ [[], [1]] | tojson(indent=1) }}",
    "{{ foo.bar }}", "{{ foo + 1 }}", "{{ 1 + 'a' }}", "{{ messages[99].role }}", "{{ foo() }}",
    "{{ messages[99] }}|{{ foo }}|{{ messages[0]['nope'] }}", "{% for x in foo %}x{% endfor %}ok",
    "{% for x in none %}x{% endfor %}", "{{ 1 // 0 }}", "{{ raise_exception('stop: ' ~ 1) }}",
    "  {% if true %}\n    a\n  {% endif %}\n  b {{ 1 }}\n", "a {%- if true %} b {% endif -%} c",
    "a\n  {#- c -#}  \n b {# d #}\nc", "x {%+ if true %} y{% endif +%}\nz", "{{- 1 -}}  {{ 2 }}\n\n",
    "{{ 'it''s' }} {{ \"a\" 'b' }} {{ 'tab\\tnl\\\\n\\u00e9\\x41' }}", "{{ {'a': {'b': 1}} }}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%H:%M') }}",
    "{{ messages[0].get('role') }} {{ messages[0].get('x', 'dflt') }} {{ messages[0].keys() | list }}",
    "{% if messages[0] %}t{% endif %}{% if [] or {} or '' or 0 %}f{% else %}e{% endif %}",
    "{{ 'abc' | reverse }} {{ [1, 2] | reverse | list }} {{ [1, 1, 2] | unique | list }} {{ '5' | int }}",
    "{{ 'a' < 'b' }} {{ [1] == [1] }} {{ {'a': 1} == {'a': 1} }} {{ 'a' == 1 }} {{ none == false }}",
    "{{ 1.0 }} {{ 0.5 + 0.25 }} {{ 1e3 if false else 10 }} {{ 3 | float }} {{ 2.7 | int }}",
    "{{ messages[0] }}", "{{ messages[-1].content[:3] }}", "{{ true and 'yes' or 'no' }}",
]


def write_templates():
    rng = random.Random(20260103)
    env = environment()
    lists = conversations(rng)
    cases = []
    for path in sorted((OUT / "templates").glob("*.jinja")):
        source = path.read_text()
        for messages in lists:
            generation = rng.random() < 0.6
            cases.append({"template": path.name, "messages": messages,
                          "add_generation_prompt": generation,
                          **render(env, source, messages, generation)})
    messages = [{"role": "system", "content": "be <b>kind</b>"}, {"role": "user", "content": " Hé "},
                {"role": "assistant", "content": "it's \"ok\"\n"}, {"role": "user", "content": "日本"}]
    for source in SNIPPETS:
        for chosen in (messages, messages[1:2]):
            cases.append({"source": source, "messages": chosen, "add_generation_prompt": True,
                          **render(env, source, chosen, True)})
    with open(OUT / "template_cases.jsonl", "w") as out:
        for case in cases:
            out.write(json.dumps(case, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(len(cases), "template cases,", sum("error" in c for c in cases), "of them errors")


def write_needle_prompts(path):
    model = ROOT / "models" / "needle-7m"
    tok = Tokenizer.from_file(str(model / "tokenizer.json"))
    source = json.loads((model / "tokenizer_config.json").read_text())["chat_template"]
    template = environment().from_string(source)
    documents = {}
    written = 0
    with gzip.open(path, "rt") as rows, open(OUT / "needle_prompts.jsonl", "w") as out:
        for row in map(json.loads, rows):
            documents[row["id"]] = row["document"]
            document = documents[row["same_document_as"] or row["id"]]
            if row["length"] > 2048 or written == 5:
                continue
            content = document + "\n\n" + row["question"]
            text = template.render(messages=[{"role": "user", "content": content}],
                                   add_generation_prompt=True, bos_token="<|begin_of_text|>")
            tokens = tok.encode(text, add_special_tokens=False).ids
            assert len(tokens) == row["prompt_tokens"]
            out.write(json.dumps({"content": content, "tokens": tokens}) + "\n")
            written += 1


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--qa", help="questions of needle-7m, gzipped JSON lines")
    options = arguments.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    write_tokenizers()
    write_templates()
    if options.qa:
        write_needle_prompts(options.qa)
