"""The data: what is packed, learned, refused, and where it goes on."""

import dataclasses
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers

from nemodiff_jax.errors import UserError
from nemodiff_jax.io.checkpoint import open_checkpoint
from nemodiff_jax.nn.config import ModelConfig
from nemodiff_jax.text.template import ChatTemplate
from nemodiff_jax.text.tokenizer import load_tokenizer
from train import data
from train.configs import tiny as tiny_config
from train.documents import encode_record
from train.sources import Arithmetic, Lines
from train.start import Start
from train.token_files import TokenFiles, write_shard


@pytest.fixture(scope="module")
def start() -> Start:
  """The embedded checkpoint: a tokenizer and a template."""
  opened = open_checkpoint(None)
  return Start(opened.config, opened, False)


def config_of(source, **changes):
  config = tiny_config.get_config()
  config.update({"batch_size": 4, "length": 64, "block_lengths": (8, 16)})
  config.data.update({"source": str(source), "bins": 2, "shards": 2})
  config.data.update(changes)
  return config


def batches(config, start: Start, shards=None, count=3):
  source = data.open_source(
    config.data.source, start.config, config.seed, config.data.on_error
  )
  streams = shards or range(config.data.shards)
  iterator = data.make_batches(config, start, source, streams)
  return [next(iterator) for _ in range(count)], source


def write_lines(path, lines):
  path.write_text(
    "".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines)
  )
  return path


@pytest.fixture
def texts(tmp_path):
  lines = [{"text": f"{i} ants and {i + 1} bees"} for i in range(40)]
  return write_lines(tmp_path / "texts.jsonl", lines)


def test_documents_are_packed_whole_at_multiples_of_the_block(texts, start):
  config = config_of(texts)
  found, _ = batches(config, start)
  wanted = {
    tuple(
      [*start.tokenizer.encode(json.loads(line)["text"]), *start.config.eos_ids]
    )
    for line in texts.read_text().splitlines()
  }
  for batch in found:
    assert batch["tokens"].shape == (4, 64)
    for tokens, learned, begin in zip(
      batch["tokens"], batch["supervised"], batch["start"], strict=True
    ):
      assert (begin % 16 == 0).all() and begin[0] == 0
      for at in np.unique(begin):
        assert tuple(tokens[(begin == at) & learned]) in wanted
      assert (tokens[~learned] == start.config.eos_ids[0]).all()
  packed = [len(np.unique(row)) for b in found for row in b["start"]]
  assert max(packed) > 1


def test_rows_that_are_not_packed_hold_one_document(texts, start):
  """The rest of a row is EOS, not learned, and there are no starts."""
  config = config_of(texts, pack=False)
  found, _ = batches(config, start)
  texts = {json.loads(line)["text"] for line in texts.read_text().splitlines()}
  (eos, *_), rows = start.config.eos_ids, 0
  for batch in found:
    assert batch.keys() == {"tokens", "supervised", "filled"}
    fields = (batch["tokens"], batch["supervised"], batch["filled"])
    for tokens, learned, filled in zip(*fields, strict=True):
      assert start.tokenizer.decode(tokens[: filled - 1].tolist()) in texts
      assert (tokens[filled - 1 :] == eos).all() and tokens.size == 64
      assert learned.nonzero()[0].tolist() == list(range(filled))
      rows += 1
  assert rows == 12


def test_a_long_text_goes_on_in_the_next_piece(tmp_path, start):
  text = " ".join(str(i) for i in range(60))
  path = write_lines(tmp_path / "long.jsonl", [{"text": text}])
  found, _ = batches(config_of(path, shards=1), start, count=2)
  ids = [*start.tokenizer.encode(text), *start.config.eos_ids]
  said = np.concatenate(
    [
      t[s]
      for b in found
      for t, s in zip(b["tokens"], b["supervised"], strict=True)
    ]
  )
  assert len(ids) > 64
  assert said[: len(ids)].tolist() == ids


TURNS = (
  "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
  "{{ '</s>' if m.role == 'assistant' }}{% endfor %}"
  "{{ '<|assistant|>' if add_generation_prompt }}"
)


def test_only_the_answers_of_a_conversation_are_learned(start):
  messages = [
    {"role": "user", "content": "What is 1 + 2?"},
    {"role": "assistant", "content": "3"},
    {"role": "user", "content": "And 3 + 4?"},
    {"role": "assistant", "content": "7"},
  ]
  eos = start.config.eos_ids
  template = ChatTemplate(TURNS, start.template.tokens)
  document = encode_record(
    {"messages": messages}, start.tokenizer, template, eos
  )
  model = sentencepiece.SentencePieceProcessor(
    model_file=str(start.checkpoint.folder / "tokenizer.model")
  )
  parts = [
    ([model.bos_id(), *model.encode("<|user|>What is 1 + 2?<|assistant|>")], 0),
    ([*model.encode("3"), eos[0]], 1),
    (model.encode("<|user|>And 3 + 4?<|assistant|>"), 0),
    ([*model.encode("7"), eos[0]], 1),
  ]
  assert document["tokens"].tolist() == [i for ids, _ in parts for i in ids]
  assert document["supervised"].tolist() == [
    bool(s) for ids, s in parts for _ in ids
  ]


