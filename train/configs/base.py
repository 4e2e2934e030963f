"""Every key of a run, with its comment: the schema that the others change.

A configuration of one's own begins like those beside it:

    c = base.get_config()
    c.update({"steps": 1000, "optimizer": {"lr": 1e-4}})
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
  """The published recipe of joint training, without a model or data."""
  c = ConfigDict()
  # 'joint': causal and diffusion losses; 'drafter': the LoRA on o_proj.
  c.objective = "joint"
  # Of weights, order of the data and noise.
  c.seed = 0
  # Optimiser steps of the run. May change at a resume.
  c.steps = 10_000
  # Rows per step, over all devices and microbatches.
  c.batch_size = 512
  # Microbatches in which a step's rows are computed, to save memory.
  c.accumulate = 8
  # Clean tokens per row: a multiple of every block length.
  c.length = 4096
  # Slots of noisy blocks per row; blocks beyond it are left out.
  c.noisy_length = 4096
  # Block lengths; each step draws one. Documents start at multiples of the
  # largest, and each divides it.
  c.block_lengths = (32,)
  # Of the computation; masters, moments and losses are float32.
  c.dtype = "bfloat16"
  # What the backward pass keeps: 'none' (all), 'dots' or 'full' (least).
  c.remat = "full"
  # Weight of the causal loss.
  c.ar_weight = 1.0
  # Weight of the diffusion loss; 0 leaves the noisy half out.
  c.diffusion_weight = 0.3
  # The diffusion loss is divided by the 'supervised' slots, the 'masked' ones,
  # or 'joint': both losses by masked + supervised together.
  c.count = "supervised"
  # Which tokens are hard: 'none', or 'digits'.
  c.hard = "none"
  # Loss weight of hard tokens, in both losses.
  c.hard_weight = 1.0
  # Positions of a row whose logits are in memory at a time.
  c.chunk = 1024
  # Steps between lines of metrics.
  c.log_every = 20
  # Consecutive bad steps (loss or gradient not finite) that stop the run.
  c.max_bad_steps = 10

  c.corruption = ConfigDict()
  # Smallest masking probability: p = (1 - eps) t + eps.
  c.corruption.eps = 1e-3
  # One t ~ U[t_min, 1] per row.
  c.corruption.t_min = 0.0
  # Share of rows of which every slot is masked, as in drafting.
  c.corruption.draft = 0.0
  # Share of rows of which only hard tokens are masked.
  c.corruption.hard_last = 0.0
  # Chance that slot 0 of a row's blocks is given.
  c.corruption.known_first = 0.0
  # The same in rows corrupted as a draft.
  c.corruption.draft_known_first = 0.0
  # Blocks begin at multiples from the 'document' start or its 'answer'.
  c.corruption.edges = "document"
  # Share of documents whose blocks begin up to C - 1 tokens earlier.
  c.corruption.shift = 0.0
  # Whether EOS behind a document, to the end of its block, is learned; those
  # slots are masked like the others either way.
  c.corruption.fill = False

  c.drafter = ConfigDict()
  # R of the LoRA.
  c.drafter.rank = 128
  # The LoRA's term is alpha / R * B A x.
  c.drafter.alpha = 512.0
  # Of draft and verifier in the distillation.
  c.drafter.temperature = 3.0
  # Likeliest tokens of each that are compared.
  c.drafter.top = 200
  # Share of slots whose draft is sampled; the rest are greedy.
  c.drafter.sampled = 0.9
  # Blocks of a row whose logits are in memory at a time.
  c.drafter.blocks = 8

  c.optimizer = ConfigDict()
  # 'adamw', or 'muon' on the layers' matrices with Adam elsewhere.
  c.optimizer.name = "adamw"
  # Learning rate after the warm-up.
  c.optimizer.lr = 1e-5
  # Learning rate of the last step. May change at a resume.
  c.optimizer.final_lr = 3e-6
  # Steps of linear warm-up; the first step has lr / warmup.
  c.optimizer.warmup = 50
  # Share of the steps, at the end, in which the rate decays. May change.
  c.optimizer.decay = 0.2
  # Of matrices and embeddings; norms are never decayed.
  c.optimizer.weight_decay = 0.1
  # Largest global norm of the gradient.
  c.optimizer.clip = 1.0
  # Adam's first decay.
  c.optimizer.b1 = 0.9
  # Adam's second decay.
  c.optimizer.b2 = 0.95
  # Added to Adam's root.
  c.optimizer.eps = 1e-8

  c.mesh = ConfigDict()
  # Devices along which the model is copied; -1: the rest.
  c.mesh.data = 1
  # Devices over which rows and parameters are split.
  c.mesh.fsdp = -1
  # Devices over which heads, ffn and vocabulary are split.
  c.mesh.tensor = 1

  c.model = ConfigDict()
  # Id of the mask; None: the checkpoint's.
  c.model.mask_id = placeholder(int)
  # Default block length in decoding; None: the checkpoint's.
  c.model.block_size = placeholder(int)
  # Longest text in decoding; None: the checkpoint's.
  c.model.max_positions = placeholder(int)
  # Of a new model (no --init_from), like all below.
  c.model.vocab_size = 320
  # Width D.
  c.model.hidden_size = 192
  # Width F of the ffn.
  c.model.intermediate_size = 576
  # Layers.
  c.model.num_layers = 5
  # Query heads.
  c.model.num_heads = 6
  # Key and value heads.
  c.model.num_kv_heads = 2
  # Width of a head.
  c.model.head_dim = 32

  c.data = ConfigDict()
  # JSONL files with commas between, a folder that train.make_shards wrote, or
  # 'arithmetic' ('arithmetic:herd': one family of it).
  c.data.source = ""
  # Streams the data is cut into: a multiple of the processes; divides
  # batch_size. At a resume any divisor: the run keeps its streams.
  c.data.shards = 64
  # Whether documents share rows. If not, a row is one document and the rest of
  # it fill; attention then needs no starts of documents.
  c.data.pack = True
  # Rows that are packed at a time.
  c.data.bins = 64
  # Whether the order is drawn from the seed, anew in every epoch.
  c.data.shuffle = True
  # A line that cannot be used: 'error', or 'skip' (counted).
  c.data.on_error = "error"

  c.validation = ConfigDict()
  # Held-out data, as data.source; '': none. 'arithmetic': its held-out part.
  c.validation.source = ""
  # Steps between its losses, which are also taken at the end.
  c.validation.every = 500
  # Batches that are read once and kept; each of batch_size / accumulate rows.
  c.validation.batches = 8

  c.eval = ConfigDict()
  # Steps between decodings of questions; 0: none.
  c.eval.every = 0
  # 'arithmetic', or a JSONL file of messages (or prompt) and answer.
  c.eval.source = ""
  # Questions (arithmetic: per family).
  c.eval.questions = 64
  # Limit of each answer.
  c.eval.max_new_tokens = 256
  # Decoding modes that are tried.
  c.eval.modes = ("ar", "diffusion", "linear_spec", "quadratic_spec")

  c.checkpoint = ConfigDict()
  # Steps between checkpoints.
  c.checkpoint.every = 1_000
  # Newest checkpoints that are kept.
  c.checkpoint.keep = 3
  # Metric of the evaluation whose best checkpoint is kept too; '': none.
  c.checkpoint.best = ""
  return c
