"""Renders the templates of chat-templates/ with transformers, and small templates of Python's habits.

Writes chat-templates/renders.json.xz and chat-templates/snippets.json. The clock stands at 2026-03-05 14:07:09.

transformers refuses three things that published templates do: changing lists (Kimi-K2: `append`, `pop`), `from_json` (DeepSeek-V3.2
and V4) and `map(...) | tojson` without `list` (llama.cpp's R1). Where it does, the same environment with these allowed renders, and
the case says what transformers said ("transformers").
"""

import datetime
import json
import lzma
import pathlib

import jinja2
import jinja2.sandbox
from transformers.utils import chat_template_utils as cu

HERE = pathlib.Path(__file__).parent / "chat-templates"


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 3, 5, 14, 7, 9)


cu.datetime = Clock
STRICT = cu.ImmutableSandboxedEnvironment


class Relaxed(jinja2.sandbox.SandboxedEnvironment):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.filters["from_json"] = json.loads
        self.filters["map"] = jinja2.pass_context(lambda *a, **k: list(jinja2.filters.do_map(*a, **k)))


def render(source, relaxed=False, **variables):
    cu.ImmutableSandboxedEnvironment = Relaxed if relaxed else STRICT
    cu._compile_jinja_template.cache_clear()
    messages = variables.pop("messages")
    rendered, _ = cu.render_jinja_template([messages], chat_template=source, **variables)
    return rendered[0]


def outcome(source, **variables):
    """{"text"} or {"error"}, and what transformers said if it needed more than transformers allows."""
    try:
        return {"text": render(source, **variables)}
    except Exception as e:
        strict = f"{type(e).__name__}: {e}"
    needs_more = "from_json" in strict or strict.startswith("SecurityError") or "generator is not JSON" in strict
    if not needs_more:
        return {"error": strict}
    try:
        return {"text": render(source, relaxed=True, **variables), "transformers": strict}
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}", "transformers": strict}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city — today's \"best\" guess <b>",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": " Name of the city, e.g. Zürich ", "enum": ["Zürich", "東京"]},
                    "days": {"type": ["integer", "null"], "default": 3, "minimum": 1.0, "maximum": 1e16},
                    "exact": {"type": "boolean", "default": False, "examples": [True, None, 1e-7]},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "Time", "parameters": {"type": "object", "properties": {}}}},
]


def call(name, arguments, i=0):
    return {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}


