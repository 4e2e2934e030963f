"""Four ways to decode one checkpoint, on ragged batches, exactly.

A mode is a `mode.Mode` with two pure functions on `state.DecodeState`: `begin`
(after the prefill) and `step` (one forward pass). Both return the new state
and what it emitted. `driver` runs `step` under `lax.while_loop` for a batch,
or one pass at a time for whoever wants to watch.
"""
