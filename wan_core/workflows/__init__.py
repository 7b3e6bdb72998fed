"""Shared ComfyUI workflows -> the same graph on the nodes of this pack.

Importable without ComfyUI and without PyTorch: ``python3 -m wan_core.workflows FILE`` runs with any Python from 3.10.
"""
