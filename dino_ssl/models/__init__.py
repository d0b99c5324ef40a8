"""Backbones and the projection head."""