def byte_tokenizer(folder, bos: bool):
  """Byte-level BPE without merges, behind six special tokens."""
  special = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<mask>")
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocab = {t: i for i, t in enumerate([*special, *alphabet])}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  made.decoder = tokenizers.decoders.ByteLevel()
  made.add_special_tokens(
    [tokenizers.AddedToken(s, special=True, normalized=False) for s in special]
  )
  if bos:
    made.post_processor = tokenizers.processors.TemplateProcessing(
      single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
  made.save(str(folder / "tokenizer.json"))
  return made


CHATML = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>"
  "\n{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)


@pytest.mark.parametrize("eos_ids", [(2, 4), (4, 2), (4,)])
@pytest.mark.parametrize("bos", [False, True])
def test_a_turns_own_end_is_learned(tmp_path, eos_ids, bos):
  """The ids are those that tokenizers gives for the rendered conversation."""
  made = byte_tokenizer(tmp_path, bos)
  messages = [
    {"role": role, "content": text}
    for role, text in zip(("user", "assistant") * 2, "qaup", strict=True)
  ]
  template = ChatTemplate(CHATML, {"eos_token": "</s>"})
  document = encode_record(
    {"messages": messages}, load_tokenizer(tmp_path), template, eos_ids
  )
  whole = template.render(messages, generation=False)
  ids = made.encode(whole, add_special_tokens=False).ids
  assert document["tokens"].tolist() == ids
  learned = document["tokens"][document["supervised"]].tolist()
  assert [made.id_to_token(i) for i in learned] == [
    "a", "<|im_end|>", "p", "<|im_end|>"
  ]  # fmt: skip


def test_a_conversation_without_an_end_gets_one(tmp_path):
  made = byte_tokenizer(tmp_path, False)
  messages = [{"role": "user", "content": "q"}]
  messages.append({"role": "assistant", "content": "a"})
  document = encode_record(
    {"messages": messages},
    load_tokenizer(tmp_path),
    ChatTemplate(CHATML, {}),
    (2,),
  )
  learned = document["tokens"][document["supervised"]].tolist()
  assert [made.id_to_token(i) for i in learned] == [
    "a", "<|im_end|>", "Ċ", "</s>"
  ]  # fmt: skip


@pytest.mark.parametrize(
  "line, why",
  [
    ("{not json}\n", "not JSON"),
    ("[1, 2]\n", "expected a JSON object"),
    ({"txt": "ants"}, "expected 'text'"),
    ({"text": ""}, "expected 'text'"),
    ({"messages": [{"role": "user", "content": "hi"}]}, "assistant's turn"),
    (
      {"messages": [{"role": r, "content": "9 " * 90} for r in ("user", "assistant")]},
      "nothing to learn within a row of 64 tokens",
    ),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "role should be"),
  ],
)  # fmt: skip
def test_a_malformed_line_is_named_or_counted(tmp_path, start, line, why):
  good = {"text": "2 cats and 3 dogs"}
  path = write_lines(tmp_path / "some.jsonl", [good, good, line, good])
  with pytest.raises(UserError, match=rf"some.jsonl:3: .*{why}"):
    batches(config_of(path), start, count=4)
  found, source = batches(config_of(path, on_error="skip"), start, count=4)
  assert len(found) == 4
  assert list(source.skipped) == [f"{path}:3"]


def test_lines_of_the_world_are_read(tmp_path, start):
  """BOM, CRLF, blank lines, U+2028; numbers count the blank lines."""
  text = json.dumps({"text": "2\u2028cats"}, ensure_ascii=False).encode()
  path = tmp_path / "world.jsonl"
  path.write_bytes(
    b"\xef\xbb\xbf" + text + b"\r\n\n  \n" + text + b"\n{\n\n" + text
  )
  source = Lines([path], "error")
  assert len(source) == 4
  assert [source[i]["where"] for i in range(4)] == [
    f"{path}:{n}" for n in (1, 4, 5, 7)
  ]
  assert [source[i].get("text") for i in range(4)] == [
    "2\u2028cats", "2\u2028cats", None, "2\u2028cats"
  ]  # fmt: skip
  path.write_bytes(b"\x1f\x8b" + text)
  with pytest.raises(UserError, match="found gzip; unpack"):
    Lines([path], "error")


def test_a_stream_without_a_usable_line_is_an_error(tmp_path, start):
  path = write_lines(tmp_path / "half.jsonl", [{"text": "2 cats"}, "x\n"] * 3)
  config = config_of(path, on_error="skip", shuffle=False)
  with pytest.raises(UserError, match=r"its stream \(3 in all\) cannot be"):
    batches(config, start)
  config.data.shards = 1
  assert batches(config, start)


