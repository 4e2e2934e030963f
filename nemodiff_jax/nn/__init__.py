"""The model: configuration, layers, cache, and the range-attention stack.

One axis alphabet in every annotation and einsum of the project:

  B batch          T query positions    S key positions
  N query heads    K key/value heads    G = N / K
  H head dim       D model width        F ffn width
  V vocabulary     L layers             C block length
"""
