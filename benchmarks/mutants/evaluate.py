"""Breaks of the evaluation: scores, records, likelihoods, the sandbox."""

import functools

from benchmarks.mutants import of_library

_break = functools.partial(of_library, "evaluate")
LIKELY = "tests/evaluate/test_likelihood.py"
JAIL = "tests/evaluate/test_sandbox.py"
RUN = "tests/evaluate/test_run.py"
COMPARE = "tests/evaluate/test_compare.py"
TASKS = "tests/evaluate/test_tasks.py"
MUTATIONS = (
  _break(
    "masks are not weighed by how many there are", "evaluate/likelihood.py",
    "draws = logprob * slots / count", "draws = logprob * 2", LIKELY,
  ),
  _break(
    "a block sees only what is before each slot", "evaluate/forward.py",
    "    ends[row, t.open_from : n] = n\n", "", f"{LIKELY} block_sees",
  ),
  _break(
    "the mask id counts in likelihoods", "evaluate/forward.py",
    "pick(kept, wanted) - jax.nn.logsumexp(kept, -1)",
    "pick(kept, wanted) - jax.nn.logsumexp(logits, -1)", LIKELY,
  ),
  _break(
    "a continuation is read one token late", "evaluate/likelihood.py",
    "at = range(n - 1, len(whole) - 1)", "at = range(n, len(whole))", LIKELY,
  ),
  _break(
    "a program's folder is the only writable one", "evaluate/jail.py",
    "_restrict(target, _RDONLY | _NOSUID | _NODEV, _AT_RECURSIVE)",
    "_restrict(target, _NOSUID | _NODEV, _AT_RECURSIVE)", JAIL,
  ),
  _break(
    "a program that ends early has passed", "evaluate/sandbox.py",
    "return code == 0 and output", "return code == 0", JAIL,
  ),
  _break(
    "programs make namespaces of their own", "evaluate/jail.py",
    'file.write("0")  # The', 'file.write("99")  # The', JAIL,
  ),
  _break(
    "as many processes as it likes", "evaluate/sandbox.py",
    '**({"RLIMIT_NPROC": PROCESSES} if isolated else {}),',
    '**({"RLIMIT_NPROC": 4000} if isolated else {}),', f"{JAIL} bad_program",
  ),
  _break(
    "a broken jail is a wrong answer", "evaluate/sandbox.py",
    "if isolated and code == _NO_JAIL and (why := missing()):",
    "if False and (why := missing()):", JAIL,
  ),
  _break(
    "the first match is the answer", "evaluate/score.py",
    'found = (match.group(1) if pattern.groups else match.group()) or ""',
    'found = found or match.group(1) if pattern.groups else match.group()',
    TASKS,
  ),
  _break(
    "a torn line is kept", "evaluate/record.py",
    "        self._file.truncate(end)\n", "", f"{RUN} stopped",
  ),
  _break(
    "a run goes on with other settings", "evaluate/record.py",
    "  if differ := differences(found, mine):", "  if differ := []:", RUN,
  ),
  _break(
    "questions with a sample are decoded again", "evaluate/run.py",
    "if q.id not in done]", "if q.id]", RUN,
  ),
  _break(
    "differences are A less B", "evaluate/compare.py",
    'scores = [b[i]["score"] - a[i]["score"] for i in common]',
    'scores = [a[i]["score"] - b[i]["score"] for i in common]', COMPARE,
  ),
  _break(
    "one draft more was judged right", "evaluate/traced.py",
    'right = entry["accepted"] - 1', 'right = entry["accepted"]', COMPARE,
  ),
  _break(
    "the interval is Wald's", "evaluate/statistics.py",
    "half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count))",
    "half = _Z * math.sqrt(share * (1 - share) / count)", COMPARE,
  ),
  _break(
    "more steps than slots", "evaluate/sweep.py",
    'if how.get("steps_per_block", 0) > (', "if 0 > (", TASKS,
  ),
  _break(
    "the oracle reveals all that matches", "evaluate/speed_of_light.py",
    "count = self._largest(canvas, target, slots)", "count = len(slots)",
    "tests/evaluate/test_speed_of_light.py astray",
  ),
  _break(
    "the oracle reveals one slot a pass", "evaluate/speed_of_light.py",
    "count = self._largest(canvas, target, slots)", "count = 1",
    "tests/evaluate/test_speed_of_light.py astray",
  ),
  _break(
    "a floor without keys and values", "evaluate/bench.py",
    "return weights + case.batch * keys,", "return weights + 0 * keys,",
    "tests/evaluate/test_bench.py floor",
  ),
)  # fmt: skip
