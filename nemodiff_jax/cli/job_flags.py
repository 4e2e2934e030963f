"""Flags of the jobs, on one machine and on many."""

from absl import flags

PROMPTS_FILE = flags.DEFINE_string(
  "prompts_file",
  None,
  "JSON Lines with a prompt and its settings per line; '-': standard input."
  " nemodiff-batch: a file of JSON Lines or .parquet, or a folder of one kind of"
  " them, on a file system that all machines share.",
)
OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "JSON Lines file to append results to. Default: standard output."
  " nemodiff-batch: folder of the part files, on a file system that all machines"
  " share.",
)
