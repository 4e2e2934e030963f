"""Makes chat_templates.json: conversations as transformers renders them.

    python tests/golden/make_chat_templates.py

Needs transformers. The templates are short ones of our own with the features of
the public families' templates; the conversations are drawn at random.
"""

import datetime
import json
import random
from pathlib import Path

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TEMPLATES = {
  "chatml, a default system turn": (
    "{% for m in messages %}\n"
    "  {% if loop.first and m['role'] != 'system' %}\n"
    "{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}\n"
    "  {% endif %}\n"
    "{{'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
  ),
  "headers, a date, tools": (
    "{{- bos_token }}\n"
    "{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}"
    "{%- endif %}\n"
    "{%- if messages[0].role == 'system' %}\n"
    "    {%- set system = messages[0]['content'] | trim %}\n"
    "    {%- set messages = messages[1:] %}\n"
    "{%- else %}\n    {%- set system = '' %}\n{%- endif %}\n"
    "{{- '<|head|>system<|end|>\\n\\n' + 'Today Date: ' + date_string }}\n"
    "{%- if tools is not none %}{{- '\\n' }}{%- for t in tools %}"
    "{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}{%- endif %}\n"
    "{{- system + '<|eot|>' }}\n"
    "{%- for m in messages %}\n"
    "    {%- if not (m.role == 'tool' or 'tool_calls' in m) %}\n"
    "        {{- '<|head|>' + m.role + '<|end|>\\n\\n' + m.content | trim + '<|eot|>' }}\n"
    "    {%- elif 'tool_calls' in m %}\n"
    "        {%- if not m.tool_calls | length == 1 %}\n"
    "            {{- raise_exception('one call at once') }}\n"
    "        {%- endif %}\n"
    "        {%- set call = m.tool_calls[0].function %}\n"
    '        {{- \'{"name": "\' + call.name + \'", "parameters": \' }}'
    "{{- call.arguments | tojson }}{{- '}<|eot|>' }}\n"
    "    {%- else %}{{- '<|head|>ipython<|end|>\\n\\n' + m.content | tojson }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|head|>assistant<|end|>\\n\\n' }}{%- endif %}"
  ),
  "roles must take turns": (
    "{%- set turns = messages | rejectattr('role', 'equalto', 'system') | list %}"
    "{{ bos_token }}{% for m in turns %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant!') }}"
    "{% endif %}{% endfor %}"
  ),
  "another name for the assistant": (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% set role = 'model' %}{% else %}{% set role = m['role'] %}{% endif %}"
    "{{ '<turn>' + role + '\n' + m['content'] | trim + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<turn>model\n'}}{% endif %}"
  ),
  "thinking of earlier turns is left out": (
    "{%- set ns = namespace(last=-1) -%}{%- set think = enable_thinking | default(true) -%}\n"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}"
    "{%- endif %}{%- endfor %}\n"
    "{% for m in messages %}{% set said = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in said and loop.index0 < ns.last %}"
    "{% set said = said.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content is defined and m.reasoning_content %}"
    "<think>\n{{ m.reasoning_content.strip() }}\n</think>\n{% endif %}"
    "{{ said }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think>\\n' if think else '<think></think>' }}{% endif %}"
  ),
  "marked generation, loop controls": (
    "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
    "{% if loop.index > 4 %}{% break %}{% endif %}"
    "<|{{ m.role }}|>\n"
    "{% if m.role == 'assistant' %}{% generation %}{% set said = m.content %}"
    "{{ said | trim }}{{ eos_token }}{% endgeneration %}{{ said }}"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
  ),
  "macros, documents, filters": (
    "{%- macro show(x, depth=0) -%}{%- if x is mapping -%}"
    "{%- for k, v in x | dictsort -%}{{ '  ' * depth }}{{ k }}:{{ show(v, depth + 1) }};"
    "{%- endfor -%}{%- elif x is string or x is number -%}{{ x }}"
    "{%- elif x is iterable -%}[{%- for v in x -%}{{ show(v, depth + 1) }}"
    "{{ ', ' if not loop.last }}{%- endfor -%}]{%- else -%}{{ x }}{%- endif -%}{%- endmacro -%}"
    "{%- if documents -%}{%- for d in documents -%}Document {{ loop.index }}: "
    "{{ d.title | title }} {{ d['text'] | replace('a', 'b') | indent(2) }}\n{%- endfor -%}{%- endif %}"
    "{{ messages | map(attribute='role') | unique | join(',') }}|"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|"
    "{%- for m in messages -%}{{ show(m) }}{{ cycler('a', 'b').next() }}\n{%- endfor -%}"
    "{{ dict(a=1).items() | list }}{{ undefined_name }}{{ pad_token }}|{{ unk_token }}"
    "{%- filter upper -%}end{%- endfilter -%}{# a comment #}"
    "{%- set block -%}{{ range(3) | list | tojson }}{%- endset -%}{{ block }}"
  ),
  "tojson as it may be called": (
    "{%- for m in messages -%}{{ m | tojson }}|{{ m | tojson(ensure_ascii=True) }}|"
    "{{ m | tojson(separators=(',', ':'), sort_keys=True) }}|"
    "{{ m.content | tojson(false, 1) }}|{{ [m.role, none, true, 1.5] | tojson(indent='\t') }}\n"
    "{%- endfor -%}{{ tools | tojson }}{{ documents | tojson }}"
  ),
  "parts": (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'text' %}{{ p['text'] }}{% else %}<image>{% endif %}"
    "{% endfor %}{% endif %}<|end|>\n{% endfor %}"
  ),
  "the year": "{{ strftime_now('%Y') }}{{ messages[-1].content[:5] }}",
  "what a sandbox refuses": "{{ messages.append(1) }}",
  "attributes with underscores": "{{ ''.__class__ }}{{ messages[0].role }}",
}
TOOLS = [
  {
    "type": "function",
    "function": {
      "name": "get_weather",
      "description": "Weather & <wind> of a city",
      "parameters": {
        "type": "object",
        "properties": {"stadt": {"type": "string"}},
      },
    },
  }
]
DOCUMENTS = [{"title": "über cats", "text": "a cat\nsat"}]
PIECES = (
  "hello", " ", "\n", "  two", "é", "東京", "🙂", "'", '"', "<b>&amp;", "\\n",
  "{{ x }}", "{% if %}", "</think>", "<|im_end|>", "[INST]", "</s>", "\t", "\r\n",
  "\u2028", "0.5",
)  # fmt: skip


