"""What XLA's CPU compiler is told; compilers of other devices ignore it.

By default it hands matrix products, reductions and what surrounds them to
YNNPACK. When decoding, its reductions alone are worth having (a peak of scores
takes 3 us, not 24): a pass of 16 tokens is faster with Eigen's products. A
training step is faster with YNNPACK's products alone (jax 0.11.2).
"""

DECODING = {
  "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"
}
TRAINING = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
