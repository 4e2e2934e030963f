"""What XLA's CPU compiler is told; compilers of other devices ignore it.

By default it hands matrix products and what surrounds them to YNNPACK. A pass
of 16 tokens is faster with Eigen's products, a training step with YNNPACK's
products alone (jax 0.11.2, two AVX2 cores).
"""

DECODING = {"xla_cpu_experimental_ynn_fusion_type": ""}
TRAINING = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