def conversations():
    system = {"role": "system", "content": "Be brief.\nAnswer in English."}
    user = {"role": "user", "content": "Hi, what's 1 + 1?"}
    again = {"role": "user", "content": "And 2 + 2? 日本語 🙂"}
    answer = {"role": "assistant", "content": "It is 2."}
    tagged = {"role": "assistant", "content": "<think>\nOne and one.\n</think>\n\nIt is 2."}
    split = {"role": "assistant", "content": "It is 2.", "reasoning_content": "One and one."}
    arguments = {"city": "Zürich", "days": 2, "exact": True, "list": [1, 2.5, "x"], "none": None}
    as_text = json.dumps(arguments, ensure_ascii=False)
    result = {"role": "tool", "tool_call_id": "call_0", "name": "get_weather", "content": '{"sky": "<blue>"}'}
    second = {"role": "tool", "tool_call_id": "call_1", "name": "now", "content": "12:00"}

    def calls(content, arguments, n=1):
        both = [call("get_weather", arguments), call("now", {} if isinstance(arguments, dict) else "{}", 1)]
        return {"role": "assistant", "content": content, "tool_calls": both[:n]}

    yield "user", [user], {}
    yield "system", [system, user], {}
    yield "multi-turn", [system, user, answer, again], {}
    yield "thinking in the content", [system, user, tagged, again], {}
    yield "thinking beside the content", [user, split, again], {}
    yield "ends with an assistant", [user, answer], {}
    yield "ends with thinking in the content", [user, tagged], {}
    yield "ends with thinking beside the content", [user, split], {}
    yield "two system messages", [system, system, user], {}
    yield "a late system message", [user, answer, system, again], {}
    yield "white space", [{"role": "user", "content": " \n a \r\n\tb \n"}, {"role": "assistant", "content": "\n\n c \n"}, again], {}
    yield "markup", [{"role": "user", "content": "<tool_response>{{ x }} {% if %} &lt; </think> <think> {# c #}</tool_response>"}, answer, again], {}
    yield "empty", [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}, again], {}
    yield "no messages", [], {}
    yield "tools", [user], {"tools": TOOLS}
    yield "tools and system", [system, user], {"tools": TOOLS}
    yield "no tools", [system, user], {"tools": []}
    for name, args in [("a dictionary", arguments), ("text", as_text)]:
        yield f"call, arguments are {name}", [system, user, calls(None, args)], {"tools": TOOLS}
        yield f"call with content, arguments are {name}", [user, calls("Let me see.", args), result], {"tools": TOOLS}
        yield f"call with empty content, arguments are {name}", [user, calls("", args), result, answer, again], {"tools": TOOLS}
        yield f"two calls, arguments are {name}", [user, calls("", args, 2), result, second, answer], {"tools": TOOLS}
        yield f"two calls without tools, arguments are {name}", [user, calls(None, args, 2), result, second], {}
    yield "call with thinking", [user, {**calls("", arguments), "reasoning_content": "I need\nthe weather.\n"}, result], {"tools": TOOLS}
    yield "unasked result", [user, result], {}
    yield "parts", [{"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image"}, {"type": "text", "text": "!"}]}], {}
    yield "named sender", [{"role": "user", "name": "Ada", "content": "Hi"}], {}
    yield "developer", [{"role": "developer", "content": "Be kind."}, user], {}
    yield "unknown role", [user, {"role": "critic", "content": "Hm."}, again], {}
    yield "content is null", [user, {"role": "assistant", "content": None}, again], {}
    yield "thinking on", [system, user, split, again], {"enable_thinking": True}
    yield "thinking off", [system, user, split, again], {"enable_thinking": False}
    yield "thinking", [user, split, again, split], {"thinking": True}
    yield "high effort", [user], {"thinking": True, "reasoning_effort": "high"}
    yield "thinking with calls", [user, {**calls("", arguments, 2), "reasoning_content": "Both."}, result, second], {"thinking": True, "tools": TOOLS}
    yield "prefix", [user, {"role": "assistant", "content": "It", "prefix": True}], {"thinking": True}


TOKENS = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}

VALUES = {
    "s": " Straße don't STOP\n", "n": None, "t": True, "i": 7, "f": 2.5, "big": 1e22, "small": 1.5e-7, "l": [3, 1, 2], "e": "",
    "d": {"b": 1, "a": [True, None, "x'y", 'q"', "é\n\t\\\u200b"], "items": "own"}, "w": ["b", "A", "c", "a"],
    "o": [{"k": "x", "v": 1}, {"k": "y", "v": 2}, {"k": "x"}], "u": "a,b,,c", "p": "{\"a\": [1, 2.0, null, true], \"b\": {\"c\": \"\\u00e9\"}}",
}

