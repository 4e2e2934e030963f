"""Breaks of training; see `benchmarks.mutations`."""

from benchmarks.mutants import Mutation

_OPTIMIZER = ("tests/train/test_optimizer.py",)
_CORRUPTION = ("tests/train/test_corruption.py",)
_FLOPS = ("tests/train/test_flops.py",)
_DATA = ("tests/train/test_data.py",)
_OBJECTIVE = ("tests/train/test_objective.py", "-k", "float64 or alike")
_DRAFTER = ("tests/train/test_drafter.py", "-k", "export or scale")
_RECORD = (
  "tests/train/test_resume.py", "-k", "may or later or place or streams",
)  # fmt: skip
_FSDP = ("tests/train/test_fsdp.py",)
_TOKAMAX = ("tests/pallas_kernels/test_tokamax.py", "-k", "gradients")
_GUARD = ("tests/train/test_optimizer.py", "-k", "bad_step")
_CHUNKS = (
  "tests/pallas_kernels/test_range_attention.py", "-k", "keys_per or wide",
)  # fmt: skip
_SETTINGS = ("tests/train/test_run.py", "-k", "cannot_be_are_errors")


def _break(what, file, old, new, tests):
  return Mutation(what, f"train/{file}.py", old, new, tests)


MUTATIONS: tuple[Mutation, ...] = (
  _break(
    "norms are decayed", "optimizer",
    'not name.endswith("norm/weight")', "True", _OPTIMIZER,
  ),
  _break(
    "nothing is clipped", "optimizer",
    "optax.clip_by_global_norm(c.clip)", "optax.identity()", _OPTIMIZER,
  ),
  _break(
    "final_lr is ignored", "optimizer",
    "c.final_lr * (1 - left)", "c.lr * (1 - left)", _OPTIMIZER,
  ),
  _break(
    "the first step has no rate", "optimizer",
    "(count + 1) / max(1, c.warmup)", "count / max(1, c.warmup)", _OPTIMIZER,
  ),
  _break(
    "the decay ends a step late", "optimizer",
    "(steps - 1 - count) / down", "(steps - count) / down", _OPTIMIZER,
  ),
  _break(
    "muon decays only its matrices", "optimizer",
    "u - share * p if here else u",
    "u - share * p if here and p.ndim == 3 else u", _OPTIMIZER,
  ),
  _break(
    "Adam on the layers' matrices under muon", "optimizer",
    'matrix if "layers" in name and x.ndim == 3', 'matrix if "x" == name',
    _OPTIMIZER,
  ),
  _break(
    "Adam's second moment has the first's decay", "optimizer",
    "rate, c.b1, c.b2, c.eps, weight", "rate, c.b1, c.b1, c.eps, weight",
    _OPTIMIZER,
  ),
  _break(
    "eps is no smallest probability", "corruption",
    "(1 - recipe.eps) * t + recipe.eps", "t", _CORRUPTION,
  ),
  _break(
    "t_min is ignored", "corruption",
    "recipe.t_min + (1 - recipe.t_min) * level", "level", _CORRUPTION,
  ),
  _break(
    "drafts are noised uniformly", "corruption",
    "p = jnp.where(draft, 1.0, (1", "p = jnp.where(draft, t, (1", _CORRUPTION,
  ),
  _break(
    "hard-last masks the easy tokens", "corruption",
    "given = easy & ~hard[target]", "given = easy & hard[target]", _CORRUPTION,
  ),
  _break(
    "hard-last rows are one in one", "corruption",
    "(way >= 1 - recipe.hard_last)", "(way >= recipe.hard_last)", _CORRUPTION,
  ),
  _break(
    "drafts know slot 0 as often as others", "corruption",
    "draft, recipe.draft_known_first, recipe.known_first",
    "draft, recipe.known_first, recipe.known_first", _CORRUPTION,
  ),
  _break(
    "all slots are given, not slot 0", "corruption",
    "(jnp.arange(target.shape[1]) == 0)[None]",
    "(jnp.arange(target.shape[1]) >= 0)[None]", _CORRUPTION,
  ),
  _break(
    "blocks are never shifted", "corruption",
    "(size,)) < recipe.shift", "(size,)) < 0", _CORRUPTION,
  ),
  _break(
    "blocks begin at the document always", "corruption",
    'if recipe.edges == "answer":', 'if recipe.edges == "start":', _CORRUPTION,
  ),
  _break(
    "slots behind a text are given", "corruption",
    "learned | behind, recipe, hard", "learned, recipe, hard", _CORRUPTION,
  ),
  _break(
    "slots behind a text are learned without fill", "corruption",
    "learned = inside & supervised[safe]",
    "learned = inside & supervised[safe] | behind", _CORRUPTION,
  ),
  _break(
    "fill behind a text that has no end", "corruption",
    "filled = behind & jnp.isin(tokens[last], jnp.array(canvas.eos_ids))",
    "filled = behind", _CORRUPTION,
  ),
  _break(
    "one end of text of several fills", "corruption",
    "jnp.array(canvas.eos_ids))", "jnp.array(canvas.eos_ids[:1]))", _CORRUPTION,
  ),
  _break(
    "AR predicts across documents", "losses",
    "learned = same & shift(rows.supervised)",
    "learned = shift(rows.supervised)", _OBJECTIVE,
  ),
  _break(
    "hard tokens raise the diffusion loss", "losses",
    "supervised = masks.counts.sum()",
    "supervised = (masks.counts > 0).sum().astype(jnp.float32)", _OBJECTIVE,
  ),
  _break(
    "hard_weight is ignored", "losses",
    "jnp.float32(hard_weight), 1.0)", "jnp.float32(1), 1.0)", _OBJECTIVE,
  ),
  _break(
    "no 1/p", "losses",
    "counts / jnp.where(noisy.masked, noisy.mask_prob, 1.0)", "counts",
    _OBJECTIVE,
  ),
  _break(
    "MFU of the forward pass only", "flops",
    "return 3 * (2 * matrices", "return (2 * matrices", _FLOPS,
  ),
  _break(
    "MFU without the head", "flops",
    "matrices += c.hidden_size * c.vocab_size", "pass", _FLOPS,
  ),
  _break(
    "attention of rows, not of documents", "losses",
    "(index[None] - rows.begins + 1)", "(index[None] + 0 * rows.begins + 1)",
    _FLOPS,
  ),
  _break(
    "MFU of one device's peak", "report",
    "(peak * jax.device_count())", "peak", _FLOPS,
  ),
  _break(
    "bad steps count in the means", "report",
    "if finite(m)]", "]", _FLOPS,
  ),
  _break(
    "the drafter is evaluated without alpha / R", "loop",
    "scale = config.drafter.alpha / config.drafter.rank", "scale = 1.0",
    _DRAFTER,
  ),
  _break(
    "exported in float32", "export",
    "dtype = jax.numpy.bfloat16", "dtype = jax.numpy.float32", _DRAFTER,
  ),
  _break(
    "an export is written into what is there", "export",
    "with new_folder(folder, overwrite=True) as new:",
    "new = folder\n    if True:", _DRAFTER,
  ),
  _break(
    "a turn's end becomes the first end of text", "documents",
    "parts: list[Any] = [(ids, learned)]",
    "parts: list[Any] = [([eos_ids[0] if i in eos_ids else i for i in ids],"
    " learned)]", _DATA,
  ),
  _break(
    "a turn's end is not learned", "documents",
    "range(own[0], end + 1)", "range(own[0], end)", _DATA,
  ),
  _break(
    "what follows a turn's end is learned", "documents",
    "own if end is None else range(own[0], end + 1)", "own", _DATA,
  ),
  _break(
    "blank lines are not counted", "sources",
    "return at + 1 + int(", "return at + 1 + 0 * int(", _DATA,
  ),
  _break(
    "a stream without a usable line waits", "data",
    "self._skipped >= 2 * self._size", "self._skipped < 0", _DATA,
  ),
  _break(
    "streams overlap", "data",
    "records[i::count]", "records[0::count]", _DATA,
  ),
  _break(
    "every stream goes on as the first", "data",
    "stream.set_state(states[i])", "stream.set_state(states[min(states)])",
    _RECORD,
  ),
  _break(
    "another seed is the same run", "record",
    '  "steps",\n', '  "steps",\n  "seed",\n', _RECORD,
  ),
  _break(
    "streams may be any number at a resume", "record",
    "if streams % shards:", "if streams < 0:", _RECORD,
  ),
  _break(
    "keys of later versions are another run's", "record",
    'flatten(base.get_config()) | found["config"]', 'found["config"]', _RECORD,
  ),
  _break(
    "a warm-up longer than the run", "settings",
    "config.optimizer.warmup > config.steps", "config.steps < 0", _SETTINGS,
  ),
  _break(
    "shares of more than all rows", "settings",
    "c.draft + c.hard_last > 1:", "c.draft + c.hard_last > 9:", _SETTINGS,
  ),
  _break(
    "numbers out of their range", "settings",
    "if not (above and below):", "if not (above or below):", _SETTINGS,
  ),
)  # fmt: skip
MUTATIONS += (
  _break(
    "kernel gradients rounded to bfloat16", "stack",
    "preferred_element_type=dtype,", "preferred_element_type=x.dtype,",
    ("tests/train/test_fsdp.py", "-k", "rounded"),
  ),
  _break(
    "activations without a constraint", "mesh",
    "  if mesh is None or mesh.size == 1:\n    return x\n",
    "  if mesh is None or mesh.size > 0:\n    return x\n", _FSDP,
  ),
  _break(
    "the head gathered in every chunk", "losses",
    "gathered = whole(mesh, HEAD, kernel.astype(hidden.dtype))",
    "gathered = kernel.astype(hidden.dtype)", _FSDP,
  ),
  Mutation(
    "the gradient of lse left out",
    "pallas_kernels/range_attention/tokamax.py",
    "delta = delta - jnp.where(empty, 0.0, d_lse)",
    "delta = delta - jnp.where(empty, 0.0, 0.0 * d_lse)", _TOKAMAX,
  ),
  Mutation(
    "an empty range with a peak of -inf in the backward",
    "pallas_kernels/range_attention/tokamax.py",
    "peak = jnp.where(empty, 0.0, lse)", "peak = lse", _TOKAMAX,
  ),
  _break(
    "a bad step moves parameters", "step",
    "params=keep(params, state.params)", "params=params", _GUARD,
  ),
  _break(
    "a bad step moves moments", "step",
    "opt_state=keep(opt_state, state.opt_state)", "opt_state=opt_state", _GUARD,
  ),
  Mutation(
    "training reads keys as decoding does", "pallas_kernels/range_attention/api.py",
    "training = k_start is not None", "training = False", _CHUNKS,
  ),
  Mutation(
    "decoding reads keys as training does", "pallas_kernels/range_attention/api.py",
    "training = k_start is not None", "training = True", _CHUNKS,
  ),
  Mutation(
    "turns add no gradients of keys",
    "pallas_kernels/range_attention/backward.py",
    "return jax.tree.map(jnp.add, total, tuple(more)), dq",
    "return tuple(more), dq", _CHUNKS,
  ),
)  # fmt: skip
_PLACES = ("tests/train/test_mesh.py", "-k", "process_places or block_length")
MUTATIONS += (
  _break(
    "a process numbers its rows from 0", "data",
    "first += each * jax.process_index()", "first += 0 * each", _PLACES,
  ),
  _break(
    "every step has the first block length", "step",
    "lengths[rng.integers(len(lengths))]", "lengths[0]", _PLACES,
  ),
  _break(
    "a gradient through the drafter's lam", "drafter",
    "lam = jnp.exp(-0.5 * lax.stop_gradient(jnp.minimum(p, q).sum(-1)))",
    "lam = jnp.exp(-0.5 * jnp.minimum(p, q).sum(-1))",
    ("tests/train/test_drafter.py", "-k", "share_of_kl"),
  ),
)  # fmt: skip
