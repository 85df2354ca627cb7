"""Presents plans and measurements as text, JSON, HTML and pictures. Never imports torch."""
