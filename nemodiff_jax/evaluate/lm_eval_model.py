"""lm_eval's view of a checkpoint: the registered model `nemodiff`.

Likelihoods are exact and by the ar head, whatever the mode; replies are decoded
in the mode. `--use_cache` of lm_eval does not know the mode: use one path per
configuration, or none.
"""

from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from nemodiff_jax import api
from nemodiff_jax.errors import UserError
from nemodiff_jax.evaluate import decoding
from nemodiff_jax.evaluate.likelihood import score_ar

MAX_NEW_TOKENS = 256
_DECODE = ("block_length", "threshold", "steps_per_block", "draft_threshold")


@register_model("nemodiff")
class NemoDiff(TemplateLM):
  """A model of this library.

  Attributes:
    outputs: of every generated reply, by (task, document, repeat).
  """

  def __init__(
    self,
    checkpoint: str | None = None,
    mode: str = "ar",
    model: api.Model | None = None,
    batch_size: int | str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    dtype: str | None = None,
    lora: str | None = None,
    quantize: str = "none",
    attention: str | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    max_batch_size: int | None = None,
    device: str | None = None,
    **settings: Any,
  ):
    """Loads a checkpoint, or takes a loaded `model`.

    `settings` are block_length, threshold, steps_per_block and draft_threshold;
    max_batch_size and device, which lm_eval gives, have no effect.

    Raises:
      UserError: an argument that is none of these, or batch_size='auto'.
    """
    super().__init__()
    del max_batch_size, device
    if unknown := set(settings) - set(_DECODE):
      raise UserError(
        f"model_args has no {sorted(unknown)}; it takes checkpoint, mode,"
        f" dtype, lora, quantize, attention, max_new_tokens, temperature, seed,"
        f" {', '.join(_DECODE)}."
      )
    try:
      self._size = int(batch_size or api.BATCH_SIZE)
    except ValueError as e:
      raise UserError(
        f"batch_size should be a number, got {batch_size!r}."
      ) from e
    self.model = model or api.load(
      checkpoint, dtype=dtype, lora=lora, quantize=quantize, attention=attention
    )
    if self.model.tokenizer is None:
      raise UserError("lm_eval needs a tokenizer; this checkpoint has none.")
    self._row = {
      "max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed
    }  # fmt: skip
    self._mode, self._settings = mode, settings
    api.split_settings(self.model, mode, dict(settings))  # Checked now.
    self.outputs: dict[tuple[Any, ...], api.DecodeOutput] = {}
    self._rendered = False  # Whether texts come from the chat template.

  @property
  def eot_token_id(self) -> int:
    """The first id that ends a text."""
    return self.model.config.eos_ids[0]

  @property
  def prefix_token_id(self) -> int:
    """What an empty context becomes: BOS, else the end of a text."""
    bos = self.model.config.bos_id
    return self.eot_token_id if bos is None else bos

  @property
  def tokenizer_name(self) -> str:
    """A key for lm_eval's cache of requests."""
    return f"nemodiff-{self.model.config.vocab_size}"

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
    """Ids of a text; without the BOS in front where special ids are off.

    Once a template was applied, texts are what it rendered: control tokens by
    name, none added.
    """
    del kwargs
    tokenizer = self.model.tokenizer
    if not string or tokenizer is None:
      return []
    if self._rendered:
      return list(tokenizer.encode_rendered(string))
    ids = list(tokenizer.encode(string))
    if add_special_tokens is False and ids[:1] == [self.model.config.bos_id]:
      return ids[1:]
    return ids

  def _loglikelihood_tokens(
    self, requests: Any, disable_tqdm: bool = False, **kwargs: Any
  ) -> list[tuple[float, bool]]:
    pairs = [(context, continuation) for _, context, continuation in requests]
    scored = score_ar(self.model, pairs, self._size)
    return [(s.total, s.greedy) for s in scored]

  def loglikelihood_rolling(
    self, requests: Any, disable_tqdm: bool = False
  ) -> list[float]:
    """Log-likelihoods of whole texts, in windows that do not overlap."""
    found = []
    for (text,) in [r.args for r in requests]:
      windows = get_rolling_token_windows(
        token_list=self.tok_encode(text, add_special_tokens=False),
        prefix_token=self.prefix_token_id,
        max_seq_len=self.model.config.max_positions,
        context_len=1,
      )
      pairs = [make_disjoint_window(w) for w in windows]
      scored = score_ar(self.model, pairs, self._size)
      found.append(sum(s.total for s in scored))
    return found

  def generate_until(
    self, requests: Any, disable_tqdm: bool = False
  ) -> list[str]:
    """Replies; gen_kwargs may name the mode, its settings and a row's."""
    groups: dict[str, list[Any]] = {}
    for r in requests:
      groups.setdefault(repr(sorted(r.args[1].items())), []).append(r)
    for part in groups.values():
      mode, settings = self._split(dict(part[0].args[1]))
      row, config = api.split_settings(self.model, mode, settings)
      asked = [(str(_key(r)), self.tok_encode(r.args[0])) for r in part]
      prompts = decoding.prepare(self.model, asked, row)
      outputs = decoding.decode(self.model, config, prompts, row, self._size)
      for r, output in zip(part, outputs, strict=True):
        self.outputs[_key(r)] = output
    return [self.outputs[_key(r)].text or "" for r in requests]

  def _split(self, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Mode and settings from lm_eval's words for them."""
    until = given.pop("until", None) or []
    sampled = given.pop("do_sample", None)
    most = [given.pop(k, None) for k in ("max_gen_toks", "max_new_tokens")]
    mode = given.pop("mode", self._mode)
    settings = {**self._row, **self._settings, **given}
    if sampled is False:
      settings["temperature"] = 0.0
    settings["temperature"] = float(settings["temperature"])
    if (chosen := next((m for m in most if m is not None), None)) is not None:
      settings["max_new_tokens"] = chosen
    settings["stop"] = [until] if isinstance(until, str) else list(until)
    return mode, settings

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """The conversation as the checkpoint's template writes it."""
    if self.model.template is None:
      raise UserError("this checkpoint has no chat template.")
    self._rendered = True
    return self.model.template.render(
      chat_history, generation=add_generation_prompt
    )

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    """What lm_eval's record says of the template."""
    asked = bool(chat_template) and self.model.template is not None
    return "the checkpoint's own" if asked else None


def _key(request: Any) -> tuple[Any, ...]:
  return request.task_name, request.doc_id, request.idx