def conversations(draw: random.Random) -> list[dict]:
  """What is rendered: messages and variables."""
  text = lambda: "".join(draw.choices(PIECES, k=draw.randrange(1, 7)))
  made = []
  for i in range(8):
    messages = [{"role": "system", "content": text()}] if i % 3 == 1 else []
    for _ in range(draw.randrange(1, 4)):
      messages.append({"role": "user", "content": text()})
      messages.append({"role": "assistant", "content": text()})
    if i % 2:
      messages.pop()
    if i == 4:
      messages[-1]["reasoning"] = " because "
    made.append({"messages": messages})
  call = {
    "id": "c1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"stadt": "Köln", "n": 1}},
  }
  asked = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "content": "", "tool_calls": [call], "refusal": None},
    {"role": "tool", "tool_call_id": "c1", "content": '{"t": "20 °C"}'},
  ]
  parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
  made[0] |= {"variables": {"enable_thinking": False, "date_string": "now"}}
  made[1] |= {"variables": {"documents": DOCUMENTS}}
  made[2] |= {"variables": {"bos_token": "<other>"}, "generation": False}
  made.append({"messages": asked, "variables": {"tools": TOOLS}})
  made.append({"messages": [{"role": "user", "content": parts}], "parts": True})
  return made


def main() -> None:
  import transformers
  from transformers.utils.chat_template_utils import render_jinja_template

  rows = []
  for name, source in TEMPLATES.items():
    for at, given in enumerate(conversations(random.Random(0))):
      if given.get("parts") and name != "parts":
        continue  # Others print a list as Python does; we join its texts.
      messages = [
        {k: v for k, v in m.items() if v is not None} for m in given["messages"]
      ]
      try:
        texts, _ = render_jinja_template(
          conversations=[messages],
          chat_template=source,
          add_generation_prompt=given.get("generation", True),
          **TOKENS | given.get("variables", {}),
        )
      except Exception as e:  # Templates refuse, and so do sandboxes.
        rows.append([name, at, None, str(e)])
      else:
        year = str(datetime.date.today().year)
        text = (
          texts[0].replace(year, "YEAR") if name == "the year" else texts[0]
        )
        rows.append([name, at, text, None])
  content = {
    "made": f"transformers {transformers.__version__}",
    "rows": rows,
  }
  path = Path(__file__).with_name("chat_templates.json")
  path.write_text(json.dumps(content, indent=0, ensure_ascii=False) + "\n")


if __name__ == "__main__":
  main()
