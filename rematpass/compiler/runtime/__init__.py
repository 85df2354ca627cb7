"""What runs beside a compiled step: warnings and the check of its peak."""