def test_half_a_surrogate_pair_ends_its_line_only(tmp_path, start):
  lines = [{"text": "2 cats"}, '{"text": "cut \\ud83d"}\n'] * 2
  path = write_lines(tmp_path / "some.jsonl", lines)
  _, source = batches(config_of(path, on_error="skip", shards=1), start)
  assert list(source.skipped) == [f"{path}:2", f"{path}:4"]


def test_data_without_a_usable_line_is_an_error(tmp_path, start):
  path = write_lines(tmp_path / "bad.jsonl", ["x\n", "y\n"])
  with pytest.raises(UserError, match="no line of the data could be used"):
    batches(config_of(path, on_error="skip"), start)
  with pytest.raises(UserError, match="expected lines of JSON"):
    batches(config_of(write_lines(tmp_path / "none.jsonl", [])), start)
  with pytest.raises(UserError, match="expected a file of JSON lines"):
    batches(config_of(tmp_path / "absent.jsonl"), start)


def test_a_mask_token_in_the_data_is_an_error(start):
  mask = start.config.mask_id
  source = Arithmetic(0)
  record = {"ids": np.array([5, mask]), "where": "document 7"}
  with pytest.raises(
    UserError, match=f"document 7: holds the mask token {mask}"
  ):
    data._encode(record, source, start, 64)


def test_the_same_batches_for_any_number_of_processes(texts, start):
  config = config_of(texts)
  whole, _ = batches(config, start)
  halves = [batches(config, start, range(i, i + 1))[0] for i in range(2)]
  for n, batch in enumerate(whole):
    for key, value in batch.items():
      both = np.concatenate([half[n][key] for half in halves])
      np.testing.assert_array_equal(both, value)
  seeded = config_of(texts)
  seeded.seed = 1
  other, _ = batches(seeded, start)
  assert not np.array_equal(other[0]["tokens"], whole[0]["tokens"])


def test_an_iterator_goes_on_where_its_state_was_taken(texts, start):
  config = config_of(texts)
  source = data.open_source(
    config.data.source, start.config, config.seed, config.data.on_error
  )
  make = lambda: data.make_batches(config, start, source, range(2))
  first = make()
  for _ in range(2):
    next(first)
  state = json.loads(json.dumps(first.states()))
  second = make()
  second.restore({int(i): x for i, x in state.items()})
  for _ in range(12):  # Beyond the end of the first epoch.
    a, b = next(first), next(second)
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def test_shards_hold_what_the_lines_say(texts, tmp_path, start):
  folder = tmp_path / "shards"
  assert write_shard(texts, None, folder, "error") == 0
  shards, lines = (
    TokenFiles(folder, start.config.vocab_size),
    Lines([texts], "error"),
  )
  assert len(shards) == len(lines) == 40
  for i in (0, 17, 39):
    document = encode_record(
      lines[i], start.tokenizer, None, start.config.eos_ids
    )
    assert shards[i]["ids"].tolist() == document["tokens"].tolist()
  found, _ = batches(config_of(folder), start, count=1)
  assert found[0]["supervised"].any()


def test_data_that_is_too_little_or_has_no_end_is_an_error(texts, start):
  with pytest.raises(UserError, match="has only 40 records"):
    batches(config_of(texts, shards=41), start)
  endless = dataclasses.replace(start.config, eos_ids=())
  with pytest.raises(UserError, match="training needs an eos_token_id"):
    batches(config_of(texts), Start(endless, start.checkpoint, False))


def test_unusable_shards_are_named(texts, tmp_path, start):
  folder = tmp_path / "shards"
  write_shard(texts, None, folder, "error")
  small = dataclasses.replace(start.config, vocab_size=8, mask_id=5)
  assert isinstance(small, ModelConfig)
  wrong = Start(small, start.checkpoint, False)
  with pytest.raises(UserError, match="out of the vocabulary of 8"):
    batches(config_of(folder), wrong)
  ends = folder / "texts.ends.npy"
  np.save(ends, np.load(ends)[:-1])
  with pytest.raises(UserError, match="cut short"):
    TokenFiles(folder, 320)
  with pytest.raises(UserError, match="found none"):
    TokenFiles(tmp_path, 320)
  ends.write_bytes(b"no array")
  with pytest.raises(UserError, match="not a readable shard"):
    TokenFiles(folder, 320)
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="could not be written"):
    write_shard(texts, None, tmp_path / "file" / "shards", "error")
  conversation = write_lines(tmp_path / "chat.jsonl", [{"messages": []}])
  with pytest.raises(UserError, match="shards hold no conversations"):
    write_shard(conversation, None, folder, "error")


def test_arithmetic_never_asks_a_held_out_question():
  source = Arithmetic(0, {"legs": 1.0})
  question = source[3]["messages"][0]["content"]
  assert source[3] == source[3] and source[3] != source[4]
  source._held.add(question)
  assert source[3]["messages"][0]["content"] != question
