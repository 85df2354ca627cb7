"""What tells: text, JSON, HTML and pictures of a plan. Nothing here imports torch."""
