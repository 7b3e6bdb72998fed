"""Wan 2.1 / 2.2 video models: pure-torch models, weights, samplers and stages.

Importable without ComfyUI and without CUDA. Import what you need from the submodules; this file imports nothing so
that ``import wan_core`` costs nothing.
"""
