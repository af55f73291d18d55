"""Operators with kernels: each folder holds one, its definition in `jax.numpy` and one file a back end.

They see arrays and keys only. Every public function takes `implementation`: None is the first back end that supports
the arguments on the platform that the program is lowered for, "reference" the definition; a named one never falls back.
"""