SNIPPETS = r'''
{{ t }} {{ n }} {{ i }} {{ f }} {{ big }} {{ small }} {{ 1e15 }} {{ 1e16 }} {{ 0.1 + 0.2 }} {{ 100.0 }} {{ 1e-4 }} {{ 1e-5 }} {{ -0.0 }}
{{ l }} {{ d }} {{ w }} {{ (1,) }} {{ (1, 'a') }} {{ [] }} {{ {} }} {{ () }}
{{ 'x' ~ t ~ n ~ l ~ 1.0 ~ undefined_thing }}
{{ d.a }} {{ d['items'] }} {% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{{ d.missing }}|{{ d['missing'] }}|{{ missing }}|{{ l[10] }}|{{ s[100] }}
{{ d.missing.deeper }}
{{ missing.deeper }}
{{ missing + 'x' }}
{{ 'x' + 1 }}
{{ 'x' + none }}
{{ l[0] }} {{ l[-1] }} {{ l[1:] }} {{ l[::-1] }} {{ l[:-1] }} {{ l[-2:] }} {{ l[5:] }} {{ l[0:3:2] }} {{ l[::-2] }}
{{ s[1:4] }}|{{ s[::-1] }}|{{ s[-5:] }}|{{ s[0] }}|{{ s[-2] }}|{{ 'añb'[1] }}|{{ 'abcdef'[4:1:-1] }}
{{ s.strip() }}|{{ s.lstrip() }}|{{ s.rstrip('\n') }}|{{ 'xxaxx'.strip('x') }}|{{ 'abcba'.strip('ab') }}|{{ 'abc'.rstrip('') }}
{{ s.upper() }}|{{ s.lower() }}|{{ s.title() }}|{{ s.capitalize() }}|{{ s.swapcase() }}|{{ s.casefold() }}
{{ s | upper }}|{{ s | lower }}|{{ s | title }}|{{ s | capitalize }}|{{ 'foo-bar (baz)' | title }}|{{ s | trim }}|{{ 'xax' | trim('x') }}
{{ u.split(',') }} {{ u.split(',', 1) }} {{ u.rsplit(',', 1) }} {{ ' a  b '.split() }} {{ ' a  b c'.split(None, 1) }} {{ ' a b  c '.rsplit(None, 1) }} {{ ''.split(',') }} {{ ''.split() }}
{{ 'abc'.split('') }}
{{ 'a</think>b</think>c'.split('</think>')[-1] }} {{ 'abc'.split('</think>')[-1] }} {{ 'a</think>b</think>c'.split('</think>', 1)[1] }}
{{ 'abcabc'.replace('b', 'X') }} {{ 'abcabc'.replace('b', 'X', 1) }} {{ 'abc'.replace('', '-') }} {{ 'abcabc' | replace('b', 'X', 1) }} {{ 'aaa'.replace('aa', 'b') }}
{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abc'.find('c') }} {{ 'abc'.find('z') }} {{ 'abcb'.rfind('b') }} {{ 'abcb'.index('b') }} {{ 'abcb'.count('b') }}
{{ 'abc'.index('z') }}
{{ 'a b'.partition(' ') }} {{ 'a b c'.rpartition(' ') }} {{ 'abc'.partition(' ') }} {{ 'abc'.rpartition(' ') }}
{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.removeprefix('x') }}
{{ ', '.join(w) }} {{ w | join(', ') }} {{ [1, none, 2.0] | join('-') }} {{ o | join(',', attribute='v') }}
{{ ', '.join([1]) }}
{{ 'a\nb\r\nc\n'.splitlines() }} {{ 'a\n\nb' | indent }}|{{ 'a\n\nb' | indent(2, true) }}|{{ 'a\n\nb\n' | indent(2, blank=true) }}|{{ 'a\nb' | indent(width='> ') }}|{{ '' | indent(first=true) }}
{{ 'ab'.center(7) }}|{{ 'abc'.center(6, '*') }}|{{ 'ab'.ljust(4, '.') }}|{{ 'ab'.rjust(4) }}|{{ '-5'.zfill(4) }}|{{ 'x' | center(9) }}|
{{ 'abc'.isalpha() }} {{ '12'.isdigit() }} {{ 'a1'.isalnum() }} {{ ' '.isspace() }} {{ 'AB'.isupper() }} {{ 'ab'.islower() }} {{ 'Ab Cd'.istitle() }} {{ ''.isalpha() }} {{ '１'.isnumeric() }}
{{ '%s and %d, %.2f, %r, 100%%' % ('x', 5, 2.345, 'y') }} {{ '%s' % t }} {{ '%s %s' | format('a', 1) }}
{{ '{} {} {{}}'.format('a', 1) }} {{ '{1} {0}'.format('a', 'b') }} {{ '{x}'.format(x=none) }}
{{ '%s %s' % 'x' }}
{{ d | tojson }} {{ l | tojson(indent=2) }} {{ {} | tojson(indent=2) }} {{ [] | tojson(indent=4) }} {{ d | tojson(sort_keys=true) }} {{ d | tojson(separators=(',', ':')) }} {{ d | tojson(ensure_ascii=true) }}
{{ {'a': {'b': [1, {'c': []}]}} | tojson(indent=2) }}
{{ [1.0, 1e16, 1e-7, 123456789.125, -0.0, 1e300] | tojson }} {{ '\u0000\u001f\u007f\u2028</script>\'' | tojson }} {{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}
{{ missing | tojson }}
{{ {'a': missing} | tojson }}
{{ range(3) | list }} {{ range(5, 0, -2) | list }} {{ range(0) | list }} {{ range(2, 5) | list }}
{{ range(1000000) | list }}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }};{% endfor %}
{% for x in [] %}x{% else %}none{% endfor %} {% for x in l if x > 1 %}{{ x }}{{ loop.index }}{% else %}no{% endfor %} {% for x in l if x > 9 %}{{ x }}{% else %}no{% endfor %}
{% for a, b in [(1, 2), (3, 4)] %}{{ a }}{{ b }}{% endfor %} {% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for a, b in [(1, 2, 3)] %}{% endfor %}
{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for c in 'añ' %}[{{ c }}]{% endfor %} {% for k in d %}{{ k }}{% endfor %} {% for x in missing %}x{% endfor %}
{% for x in 5 %}{% endfor %}
{% for x in none %}{% endfor %}
{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = i + 10 %}{{ x }}{% endfor %}{{ x }}
{% set ns = namespace(x=1) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }} {{ ns.missing }}
{% set x.y = 1 %}
{% set a, b = 1, 2 %}{{ a }}{{ b }} {% set t2 = 1, 2 %}{{ t2 }} {% set x %}block {{ i }}{% endset %}{{ x }} {% set y | upper | trim %} up {% endset %}{{ y }}|
{% if l %}a{% elif t %}b{% else %}c{% endif %}{% if e %}a{% elif n %}b{% else %}c{% endif %}{% if 0 %}{% elif 1 %}d{% endif %}
{% macro f(a, b='B', c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }} {{ f(1, 2) }} {{ f(b=3, a=4) }} {{ f() }}|{{ f(1, c=5) | length }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(z=2) }}
{% macro f() %}{{ varargs }}{{ kwargs }}{{ caller is defined }}{% endmacro %}{{ f(1, 2, x=3) }}
{% macro f(x) %}<{{ caller(x) }}>{% endmacro %}{% call(y) f(7) %}{{ y }}!{{ i }}{% endcall %}
{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}
{% macro f() %}{{ later }}{% endmacro %}{% set later = 'L' %}{{ f() }}{% for q in [1] %}{% set later = 'M' %}{{ f() }}{% endfor %}
{% for q in [1, 2] %}{% macro g() %}{{ q }}{% endmacro %}{{ g() }}{% endfor %}
{% filter upper %}abc{{ s }}{% endfilter %}{% with a=1, b=2 %}{{ a + b }}{% endwith %}{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z }}|
{% generation %}gen{{ i }}{% endgeneration %}
{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 6 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 2 ** 3 ** 2 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ -2 ** 2 }} {{ 2 * -3 }} {{ 1_000 }} {{ 0x1f }} {{ 1.5e3 }} {{ +5 }}
{{ 1 / 0 }}
{{ 1 % 0 }}
{{ 'ab' * 3 }} {{ 2 * 'x' }} {{ [1, 2] * 2 }} {{ [1] + [2] }} {{ (1,) + (2,) }} {{ 'x' * -1 }}|{{ true + true }} {{ 1 + 1.5 }} {{ t * 3 }}
{{ [1] + (2,) }}
{{ 1 + 2 ~ 3 + 4 }}
{{ 1 ~ 2 + 'x' }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ [1] == [1] }} {{ (1,) == [1] }} {{ {'a': 1} == {'a': 1.0} }} {{ none == missing }} {{ 'a' != 1 }}
{{ 'a' < 1 }}
{{ none < 1 }}
{{ 1 in l }} {{ 9 not in l }} {{ 'tra' in s }} {{ 'a' in d }} {{ 'z' in d }} {{ not 1 in l }} {{ 'x' in missing }} {{ '' in 'abc' }}
{{ 1 in 'abc' }}
{{ 'a' in none }}
{{ not t and f or i }} {{ n or 'x' }} {{ e and 'x' }}| {{ 0 or none }} {{ l and d.b }} {{ 'y' if t else 'z' }} {{ 'y' if n }}| {{ 'a' if n else 'b' if n else 'c' }}
{{ missing is defined }} {{ i is defined }} {{ d.zz is undefined }} {{ n is none }} {{ s is string }} {{ i is number }} {{ t is number }} {{ t is boolean }} {{ i is integer }} {{ t is integer }} {{ f is float }} {{ l is sequence }} {{ s is sequence }} {{ d is mapping }} {{ l is iterable }} {{ i is iterable }} {{ d is sequence }} {{ t is true }} {{ 1 is true }} {{ n is false }} {{ missing is iterable }} {{ missing is none }} {{ i is not string }}
{{ i is odd }} {{ i is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ 1 is eq 1 }} {{ 1 is equalto(2) }} {{ 2 is gt 1 }} {{ 2 is lt(1) }} {{ 1 is in [1] }} {{ 'A' is upper }} {{ 'A' is lower }} {{ n is sameas none }} {{ range is callable }} {{ 'trim' is filter }} {{ 'odd' is test }} {{ 1 is ne 2 }} {{ 2 is ge 2 }} {{ 2 is le 1 }}
{{ missing | default('x') }} {{ n | default('x') }} {{ n | default('x', true) }} {{ e | d('y', boolean=true) }} {{ missing | d }}| {{ d.zz | default([]) | length }}
{{ s | length }} {{ l | length }} {{ d | length }} {{ missing | length }} {{ l | count }} {{ '日本' | length }}
{{ i | length }}
{{ l | first }} {{ l | last }} {{ [] | first }}| {{ 'abc' | first }} {{ 'abc' | last }} {{ l | list }} {{ 'ab' | list }} {{ d | list }} {{ l | reverse | list }} {{ 'abc' | reverse }}
{{ l | sort }} {{ w | sort }} {{ w | sort(case_sensitive=true) }} {{ l | sort(reverse=true) }} {{ o | sort(attribute='v') }}
{{ o[:2] | sort(attribute='k') | map(attribute='k') | list }} {{ l | min }} {{ l | max }} {{ w | min }} {{ [] | max }}| {{ l | sum }} {{ o[:2] | sum(attribute='v') }} {{ [1.5, 2] | sum }} {{ [] | sum }} {{ w | unique | list }} {{ [1, 1, 2] | unique | list }}
{{ [1, 'a'] | sort }}
{{ o | map(attribute='v') | list }} {{ o | map(attribute='v', default=0) | list }} {{ w | map('upper') | list }} {{ ['a,b'] | map('replace', ',', ';') | list }} {{ [[1, 2], [3]] | map('length') | list }}
{{ l | select('odd') | list }} {{ l | reject('gt', 1) | list }} {{ o | selectattr('v') | list }} {{ o | selectattr('v', 'defined') | list }} {{ o | rejectattr('k', 'equalto', 'x') | list }} {{ [0, 1, '', 'a'] | select | list }}
{{ d | dictsort }} {{ {'b': 1, 'A': 2} | dictsort }} {{ {'b': 1, 'A': 2} | dictsort(by='value', reverse=true) }} {{ d | items | list | length }} {{ missing | items | list }}
{{ l | items | list }}
{{ '3' | int }} {{ 'x' | int }} {{ '3.7' | int }} {{ 'x' | int(9) }} {{ 3.9 | int }} {{ 'ff' | int(base=16) }} {{ '2.5' | float }} {{ 'x' | float }} {{ '1e3' | float }} {{ 2.5 | round }} {{ 3.5 | round }} {{ 2.345 | round(2) }} {{ 2.1 | round(method='ceil') }} {{ 2.9 | round(0, 'floor') }} {{ -3 | abs }} {{ (-3) | abs }} {{ t | string }} {{ 1.0 | string }} {{ l | string }} {{ 42 | string | length }}
{{ '<b>&"\'' | e }} {{ '<b>' | safe }} {{ '<b>' ~ ('<i>' | safe) }} {{ '<b>' + ('<i>' | safe) }} {{ ('<i>' | safe) + '<b>' }} {{ '<b>' | escape | escape }} {{ '<b>' | e | forceescape }}
{{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ [1, 2, 3] | batch(2, 'x') | list }} {{ 'a b  c-d' | wordcount }} {{ 'foo bar baz' | truncate(9) }} {{ 'foo bar baz qux' | truncate(9, true) }} {{ 'foo bar baz qux' | truncate(9) }} {{ 'foo bar' | truncate(20) }} {{ d | attr('b') }}|
{{ d.get('a') | length }} {{ d.get('zz') }} {{ d.get('zz', 5) }} {{ d.keys() | list }} {{ d.values() | list | length }} {{ dict(a=1, b=2) }} {{ dict({'x': 1}, y=2) }} {{ {'a': 1}.copy() }} {{ l.index(1) }} {{ l.count(3) }} {{ l.copy() }}
{{ l.index(99) }}
{% set x = [] %}{% set _ = x.append(1) %}{% set _ = x.append('a') %}{{ x }}{{ x.pop(0) }}{{ x }}{{ x.pop() }}{{ x }}
{% set x = [3, 1] %}{{ x.insert(0, 9) }}{{ x.extend([7]) }}{{ x.reverse() }}{{ x }}{{ x.remove(9) }}{{ x }}
{% set x = {'a': 1} %}{{ x.update({'b': 2}) }}{{ x }}{{ x.pop('a') }}{{ x }}{{ x.setdefault('c', 3) }}{{ x }}
{{ p | from_json }} {{ (p | from_json).b.c }} {% for k, v in (p | from_json).items() %}{{ k }}{{ v | tojson }}{% endfor %}
{{ 'nope' | from_json }}
{{ strftime_now('%Y-%m-%d %H:%M:%S %d %b %B %A %a %j %y %I %p %% %-d %e') }}
{{ raise_exception('no "such" thing: ' ~ i) }}
{{ raise_exception() }}
{{ 'a' 'b' "c" }} {{ 'it\'s' }} {{ "q\"q" }} {{ 'tab\tnew\nx\\y\x41\u00e9\101\q' }} {{ '\
joined' }}
{{ {'a': {'b': {}}} }}{{ {'a': [1, {'b': 2}]}['a'][1]['b'] }} {{ [[1, 2], [3]][0][1] }} {{ {1: 'x', 'y': 2}[1] }} {{ (1, 2)[0] }} {{ l.0 }} {{ {'k': 'v'}.k }}
{{- i -}}   x   {{- f }}   {%- if t %}  y  {%- endif -%}   z
  {% if t %}
    indented
  {% endif %}
  after
a {% if t %} b {% endif %}
c {# comment #}
d {#- comment -#} e
	{%+ if t %}plus{% endif %}
{% if t +%}
keep{% endif %}
{% raw %}{{ not }} {% parsed %}{% endraw %} {%- raw -%}  {{ x }}  {%- endraw -%}  end
  {% set x = 1 %}
  {% set y = 2 %}{{ x }}
{{ x }}  {% if t %}  {{ y }}{% endif %}

{{ '}}' }} {{ "%}" }} {{ {'a': '}}'} }} {{ '{{' }} {{ '#}' }}
{% for x in l %}{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}
{% for x in l -%}
  {{ x }}
{%- endfor %}|
{%- for m in messages -%}{{ m.role }}:{{ m['content'] | trim }};{%- endfor -%}
{{ messages | length }} {{ messages[-1].content }} {{ messages[0]['role'] }} {{ messages[0].tool_calls }}| {{ messages[0].tool_calls is defined }}
{{ tools is defined }} {{ tools is none }} {{ documents }} {{ bos_token }} {{ pad_token is defined }}
{{ add_generation_prompt }}
{{ s.__class__ }}
{{ [].__class__.__mro__ }}
{{ namespace(_x=1) }}
{{ s | nosuch }}
{{ s is nosuch }}
{{ nosuch() }}
{{ i() }}
{{ s.nosuch() }}
{{ s. }}
{{ (1 }}
{% if t %}
{% endif %}
{% endfor %}
{% for x in l %}
{% nosuch %}
{{ 'unended }}
{{ 1 if }}
{% break %}
{% set none = 1 %}
{% include 'x' %}
{{ 'é' | upper }} {{ 'ÀÉ' | lower }} {{ 'ß' | upper }} {{ 'ŉ'.title() }} {{ 'ΑΣ'.lower() }} {{ 'İ'.lower() | length }}
{{ ['a', 'b', 'c'][1:] | join }} {{ [[1, 2], [3, 4]] | map('first') | list }} {{ [[1, 2], [3, 4]] | map(attribute=1) | list }} {{ [{'a': {'b': 5}}] | map(attribute='a.b') | list }}
{{ 1 if t else 2 if n else 3 }} {{ (1 if n else 2) + 3 }} {{ [x for x in l] }}
{{ 'a' is string and 'b' is string }} {{ 1 is number or missing.x }} {{ not missing }} {{ -1 | abs }} {{ 3 - -2 }} {{ 2 - 1 - 1 }} {{ 8 / 2 / 2 }} {{ 'a' ~ 'b' | upper ~ 'c' }}
{{ none | string }} {{ none ~ '' }} {{ [none, true, 'é'] }} {{ {'é': 'ñ'} }} {{ ['\u00a0', '\u3000', '\x7f', '🙂'] }} {{ ["it's", 'say "x"', 'both \' and "'] }}
{{ 12345678901234567890 }} {{ 12345678901234567890 * 10 }} {{ 9007199254740993 + 0.0 }} {{ 1e100 }} {{ 3.0 * 2 }} {{ 10 ** 20 }}
{{ loop }}
{% for x in [1, 2] %}{% for y in [3, 4] %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}
{{ ' a  b c '.split(None, 1) }} {{ 'x'.split('x') }} {{ ' a '.rsplit(None, 0) }} {{ '  '.split() }} {{ 'a  '.split(None, 1) }}
'''


