"""Breaks of tokenizers, templates and streams; a part of those of decoding."""

import functools

from benchmarks.mutants import of_library

_break = functools.partial(of_library, "text")
TOKENIZER = "tests/text/test_tokenizer.py"
TEMPLATE = "tests/text/test_template.py"
CHAT = "tests/text/test_chat.py"
STREAM = "tests/text/test_stream.py"
STREAMS = "tests/test_streams.py"
PROMPTS = "tests/test_prompts.py"
MUTATIONS = (
  _break(
    "chats get the tokenizer's BOS", "text/chat.py",
    "return tokenizer.encode_rendered(", "return tokenizer.encode(", CHAT,
  ),
  _break(
    "control tokens that are typed are control tokens",
    "text/tokenizer_json.py", "typed.encode_special_tokens = True",
    "typed.encode_special_tokens = False", TOKENIZER,
  ),
  _break(
    "an EOS of the post-processor stays", "text/tokenizer_json.py",
    "return [*found.ids[:front], *ids]", "return found.ids", TOKENIZER,
  ),
  _break(
    "saved truncation is obeyed", "text/tokenizer_json.py",
    "    self._rendered.no_truncation()\n", "", TOKENIZER,
  ),
  _break(
    "saved padding is obeyed", "text/tokenizer_json.py",
    "    self._rendered.no_padding()\n", "", TOKENIZER,
  ),
  _break(
    "offsets without the spaces", "text/tokenizer_json.py",
    "untyped.post_processor = None", "untyped.post_processor = "
    "self._post_processor", TOKENIZER + " offsets",
  ),
  _break(
    "flags of tokens beside the file are not read", "text/tokenizer_json.py",
    "if token.id is None and have.special:", "if have.special:", TOKENIZER,
  ),
  _break(
    "older files count beside added_tokens_decoder", "text/special_tokens.py",
    "given |= read_object(folder / MAP)",
    "given = read_object(folder / MAP) | given", TOKENIZER,
  ),
  _break(
    "named tokens are plain", "text/special_tokens.py",
    "dataclasses.replace(known, special=True)", "known", TOKENIZER,
  ),
  _break(
    "tekken: one filler less", "text/tekken_file.py",
    "for i in range(count) if i not in taken",
    "for i in range(count - 1) if i not in taken", TOKENIZER,
  ),
  _break(
    "tekken: padded ids are looked up", "text/tekken_file.py",
    "if self._offset <= i < self._size]", "if self._offset <= i]", TOKENIZER,
  ),
  _break(
    "sentencepiece: padded ids are looked up", "text/sentencepiece_file.py",
    "elif 0 <= i < self._size and i", "elif i", TOKENIZER,
  ),
  _break(
    "sentencepiece: legacy is read as true", "text/sentencepiece_file.py",
    'named.config.get("legacy") is not False', "True", TOKENIZER,
  ),
  _break(
    "sentencepiece: add_prefix_space is not read",
    "text/sentencepiece_file.py",
    'named.config.get("add_prefix_space") is not False', "True", TOKENIZER,
  ),
  _break(
    "the shortest token is found first", "text/cuts.py",
    "key=lambda t: -len(t.content)", "key=lambda t: len(t.content)", TOKENIZER,
  ),
  _break(
    "panics are not told of", "text/tokenizer.py",
    "except BaseException as e:", "except Exception as e:",
    TOKENIZER + " library",
  ),
  _break(
    "half pairs go to the library", "text/tokenizer.py",
    'if any("\\ud800" <= c <= "\\udfff" for c in text):', "if False:", PROMPTS,
  ),
  _break(
    "tools are undefined", "text/template.py", '      "tools": None,\n', "",
    TEMPLATE,
  ),
  _break(
    "documents are undefined", "text/template.py",
    '      "documents": None,\n', "", TEMPLATE,
  ),
  _break(
    "variables of the caller come last", "text/template.py",
    '      **self.tokens,\n      "add_generation_prompt": generation,\n'
    "      **variables,\n",
    '      "add_generation_prompt": generation,\n      **variables,\n'
    "      **self.tokens,\n", TEMPLATE,
  ),
  _break(
    "only what jinja raises is told of", "text/template.py",
    "except Exception as e:", "except ValueError as e:", TEMPLATE,
  ),
  _break(
    "the tools' template is not taken", "text/template.py",
    'for name in ("tool_use", "default") if tools else ("default",):',
    'for name in ("default",):', TEMPLATE,
  ),
  _break(
    "printed lists pass for read ones", "text/template.py",
    "_PROBE in shown and str(_PARTS) not in shown", "_PROBE in shown",
    TEMPLATE,
  ),
  _break(
    "arguments are parsed for every template", "text/template.py",
    "if not _shows(run, with_arguments(said, lambda _: _PROBE)):", "if True:",
    TEMPLATE,
  ),
  _break(
    "null is None in templates", "text/messages.py",
    "if v is not None}", "}", TEMPLATE,
  ),
  _break(
    "a developer stays one", "text/messages.py",
    'said["role"] == "developer" and not developer',
    'said["role"] == "developer" and developer', TEMPLATE,
  ),
  _break(
    "tojson escapes letters", "text/environment.py",
    "ensure_ascii: bool = False", "ensure_ascii: bool = True", TEMPLATE,
  ),
  _break(
    "blocks leave their line breaks", "text/environment.py",
    "trim_blocks=True", "trim_blocks=False", TEMPLATE,
  ),
  _break(
    "blocks leave their indentation", "text/environment.py",
    "lstrip_blocks=True", "lstrip_blocks=False", TEMPLATE,
  ),
  _break(
    "special tokens move the window", "text/stream.py",
    "if decode(self._ids[self._known :]):", "if True:", STREAM,
  ),
  _break(
    "bytes count as certain", "text/stream.py",
    "return more.startswith(now)", "return True", STREAM,
  ),
  _break(
    "a closed stream goes on closing", "text/stream.py",
    "      self._closed = True\n", "", STREAM + " inside",
  ),
  _break(
    "a stop string waits for what may change", "text/stream.py",
    "return self._find_stop(new.rstrip(_BROKEN))", "return False", STREAM,
  ),
  _break(
    "a row that ends keeps text back", "decode/results.py",
    "self.stream.close()\n", "pass\n", STREAMS + " held",
  ),
  _break(
    "stop strings stay beside their ids", "prompts.py",
    "stop=[s for s in row.stop if ids[s] is None]", "stop=row.stop", PROMPTS,
  ),
  _break(
    "own stop ids are lost", "prompts.py",
    "        *row.stop_token_ids, *(", "        *(", PROMPTS,
  ),
  _break(
    "variables do not reach the template", "prompts.py",
    "return encode_chat(template, tokenizer, prompt, **variables)",
    "return encode_chat(template, tokenizer, prompt)", PROMPTS,
  ),
)  # fmt: skip
