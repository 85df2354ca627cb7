"""What is known of a single call: its kind, FLOPs and workspace, and whether it may run again."""