def snippets():
    """A snippet is a line, but for the ones that need more."""
    lines = SNIPPETS.strip("\n").split("\n")
    several = [
        "{{ '\\\njoined' }}",
        "  {% if t %}\n    indented\n  {% endif %}\n  after\n",
        "a {% if t %} b {% endif %}\nc {# comment #}\nd {#- comment -#} e\n",
        "x\n\t{%+ if t %}plus{% endif %}\n y",
        "{% if t +%}\nkeep{% endif %}\n\n",
        "  {% set x = 1 %}\n  {% set y = 2 %}{{ x }}\n{{ x }}  {% if t %}  {{ y }}{% endif %}\n\n",
        "{% for x in l -%}\n  {{ x }}\n{%- endfor %}|\n  {# c #}  \n {{ i }}\n",
        "{% for x in l %}\n  {{ x }}\n  {% if x == 1 %}\n    one\n  {% endif %}\n{% endfor %}\nend",
        "a\r\nb\rc\n{% if t %}\r\nd{% endif %}\r\n",
        "{% raw %}\n {{ x }}\n{% endraw %}\nafter",
        "{#\n  long\n#}\n\n{{ i }}\n{%- if t %}\n\n x{% endif -%}\n\n y",
        "{{ i }}\n\n\n",
        "{% macro m() %}\n  in\n{% endmacro %}\n{{ m() }}\n{{- m() -}}\n",
    ]
    return [line for line in lines if line.strip()] + several


