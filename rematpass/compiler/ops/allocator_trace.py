"""Moved to ``devices/``; this file goes once its callers have followed."""

from rematpass.compiler.devices import record as record
from rematpass.compiler.devices.allocator_trace import AllocatedBytes as AllocatedBytes
from rematpass.compiler.devices.allocator_trace import AllocationEvent as Event  # noqa: F401
from rematpass.compiler.devices.allocator_trace import live_bytes as live_bytes
