"""Breaks of decoding, texts, files and jobs; see `benchmarks.mutations`."""

from benchmarks.mutants import Mutation, checkpoints, fleet, jobs, text

DECODE = "nemodiff_jax/decode/"
TESTS = "tests/decode/test_"


def _decode(what: str, file: str, old: str, new: str, tests: str) -> Mutation:
  """Of the decoder: `tests` is a file of tests/decode, and a choice of it."""
  name, _, choice = tests.partition(" ")
  chosen = ("-k", choice) if choice else ()
  return Mutation(what, DECODE + file, old, new, (f"{TESTS}{name}.py", *chosen))


DECODING = (
  _decode(
    "no room for a draft", "rows.py",
    "size = longest + max_new_tokens + block",
    "size = longest + max_new_tokens", "memory capacity_is",
  ),
  _decode(
    "capacity from the prompt's bucket", "rows.py",
    "size = longest + max_new_tokens + block",
    "size = bucket(longest, 16) + max_new_tokens + block",
    "memory capacity_is",
  ),
  _decode(
    "ar has room for drafts", "ar.py",
    "  uses_blocks=False,\n", "", "memory costs_ar_nothing",
  ),
  _decode(
    "weak phase in linear_spec", "linear_spec.py",
    "DRAFT).astype(jnp.int32)", "DRAFT)", "programs one_program",
  ),
  _decode(
    "a threshold beside steps", "config.py",
    "DEFAULT_THRESHOLD if steps_per_block is None else None",
    "DEFAULT_THRESHOLD", "limits defaults_of_a_run",
  ),
  _decode(
    "quadratic_spec takes the block size", "config.py",
    "block_length = own or model.block_size",
    "block_length = model.block_size", "limits defaults_of_a_run",
  ),
  _decode(
    "no draft_threshold", "config.py",
    "steps_per_block, draft_threshold, widths\n",
    "steps_per_block, 0.0, widths\n",
    "limits defaults_of_a_run",
  ),
  _decode(
    "a full model refused", "config.py",
    "len(ids) + row.max_new_tokens > limit",
    "len(ids) + row.max_new_tokens >= limit", "limits fill_the_model",
  ),
  _decode(
    "a mask may end a row", "config.py",
    "model.mask_id is not None and model.mask_id in tokens",
    "False", "limits mask_ends_no_row",
  ),
  _decode(
    "20 logprobs refused", "config.py",
    "self.logprobs > MAX_LOGPROBS", "self.logprobs >= MAX_LOGPROBS",
    "limits inclusive",
  ),
  _decode(
    "top_p one token more", "sampling.py",
    "jnp.ceil((top_p * total - above) / tie)",
    "jnp.floor((top_p * total - above) / tie) + 1", "limits very_edge",
  ),
  _decode(
    "min_p without its own edge", "sampling.py",
    "(mass >= column(rows.min_p))", "(mass > column(rows.min_p))",
    "limits very_edge",
  ),
  _decode(
    "0 and -0 are not equal", "sampling.py",
    "jnp.where(x == 0, 0.0, x)", "x", "rules filters_keep",
  ),
  _decode(
    "the halving stops a step early", "sampling.py",
    "high - (high - low) // 2", "low + (high - low) // 2", "rules filters_keep",
  ),
  _decode(
    "rows that are done are halved further", "sampling.py",
    "open_ = holds(middle), low < high", "open_ = holds(middle), True",
    "rules each_alone",
  ),
  _decode(
    "top_p of all, not of what top_k kept", "sampling.py",
    "total = above + spare.astype(mass.dtype) * tie",
    "total = mass.sum(-1, keepdims=True)", "rules filters_keep",
  ),
  _decode(
    "ties beyond top_k", "sampling.py",
    "tied & (jnp.cumsum(tied, -1, dtype=jnp.int32) <= taken)", "tied",
    "limits equal_logits",
  ),
  _decode(
    "tiny temperatures overflow", "sampling.py",
    "_LEAST_TEMPERATURE = 1e-6", "_LEAST_TEMPERATURE = 1e-45",
    "limits tiny_temperature",
  ),
  _decode(
    "the mask id is a candidate", "sampling.py",
    "jnp.where(ids == decoder.mask_id, -jnp.inf, logits)", "logits",
    "rules never_chooses_it",
  ),
  _decode(
    "confidence without the mask", "sampling.py",
    "return picked, confidence(logits, picked.token)",
    "return picked, confidence(logits.at[..., decoder.mask_id].set(-jnp.inf),"
    " picked.token)",
    "modes diffusion_matches_twin",
  ),
  _decode(
    "noise by JAX's default generator", "sampling.py",
    'wrap_key_data(words, impl="threefry2x32")', "wrap_key_data(words)",
    "programs noise_is_threefry",
  ),
  _decode(
    "a forced token under the filter", "sampling.py",
    "kept = jnp.where(forced[..., None], scaled, kept)", "del scaled",
    "thinking own_logprob",
  ),
  _decode(
    "threshold not met exactly", "commit.py",
    "confidence >= threshold", "confidence > threshold", "limits at_the_threshold",
  ),
  _decode(
    "one slot more in a pass", "commit.py",
    "turn < masked % steps", "turn <= masked % steps", "rules schedule",
  ),
  _decode(
    "one draft too many accepted", "verify.py",
    "return (going & (predicted == following), count), None",
    "return (going, count), None", "rules accept",
  ),
  _decode(
    "tokens behind the output are thoughts", "emit.py",
    "(ends_thought & (slot < kept[:, None])).any(1)", "ends_thought.any(1)",
    "rules behind_the_output",
  ),
  _decode(
    "closed thinking is never opened again", "rows.py",
    "    if token == row.start_think_token_id:\n      break\n", "",
    "thinking closed_thinking",
  ),
  _decode(
    "budgets ignore the prompt", "rows.py",
    "    if token == end:\n      return -1, -1\n", "",
    "thinking closed_thinking",
  ),
  _decode(
    "the drafter works in diffusion", "diffusion.py",
    "block_pass(decoder, weights, state, commit)",
    "block_pass(decoder, weights, state, commit, weights.lora)",
    "programs alone",
  ),
  _decode(
    "memory counts one copy of the logits", "memory.py",
    "copies = 2 if mode.masked else 1", "copies = 1",
    "memory what_is_compiled",
  ),
  _decode(
    "memory of activations halved", "memory.py",
    "(4 * model.hidden_size + 3 * ffn)", "(2 * model.hidden_size + ffn)",
    "memory what_is_compiled",
  ),
  _decode(
    "memory forgets the log-probabilities", "memory.py",
    "return 8 + (4 + 8 * max(top) if top else 0)", "return 8",
    "memory what_is_compiled",
  ),
)  # fmt: skip

MUTATIONS = (
  *DECODING,
  *checkpoints.MUTATIONS,
  *fleet.MUTATIONS,
  *jobs.MUTATIONS,
  *text.MUTATIONS,
)