def main():
    cases, shared = [], []
    for name, messages, variables in conversations():
        shared.append({"name": name, "messages": messages, "variables": variables})
    for path in sorted(HERE.glob("*.jinja")):
        source = path.read_text()
        for conversation in shared:
            for prompt in [False, True]:
                result = outcome(source, messages=conversation["messages"], add_generation_prompt=prompt, **TOKENS, **conversation["variables"])
                cases.append({"template": path.name, "conversation": conversation["name"], "add_generation_prompt": prompt, **result})
    dump(HERE / "renders.json.xz", {"conversations": shared, "tokens": TOKENS, "cases": cases})
    messages = [{"role": "system", "content": " S "}, {"role": "user", "content": "U"}]
    found = [{"template": s, **outcome(s, messages=messages, **TOKENS, **VALUES)} for s in snippets()]
    dump(HERE / "snippets.json", {"messages": messages, "tokens": TOKENS, "values": VALUES, "cases": found})
    for cases in [cases, found]:
        print(len(cases), "cases,", sum("error" in c for c in cases), "errors,", sum("transformers" in c for c in cases), "beyond transformers")


def dump(path, value):
    """One case a line."""
    head = {k: v for k, v in value.items() if k != "cases"}
    text = json.dumps(head, ensure_ascii=False, indent=1)[:-2]
    lines = ",\n".join("  " + json.dumps(c, ensure_ascii=False) for c in value["cases"])
    data = f'{text},\n "cases": [\n{lines}\n ]\n}}\n'.encode()
    path.write_bytes(lzma.compress(data, preset=9) if path.suffix == ".xz" else data)


if __name__ == "__main__":
    main()
